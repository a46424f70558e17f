"""The columns of the comparison between sets of directions, and how numbers and names look in a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from evaluate.report.data import ReportData
from stores.documents import MOST_NUMBER

DASH = "–"
NAMES = {word.lower(): word for word in ("IoU", "RMSE", "F1", "S1", "S2", "S3", "AP", "SDC", "SCDP")}


@dataclass(frozen=True)
class Column:
    """A column of the comparison: key in a summary, heading, which is better (+1 more, −1 less, 0 neither), what it is."""

    key: str
    title: str
    better: int
    text: str


COLUMNS = (
    Column("directions", "Directions", 0, "How many directions the set holds."),
    Column("s1", "S1", 1, "Sum over all directions of the IoU with their label."),
    Column("s2", "S2", 1, "Sum over distinct labels of the best IoU a direction reaches for it."),
    Column("interpretable", "Interpretable", 1, "Directions whose IoU with their label is above the threshold."),
    Column("distinct", "Distinct", 1, "Different labels among the interpretable directions."),
    Column("coverage", "Coverage", 1, "Share of positions where at least one detector is positive."),
    Column("redundancy", "Redundancy", -1, "Mean number of positive detectors on a covered position; less is better."),
    Column(
        "precision",
        "Precision",
        1,
        "Share of a detector's positives that carry its label; mean over interpretable ones.",
    ),
    Column(
        "recall",
        "Recall",
        1,
        "Share of the label's positions where a detector is positive; mean over interpretable ones.",
    ),
    Column("f1", "F1", 1, "Harmonic mean of precision and recall; mean over interpretable ones."),
    Column("average_precision", "AP", 1, "Average precision over all thresholds; mean over interpretable ones."),
    Column("sdc", "SDC", 1, "Directions with a significant influence on at least one class."),
    Column("scdp", "SCDP", 1, "Pairs of direction and class with a significant influence."),
    Column("significant_bh", "Significant (BH)", 1, "Pairs that are significant after Benjamini-Hochberg."),
    Column("significant_max", "Beyond nulls", 1, "Pairs of signal vector and class beyond all null directions."),
    Column("significant_random", "Beyond random", 1, "Pairs of signal vector and class beyond random directions."),
    Column("s3", "S3", -1, "Share of pairs where the pattern-CAV beats every signal vector of the label."),
    Column("monosemanticity", "Monosemanticity", 1, "Mean monosemanticity score of the directions that have one."),
    Column(
        "stability",
        "Stability",
        1,
        "Mean |correlation| of logits with those of the other fits of the method, matched one to one.",
    ),
    Column("stability_kappa", "Stability κ", 1, "The same corrected for chance."),
    Column("found_again", "Found again", 1, "Share of directions that at least half of the refits contain."),
)
OPTIONAL = frozenset(
    {
        "directions",
        "sdc",
        "scdp",
        "significant_bh",
        "significant_max",
        "significant_random",
        "s3",
        "monosemanticity",
        "stability",
        "stability_kappa",
        "found_again",
    }
)  # shown only where some section has them


def known(value: Any) -> bool:
    """Whether there is a number to show: neither NaN nor beyond all bounds."""
    return isinstance(value, Real) and not isinstance(value, bool) and -MOST_NUMBER <= value <= MOST_NUMBER  # type: ignore[operator]


def number(value: Any) -> str:
    """A number for a table: counts as they are, the rest with three decimals or two digits; a dash for none."""
    if not known(value):
        return DASH
    if isinstance(value, Integral):
        return str(int(value))
    value = float(value)
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"


def short(value: float) -> str:
    """A number for the corner of a picture: three digits."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else DASH


def points(change: float) -> str:
    """A change of probability in percentage points, with its sign: two digits, at most two decimals."""
    value = 100 * change
    text = f"{value:+.1f}" if abs(value) >= 0.995 else f"{value:+.2f}"
    return (text if float(text) else "±0").replace("-", "−") + " pp"


def again(share: float, refits: int) -> str:
    """How often a direction is found again: ``7 of 8`` refits, or a share where their number is unknown."""
    return f"{share * refits:.0f} of {refits}" if refits else number(share)


def name(key: str) -> str:
    """A key as a heading: ``average_precision`` → ``average precision``, ``iou`` → ``IoU``."""
    return " ".join(NAMES.get(word.lower(), word) for word in key.replace("_", " ").split())


def shown_columns(data: ReportData) -> list[Column]:
    """The columns of the comparison, with the report's own definitions where it has them."""
    own = {_plain(term): text for term, text in data.definitions.items()}
    return [
        Column(c.key, c.title, c.better, own.get(_plain(c.title)) or own.get(_plain(c.key)) or c.text)
        for c in COLUMNS
        if c.key not in OPTIONAL or any(c.key in s.summary for s in data.sections)
    ]


def comparison(data: ReportData) -> list[list[tuple[str, bool]]]:
    """Cells (text, is it the best of its column) of each section; where all look the same none is."""
    columns = []
    for column in shown_columns(data):
        values = [section.summary.get(column.key) for section in data.sections]
        cells = [(value, number(value)) for value in values]
        ranked = [(column.better * float(value or 0), text) for value, text in cells if text != DASH]
        top = max(ranked)[1] if column.better and len({text for _, text in ranked}) > 1 else None
        columns.append([(text, text == top) for _, text in cells])
    return [list(row) for row in zip(*columns, strict=True)]


def column_groups(columns: list[Column]) -> list[tuple[int, int]]:
    """First and last (exclusive) column of each table: how well labels fit, then what directions do and how stable they are."""
    split = next((k for k, c in enumerate(columns) if c.key in OPTIONAL - {"directions"}), len(columns))
    return [(first, last) for first, last in ((0, split), (split, len(columns))) if first < last]


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())
