"""The second pass: three detectors on three images counted by hand, and a slow literal program on random folders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slow_dissection import LABELS, WHOLE, Broden, naive_bilinear, naive_bin, naive_has, random_rows

from evaluate.bootstrap import poisson_weights
from evaluate.counts import Counts, count_images, no_counts
from evaluate.detector_bank import make_bank
from evaluate.dissect import BINS, SPLITS, Dissector, Resolution, Second
from evaluate.label_counters import Chosen, CompiledCounter, ImageCounts, TorchCounter, groups_of
from evaluate.label_statistics import second_images
from evaluate.metrics import INTERPRETABLE, choose_labels, label_scores, score, summarise, union_rows
from extract.labels import Alignment
from extract.segmentation.broden import BrodenSource
from stores.directions import Directions
from stores.readers import LayerReader

Make = Callable[..., Directions]
Reader = Callable[..., LayerReader]
SUMS = (
    "positive", "negative", "union_both", "union", "both", "detector", "label", "half", "positive_half", "negative_half",
)  # fmt: skip


# three images by hand


@pytest.fixture
def three(tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make) -> Dissector:
    """Grid 1 × 4; sky is on the left of train and on the right of val. The third image is not annotated in objects.

    The logits of the detectors of ``a`` are the activations: detector 0 is positive on the first three of train and on the
    sky of val, detector 1 on one position of the sky of each, detector 2 on the sky of train and beside it on val. Of ``b``
    the first is detector 1 again, the other never positive.
    """
    rows = [
        {"image": "a.png", "split": "train", "mask": (1, 4), "cells": {"object": [np.array([[1, 1, 0, 0]])]}},
        {"image": "b.png", "split": "val", "mask": (1, 4), "cells": {"object": [np.array([[0, 0, 1, 1]])]}},
        {"image": "c.png", "split": "val", "mask": (1, 4), "cells": {"object": [], "scene": [300]}},
    ]
    source = make_broden(tmp_path / "b", LABELS, rows)
    x = np.array(
        [
            [[3, -1, 3], [2, 3, -1], [1, -1, -1], [-1, -1, -1]],
            [[-1, -1, 3], [-1, -1, -1], [3, -1, -1], [1, 3, -1]],
            [[3, 3, 3]] * 4,
        ],
        np.float32,
    )
    reader = memory_reader(x, (1, 4), chunk_images=1)
    sets = {
        "a": make_directions(np.eye(3), [0.0] * 3),
        "b": make_directions(np.eye(3)[:, [1, 0]], [0.0, 50.0]),
    }
    return Dissector(reader, make_bank(sets, reader), Alignment(source, {i: i for i in range(3)}, lambda image: WHOLE))


@pytest.fixture
def passed(three: Dissector) -> tuple[Counts, Second]:
    counts = three.count()
    label_of = choose_labels(counts)
    assert label_of.tolist() == [0, 0, 0, 0, -1]
    return counts, three.second(label_of, replicates=7)


def test_unions_by_hand(three: Dissector, passed: tuple[Counts, Second]) -> None:
    """Detectors 0, 1 and 2 are on at positions {2, 3}, {3} and {0} of val: together 3 positions, 2 of them the sky's 2."""
    counts, second = passed
    assert [g.tolist() for g in second.chosen.groups] == [[0, 1, 2]]
    assert (second.union_both.tolist(), second.union.tolist()) == ([2], [3])
    sky = {"label": "sky", "category": "object"}
    assert union_rows("a", counts, second, three.bank.slices["a"]) == [
        {"directions": "a", **sky, "detectors": 3, "iou": 0.666667, "precision": 0.666667, "recall": 1.0, "f1": 0.8}
    ]
    assert union_rows(
        "b", counts, second, three.bank.slices["b"]
    ) == [  # one detector: its own scores, 1 of 1 and 1 of 2
        {"directions": "b", **sky, "detectors": 1, "iou": 0.5, "precision": 1.0, "recall": 0.5, "f1": 0.666667}
    ]


