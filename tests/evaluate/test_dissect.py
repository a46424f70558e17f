"""Network Dissection: a two-image folder counted by hand, and a slow literal program that must agree to the last position."""

from __future__ import annotations

import itertools
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import evaluate.masks
from evaluate.detectors import Bank, make_bank
from evaluate.dissect import (
    BINS,
    Alignment,
    Counts,
    Dissector,
    Resolution,
    average_precision_from_bins,
    raster_size,
    upsample,
)
from evaluate.scores import choose_labels, s1, s2, score
from extract.broden import BrodenSource, ConceptLabel
from stores.activations import ActivationStore
from stores.directions import Directions
from stores.errors import DatasetError, UsageError
from stores.readers import LayerReader

WHOLE = (0.0, 0.0, 1.0, 1.0)
Box = tuple[float, float, float, float]
Broden = Callable[..., BrodenSource]
Store = Callable[..., ActivationStore]
Make = Callable[..., Directions]
Reader = Callable[..., LayerReader]


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


# two images by hand


@pytest.fixture
def two(tmp_path: Path, make_broden: Broden, make_store: Store) -> tuple[LayerReader, Alignment]:
    """Grid 1 × 4. Train: sky left, wings on the 1st and 4th position in two layers, a beach. Val: sky on the right half, no part.

    Activations: channel 0 is 1 on the left half of train and on the first three positions of val, channel 1 counts 0, 1, 2, 3.
    """
    source = make_broden(
        tmp_path / "broden",
        [(1, "sky", "object"), (2, "wing", "part"), (7, "beach", "scene"), (8, "street", "scene")],
        [
            {"image": "a.png", "split": "train", "mask": (1, 4),
             "cells": {"object": [np.array([[1, 1, 0, 0]])],
                       "part": [np.array([[2, 0, 0, 0]]), np.array([[0, 0, 0, 2]])], "scene": [7]}},
            {"image": "b.png", "split": "val", "mask": (1, 4),
             "cells": {"object": [np.array([[0, 0, 1, 1]])], "scene": [8]}},
        ],
    )  # fmt: skip
    x = np.array([[[1, 0], [1, 1], [0, 2], [0, 3]], [[1, 0], [1, 1], [1, 2], [0, 3]]], np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 4), names=["a.png", "b.png"]))
    return reader, Alignment(source, {0: 0, 1: 1}, lambda image: WHOLE)


def two_bank(two: tuple[LayerReader, Alignment], make_directions: Make) -> Bank:
    left = make_directions([[1, 0], [0, 1]], [0.5, 2.5])  # channel 0 on; channel 1 above 2.5: the last position alone
    never = make_directions([[1], [0]], [5.0])
    return make_bank({"left": left, "never": never}, two[0])


@pytest.mark.parametrize("resolution", ["mask", "feature"])
def test_two_images_by_hand(two: tuple[LayerReader, Alignment], make_directions: Make, resolution: Resolution) -> None:
    reader, alignment = two
    counts = Dissector(reader, two_bank(two, make_directions), alignment, resolution).count()
    assert counts.raster == (1, 4)
    assert counts.categories == ["object", "part", "scene"]
    sky, wing, beach, street = range(4)
    train, val = counts.iou(0), counts.iou(1)
    assert train.tolist() == [[1.0, 1 / 3, 0.5, 0.0], [0.0, 0.5, 0.25, 0.0], [0.0] * 4]
    assert val[0].tolist() == [0.25, 0.0, 0.0, 0.75]
    assert val[1].tolist() == [0.5, 0.0, 0.0, 0.25]
    assert counts.detector[1, 0].tolist() == [3, 0, 3]  # val is not annotated in parts: no union there
    assert counts.points.tolist() == [[4, 4, 4], [4, 0, 4]]
    assert counts.label.tolist() == [[2, 2, 4, 0], [2, 0, 0, 4]]
    assert counts.images.tolist() == [1, 1]
    assert choose_labels(counts).tolist() == [sky, wing, -1]
    assert counts.share.tolist() == [5 / 8, 2 / 8, 0.0]
    assert counts.positions == 8
    assert (counts.covered, counts.active) == ({"left": 7, "never": 0}, {"left": 7, "never": 0})
    assert beach < street


def test_coverage_counts_positions_and_redundancy_detectors(
    two: tuple[LayerReader, Alignment], make_directions: Make
) -> None:
    reader, alignment = two
    overlapping = make_directions([[1, 0, 1], [0, 1, 0]], [0.5, 0.5, 0.5])  # the first and third are the same
    counts = Dissector(reader, make_bank({"a": overlapping}, reader), alignment).count()
    # train: 2, 3, 1, 1 detectors on; val: 2, 3, 3, 1
    assert counts.covered == {"a": 8}
    assert counts.active == {"a": 2 + 3 + 1 + 1 + 2 + 3 + 3 + 1}


