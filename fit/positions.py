"""Where a pass over all positions gets its rows from: a tensor in memory, or anything that hands them out in tiles.

A pass never asks for more than a tile, so rows may lie in a store that is larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from stores.errors import FitError


class Positions(Protocol):
    """``count`` activation vectors of ``rank`` numbers; they can be gone through any number of times, in one order."""

    @property
    def count(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        """All positions in order, as consecutive (at most ``size``, rank) tensors on ``device``."""
        ...


@dataclass(frozen=True)
class InMemory:
    """The rows of a tensor (n, r); tiles are views of it."""

    tensor: torch.Tensor

    @property
    def count(self) -> int:
        return self.tensor.shape[0]

    @property
    def rank(self) -> int:
        return self.tensor.shape[1]

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        yield from self.tensor.split(size)


def positions(rows: torch.Tensor | Positions) -> Positions:
    """``rows`` (n, r) as Positions; what already is one is handed back."""
    return InMemory(rows) if isinstance(rows, torch.Tensor) else rows


def tiles(data: Positions, size: int) -> Iterator[torch.Tensor]:
    """The tiles of ``data``; fewer or more rows than promised would silently change every mean.

    Raises
    ------
    FitError : a tile is larger than ``size``, of another rank, or the rows do not add up to ``data.count``.
    """
    seen = 0
    for tile in data.tiles(size):
        if len(tile) > size or tile.shape[1] != data.rank:
            raise FitError(
                f"A tile of positions must be at most {size} × {data.rank}, got {len(tile)} × {tile.shape[1]}."
            )
        seen += len(tile)
        yield tile
    if seen != data.count:
        raise FitError(f"{data.count} positions were promised, {seen} came: the rows are incomplete or changed.")
