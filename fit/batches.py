"""The rows that each step of a descent sees: all of them, or a batch drawn anew each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fit.row_sources import InMemory, InParts, Positions, Scattered, Stored, positions, ranks_of


class Batches:
    """Rows by the number of the step, so that a fit can go on at any step.

    Of rows on several ranks a step's are those of one process: each rank has the ones that it holds, or every n-th from a store.

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
        self.per_epoch = (
            1 if self.full else self.all.count // size
        )  # the last, short batch is left out: it would be noise
        self._order: tuple[int, torch.Tensor] | None = None
        self._stream: tuple[int, Iterator[torch.Tensor]] | None = None

    def new_epoch(self, step: int) -> bool:
        return step % self.per_epoch == 0

    def at(self, step: int) -> Positions:
        """The rows of a step. From a store, going back or jumping costs reading what lies between."""
        if self.full:
            return self.all
        epoch, index = divmod(step, self.per_epoch)
        ranks = ranks_of(self.all)
        if isinstance(self.all, Stored):
            batch = self._from_store(self.all, step, epoch, index)
            return InMemory(batch) if ranks.size == 1 else Scattered(batch, self.size, ranks)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch, 0xBA]).permutation(self.all.count)
            self._order = (epoch, torch.from_numpy(order))
        chosen = self._order[1][index * self.size : (index + 1) * self.size]
        if isinstance(self.all, InParts):
            return Scattered(self.all.chosen(chosen), self.size, ranks)
        assert isinstance(self.all, InMemory)
        return InMemory(self.all.tensor[chosen.to(self.all.device)])

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
