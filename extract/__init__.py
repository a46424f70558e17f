"""From images to activations: networks, datasets, the extraction itself."""
