"""What a report shows, as plain data: everything is computed before the first line of HTML is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A label a detector could carry, with its IoU on the train and on the val split."""

    label: str
    category: str
    iou_train: float
    iou_val: float


@dataclass(frozen=True)
class Tile:
    """One picture of a strip: the image's name, its largest logit, and its predicted class (may be empty)."""

    name: str
    value: float
    prediction: str = ""


@dataclass(frozen=True)
class Push:
    """What a step along a direction's signal vector does to a class: mean change of its probability; ``beyond``: more than
    random directions do."""

    class_name: str
    change: float
    beyond: bool


@dataclass(frozen=True)
class Card:
    """One direction pair. ``strip`` is a file name relative to the report: ``len(tiles)`` square pictures side by side.

    ``measures``: IoU, precision, recall, F1, average precision, share of positions, pair agreement, by name.
    ``found_again``: share of refits that contain it, NaN without refits. ``candidates`` are sorted, best first; the first is the label on train. ``pushes``: the classes it moves most, largest change first.
    """

    index: int
    label: str
    category: str
    iou: float
    interpretable: bool
    measures: dict[str, float]
    candidates: list[Candidate]
    strip: str
    tiles: list[Tile]
    pushes: list[Push] = field(default_factory=list)
    found_again: float = float("nan")


@dataclass(frozen=True)
class Section:
    """All directions of one file. ``summary`` is its entry in summary.json; ``log_picture``, ``steering_picture`` file names or empty.
    ``refits``: of how many ``Card.found_again`` is a share, 0 where that is unknown."""

    name: str
    method: str
    summary: dict[str, Any]
    cards: list[Card]
    log_picture: str = ""
    diagnosis: dict[str, Any] = field(default_factory=dict)
    steering_picture: str = ""
    refits: int = 0


@dataclass(frozen=True)
class ReportData:
    """A whole report. ``facts`` are shown as a two-column table, ``definitions`` as a glossary."""

    title: str
    facts: dict[str, str]
    sections: list[Section]
    tile_size: int
    ground_truth: dict[str, Any] | None = None
    definitions: dict[str, str] = field(default_factory=dict)
