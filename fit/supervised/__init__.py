"""References that learn from labels of positions: how well linear detectors and signal vectors can do at all."""
