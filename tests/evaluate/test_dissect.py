"""Network Dissection: a two-image folder counted by hand, and a slow literal program that must agree to the last position."""

from __future__ import annotations

import itertools
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_dissection import (
    LABELS,
    WHOLE,
    Broden,
    assert_same,
    dissect_slowly,
    many,
    naive_bilinear,
    random_rows,
)

import extract.labels
from evaluate.detector_bank import Bank, make_bank
from evaluate.dissect import (
    Counts,
    Dissector,
    Resolution,
    upsample,
)
from evaluate.metrics import choose_labels
from extract.labels import Alignment
from extract.segmentation.base import ConceptLabel
from stores.directions import Directions
from stores.readers import LayerReader
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]
Make = Callable[..., Directions]
Reader = Callable[..., LayerReader]


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


# leaving early


def test_leaving_the_images_early_ends_the_reading(
    tmp_path: Path, make_broden: Broden, memory_reader: Reader, make_directions: Make
) -> None:
    source, x = many(tmp_path, make_broden, n=40)
    reader = memory_reader(x, (2, 2))
    bank = make_bank({"a": make_directions(np.eye(3), [0.0] * 3)}, reader)
    dissector = Dissector(reader, bank, Alignment(source, {i: i for i in range(40)}, lambda image: WHOLE))
    blocks = dissector.material.blocks(range(3), "stage", splits=("train", "val"))
    next(next(blocks).images)
    blocks.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:  # its traceback keeps the frames alive
        dissector.count(stop)
    assert held.tb is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


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
    real = extract.labels.labels_on_raster

    def counted(*arguments: Any) -> Any:
        labels = real(*arguments)
        held.append(weakref.finalize(labels, int))
        return labels

    def progress(*arguments: object) -> None:
        nonlocal most
        most = max(most, sum(one.alive for one in held))

    monkeypatch.setattr(extract.labels, "labels_on_raster", counted)
    reader = memory_reader(x, (2, 2), chunk_images=8)
    count = Dissector(
        reader,
        make_bank({"a": make_directions(np.eye(3), [0.0] * 3)}, reader),
        Alignment(source, {i: i for i in range(120)}, lambda image: WHOLE),
    ).count(progress)
    assert count.images.sum() > 60
    assert most <= 40


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


def assert_equal_counts(a: Counts, b: Counts) -> None:
    for name in ("both", "detector", "label", "points", "images", "share", "covered", "active", "positions"):
        np.testing.assert_equal(getattr(a, name), getattr(b, name))


@pytest.mark.gpu
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
