"""What a correction does to images without labels: mean class probabilities before and after, and how many predictions change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.correct.choice import Z
from evaluate.correct.correction import Correction
from evaluate.correct.gates import Gates
from evaluate.correct.heldout_evaluation import Judged, probabilities
from evaluate.web_page import render_page
from extract.network import Head
from stores.io import write_atomically

GROUPS = {
    "clean": "images without the concept",
    "poisoned": "images with the concept",
    "detected": "images where the concept is detected",
    "other": "other images",
}
SHOWN = 10  # classes of a set in the summary, those that change most


@dataclass(frozen=True)
class ProbabilityChange:
    """Of n images: mean probabilities ``before`` and ``after`` (K,), half the 95 % interval of the change, ``half`` (K,), and how many
    images are predicted as another class, ``moved``."""

    images: int
    before: np.ndarray
    after: np.ndarray
    half: np.ndarray
    moved: int


def probability_change(of: Judged, head: Head, correction: Correction, device: str = "cpu") -> ProbabilityChange:
    """What a correction does to the images of a set that are not held out."""
    places = np.flatnonzero(~of.held)
    logits = of.logits[places].astype(np.float64)
    raised = np.exp(logits - logits.max(1, keepdims=True))
    p, q = raised / raised.sum(1, keepdims=True), probabilities(of, head, correction, places, device)
    half = Z * (q - p).std(0, ddof=1) / np.sqrt(len(p)) if len(p) > 1 else np.full(p.shape[1], np.nan)
    return ProbabilityChange(len(p), p.mean(0), q.mean(0), half, int((p.argmax(1) != q.argmax(1)).sum()))


def split_by_detector(of: Judged, gates: Gates) -> dict[str, Judged]:
    """Images with a position where a detector is on, and the others."""
    prefix, rows = of.reader.spec.prefix, of.rows.tolist()
    images = (of.reader.images([row])[0, prefix:].astype(np.float32) for row in rows)
    shown = np.array([(x @ gates.filters > gates.thresholds).any() for x in images])
    return {
        name: replace(of, **{key: getattr(of, key)[where] for key in ("rows", "classes", "logits", "held")})
        for name, where in (("detected", shown), ("other", ~shown))
    }


def probability_rows(changes: Mapping[str, ProbabilityChange], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set and class, in each set those that change most first."""
    rows = []
    for which, of in changes.items():
        for k in np.argsort(-np.abs(of.after - of.before), kind="stable").tolist():
            values = {
                "before": of.before[k],
                "after": of.after[k],
                "change": of.after[k] - of.before[k],
                "half_width": of.half[k],
            }
            row = {key: round(float(value), 6) if np.isfinite(value) else None for key, value in values.items()}
            rows.append({"set": which, "class": k, "class_name": classes[k], "images": of.images, **row})
    return rows


def probability_summary(changes: Mapping[str, ProbabilityChange], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By set: the images, how many of them are predicted as another class, and the classes that change most."""
    return {
        which: {
            "images": of.images,
            "predicted_otherwise": of.moved,
            "classes": [
                {k: v for k, v in row.items() if k not in ("set", "images")} for row in rows if row["set"] == which
            ][:SHOWN],
        }
        for which, of in changes.items()
    }


def write_probability_page(
    out: Path, summary: Mapping[str, Any], facts: Mapping[str, str], problem: str, rows: str = "images"
) -> None:
    """Write ``index.html`` of a correction without labels; ``rows``: what the store's are called."""
    sets = {which: title.replace("images", rows) for which, title in GROUPS.items() if which in summary}
    page = {"summary": summary, "made": facts, "sets": sets, "problem": problem, "rows": rows}
    write_atomically(
        out / "index.html",
        render_page("correct_unlabelled.html", page, styles="correct.css").encode("utf-8", "replace"),
    )
