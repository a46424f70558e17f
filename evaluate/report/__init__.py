"""Reports: the pictures of directions, the curves of a fit, and the page that shows them.

``evaluation_cards`` is what the page shows, ``loss_curves`` and ``steering_curves`` draw, ``evaluation_page`` writes ``report.html``.
"""
