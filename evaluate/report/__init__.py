"""The report on a set of directions: static pages for a browser, opened from the disk, that show it in full.

``report_data`` says what pages show; ``logit_histograms``, ``similarity_map``, ``influence_reader``, ``class_predictions``, ``provenance``
and ``report_images`` compute and draw it; ``report_contents`` puts it together; ``svg_charts`` and ``svg_shapes`` are inline SVG;
``report_pages`` renders.
"""