def test_supervised_thresholds_by_hand(three: Dissector, passed: tuple[Counts, Second]) -> None:
    """On train detector 0 has the logits 3 and 2 on the sky, 1 and −1 beside it: best from 2 on. On val that leaves the 3,
    one of two positions of the sky, and not the 1."""
    counts, second = passed
    found = label_scores(counts, second, three.bank.slices["a"], limit=INTERPRETABLE)
    # logits lie between −1 and 3: 2 is in bin ⌊¾ · 1999⌋ = 1499 of 2000
    np.testing.assert_allclose(found.threshold, [-1 + 1499 / 1999 * 4, 3, 3])
    assert found.supervised.iou.tolist() == [0.5, 0.5, 0.0]
    assert found.supervised.precision.tolist() == [1, 1, 0]
    assert found.supervised.recall.tolist() == [0.5, 0.5, 0]
    np.testing.assert_allclose(found.supervised.f1, [2 / 3, 2 / 3, 0])
    never = label_scores(counts, second, three.bank.slices["b"], limit=INTERPRETABLE)
    assert np.isnan(never.threshold[1])
    assert never.supervised.iou.tolist() == [0.5, 0.0]


def test_histograms_by_hand(passed: tuple[Counts, Second]) -> None:
    _, second = passed
    assert second.positive.shape == (2, 5, BINS)
    assert second.positive.sum(2).tolist() == [[2, 2, 2, 2, 0]] * 2  # the sky of train and of val; no label, nothing
    assert second.negative.sum(2).tolist() == [[2, 2, 2, 2, 0]] * 2  # the third image is not annotated in objects
    assert np.flatnonzero(second.positive[0, 0]).tolist() == [1499, 1999]
    assert np.flatnonzero(second.negative[0, 0]).tolist() == [0, 999]
    # detector 1 finds one of two first, and takes the other in with all the rest: (1/1 + 2/4) / 2
    assert second.average_precision[:4].tolist() == [1, 0.75, 0.5, 0.75]


def test_replicates_count_images_as_often_as_drawn(passed: tuple[Counts, Second]) -> None:
    _, second = passed
    w = poisson_weights(0, 1, 7)
    np.testing.assert_array_equal(second.both, w[:, None] * [2, 1, 0, 1, 0])
    np.testing.assert_array_equal(second.detector, w[:, None] * [2, 1, 1, 1, 0])
    np.testing.assert_array_equal(second.label, w[:, None] * [2, 2, 2, 2, 0])


def test_the_summary_has_new_keys_next_to_the_old(three: Dissector, passed: tuple[Counts, Second]) -> None:
    counts, second = passed
    columns = three.bank.slices["a"]
    scores = score(counts, columns, second.chosen.label_of, second.average_precision)
    old = summarise(counts, "a", scores)
    new = summarise(counts, "a", scores, label_scores(counts, second, columns, limit=INTERPRETABLE))
    assert {key: new[key] for key in old} == old
    assert new.keys() - old.keys() == {"intervals", "supervised_thresholds", "union"}
    # interpretable are detectors 0 and 1
    assert new["supervised_thresholds"] == {
        "iou": 0.5, "precision": 1.0, "recall": 0.5, "f1": 0.6667, "s1": 1.0, "s2": 0.5,
    }  # fmt: skip
    assert new["union"] == {"labels": 1, "iou": 0.6667, "precision": 0.6667, "recall": 1.0, "f1": 0.8, "s2": 0.6667}
    assert new["intervals"].keys() == {"s1", "s2", "interpretable", "distinct", "precision", "recall", "f1"}


# random folders against a slow program


