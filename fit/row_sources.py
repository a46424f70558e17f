"""Where a pass over all positions gets its rows from: a tensor in memory, or anything that hands them out in tiles.

A pass never asks for more than a tile, so rows may lie in a store that is larger than memory. They may also lie on several ranks:
then each goes through its own tiles, and what it has summed is added up (``ranks_of``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fit.whiten import Held, WhitenedRows, Whitening
from stores.errors import FitError
from stores.ranks import ALONE, Ranks, part_of
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
        """All positions in order, or all of this rank, as consecutive (at most ``size``, rank) tensors on ``device``."""
        ...


@dataclass(frozen=True)
class _InTensor:
    """What rows in a tensor (…, r) have from it."""

    tensor: torch.Tensor

    @property
    def rank(self) -> int:
        return self.tensor.shape[1]

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype


@dataclass(frozen=True)
class InMemory(_InTensor):
    """The rows of a tensor (n, r); tiles are views of it."""

    @property
    def count(self) -> int:
        return self.tensor.shape[0]

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        yield from self.tensor.split(size)


@dataclass(frozen=True)
class InParts(_InTensor):
    """The rows of a tensor that no process has whole: this rank's ``tensor`` (end − start, r), see ``fit.whiten.Held``.

    Its tiles are those tiles of the whole that begin with a row of its own.
    """

    held: Held
    ranks: Ranks

    @property
    def count(self) -> int:
        return self.held.count

    @property
    def own(self) -> torch.Tensor:
        """(stop − start, r) its own rows, without what is kept of the next rank's."""
        return self.tensor[: self.held.stop - self.held.start]

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        held = self.held
        for first in range(-(-held.start // size) * size, held.stop, size):
            last = min(first + size, held.count)
            if last > held.end:
                raise FitError(f"A tile of {size} positions goes beyond what rank {self.ranks.rank} keeps of them.")
            yield self.tensor[first - held.start : last - held.start]

    def chosen(self, rows: torch.Tensor) -> torch.Tensor:
        """(m, r) those of chosen rows, numbers into the whole, that are its own; in their order."""
        mine = rows[(rows >= self.held.start) & (rows < self.held.stop)]
        return self.tensor[(mine - self.held.start).to(self.device)]


@dataclass(frozen=True)
class Scattered(_InTensor):
    """Any rows on any ranks: here those of ``tensor`` (m, r), of ``count`` on all of them together."""

    count: int
    ranks: Ranks

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        if len(self.tensor):
            yield from self.tensor.split(size)


@dataclass(frozen=True)
class Stored:
    """All positions of a layer, read from the store and whitened whenever they are asked for.

    Of several ranks each reads its part of the chunks.
    """

    reader: LayerReader
    transform: Whitening
    where: str
    ranks: Ranks = ALONE

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
        store = self.reader.store
        chunks = part_of(store.n_chunks, self.ranks)
        edges = (edge * store.chunk_images for edge in (chunks.start, chunks.stop))
        own = range(*(int(edge) for edge in np.searchsorted(self.reader.image_indices, list(edges))))
        for index, block in self.reader.blocks(images=max(1, size // self.reader.positions), of=own):
            if len(index):
                x = torch.from_numpy(block).to(self.device).reshape(-1, self.reader.channels)
                yield from self.transform(x).split(size)  # one image may have more positions than a tile

    def shuffled(self, size: int, seed: int, epoch: int) -> Iterator[torch.Tensor]:
        """Batches of random rows (size, r), each row once an epoch; the last rows, fewer than a batch, are left out.

        Of several ranks each is given its share of every batch.
        """
        share = (self.ranks.rank, self.ranks.size)
        how = Shuffle(batch_rows=size, seed=seed, epoch=epoch, drop_last=True, device=self.where, share=share)
        for batch in shuffled(self.reader, how):
            yield self.transform(batch.x)


def positions(rows: torch.Tensor | Positions) -> Positions:
    """``rows`` (n, r) as Positions; what already is one is handed back."""
    return InMemory(rows) if isinstance(rows, torch.Tensor) else rows


def positions_of(data: WhitenedRows) -> Positions:
    """The rows that ``whiten_store`` left in memory."""
    return InMemory(data.rows) if data.ranks.size == 1 else InParts(data.rows, data.held, data.ranks)


def ranks_of(data: Positions) -> Ranks:
    """The ranks on which the positions lie: what a pass sums over its tiles is to be summed over these."""
    return data.ranks if isinstance(data, InParts | Scattered | Stored) else ALONE


def gathered(data: Positions, chosen: torch.Tensor) -> torch.Tensor:
    """(m, r) chosen rows, ascending numbers into the whole, on every rank."""
    if isinstance(data, InParts):
        return data.ranks.gather(data.chosen(chosen))
    assert isinstance(data, InMemory)
    return data.tensor if len(chosen) == data.count else data.tensor[chosen.to(data.device)]


def tiles(data: Positions, size: int) -> Iterator[torch.Tensor]:
    """The tiles of ``data``; fewer or more rows than promised would silently change every mean.

    Raises
    ------
    FitError : a tile is larger than ``size``, of another rank, or the rows do not add up to ``data.count``; of rows on several
        ranks, each rank knows only its own, so that is for their sum to show.
    """
    seen, whole = 0, ranks_of(data).size == 1
    for tile in data.tiles(size):
        if len(tile) > size or tile.shape[1] != data.rank:
            raise FitError(
                f"A tile of positions must be at most {size} × {data.rank}, got {len(tile)} × {tile.shape[1]}."
            )
        seen += len(tile)
        yield tile
    if whole and seen != data.count:
        raise FitError(f"{data.count} positions were promised, {seen} came: the rows are incomplete or changed.")
