"""Network Dissection as a slow literal program: the oracle of ``evaluate.dissect``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from evaluate.dissect import (
    BINS,
    Counts,
    Dissector,
)
from evaluate.metrics import choose_labels, s1, s2, score
from extract.segmentation.broden import BrodenSource
from stores.directions import Directions

WHOLE = (0.0, 0.0, 1.0, 1.0)
Box = tuple[float, float, float, float]
Broden = Callable[..., BrodenSource]


# the slow program: one unit, one label, one image at a time, nothing shared with the fast one


def naive_bilinear(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(h, w) -> (rows, columns), cells tile the picture evenly, float64."""
    h, w = grid.shape
    out = np.zeros((rows, columns))
    for r, c in itertools.product(range(rows), range(columns)):
        y = min(max((r + 0.5) * h / rows - 0.5, 0.0), h - 1.0)
        x = min(max((c + 0.5) * w / columns - 0.5, 0.0), w - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
        upper = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
        lower = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
        out[r, c] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def naive_has(masks: dict[str, np.ndarray], number: int, raster: tuple[int, int], box: Box) -> np.ndarray:
    """Where a label is on the raster: in any layer of any category, at the mask pixel under each point's centre."""
    out = np.zeros(raster, bool)
    left, top, right, bottom = box
    for layers in masks.values():
        for layer in layers:
            for r, c in itertools.product(range(raster[0]), range(raster[1])):
                y = (top + (r + 0.5) / raster[0] * (bottom - top)) * layer.shape[0]
                x = (left + (c + 0.5) / raster[1] * (right - left)) * layer.shape[1]
                if 0 <= y < layer.shape[0] and 0 <= x < layer.shape[1] and layer[int(y), int(x)] == number:
                    out[r, c] = True
    return out


def naive_bin(z: np.ndarray, low: float, high: float) -> np.ndarray:
    """The bin of each logit, of 2000 between the smallest and the largest; in float32, as the fast program counts."""
    share = (z.astype(np.float32) - np.float32(low)) / max(np.float32(high) - np.float32(low), np.float32(1e-6))
    return np.floor(share * np.float32(BINS - 1))


@dataclass
class Slow:
    """Per unit and label, for train and val: [intersection, detector's positions, label's positions]."""

    counts: dict[tuple[int, int, str], list[int]] = field(default_factory=dict)
    scores: dict[tuple[int, int], list[tuple[bool, float]]] = field(default_factory=dict)  # (label there, logit), val
    range: dict[int, tuple[float, float]] = field(default_factory=dict)  # smallest and largest logit on the grid

    def iou(self, unit: int, label: int, split: str) -> float:
        both, detector, truth = self.counts[unit, label, split]
        union = detector + truth - both
        return both / union if union else 0.0


def dissect_slowly(
    x: np.ndarray,
    grid: tuple[int, int],
    directions: Directions,
    source: BrodenSource,
    box: Box,
    raster: tuple[int, int] | None,
) -> Slow:
    """Images are those of the source in order; ``raster`` None compares at the grid."""
    slow = Slow()
    assert directions.thresholds is not None
    for unit, label, split in itertools.product(range(directions.count), range(len(source.labels)), ("train", "val")):
        w, b = directions.filters[:, unit].astype(float), float(directions.thresholds[unit])
        slow.range[unit] = float((x @ w).min() - b), float((x @ w).max() - b)
        counted = slow.counts[unit, label, split] = [0, 0, 0]
        for image in range(len(source)):
            masks = source.masks(image)
            if source.split(image) != split or source.labels[label].category not in masks:
                continue
            logits = np.array([float(row @ w) - b for row in x[image].astype(float)]).reshape(grid)
            if raster is not None:
                logits = naive_bilinear(logits, *raster)
            truth = naive_has(masks, source.labels[label].number, logits.shape, box)
            for t, z in zip(truth.reshape(-1), logits.reshape(-1), strict=True):
                counted[0] += int(t and z > 0)
                counted[1] += int(z > 0)
                counted[2] += int(t)
                if split == "val":
                    slow.scores.setdefault((unit, label), []).append((bool(t), float(z)))
    return slow


def assert_same(slow: Slow, dissector: Dissector, counts: Counts) -> None:
    """Counts, IoU, labels, S1, S2, precision, recall, F1 and average precision of both programs."""
    units, labels = dissector.bank.count, len(counts.labels)
    for (unit, label, split), (both, detector, truth) in slow.counts.items():
        s = ("train", "val").index(split)
        assert counts.both[s, unit, label] == both
        assert counts.detector[s, unit, counts.category_of[label]] == detector
        assert counts.label[s, label] == truth
        assert counts.iou(s)[unit, label] == slow.iou(unit, label, split)
    chosen = []
    for unit in range(units):
        best, best_iou = -1, 0.0
        for label in range(labels):  # the first of the best, and none where nothing overlaps
            if slow.iou(unit, label, "train") > best_iou:
                best, best_iou = label, slow.iou(unit, label, "train")
        chosen.append(best)
    label_of = choose_labels(counts)
    assert label_of.tolist() == chosen
    ap = dissector.average_precision(label_of)
    found = score(counts, slice(0, units), label_of, ap)
    best_of: dict[int, float] = {}
    for unit, label in enumerate(chosen):
        if label < 0:
            assert found.iou_val[unit] == found.precision[unit] == found.recall[unit] == found.f1[unit] == 0
            assert np.isnan(found.average_precision[unit])
            continue
        both, detector, truth = slow.counts[unit, label, "val"]
        precision, recall = both / detector if detector else 0.0, both / truth if truth else 0.0
        assert found.iou_val[unit] == slow.iou(unit, label, "val")
        assert (found.precision[unit], found.recall[unit]) == (precision, recall)
        harmonic = 2 * precision * recall / (precision + recall) if both else 0.0
        assert found.f1[unit] == pytest.approx(harmonic, abs=1e-12)
        best_of[label] = max(best_of.get(label, 0.0), slow.iou(unit, label, "val"))
        if truth:
            pairs = slow.scores[unit, label]
            there, z = [t for t, _ in pairs], np.array([z for _, z in pairs])
            wanted = average_precision_score(there, naive_bin(z, *slow.range[unit]))
            assert found.average_precision[unit] == pytest.approx(wanted, abs=1e-9)
            assert wanted == pytest.approx(average_precision_score(there, z), abs=0.01)  # all that bins can cost
        else:
            assert np.isnan(found.average_precision[unit])
    assert s1(found.iou_val) == pytest.approx(
        sum(slow.iou(u, c, "val") for u, c in enumerate(chosen) if c >= 0), abs=1e-12
    )
    assert s2(found.label, found.iou_val) == pytest.approx(sum(best_of.values()), abs=1e-12)


# random folders for both programs

LABELS = [
    (1, "sky", "object"), (2, "wing", "part(9);object(3)"), (3, "sand", "object(5);material(2)"),
    (4, "stone", "material"), (300, "beach", "scene"), (5, "never", "object"),
]  # fmt: skip


def random_rows(g: np.random.Generator, count: int, mask: tuple[int, int]) -> list[dict[str, Any]]:
    """Each image is annotated in some categories alone, with up to two layers, and with labels across categories."""
    rows = []
    for i in range(count):
        cells: dict[str, list[Any]] = {"object": [], "part": [], "material": [], "scene": []}
        for category, numbers in (("object", [0, 0, 1, 2, 3]), ("part", [0, 2, 2]), ("material", [0, 3, 4])):
            layers = int(g.choice([0, 1, 1, 2]))
            cells[category] = [g.choice(numbers, mask) for _ in range(layers)]
        if g.random() < 0.6:
            cells["scene"] = [300]
        elif g.random() < 0.3:
            cells["material"] = [4]
        split = ("train", "val")[i] if i < 2 else str(g.choice(["train", "val", "test"]))
        rows.append({"image": f"{i}.png", "split": split, "mask": mask, "cells": cells})
    return rows


def many(
    folder: Path, make_broden: Broden, n: int = 9, mask: tuple[int, int] = (4, 4)
) -> tuple[BrodenSource, np.ndarray]:
    g = np.random.default_rng(5)
    source = make_broden(folder / "b", LABELS, random_rows(g, n, mask))
    return source, g.normal(size=(n, 4, 3)).astype(np.float32)