def naive_second(
    x: np.ndarray, grid: tuple[int, int], dissector: Dissector, source: BrodenSource, second: Second, raster: Any
) -> dict[str, Any]:
    """One detector, one image, one position at a time: the sums of ``Second``, and the unions by set and label."""
    chosen, b = second.chosen, second.chosen.replicates
    w, t = dissector.bank.filters.numpy().astype(float), dissector.bank.thresholds.numpy().astype(float)
    j = w.shape[1]
    out: dict[str, Any] = {"positive": np.zeros((2, j, BINS)), "negative": np.zeros((2, j, BINS))}
    out |= {name: np.zeros((b, j)) for name in ("both", "detector", "label")}
    out["unions"] = {}
    for image in range(len(source)):
        split, masks = source.split(image), source.masks(image)
        ons: dict[tuple[str, int], np.ndarray] = {}
        for unit in range(j):
            column = int(chosen.label_of[unit])
            if split not in ("train", "val") or column < 0 or source.labels[column].category not in masks:
                continue
            z = (x[image].astype(float) @ w[:, unit] - t[unit]).reshape(grid)
            z = z if raster is None else naive_bilinear(z, *raster)
            there = naive_has(masks, source.labels[column].number, z.shape, WHOLE)
            bins = naive_bin(z, chosen.low[unit], chosen.high[unit]).astype(int)
            for r, c in np.ndindex(z.shape):
                kind = "positive" if there[r, c] else "negative"
                out[kind][("train", "val").index(split), unit, bins[r, c]] += 1
            if split == "val":
                often = poisson_weights(chosen.seed, image, b)
                out["both"][:, unit] += often * ((z > 0) & there).sum()
                out["detector"][:, unit] += often * (z > 0).sum()
                out["label"][:, unit] += often * there.sum()
                name = next(n for n, part in dissector.bank.slices.items() if part.start <= unit < part.stop)
                ons[name, column] = ons.get((name, column), np.zeros(z.shape, bool)) | (z > 0)
        for (name, column), on in ons.items():
            there = naive_has(masks, source.labels[column].number, on.shape, WHOLE)
            sums = out["unions"].setdefault((name, column), [0, 0])
            sums[0] += int((on & there).sum())
            sums[1] += int(on.sum())
    return out