def test_average_precision_of_a_perfect_a_worst_and_a_missing_label(
    two: tuple[LayerReader, Alignment], make_directions: Make
) -> None:
    reader, alignment = two
    bank = make_bank({"a": make_directions([[0, 0, 0, 0], [1, -1, 1, 1]], [0.0] * 4)}, reader)
    dissector = Dissector(reader, bank, alignment)
    found = dissector.average_precision(np.array([0, 0, 1, -1]))
    assert found[0] == 1.0  # the sky of val is where channel 1 is largest
    assert found[1] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert np.isnan(found[2:]).all()  # val is not annotated in parts; no label at all


# random folders against the slow program


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes at which every number is exact in float32: rasters are the grid times powers of two, activations integers."""
    grid = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    box = draw(st.sampled_from([WHOLE, (0.25, 0.0, 0.75, 1.0), (-0.5, -0.5, 1.5, 1.5), (0.5, 0.5, 1.0, 1.0)]))
    factor = draw(st.sampled_from([2, 4]))
    return {
        "grid": grid,
        "box": box,
        "mask": (factor * grid[0], factor * grid[1]),
        "images": draw(st.integers(2, 5)),
        "units": draw(st.integers(1, 4)),
        "chunk": draw(st.integers(1, 3)),
        "spread": draw(st.sampled_from([1, 6])),  # 1: many ties
        "bias": draw(st.sampled_from([0.0, 0.5, 20.0])),  # 20: mostly dead
        "seed": draw(st.integers(0, 2**20)),
    }


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


@pytest.mark.parametrize("resolution", ["mask", "feature"])
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_the_fast_program_is_the_slow_one(
    make_broden: Broden, memory_reader: Reader, make_directions: Make, resolution: Resolution, case: dict[str, Any]
) -> None:
    g = np.random.default_rng(case["seed"])
    grid, box, n = case["grid"], case["box"], case["images"]
    x = g.integers(-case["spread"], case["spread"] + 1, (n, grid[0] * grid[1], 3)).astype(np.float32)
    directions = make_directions(g.integers(-2, 3, (3, case["units"])), g.integers(-2, 3, case["units"]) + case["bias"])
    with tempfile.TemporaryDirectory() as folder:
        source = make_broden(Path(folder) / "b", LABELS, random_rows(g, n, case["mask"]))
        reader = memory_reader(x, grid, chunk_images=case["chunk"])
        alignment = Alignment(source, {i: i for i in range(n)}, lambda image: box)
        dissector = Dissector(reader, make_bank({"a": directions}, reader), alignment, resolution)
        slow = dissect_slowly(x, grid, directions, source, box, dissector.raster if resolution == "mask" else None)
        assert_same(slow, dissector, dissector.count())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sizes_that_do_not_divide(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make, seed: int
) -> None:
    """Any ratio of mask and grid and any box; activations are continuous, so that no logit is within rounding of zero."""
    g = np.random.default_rng(seed)
    source = make_broden(tmp_path / "b", LABELS, random_rows(g, 5, (7, 11)))
    box = (0.11, -0.07, 0.93, 1.2)
    x = g.normal(size=(5, 6, 4)).astype(np.float32)
    directions = make_directions(g.normal(size=(4, 3)), g.normal(size=3))
    reader = memory_reader(x, (2, 3))
    alignment = Alignment(source, {i: i for i in range(5)}, lambda image: box)
    dissector = Dissector(reader, make_bank({"a": directions}, reader), alignment)
    assert dissector.raster == (9, 9)  # 7 · 1.27 and 11 · 0.82, rounded
    slow = dissect_slowly(x, (2, 3), directions, source, box, dissector.raster)
    counts = dissector.count()
    for (unit, label, split), (both, detector, truth) in slow.counts.items():
        s = ("train", "val").index(split)
        found = counts.both[s, unit, label], counts.detector[s, unit, counts.category_of[label]], counts.label[s, label]
        assert found == (both, detector, truth)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_upsampling_is_bilinear(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    rows, columns = max(rows, h), max(columns, w)
    logits = np.random.default_rng(seed).normal(size=(2, h * w, 2)).astype(np.float32)
    fine = upsample(torch.from_numpy(logits), (h, w), (rows, columns)).numpy()
    assert fine.shape == (2, rows * columns, 2)
    for n, j in itertools.product(range(2), range(2)):
        wanted = naive_bilinear(logits[n, :, j].reshape(h, w).astype(float), rows, columns)
        np.testing.assert_allclose(fine[n, :, j].reshape(rows, columns), wanted, atol=1e-5)


def test_an_iou_never_exceeds_one_when_a_label_occurs_in_several_categories(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    """'sand' is an object, and lies in the material map of an image without objects: that image is in no union of it."""
    sand = np.array([[3, 3]])
    rows = [
        {"image": f"{i}.png", "split": s, "mask": (1, 2), "cells": {"object": o, "material": [sand]}}
        for i, (s, o) in enumerate([("train", [sand]), ("train", []), ("val", [sand]), ("val", [])])
    ]
    source = make_broden(tmp_path / "b", LABELS, rows)
    reader = memory_reader(np.array([[[1], [-1]], [[1], [1]]] * 2, np.float32), (1, 2))
    bank = make_bank({"a": make_directions([[1]], [0.0])}, reader)
    counts = Dissector(reader, bank, Alignment(source, {i: i for i in range(4)}, lambda image: WHOLE)).count()
    assert counts.iou(0)[0].tolist() == counts.iou(1)[0].tolist() == [0, 0, 0.5, 0, 0, 0]


# stores in other orders, sampled, incomplete; splits that lack


def many(
    folder: Path, make_broden: Broden, n: int = 9, mask: tuple[int, int] = (4, 4)
) -> tuple[BrodenSource, np.ndarray]:
    g = np.random.default_rng(5)
    source = make_broden(folder / "b", LABELS, random_rows(g, n, mask))
    return source, g.normal(size=(n, 4, 3)).astype(np.float32)


def count_all(reader: LayerReader, source: BrodenSource, rows: dict[int, int], directions: Directions) -> Counts:
    bank = make_bank({"a": directions}, reader)
    return Dissector(reader, bank, Alignment(source, rows, lambda image: WHOLE)).count()


def assert_equal_counts(a: Counts, b: Counts) -> None:
    for name in ("both", "detector", "label", "points", "images", "share", "covered", "active", "positions"):
        np.testing.assert_equal(getattr(a, name), getattr(b, name))


def test_the_order_of_the_store_does_not_matter(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, x = many(tmp_path, make_broden)
    directions = make_directions(np.eye(3), [0.3, 0.1, -0.4])
    plain = count_all(memory_reader(x, (2, 2)), source, {i: i for i in range(9)}, directions)
    order = np.random.default_rng(6).permutation(9)
    mixed = count_all(memory_reader(x[order], (2, 2)), source, dict(enumerate(order.tolist())), directions)
    assert_equal_counts(plain, mixed)
    assert plain.images.sum() < 9  # the split 'test' is left out


def test_images_outside_the_folder_and_unreadable_ones_are_left_out(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, x = many(tmp_path, make_broden)
    directions = make_directions(np.eye(3), [0.3, 0.1, -0.4])
    kept = [0, 1, 4, 7, 8]
    plain = count_all(memory_reader(x[kept], (2, 2)), source, dict(enumerate(kept)), directions)
    some = count_all(memory_reader(x, (2, 2)), source, {i: i for i in kept}, directions)
    valid = np.isin(np.arange(9), kept)
    broken = np.where(valid[:, None, None], x, np.nan).astype(np.float32)
    read = count_all(memory_reader(broken, (2, 2), valid=valid), source, {i: i for i in range(9)}, directions)
    assert_equal_counts(plain, some)
    assert_equal_counts(plain, read)


def test_float16_stores_are_scored_in_float32(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, x = many(tmp_path, make_broden)
    directions = make_directions(np.eye(3), [0.3, 0.1, -0.4])
    rows = {i: i for i in range(9)}
    half = count_all(memory_reader(x.astype(np.float16), (2, 2)), source, rows, directions)
    single = count_all(memory_reader(x.astype(np.float16).astype(np.float32), (2, 2)), source, rows, directions)
    assert_equal_counts(half, single)


def test_sampled_positions_are_held_against_their_own_places(
    tmp_path: Path, make_broden: Broden, make_store: Store, make_directions: Make
) -> None:
    g = np.random.default_rng(7)
    source = make_broden(tmp_path / "b", LABELS, random_rows(g, 6, (6, 6)))
    positions = np.stack([np.sort(g.choice(9, 4, replace=False)) for _ in range(6)]).astype(np.int32)
    x = g.normal(size=(6, 4, 3)).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(3, 3), positions=positions))
    directions = make_directions(np.eye(3), [0.2, 0.0, -0.2])
    alignment = Alignment(source, {i: i for i in range(6)}, lambda image: WHOLE)
    bank = make_bank({"a": directions}, reader)
    counts = Dissector(reader, bank, alignment, "feature").count()
    for column, label in enumerate(source.labels):
        for s, split in enumerate(("train", "val")):
            both = np.zeros(3)
            for image in range(6):
                masks = source.masks(image)
                if source.split(image) == split and label.category in masks:
                    truth = naive_has(masks, label.number, (3, 3), WHOLE).reshape(-1)[positions[image]]
                    both += (truth[:, None] & (x[image] > [0.2, 0.0, -0.2])).sum(0)
            np.testing.assert_array_equal(counts.both[s, :, column], both)
    with pytest.raises(UsageError, match="--resolution feature"):
        Dissector(reader, bank, alignment, "mask")


@pytest.mark.parametrize(("splits", "lacks"), [(("train", "train"), "val"), (("val", "test"), "train")])
def test_a_folder_without_one_of_the_splits_is_refused(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make, splits: tuple, lacks: str
) -> None:
    rows = [{"image": f"{i}.png", "split": s, "mask": (1, 1), "cells": {"object": [1]}} for i, s in enumerate(splits)]
    source = make_broden(tmp_path / "b", LABELS, rows)
    reader = memory_reader(np.zeros((2, 1, 1), np.float32), (1, 1))
    bank = make_bank({"a": make_directions([[1]], [0.0])}, reader)
    with pytest.raises(DatasetError, match=f"no image of the split '{lacks}'"):
        Dissector(reader, bank, Alignment(source, {0: 0, 1: 1}, lambda image: WHOLE))


def test_a_split_of_unreadable_images_is_an_empty_split(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, x = many(tmp_path, make_broden)
    valid = np.array([source.split(i) != "val" for i in range(9)])
    reader = memory_reader(x, (2, 2), valid=valid)
    bank = make_bank({"a": make_directions(np.eye(3), [0.0] * 3)}, reader)
    with pytest.raises(DatasetError, match="no image of the split 'val'"):
        Dissector(reader, bank, Alignment(source, {i: i for i in range(9)}, lambda image: WHOLE))


def test_the_raster_is_as_fine_as_the_masks_in_the_part_that_is_seen(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader
) -> None:
    source, x = many(tmp_path, make_broden, mask=(112, 80))
    reader = memory_reader(x, (2, 2))

    def size(box: Box, resolution: Resolution = "mask") -> tuple[int, int]:
        return raster_size(reader, Alignment(source, {3: 3}, lambda image: box), resolution)

    assert size(WHOLE) == (112, 80)
    assert size((0.25, 0.0, 0.75, 0.5)) == (56, 40)
    assert size((0.0, 0.0, 0.01, 0.01)) == (2, 2)  # never coarser than the layer
    assert size(WHOLE, "feature") == (2, 2)


# leaving early


def test_leaving_the_images_early_ends_the_reading(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, x = many(tmp_path, make_broden, n=40)
    reader = memory_reader(x, (2, 2))
    bank = make_bank({"a": make_directions(np.eye(3), [0.0] * 3)}, reader)
    dissector = Dissector(reader, bank, Alignment(source, {i: i for i in range(40)}, lambda image: WHOLE))
    images = dissector._images(lambda *arguments: None, "stage")
    next(images)
    images.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("masks")]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:  # its traceback keeps the frames alive
        dissector.count(stop)
    assert held.tb is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("masks")]


def test_no_more_than_a_window_of_images_is_held(
    tmp_path: Path,
    make_broden: Broden,
    memory_reader: Reader,
    make_directions: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, x = many(tmp_path, make_broden, n=120, mask=(2, 2))
    held: list[weakref.finalize] = []
    most = 0
    real = evaluate.masks.labels_on_raster

    def counted(*arguments: Any) -> Any:
        labels = real(*arguments)
        held.append(weakref.finalize(labels, int))
        return labels

    def progress(*arguments: object) -> None:
        nonlocal most
        most = max(most, sum(one.alive for one in held))

    monkeypatch.setattr(evaluate.masks, "labels_on_raster", counted)
    reader = memory_reader(x, (2, 2), chunk_images=8)
    count = Dissector(
        reader,
        make_bank({"a": make_directions(np.eye(3), [0.0] * 3)}, reader),
        Alignment(source, {i: i for i in range(120)}, lambda image: WHOLE),
    ).count(progress)
    assert count.images.sum() > 60
    assert most <= 40


# average precision


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 12))
def test_average_precision_from_bins_is_exact_with_ties(seed: int, n: int, bins: int) -> None:
    g = np.random.default_rng(seed)
    value, truth = g.integers(0, bins, n), g.random(n) < 0.4
    positive, negative = (np.bincount(value[here], minlength=bins)[None].astype(float) for here in (truth, ~truth))
    found = average_precision_from_bins(positive, negative)
    if truth.any():
        assert found[0] == pytest.approx(average_precision_score(truth, value), abs=1e-12)
    else:
        assert np.isnan(found[0])


def test_average_precision_of_several_units_at_once() -> None:
    positive = np.array([[0, 0, 3.0], [2, 0, 0], [0, 0, 0], [1, 0, 1]])
    negative = np.array([[5, 0, 0.0], [0, 0, 2], [1, 1, 1], [0, 2, 0]])
    found = average_precision_from_bins(positive, negative)
    np.testing.assert_allclose(found[[0, 1, 3]], [1.0, 0.5, (1 + 2 / 4) / 2])
    assert np.isnan(found[2])


def test_well_separated_logits_lose_nothing_in_bins(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, _ = many(tmp_path, make_broden, n=8, mask=(4, 4))
    g = np.random.default_rng(8)
    x = (
        g.permutation(BINS // 2)[: 8 * 16].reshape(8, 16, 1).astype(np.float32)
    )  # all different, each in a bin of its own
    reader = memory_reader(x, (4, 4))
    dissector = Dissector(
        reader,
        make_bank({"a": make_directions([[1, -3]], [0.0, 0.0])}, reader),
        Alignment(source, {i: i for i in range(8)}, lambda image: WHOLE),
    )
    found = dissector.average_precision(np.array([0, 0]))
    truth, value = [], []
    for i in range(8):
        masks = source.masks(i)
        if source.split(i) == "val" and "object" in masks:
            truth.append(naive_has(masks, 1, (4, 4), WHOLE).reshape(-1))
            value.append(x[i, :, 0])
    flat, scores = np.concatenate(truth), np.concatenate(value)
    assert found.tolist() == pytest.approx(
        [average_precision_score(flat, scores), average_precision_score(flat, -scores)], abs=1e-12
    )


def test_a_detector_that_never_changes_has_the_labels_share(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    rows = [
        {"image": f"{i}.png", "split": s, "mask": (1, 4), "cells": {"object": [np.array([[1, 0, 0, 0]])]}}
        for i, s in enumerate(("train", "val"))
    ]
    source = make_broden(tmp_path / "b", LABELS, rows)
    reader = memory_reader(np.ones((2, 4, 1), np.float32), (1, 4))
    bank = make_bank({"a": make_directions([[0]], [0.0])}, reader)
    dissector = Dissector(reader, bank, Alignment(source, {0: 0, 1: 1}, lambda image: WHOLE))
    assert dissector.average_precision(np.array([0])).tolist() == [0.25]


def test_counts_beyond_what_float32_holds() -> None:
    """Sums over images are kept in float64: 2²⁴ + 1 positions are not 2²⁴."""
    counts = Counts(
        labels=[ConceptLabel(1, "a", "object")],
        categories=["object"],
        category_of=np.array([0]),
        both=np.array([[[2.0**24 + 1]], [[0.0]]]),
        detector=np.array([[[2.0**25]], [[0.0]]]),
        label=np.array([[2.0**24 + 1], [0.0]]),
        points=np.zeros((2, 1)),
        images=np.ones(2, np.int64),
        resolution="mask",
        raster=(1, 1),
    )
    assert counts.iou(0)[0, 0] == (2**24 + 1) / 2**25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resolution", ["mask", "feature"])
def test_a_gpu_counts_the_same(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make, resolution: Resolution
) -> None:
    g = np.random.default_rng(9)
    source = make_broden(tmp_path / "b", LABELS, random_rows(g, 9, (8, 8)))
    x = g.integers(-6, 7, (9, 4, 3)).astype(np.float32)  # exact in any order of summation
    sets = {
        "a": make_directions(g.integers(-2, 3, (3, 4)), g.integers(-2, 3, 4) + 0.5),
        "quantile": make_directions(g.integers(-2, 3, (3, 3)), quantile=0.1),
    }
    reader = memory_reader(x, (2, 2))
    alignment = Alignment(source, {i: i for i in range(9)}, lambda image: WHOLE)
    found = []
    for device in ("cpu", "cuda"):
        dissector = Dissector(reader, make_bank(sets, reader, device=device), alignment, resolution)
        counts = dissector.count()
        found.append((counts, dissector.average_precision(choose_labels(counts))))
    assert_equal_counts(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
