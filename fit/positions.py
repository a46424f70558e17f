"""Where a pass over all positions gets its rows from: a tensor in memory, or anything that hands them out in tiles.

A pass never asks for more than a tile, so rows may lie in a store that is larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from fit.whiten import Whitening
from stores.errors import FitError
from stores.readers import LayerReader
from stores.shuffle import Shuffle, shuffled


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


@dataclass(frozen=True)
class Stored:
    """All positions of a layer, read from the store and whitened whenever they are asked for."""

    reader: LayerReader
    transform: Whitening
    where: str

    @property
    def count(self) -> int:
        return self.reader.n_rows

    @property
    def rank(self) -> int:
        return self.transform.rank

    @property
    def device(self) -> torch.device:
        return torch.device(self.where)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        for index, block in self.reader.blocks(images=max(1, size // self.reader.positions)):
            if len(index):
                x = torch.from_numpy(block).to(self.device).reshape(-1, self.reader.channels)
                yield from self.transform(x).split(size)  # one image may have more positions than a tile

    def shuffled(self, size: int, seed: int, epoch: int) -> Iterator[torch.Tensor]:
        """Batches of random rows (size, r), each row once an epoch; the last rows, fewer than a batch, are left out."""
        how = Shuffle(batch_rows=size, seed=seed, epoch=epoch, drop_last=True, device=self.where)
        for batch in shuffled(self.reader, how):
            yield self.transform(batch.x)


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
