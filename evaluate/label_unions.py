"""Detectors of one set that carry the same label, taken together: positive where any of them is (Network Dissection)."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.average_precision import Agreement, agree
from evaluate.counts import Counts
from evaluate.label_statistics import Second


def union_scores(counts: Counts, second: Second, columns: slice) -> tuple[np.ndarray, np.ndarray, Agreement]:
    """Of the set in ``columns``: its different labels (U,), how many detectors carry each (U,), and their unions' scores
    on val (U,)."""
    label_of = second.chosen.label_of
    label = label_of[columns]
    carried, detectors = np.unique(label[label >= 0], return_counts=True)
    both, found = np.zeros(len(carried)), np.zeros(len(carried))
    together = {(int(g[0]), int(label_of[g[0]])): k for k, g in enumerate(second.chosen.groups)}
    for u, column in enumerate(carried.tolist()):
        first = columns.start + int(np.flatnonzero(label == column)[0])
        if (k := together.get((first, column))) is not None:
            both[u], found[u] = second.union_both[k], second.union[k]
        else:  # a detector by itself
            both[u], found[u] = counts.both[1, first, column], counts.detector[1, first, counts.category_of[column]]
    return carried, detectors, agree(both, found, counts.label[1][carried])


def union_rows(name: str, counts: Counts, second: Second, columns: slice) -> list[dict[str, Any]]:
    """One row a label that the set carries."""
    carried, detectors, scores = union_scores(counts, second, columns)
    return [
        {
            "directions": name,
            "label": counts.labels[column].name,
            "category": counts.labels[column].category,
            "detectors": int(detectors[u]),
            "iou": round(float(scores.iou[u]), 6),
            "precision": round(float(scores.precision[u]), 6),
            "recall": round(float(scores.recall[u]), 6),
            "f1": round(float(scores.f1[u]), 6),
        }
        for u, column in enumerate(carried.tolist())
    ]
