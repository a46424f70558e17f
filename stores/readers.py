"""Views of one layer of a sealed store: blocks in order, chosen images, statistics' and fitting's rows.

Rows of images that could not be read are left out everywhere; every row comes with its image's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stores.activations import ActivationStore
from stores.errors import UsageError
from stores.layers import LayerSpec


class LayerReader:
    """Activations of one layer.

    Parameters
    ----------
    store : an open store, or the path of one.
    layer : the layer's name; may be left out when the store holds one layer.
    prefix : also give the positions that lie nowhere on the image (class token, registers), first. Off by default.
    """

    def __init__(self, store: ActivationStore | str | Path, layer: str | None = None, *, prefix: bool = False) -> None:
        self.store = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
        self.spec: LayerSpec = self.store.layer(layer)
        self.array = self.store.array(f"layers/{self.spec.name}/activations")
        self._first = 0 if prefix or self.spec.sampled else self.spec.prefix
        self.valid = self.store.valid
        self.image_indices: np.ndarray = np.flatnonzero(self.valid)

    @property
    def n_images(self) -> int:
        """Images that could be read."""
        return len(self.image_indices)

    @property
    def positions(self) -> int:
        """P of the blocks given."""
        return self.spec.positions - self._first

    @property
    def n_rows(self) -> int:
        """N·P: activation vectors in all."""
        return self.n_images * self.positions

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def grid(self) -> tuple[int, int]:
        return self.spec.grid

    def chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """One chunk: image numbers (n,) and activations (n, P, C) as stored, mapped without a copy if possible."""
        first = chunk * self.store.chunk_images
        block = self.array.read(chunk)[:, self._first :]
        valid = self.valid[first : first + len(block)]
        if valid.all():
            return np.arange(first, first + len(block)), block
        return first + np.flatnonzero(valid), block[valid]

    def blocks(self, images: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All images in order, as pairs (image numbers (n,), activations (n, P, C)), ``images`` at a time."""
        for k in range(self.store.n_chunks):
            index, block = self.chunk(k)
            step = images or max(1, len(index))
            for start in range(0, len(index), step):
                yield index[start : start + step], block[start : start + step]

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, P, C) activations of chosen images, in the order given. Raises UsageError for an invalid image."""
        indices = np.asarray(indices, np.int64)
        outside = [int(i) for i in indices if not 0 <= i < self.store.n_images or not self.valid[i]]
        if outside:
            raise UsageError(f"The store has no activations of image {outside[0]} (it was skipped or does not exist).")
        out = np.empty((len(indices), self.positions, self.channels), self.array.dtype)
        chunks = indices // self.store.chunk_images
        for k in np.unique(chunks):
            block = self.array.read(int(k))
            for row in np.flatnonzero(chunks == k):
                out[row] = block[indices[row] - k * self.store.chunk_images, self._first :]
        return out

    def sampled_rows(self, count: int, seed: int) -> np.ndarray:
        """(m, C) activation vectors drawn without replacement from all of them, m = min(count, N·P).

        The same positions whatever the chunk size: they are drawn by number before anything is read.
        """
        total = self.n_rows
        if count >= total:
            chosen = np.arange(total)
        else:
            chosen = np.sort(np.random.default_rng([seed, 0x5A]).choice(total, count, replace=False))
        out = np.empty((len(chosen), self.channels), self.array.dtype)
        done = 0
        for index, block in self.blocks():
            if not len(index):
                continue
            start = int(np.searchsorted(self.image_indices, index[0])) * self.positions
            stop = start + len(index) * self.positions
            last = int(np.searchsorted(chosen, stop))
            picked = chosen[done:last] - start
            out[done:last] = block[picked // self.positions, picked % self.positions]
            done = last
        return out