@pytest.mark.parametrize("resolution", ["mask", "feature"])
@settings(max_examples=20, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 2)), seed=st.integers(0, 2**20), images=st.integers(3, 6),
    units=st.integers(2, 5), spread=st.sampled_from([1, 6]),
)  # fmt: skip
@example(grid=(1, 1), seed=1, images=6, units=3, spread=1)  # an image that shows no label at the layer's positions
def test_the_second_pass_is_the_slow_one(
    make_broden: Broden, memory_reader: Reader, make_directions: Make, resolution: Resolution,
    grid: tuple[int, int], seed: int, images: int, units: int, spread: int,
) -> None:  # fmt: skip
    g = np.random.default_rng(seed)
    x = g.integers(-spread, spread + 1, (images, grid[0] * grid[1], 3)).astype(np.float32)
    sets = {
        "a": make_directions(g.integers(-2, 3, (3, units)), g.integers(-2, 3, units)),
        "b": make_directions(g.integers(-2, 3, (3, 2)), [0.5, 20.0]),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = random_rows(g, images, (2 * grid[0], 2 * grid[1]))
        source = make_broden(Path(folder) / "b", LABELS, rows)
        reader = memory_reader(x, grid, chunk_images=2)
        alignment = Alignment(source, {i: i for i in range(images)}, lambda image: WHOLE)
        dissector = Dissector(reader, make_bank(sets, reader), alignment, resolution)
        counts = dissector.count()
        label_of = choose_labels(counts)
        second = dissector.second(label_of, replicates=5, seed=seed)
        slow = naive_second(x, grid, dissector, source, second, dissector.raster if resolution == "mask" else None)
    for name in ("positive", "negative", "both", "detector", "label"):
        np.testing.assert_array_equal(getattr(second, name), slow[name], err_msg=name)
    for name, columns in dissector.bank.slices.items():
        for row in union_rows(name, counts, second, columns):
            column = next(k for k, label in enumerate(source.labels) if label.name == row["label"])
            both, found = slow["unions"].get((name, column), (0, 0))
            truth = counts.label[1, column]
            assert row["detectors"] == (label_of[columns] == column).sum()
            assert row["iou"] == pytest.approx(both / max(found + truth - both, 1), abs=1e-6)
            assert row["precision"] == pytest.approx(both / max(found, 1), abs=1e-6)
            assert row["recall"] == pytest.approx(both / max(truth, 1), abs=1e-6)


def test_the_sums_of_parts_are_those_of_all(three: Dissector, passed: tuple[Counts, Second]) -> None:
    counts, second = passed
    for parts in ([range(3)], [range(1), range(1, 3)], [range(2, 3), range(1), range(1, 2)]):
        total: Any = no_counts(three.material)
        for part in parts:
            total = total + count_images(three.material, part)
        for name in ("both", "detector", "label", "points", "images", "positive", "positions", "low", "high"):
            np.testing.assert_array_equal(getattr(total, name), getattr(counts, name))
        found: Any = second_images(three.material, range(0), second.chosen)
        for part in parts:
            found = found + second_images(three.material, part, second.chosen)
        for name in SUMS:
            np.testing.assert_array_equal(getattr(found, name), getattr(second, name))


@pytest.mark.parametrize(("grid", "mask"), [((2, 3), (7, 11)), ((1, 1), (6, 5)), ((5, 4), (40, 9)), ((3, 2), (3, 2))])
def test_compiled_and_torch_count_the_same(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make,
    grid: tuple[int, int], mask: tuple[int, int],
) -> None:  # fmt: skip
    """Any ratio of mask and grid, any box: up to a point that rounding puts into the next bin. And histograms that are full."""
    g = np.random.default_rng(3)
    source = make_broden(tmp_path / "b", LABELS, random_rows(g, 9, mask))
    x = g.normal(size=(9, grid[0] * grid[1], 4)).astype(np.float32)
    reader = memory_reader(x, grid)
    sets = {"a": make_directions(g.normal(size=(4, 12)), g.normal(size=12))}
    alignment = Alignment(source, {i: i for i in range(9)}, lambda image: (0.11, -0.07, 0.93, 1.2))
    dissector = Dissector(reader, make_bank(sets, reader), alignment)
    label_of = np.arange(12) // 2 - 1  # two detectors a label, two without one
    chosen = Chosen(label_of, *dissector._logit_range(), groups_of(label_of, dissector.bank.slices))
    counters = [kind(dissector.material, chosen) for kind in (CompiledCounter, TorchCounter)]
    found: list[dict[int, ImageCounts]] = [{}, {}]
    for counter, images in zip(counters, found, strict=True):
        for block in dissector.material.blocks(range(9), "", splits=SPLITS):
            images |= {image.number: image for image in counter.images(block.images)}
            if isinstance(counter, CompiledCounter):
                counter._points = 2**32 - 1
    assert found[0].keys() == found[1].keys() != set()
    for number, image in found[0].items():
        np.testing.assert_array_equal(image.own, found[1][number].own)
        np.testing.assert_array_equal(image.union, found[1][number].union)
    for ours, theirs in zip(counters[0].histograms(), counters[1].histograms(), strict=True):
        np.testing.assert_array_equal(ours.sum(2), theirs.sum(2))
        moved = np.abs(np.cumsum(ours - theirs, 2))
        assert moved.max() <= 1 + theirs.max()
        assert moved.sum() <= 0.002 * theirs.sum()


def test_groups_are_of_one_set_and_label() -> None:
    label_of = np.array([2, 1, 2, -1, -1, 2, 2, 1])
    found = groups_of(label_of, {"a": slice(0, 5), "b": slice(5, 8)})
    assert [g.tolist() for g in found] == [[0, 2], [5, 6]]


def test_no_label_at_all_is_no_work(three: Dissector) -> None:
    counts = three.count()
    second = three.second(np.full(5, -1), replicates=3)
    assert all(not getattr(second, name).any() for name in SUMS)
    assert np.isnan(second.average_precision).all()
    found = label_scores(counts, second, slice(0, 3), limit=INTERPRETABLE)
    assert found.intervals["s1"] == found.intervals["distinct"] == [0.0, 0.0]
    assert union_rows("a", counts, second, slice(0, 3)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("resolution", ["mask", "feature"])
def test_a_gpu_sums_the_same(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make, resolution: Resolution
) -> None:
    g = np.random.default_rng(9)
    source = make_broden(tmp_path / "b", LABELS, random_rows(g, 9, (8, 8)))
    x = g.integers(-6, 7, (9, 4, 3)).astype(np.float32)  # exact in any order of summation
    sets = {"a": make_directions(g.integers(-2, 3, (3, 6)), g.integers(-2, 3, 6) + 0.5)}
    reader = memory_reader(x, (2, 2))
    alignment = Alignment(source, {i: i for i in range(9)}, lambda image: WHOLE)
    found = []
    for device in ("cpu", "cuda"):
        dissector = Dissector(reader, make_bank(sets, reader, device=device), alignment, resolution)
        found.append(dissector.second(choose_labels(dissector.count()), replicates=9))
    for name in SUMS:
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
