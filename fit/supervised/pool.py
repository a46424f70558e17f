"""The rows that probes are trained on: all of them if they fit, or a share with every label's positives and hard negatives.

A row carries a random number u in [0, 1), drawn in the store's order. It is in the pool if u is below the base share, or
below the share k / n of one of its labels' n positives: one pass, whatever the store's size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fit.supervised.base import Task
from stores.progress import Progress

POSITIVE, BASE, HARD = 0.5, 0.25, 0.2  # of the pool; the rest is room for chance

Scale = Callable[[torch.Tensor], torch.Tensor]


class Pool:
    """``x`` (m, C) float32 rows, scaled; ``present``, ``annotated`` (m, L) bool; ``member`` (rows,) bool: which of the task's
    rows are in it. Memory for ``size`` rows is allocated once; nothing is copied when rows are added."""

    def __init__(self, task: Task, scale: Scale, size: int) -> None:
        self.task, self.scale = task, scale
        self._x = torch.empty(size, task.reader.channels, device=task.device)
        self._marks = torch.empty(2, size, task.count, dtype=torch.bool, device=task.device)
        self._filled = 0
        self.member = np.zeros(task.rows, bool)

    def add(self, x: torch.Tensor, present: torch.Tensor, annotated: torch.Tensor, rows: np.ndarray) -> None:
        """Add activations x with their numbers among the task's rows, as many as there is room for."""
        part = slice(self._filled, min(self._filled + len(x), len(self._x)))
        take = part.stop - part.start
        self._x[part], self._marks[0, part], self._marks[1, part] = (
            self.scale(x)[:take],
            present[:take],
            annotated[:take],
        )
        self.member[rows[:take]] = True
        self._filled = part.stop

    @property
    def x(self) -> torch.Tensor:
        return self._x[: self._filled]

    @property
    def present(self) -> torch.Tensor:
        return self._marks[0, : self._filled]

    @property
    def annotated(self) -> torch.Tensor:
        return self._marks[1, : self._filled]

    @property
    def complete(self) -> bool:
        """Whether all of the task's rows are in it."""
        return bool(self.member.all())

    def mine(self, logits: Scale, room: int, limit: np.ndarray, progress: Progress) -> None:
        """Add each label's hardest negatives of all rows: those outside the pool of the highest ``logits``.

        Parameters
        ----------
        logits : scaled rows (m, C) -> (m, L).
        room : rows that may be added. limit : (L,) how many a label may add.
        """
        task, room = self.task, min(room, len(self._x) - self._filled)
        if room < task.count:
            return
        each = int(min(limit.max(), room // task.count))
        best = torch.full((each, task.count), -torch.inf, device=task.device)
        where = torch.full((each, task.count), -1, dtype=torch.int64, device=task.device)
        for block in task.blocks():
            span = slice(block.first, block.first + len(block.x))
            known = torch.from_numpy(self.member[span]).to(task.device)[:, None]
            z = logits(self.scale(block.x)).masked_fill_(block.present | ~block.annotated | known, -torch.inf)
            numbers = torch.arange(block.first, span.stop, device=task.device)[:, None].expand_as(z)
            joined, order = torch.cat([best, z]).topk(each, dim=0)
            where = torch.cat([where, numbers]).gather(0, order)
            best = joined
            progress("mining negatives", span.stop, task.rows)
        rank = torch.arange(each, device=task.device)[:, None]
        wanted = torch.isfinite(best) & (rank < torch.from_numpy(limit).to(task.device))
        self._add_rows(np.unique(where[wanted].cpu().numpy()))

    def _add_rows(self, rows: np.ndarray) -> None:
        """Add some of the task's rows, ascending, from anywhere in the store."""
        task, p, step = self.task, self.task.reader.positions, self.task.images_at_once
        for group in np.unique(rows // p // step):  # the labels of all their images together would take much memory
            some = rows[rows // p // step == group]
            image, position = np.divmod(some, p)
            shown, at = np.unique(image, return_inverse=True)
            images = task.labels.images
            places = np.searchsorted(task.reader.image_indices, images[image]) * p + position
            x = torch.from_numpy(task.reader.rows(places)).to(task.device).float()
            marks = [m.reshape(len(shown), p, -1)[at, position] for m in task.marks(images[shown])]
            present, annotated = (torch.from_numpy(m).to(task.device) for m in marks)
            self.add(x, present, annotated, some)


def fair_share(wanted: np.ndarray, room: int) -> np.ndarray:
    """How many of each of ``wanted`` (L,) to take so that they add up to about ``room``: all of what is rare, k of the rest."""
    if wanted.sum() <= room:
        return wanted
    rising = np.sort(wanted)
    left = room - np.concatenate([[0], rising.cumsum()[:-1]])  # after all rarer ones
    each = left / np.arange(len(wanted), 0, -1)
    level = each[np.argmax(rising >= each)]
    return np.minimum(wanted, max(1, int(level)))


def draw(task: Task, scale: Scale, max_rows: int, seed: int, progress: Progress) -> Pool:
    """Draw the pool in one pass over the labelled images. ``max_rows``: how many rows it may hold."""
    base, of_label = 1.0, np.ones(task.count)
    if task.rows > max_rows:
        base = BASE * max_rows / task.rows
        of_label = fair_share(task.positives, int(POSITIVE * max_rows)) / task.positives
    share = torch.from_numpy(of_label).to(task.device)
    generator = np.random.default_rng([seed, 0x9B])
    pool = Pool(task, scale, min(task.rows, max_rows))
    for block in task.blocks():
        u = torch.from_numpy(generator.random(len(block.x))).to(task.device)
        reach = torch.where(block.present & block.annotated, share, 0).amax(1).clamp_min(base)
        chosen = torch.nonzero(u < reach).squeeze(1)
        rows = block.first + chosen.cpu().numpy()
        pool.add(block.x[chosen], block.present[chosen], block.annotated[chosen], rows)
        progress("drawing positions", block.first + len(block.x), task.rows)
    return pool
