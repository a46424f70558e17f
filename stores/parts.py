"""Parts of a store's images, drawn by a seed: halves to fit on and to compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """The ``index``-th (from 0) of ``of`` parts of a store's images, of a split drawn by ``seed``."""

    index: int
    of: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.index}/{self.of} of seed {self.seed}"

    def choose(self, labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the valid images are in this part.

        The images of each class (of all images without one, label -1) are shared out in a random order, so that the parts hold
        as many of each class as any other part, and as many in all, but for one. They are disjoint and cover all valid images.

        Parameters
        ----------
        labels : (N,) class of each image.
        valid : (N,) bool, the images that could be read.
        """
        generator = np.random.default_rng([self.seed, 0x9A])
        images = np.flatnonzero(valid)
        order = images[np.lexsort((generator.random(len(images)), labels[images]))]  # class by class, shuffled within
        chosen = np.zeros(len(valid), bool)
        chosen[order[self.index :: self.of]] = True
        return chosen
