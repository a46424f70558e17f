"""Where a pass over all positions gets its rows: a tensor in memory, or a store that may be larger than memory.

A pass asks for one tile at a time. Rows may be spread over several ranks: each goes through its own tiles, and ``ranks`` adds up
the sums.
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
    """``count`` activation vectors of ``rank`` numbers on ``ranks``; they can be read any number of times, in one order."""

    @property
    def count(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def ranks(self) -> Ranks: ...

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        """All positions of this rank in order, as consecutive (at most ``size``, rank) tensors on ``device``."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Rows of a tensor (m, r): all of them, or on one of several ``ranks`` the part that ``held`` describes.

    Its tiles are those tiles of all rows that begin with a row of its own.
    """

    tensor: torch.Tensor
    held: Held
    ranks: Ranks = ALONE

    @property
    def count(self) -> int:
        return self.held.count

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
        held = self.held
        for first in range(-(-held.start // size) * size, held.stop, size):
            last = min(first + size, held.count)
            if last > held.end:
                raise FitError(f"A tile of {size} positions extends beyond what rank {self.ranks.rank} holds.")
            yield self.tensor[first - held.start : last - held.start]

    def chosen(self, rows: torch.Tensor) -> torch.Tensor:
        """(m, r) those of chosen rows, numbers into all rows, that are its own; in their order."""
        mine = rows[(rows >= self.held.start) & (rows < self.held.stop)]
        return self.tensor[(mine - self.held.start).to(self.device)]


class RowBatch(InMemory):
    """Rows in no order: this rank's of ``held.count`` on all ranks."""

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        if len(self.tensor):
            yield from self.tensor.split(size)


@dataclass(frozen=True)
class Stored:
    """All positions of a layer, read from the store and whitened at every pass; each of several ranks reads its part of the chunks."""

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
        """Batches of random rows (size, r), each row once an epoch, without the last short batch; each rank gets its share."""
        share = (self.ranks.rank, self.ranks.size)
        how = Shuffle(batch_rows=size, seed=seed, epoch=epoch, drop_last=True, device=self.where, share=share)
        for batch in shuffled(self.reader, how):
            yield self.transform(batch.x)


class Batches:
    """The rows that each step of a descent sees, by the step's number: all of them, or a batch drawn anew each epoch.

    On several ranks each has the rows of a batch that it holds, or every n-th from a store.

    Parameters
    ----------
    rows : all positions.
    size : rows a batch; 0, or as many as there are: every step sees all of them.
    seed : gives the order, together with the epoch's number.
    """

    def __init__(self, rows: torch.Tensor | Positions, size: int, seed: int) -> None:
        self.all = positions(rows)
        self.full = size <= 0 or size >= self.all.count
        self.size, self.seed = size, seed
        # without the last, short batch: it would be noise
        self.per_epoch = 1 if self.full else self.all.count // size
        self._order: tuple[int, torch.Tensor] | None = None
        self._stream: tuple[int, Iterator[torch.Tensor]] | None = None

    def at(self, step: int) -> Positions:
        """The rows of a step. From a store, a jump back or forward costs reading the batches between."""
        if self.full:
            return self.all
        epoch, index = divmod(step, self.per_epoch)
        if isinstance(self.all, Stored):
            batch = self._from_store(self.all, step, epoch, index)
        else:
            assert isinstance(self.all, InMemory)
            if self._order is None or self._order[0] != epoch:
                order = np.random.default_rng([self.seed, epoch, 0xBA]).permutation(self.all.count)
                self._order = (epoch, torch.from_numpy(order))
            batch = self.all.chosen(self._order[1][index * self.size : (index + 1) * self.size])
        return RowBatch(batch, Held(0, len(batch), len(batch), self.size), self.all.ranks)

    def _from_store(self, rows: Stored, step: int, epoch: int, index: int) -> torch.Tensor:
        if self._stream is None or self._stream[0] != step or index == 0:
            stream = rows.shuffled(self.size, self.seed, epoch)
            for _ in range(index):
                next(stream)
        else:
            stream = self._stream[1]
        batch = next(stream)
        self._stream = (step + 1, stream)
        return batch


def positions(rows: torch.Tensor | WhitenedRows | Positions) -> Positions:
    """``rows``, a tensor (n, r) or what ``whiten_store`` left in memory, as Positions."""
    if isinstance(rows, torch.Tensor):
        return InMemory(rows, Held.of(len(rows), ALONE))
    return InMemory(rows.rows, rows.held, rows.ranks) if isinstance(rows, WhitenedRows) else rows


def gathered(data: Positions, chosen: torch.Tensor) -> torch.Tensor:
    """(m, r) chosen rows, ascending numbers into all rows, on every rank; of rows in memory."""
    assert isinstance(data, InMemory)
    if data.ranks.size == 1 and len(chosen) == data.count:
        return data.tensor
    return data.ranks.gather(data.chosen(chosen))


def tiles(data: Positions, size: int) -> Iterator[torch.Tensor]:
    """The tiles of ``data``, checked: fewer or more rows than promised would silently change every mean.

    Raises
    ------
    FitError : a tile is larger than ``size``, of another rank, or the rows do not add up to ``data.count``. On several ranks only
        the sum of their rows can show that.
    """
    seen = 0
    for tile in data.tiles(size):
        if len(tile) > size or tile.shape[1] != data.rank:
            raise FitError(
                f"A tile of positions must be at most {size} × {data.rank}, got {len(tile)} × {tile.shape[1]}."
            )
        seen += len(tile)
        yield tile
    if data.ranks.size == 1 and seen != data.count:
        raise FitError(f"{data.count} positions were promised, {seen} came: the rows are incomplete or changed.")
