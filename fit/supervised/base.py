"""What supervised methods share: labels with enough positives, passes over activations with labels, thresholds of best F1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch

from fit.base import Fitter
from fit.config import FitterConfig
from fit.supervised.position_labels import LabelledImages, Labels, TruthImages
from fit.whiten import check_varies
from stores.errors import FitError, UsageError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import Statistics, statistics

ROWS = 16384  # positions at a time
ENTRIES = 2**22  # positions × labels at a time
BINS = 4096
WIDTH = 16.0  # standard deviations that the bins cover: ±8; values beyond are counted in the outermost


@dataclass(frozen=True)
class SupervisedConfig(FitterConfig):
    """``n_directions`` 0: as many as there are labels with ``min_positives`` positions; no other number is taken."""

    n_directions: int = 0
    min_positives: int = 20

    def __post_init__(self) -> None:
        FitterConfig(self.n_directions or 1, self.seed)  # its checks; 0 stands for the labels' own number
        if self.min_positives < 2:
            raise UsageError(f"'min_positives' must be at least 2, got {self.min_positives}.")


Config = TypeVar("Config", bound=SupervisedConfig)


class Block(NamedTuple):
    """Positions of some images: x (m, C) float32; present, annotated (m, L) bool; ``first``: number of the first row among
    all those of the task."""

    x: torch.Tensor
    present: torch.Tensor
    annotated: torch.Tensor
    first: int


@dataclass(frozen=True)
class Task:
    """A layer's activations, their ``moments``, and L labels with enough positives.

    ``columns`` (L,): their places among all labels; ``positives``, ``negatives`` (L,): positions, of annotated images.
    """

    reader: LayerReader
    device: str
    moments: Statistics
    labels: LabelledImages
    columns: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    left_out: list[dict[str, Any]]

    @property
    def count(self) -> int:
        """L."""
        return len(self.columns)

    @property
    def rows(self) -> int:
        """Positions of all labelled images."""
        return len(self.labels.images) * self.reader.positions

    @property
    def images_at_once(self) -> int:
        return images_at_once(self.reader.positions, self.count)

    def marks(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """present (n·P, L) and annotated (n·P, L) of some images."""
        present, annotated = self.labels.of(images)
        p = self.reader.positions
        return present[:, :, self.columns].reshape(-1, self.count), annotated[:, self.columns].repeat(p, axis=0)

    def blocks(self) -> Iterator[Block]:
        """One pass over the labelled images, in the store's order."""
        p, done = self.reader.positions, 0
        for index, block in self.reader.blocks(images=self.images_at_once):
            inside = np.isin(index, self.labels.images)
            if not inside.any():
                continue
            x = torch.from_numpy(np.ascontiguousarray(block[inside])).to(self.device).float()
            present, annotated = (torch.from_numpy(a).to(self.device) for a in self.marks(index[inside]))
            yield Block(x.reshape(-1, self.reader.channels), present, annotated, done * p)
            done += int(inside.sum())

    def info(self) -> dict[str, Any]:
        """What goes into the directions file."""
        return {
            "labels": [self.labels.names[k] for k in self.columns.tolist()],
            "label_numbers": [self.labels.numbers[k] for k in self.columns.tolist()],
            "positives": self.positives.tolist(),
            "left_out": self.left_out,
            "labelled_images": len(self.labels.images),
        }


