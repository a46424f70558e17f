"""Readers of datasets with label maps; ``extract.datasets.open_concepts`` finds the one that fits."""
