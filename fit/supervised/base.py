"""What supervised methods share: which labels have enough positives, and a pass over activations with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch

from fit.base import Fitter, FitterConfig
from fit.supervised.position_labels import LabelledImages, Labels, labels_of_store
from stores.errors import FitError, UsageError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import Statistics

ROWS = 16384  # positions at a time
ENTRIES = 2**22  # positions × labels at a time


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
    """A layer's activations and L labels with enough positives.

    ``columns`` (L,): their places among all labels; ``positives``, ``negatives`` (L,): positions, of annotated images.
    """

    reader: LayerReader
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

    def marks(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """present (n·P, L) and annotated (n·P, L) of some images."""
        present, annotated = self.labels.of(images)
        p = self.reader.positions
        return present[:, :, self.columns].reshape(-1, self.count), annotated[:, self.columns].repeat(p, axis=0)

    def blocks(self, device: str) -> Iterator[Block]:
        """One pass over the labelled images, in the store's order."""
        p, done = self.reader.positions, 0
        for index, block in self.reader.blocks(images=images_at_once(p, self.count)):
            inside = np.isin(index, self.labels.images)
            if not inside.any():
                continue
            x = torch.from_numpy(np.ascontiguousarray(block[inside])).to(device).float()
            present, annotated = (torch.from_numpy(a).to(device) for a in self.marks(index[inside]))
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
        """Look through all labels once, and choose those that can be learnt.

        Raises FitError when none can, UsageError when there are no labels or ``n_directions`` contradicts their number.
        """
        labels = labels_of_store(reader, self.name) if self.labels is None else self.labels.at(reader)
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
        return Task(reader, labels, columns, positives[columns], negatives[columns], left_out)

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


def check_varies(reader: LayerReader, moments: Statistics) -> None:
    """Raise FitError when all positions have the same vector."""
    scale = float(np.abs(moments.mean).max()) ** 2
    if float(np.trace(moments.covariance)) <= 1e-12 * max(scale, 1e-30):
        raise FitError(
            f"The activations of layer '{reader.spec.name}' do not vary, so there is nothing to find. Look at the layer and "
            "the images with `eddp inspect`."
        )
