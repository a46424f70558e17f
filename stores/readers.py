"""Views of one layer of a sealed store: blocks in order, chosen images, chosen rows.

Rows of images that could not be read are left out everywhere; every row comes with its image's number. Rows are counted
over these images and their positions: row r is position ``r % P`` of image ``image_indices[r // P]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stores.chunks import Mapping
from stores.errors import UsageError
from stores.format import LayerSpec
from stores.prefetch import prefetch
from stores.store import ActivationStore


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


class LayerReader:
    """Activations of one layer.

    Parameters
    ----------
    store : an open store, or the path of one.
    layer : the layer's name; may be left out when the store holds one layer.
    prefix : also give the positions without a place on the image (class token, registers), first. Off by default.
    part : only the images of this part (``stores.readers``); the others are as if they could not be read.

    Raises UsageError for a part that holds no readable image.
    """

    def __init__(
        self,
        store: ActivationStore | str | Path,
        layer: str | None = None,
        *,
        prefix: bool = False,
        part: Part | None = None,
    ) -> None:
        self.store = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
        self.spec: LayerSpec = self.store.layer(layer)
        self.array = self.store.array(f"layers/{self.spec.name}/activations")
        self._first = 0 if prefix or self.spec.sampled else self.spec.prefix
        self._restrict(self.store.valid, part)

    def only(self, part: Part) -> LayerReader:
        """The same layer with only a part of this reader's images; those of a part are shared out among its own parts."""
        reader = copy(self)
        reader._restrict(self.valid, part)
        return reader

    def _restrict(self, valid: np.ndarray, part: Part | None) -> None:
        self.part = part
        self.valid = valid if part is None else part.choose(self.store.labels[: len(valid)], valid)
        self.image_indices: np.ndarray = np.flatnonzero(self.valid)
        if part is not None and not len(self.image_indices):
            raise UsageError(f"Part {part} of the store '{self.store.path}' holds no readable image.")

    @property
    def identity(self) -> str:
        """The store's fingerprint, and which part of it this is."""
        return self.store.fingerprint + ("" if self.part is None else f" part {self.part}")

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

    @property
    def time(self) -> int:
        """Steps in time, each with a grid of positions; 1 for images."""
        return self.spec.time

    def chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """One chunk: image numbers (n,) and activations (n, P, C) as stored, mapped without a copy if possible."""
        first = chunk * self.store.chunk_images
        if self.part is not None and not self.valid[first : first + self.store.chunk_images].any():
            empty = np.empty((0, self.positions, self.channels), self.array.dtype)
            return np.empty(0, np.int64), empty  # nothing of the part is in it: it is not read
        block = self.array.read(chunk)[:, self._first :]
        valid = self.valid[first : first + len(block)]
        if valid.all():
            return np.arange(first, first + len(block)), block
        return first + np.flatnonzero(valid), block[valid]

    def chunks(self, numbers: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Several chunks as ``chunk`` gives them, in order: read ahead, in threads, where they are decoded or fetched."""
        depth = self.array.prefetch_depth
        return prefetch(self.chunk, numbers, threads=depth, depth=depth) if depth else map(self.chunk, numbers)

    def blocks(self, images: int | None = None, of: range | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All images in order, as pairs (image numbers (n,), activations (n, P, C)), ``images`` at a time.

        Compressed or remote chunks are read ahead, in threads; few are in memory at a time.

        Parameters
        ----------
        images : at most; a block never crosses chunks. None: complete chunks.
        of : only the blocks that hold an image of these (counted over ``image_indices``). They are the same, and complete, as
            without it: what is computed block by block does not depend on who reads which of them.
        """
        numbers, wanted = range(self.store.n_chunks), range(self.n_images) if of is None else of
        if of is not None:
            size, ends = self.store.chunk_images, self.image_indices[[of.start, of.stop - 1]] if of else (0, -1)
            numbers = range(int(ends[0]) // size, int(ends[1]) // size + 1)
        done = 0 if not numbers else int(np.searchsorted(self.image_indices, numbers.start * self.store.chunk_images))
        for index, block in self.chunks(numbers):
            step = images or max(1, len(index))
            for start in range(0, len(index), step):
                if done + start < wanted.stop and done + start + step > wanted.start:
                    yield index[start : start + step], block[start : start + step]
            done += len(index)

    def rows(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(m, C) activation vectors of chosen rows, in the order given, each as often as it is named.

        From an uncompressed store this costs what it costs from one file in memory, from a remote one a request for each range
        of neighbours; ``out`` (m, C) is filled if given. Raises UsageError for a row that does not exist.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n_rows:
            wrong = indices[(indices < 0) | (indices >= self.n_rows)][0]
            raise UsageError(f"The layer has rows 0 to {self.n_rows - 1}, got {wrong}.")
        if out is None:
            out = np.empty((len(indices), self.channels), self.array.dtype)
        stored = self.stored_rows(indices)
        if self.array.at_hand and self.whole is not None and self.mapping is not None:
            if not self.array.all_compared:
                self.array.compare(stored // (self.array.chunk_rows * self.spec.positions), self.mapping.files)
            np.take(self.whole, stored, axis=0, out=out, mode="clip")  # clip: take then needs no buffer of its own
            return out
        return self.array.take(stored, axes=2, out=out)

    def stored_rows(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of rows among all that the store holds, skipped images and positions of the prefix included."""
        image, position = np.divmod(rows, self.positions)
        if len(self.image_indices) < len(self.valid):
            image = self.image_indices[image]
        return image * self.spec.positions + position + self._first

    @cached_property
    def mapping(self) -> Mapping | None:
        """The layer's files mapped as one, where that is possible; those of a remote store are fetched into its cache first."""
        return self.array.mapped()

    @cached_property
    def whole(self) -> np.ndarray | None:
        """(rows, C) all that the store holds, padding of the last chunk included, as one array mapped from the disk."""
        mapping = self.mapping
        return None if mapping is None else mapping.array.view(self.array.dtype).reshape(-1, self.channels)

    def places(self, image: int) -> np.ndarray:
        """(P,) places on the grid, counted row by row, of an image's positions in a store that samples them."""
        positions = self.store.array(f"layers/{self.spec.name}/positions")
        return positions.take(np.array([image]))[0].astype(np.int64)

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, P, C) activations of chosen images, in the order given. Raises UsageError for an invalid image."""
        indices = np.asarray(indices, np.int64)
        outside = [int(i) for i in indices if not 0 <= i < self.store.n_images or not self.valid[i]]
        if outside:
            raise UsageError(f"The store has no activations of image {outside[0]} (it was skipped or does not exist).")
        return np.ascontiguousarray(self.array.take(indices)[:, self._first :])

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
