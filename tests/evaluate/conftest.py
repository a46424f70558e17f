"""Readers and directions small enough to be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stores.directions import Directions
from stores.format import LayerSpec


class MemoryReader:
    """What a ``LayerReader`` shows of a layer, without a store: for tests that need many of them."""

    def __init__(
        self,
        x: np.ndarray,
        grid: tuple[int, int],
        *,
        chunk_images: int = 3,
        valid: np.ndarray | None = None,
        layer: str = "conv",
    ) -> None:
        self.x, self.chunk_images = x, chunk_images
        self.spec = LayerSpec(layer, grid, x.shape[2])
        self.valid = np.ones(len(x), bool) if valid is None else valid
        self.image_indices = np.flatnonzero(self.valid)
        self.n_images, self.positions, self.channels, self.grid = len(self.image_indices), *x.shape[1:], grid
        self.n_rows = self.n_images * self.positions
        self.store = SimpleNamespace(n_chunks=-(-len(x) // chunk_images), chunk_images=chunk_images)
        self.array, self.time = SimpleNamespace(raw=True), 1

    def chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        first = chunk * self.chunk_images
        index = first + np.flatnonzero(self.valid[first : first + self.chunk_images])
        return index, self.x[index]

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.x[indices]

    def chunks(self, numbers: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return map(self.chunk, numbers)

    def blocks(self, images: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, block in map(self.chunk, range(-(-len(self.x) // self.chunk_images))):
            step = images or max(1, len(index))
            for start in range(0, len(index), step):
                yield index[start : start + step], block[start : start + step]


@pytest.fixture(scope="session")
def memory_reader() -> type[MemoryReader]:
    """``memory_reader(x (N, P, C), grid, chunk_images=…, valid=…)``."""
    return MemoryReader


@pytest.fixture(scope="session")
def make_directions() -> Callable[..., Directions]:
    """``make(filters (C, I), thresholds (I,) or None)``: signals are the filters, unit norm."""

    def make(
        filters: Any, thresholds: Any = None, *, layer: str = "conv", quantile: float = 0.005, method: str = "toy"
    ) -> Directions:
        filters = np.asarray(filters, np.float32)
        signals = filters / np.maximum(np.linalg.norm(filters, axis=0), 1e-12)
        b = None if thresholds is None else np.asarray(thresholds, np.float32)
        return Directions(filters, signals, np.zeros(len(filters), np.float32), b, method, layer, quantile)

    return make
