"""Tables of a dissection: one row a direction, one row a direction and label, one row a category.

The rows of ``unions`` come from ``evaluate.metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluate.counts import Counts
from evaluate.direction_names import Given, Maskless, names_of, with_names
from evaluate.metrics import INTERPRETABLE, Labelled, LabelScores
from stores.directions import Directions

# columns of each table, so that an empty one still says what it would hold
COLUMNS = {
    "directions": (
        "directions", "method", "index", "name", "label", "category", "number", "iou_train", "iou_val", "interpretable",
        "precision", "recall", "f1", "average_precision", "share", "agreement",
        "images_val", "positions_val", "iou_low", "iou_high", "threshold_supervised", "iou_supervised", "f1_supervised", "found_again",
    ),
    "labels": ("directions", "index", "rank", "label", "category", "iou_train", "iou_val", "images_val", "positions_val", "as_good"),
    "categories": ("directions", "category", "distinct", "detectors"),
    "label_tests": ("directions", "test", "metric", "tested", "holds", "holds_low", "holds_high", "change"),
    "unions": ("directions", "label", "category", "detectors", "iou", "precision", "recall", "f1"),
}  # fmt: skip


def table_columns(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows of one of the tables as its columns, all of them even without any row."""
    return {column: [row[column] for row in rows] for column in COLUMNS[name]}


def with_found_again(rows: Sequence[Mapping[str, Any]], directions: Directions) -> list[dict[str, Any]]:
    """Rows about a direction (``index``, or the first of ``indices``) with ``found_again``, None where there were no refits."""
    again = directions.found_again

    def of(row: Mapping[str, Any]) -> float | None:
        index = row["index"] if "index" in row else row["indices"][0]
        return None if again is None else round(float(again[index]), 6)

    return [{**row, "found_again": of(row)} for row in rows]


def direction_rows(
    name: str,
    directions: Directions,
    counts: Counts,
    columns: slice,
    scores: Labelled,
    refined: LabelScores | None = None,
    given: Mapping[int, Given] | None = None,
    maskless: Sequence[Maskless] | None = None,
) -> list[dict[str, Any]]:
    """One row a direction: its label, and its scores on val; nothing where the second pass would have given them."""
    share, cosine = counts.share[columns], directions.agreement
    rows: list[dict[str, Any]] = []
    for i in range(directions.count):
        label = counts.labels[int(scores.label[i])] if scores.label[i] >= 0 else None
        ap = float(scores.average_precision[i])
        rows.append(
            {
                "directions": name,
                "method": directions.method,
                "index": i,
                "label": label.name if label else "",
                "category": label.category if label else "",
                "number": label.number if label else 0,
                "iou_train": round(float(scores.iou_train[i]), 6),
                "iou_val": round(float(scores.iou_val[i]), 6),
                "interpretable": bool(label and scores.iou_val[i] > INTERPRETABLE),
                "precision": round(float(scores.precision[i]), 6),
                "recall": round(float(scores.recall[i]), 6),
                "f1": round(float(scores.f1[i]), 6),
                "average_precision": round(ap, 6) if np.isfinite(ap) else None,
                "share": round(float(share[i]), 6),
                "agreement": round(float(cosine[i]), 6),
                "images_val": int(counts.shown[1, scores.label[i]]) if label else 0,
                "positions_val": int(counts.label[1, scores.label[i]]) if label else 0,
                **_refined(refined, i),
            }
        )
    names = names_of([row["label"] for row in rows], [row["interpretable"] for row in rows], given, maskless)
    return with_found_again(with_names(rows, names), directions)


def _refined(refined: LabelScores | None, i: int) -> dict[str, float | None]:
    """The columns of direction ``i`` that the second pass fills; the threshold is a logit, 0 the direction's own."""
    names = ("iou_low", "iou_high", "threshold_supervised", "iou_supervised", "f1_supervised")
    if refined is None:
        return dict.fromkeys(names)
    arrays = refined.iou_low, refined.iou_high, refined.threshold, refined.supervised.iou, refined.supervised.f1
    values = (float(array[i]) for array in arrays)
    return {name: round(value, 6) if np.isfinite(value) else None for name, value in zip(names, values, strict=True)}


def label_rows(
    name: str,
    directions: Directions,
    counts: Counts,
    scores: Labelled,
    refined: LabelScores | None = None,
    *,
    top: int = 5,
) -> list[dict[str, Any]]:
    """The ``top`` labels of each direction by IoU on train, with their IoU on both splits.

    ``as_good``: whether the IoU on val reaches the interval of the direction's label; nothing where the second pass would have given it.
    """
    rows = []
    order = np.argsort(-scores.all_iou_train, axis=1, kind="stable")[:, :top]
    for i in range(directions.count):
        for rank, column in enumerate(order[i].tolist()):
            if scores.all_iou_train[i, column] <= 0:
                continue
            label = counts.labels[column]
            rows.append(
                {
                    "directions": name,
                    "index": i,
                    "rank": rank + 1,
                    "label": label.name,
                    "category": label.category,
                    "iou_train": round(float(scores.all_iou_train[i, column]), 6),
                    "iou_val": round(float(scores.all_iou_val[i, column]), 6),
                    "images_val": int(counts.shown[1, column]),
                    "positions_val": int(counts.label[1, column]),
                    "as_good": None if refined is None else bool(scores.all_iou_val[i, column] >= refined.iou_low[i]),
                }
            )
    return rows


def category_rows(name: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a category: distinct concepts and detectors."""
    return [
        {"directions": name, "category": category, **numbers} for category, numbers in summary["per_category"].items()
    ]
