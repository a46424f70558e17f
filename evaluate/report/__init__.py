"""Reports: the pictures of directions, the curves of a fit, and the page that shows them.

``data`` says what a page shows, ``pictures`` and ``curves`` draw, ``page`` writes ``report.html`` beside ``pictures/``.
"""
