"""The site of an evaluation: static pages for a browser, opened from the disk, that show one set of directions in full.

``data`` says what pages show; ``histogram``, ``similarity``, ``influence``, ``classes`` and ``pictures`` compute and draw it;
``figures`` are inline SVG; ``pages`` renders; ``folder`` puts the finished folder in the old one's place.
"""