class Supervised(Fitter[Config]):
    """A method that finds one direction a label.

    Parameters
    ----------
    labels : where positions' labels come from; None: the store's own truth, which synthetic stores have.
    """

    configuration: ClassVar[type[Any]] = SupervisedConfig

    def __init__(self, config: Config | None = None, labels: Labels | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        self.labels = labels

    def task(self, reader: LayerReader, progress: Progress) -> Task:
        """The layer's moments and the labels that can be learnt: a pass over activations, and one over all labels.

        Raises FitError when no label can or the activations do not vary, UsageError when there are no labels or ``n_directions``
        contradicts their number.
        """
        moments = statistics(reader, device=self.config.device, progress=progress)
        check_varies(moments)
        labels = TruthImages(reader, self.name) if self.labels is None else self.labels.at(reader)
        positives, negatives = count(labels, reader.positions, progress)
        enough = (positives >= self.config.min_positives) & (negatives > 0)
        columns = np.flatnonzero(enough)
        if not len(columns):
            raise FitError(
                f"No label is at {self.config.min_positives} positions or more of '{reader.store.path}' and absent from "
                f"others (the most frequent is at {positives.max(initial=0)}): extract more images, or lower it with "
                "--set min_positives=N."
            )
        if self.config.n_directions not in (0, len(columns)):
            raise UsageError(
                f"'{self.name}' finds a direction for each of the {len(columns)} labels with enough positives, not "
                f"{self.config.n_directions}: leave 'n_directions' (--directions) out."
            )
        left_out = [
            {"label": labels.names[k], "number": labels.numbers[k], "positives": int(positives[k])}
            for k in np.flatnonzero(~enough).tolist()
        ]
        return Task(
            reader, self.config.device, moments, labels, columns, positives[columns], negatives[columns], left_out
        )

    def settled(self, task: Task) -> Config:
        """The configuration as it is recorded, with the number of directions that were found."""
        return replace(self.config, n_directions=task.count)


def images_at_once(positions: int, labels: int) -> int:
    return max(1, min(ROWS, ENTRIES // max(1, labels)) // positions)


def count(labels: LabelledImages, positions: int, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative positions (L,) of each label, over the images annotated in its category."""
    found, seen = (np.zeros(len(labels.names), np.int64) for _ in range(2))
    step = images_at_once(positions, len(labels.names))
    for start in range(0, len(labels.images), step):
        present, annotated = labels.of(labels.images[start : start + step])
        found += (present & annotated[:, None]).sum((0, 1))
        seen += annotated.sum(0) * positions
        progress("labels", min(start + step, len(labels.images)), len(labels.images))
    return found, seen - found


def best_f1_of_labels(task: Task, filters: torch.Tensor, progress: Progress) -> torch.Tensor:
    """Threshold b (L,) float64 of each column of ``filters`` (C, L) with the best F1 of ``w·x > b`` against its label.

    One pass over the labelled images counts scores in bins of 1/256 of their standard deviation, which follows from the layer's
    moments. The threshold is the middle of the empty bins below the last accepted one.
    """
    w, moments, device = filters.double().cpu(), task.moments, task.device
    mean = torch.from_numpy(moments.mean) @ w
    spread = ((torch.from_numpy(moments.covariance) @ w) * w).sum(0).clamp_min(1e-30).sqrt()
    scaled, shift = (w / spread).float().to(device), (mean / spread).float().to(device)
    counts = torch.zeros(2, task.count * BINS, dtype=torch.int64, device=device)
    offset = torch.arange(task.count, device=device) * BINS
    for block in task.blocks():
        score = block.x @ scaled - shift
        bins = ((score / WIDTH + 0.5) * BINS).clamp_(0, BINS - 1).long() + offset
        counts[0] += torch.bincount(bins[block.annotated & ~block.present], minlength=task.count * BINS)
        counts[1] += torch.bincount(bins[block.annotated & block.present], minlength=task.count * BINS)
        progress("thresholds", block.first + len(block.x), task.rows)
    edge = _best_edges(*counts.view(2, task.count, BINS).cpu())
    return mean + spread * (edge / BINS - 0.5) * WIDTH


def _best_edges(negative: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """(L,) number of the bin edge above which F1 is best, from histograms (L, bins), ascending; halves are allowed."""
    hits = positive.flip(1).cumsum(1).double()
    seen = (positive + negative).flip(1).cumsum(1).double()
    best = (2 * hits / (seen + hits[:, -1:]).clamp_min(1)).argmax(1, keepdim=True)  # bins taken from the top, less one
    # bins below it that hold nothing may be taken as well: go to their middle
    reach = (seen <= seen.gather(1, best)).sum(1, keepdim=True)
    return (BINS - (best + 1 + reach).double() / 2).squeeze(1)
