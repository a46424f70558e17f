"""The rows that probes are trained on: all of them if they fit, or a share with every label's positives and hard negatives.

A row carries a random number u in [0, 1), drawn in the store's order. It is in the pool if u is below the base share, or
below the share k / n of one of its labels' n positives: one pass, whatever the store's size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fit.supervised.base import Task, images_at_once
from stores.progress import Progress

POSITIVE, BASE, HARD = 0.5, 0.25, 0.2  # of the pool; the rest is room for chance


class Pool:
    """``x`` (m, C) float32 scaled rows; ``present``, ``annotated`` (m, L) bool; ``member`` (rows,) bool: which of the task's
    rows are in it. Room for ``size`` rows is taken once; nothing is copied when rows are added."""

    def __init__(self, task: Task, size: int, device: str) -> None:
        self._x = torch.empty(size, task.reader.channels, device=device)
        self._marks = torch.empty(2, size, task.count, dtype=torch.bool, device=device)
        self._filled = 0
        self.member = np.zeros(task.rows, bool)

    def add(self, x: torch.Tensor, present: torch.Tensor, annotated: torch.Tensor, rows: np.ndarray) -> None:
        """Add rows with their numbers among the task's, as many as there is room for."""
        part = slice(self._filled, min(self._filled + len(x), len(self._x)))
        take = part.stop - part.start
        self._x[part], self._marks[0, part], self._marks[1, part] = x[:take], present[:take], annotated[:take]
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
    def room(self) -> int:
        return len(self._x) - self._filled

    @property
    def whole(self) -> bool:
        """Whether all of the task's rows are in it."""
        return bool(self.member.all())


Scale = Callable[[torch.Tensor], torch.Tensor]


def fair_share(wanted: np.ndarray, room: int) -> np.ndarray:
    """How many of each of ``wanted`` (L,) to take so that they add up to about ``room``: all of what is rare, k of the rest."""
    if wanted.sum() <= room:
        return wanted
    rising = np.sort(wanted)
    left = room - np.concatenate([[0], rising.cumsum()[:-1]])  # when all rarer ones were taken whole
    each = left / np.arange(len(wanted), 0, -1)
    level = each[np.argmax(rising >= each)]
    return np.minimum(wanted, max(1, int(level)))


def draw(task: Task, scale: Scale, max_rows: int, seed: int, device: str, progress: Progress) -> Pool:
    """Draw the pool in one pass over the labelled images. ``max_rows``: how many rows it may hold."""
    base, of_label = 1.0, np.ones(task.count)
    if task.rows > max_rows:
        base = BASE * max_rows / task.rows
        of_label = fair_share(task.positives, int(POSITIVE * max_rows)) / task.positives
    share = torch.from_numpy(of_label).to(device)
    generator = np.random.default_rng([seed, 0x9B])
    pool = Pool(task, min(task.rows, max_rows), device)
    for block in task.blocks(device):
        u = torch.from_numpy(generator.random(len(block.x))).to(device)
        reach = torch.where(block.present & block.annotated, share, 0).amax(1).clamp_min(base)
        chosen = torch.nonzero(u < reach).squeeze(1)
        rows = block.first + chosen.cpu().numpy()
        pool.add(scale(block.x[chosen]), block.present[chosen], block.annotated[chosen], rows)
        progress("drawing positions", block.first + len(block.x), task.rows)
    return pool


def mine(
    pool: Pool, task: Task, scale: Scale, logits: Scale, room: int, limit: np.ndarray, device: str, progress: Progress
) -> None:
    """Add each label's hardest negatives of all rows to the pool: those outside it of the highest ``logits``.

    Parameters
    ----------
    logits : scaled rows (m, C) -> (m, L).
    room : rows that may be added. limit : (L,) how many a label may add.
    """
    room = min(room, pool.room)
    if room < task.count:
        return
    each = int(min(limit.max(), room // task.count))
    best = torch.full((each, task.count), -torch.inf, device=device)
    where = torch.full((each, task.count), -1, dtype=torch.int64, device=device)
    for block in task.blocks(device):
        span = slice(block.first, block.first + len(block.x))
        known = torch.from_numpy(pool.member[span]).to(device)[:, None]
        z = logits(scale(block.x)).masked_fill_(block.present | ~block.annotated | known, -torch.inf)
        numbers = torch.arange(block.first, span.stop, device=device)[:, None].expand_as(z)
        joined, order = torch.cat([best, z]).topk(each, dim=0)
        where = torch.cat([where, numbers]).gather(0, order)
        best = joined
        progress("mining negatives", span.stop, task.rows)
    rank = torch.arange(each, device=device)[:, None]
    wanted = torch.isfinite(best) & (rank < torch.from_numpy(limit).to(device))
    _add_rows(pool, task, scale, np.unique(where[wanted].cpu().numpy()), device)


def _add_rows(pool: Pool, task: Task, scale: Scale, rows: np.ndarray, device: str) -> None:
    """Add some of the task's rows, ascending, wherever they lie in the store."""
    p, images = task.reader.positions, task.labels.images
    step = images_at_once(p, task.count)
    for group in np.unique(rows // p // step):  # all their images' labels at once would be much
        some = rows[rows // p // step == group]
        image, position = np.divmod(some, p)
        shown, at = np.unique(image, return_inverse=True)
        place = np.searchsorted(task.reader.image_indices, images[image]) * p + position
        x = scale(torch.from_numpy(task.reader.rows(place)).to(device).float())
        marks = [m.reshape(len(shown), p, -1)[at, position] for m in task.marks(images[shown])]
        present, annotated = (torch.from_numpy(m).to(device) for m in marks)
        pool.add(x, present, annotated, some)
