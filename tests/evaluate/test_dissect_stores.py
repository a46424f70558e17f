"""Network Dissection on stores in other orders, sampled, incomplete, and on splits that lack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slow_dissection import LABELS, WHOLE, Box, Broden, many, naive_has, random_rows

from evaluate.detector_bank import make_bank
from evaluate.dissect import Counts, Dissector, Resolution, raster_size
from extract.labels import Alignment
from extract.segmentation.broden import BrodenSource
from stores.directions import Directions
from stores.errors import DatasetError, UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]
Make = Callable[..., Directions]
Reader = Callable[..., LayerReader]


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


def test_masks_as_large_as_photographs_are_sampled(tmp_path: Path, make_broden: Broden, memory_reader: Reader) -> None:
    source, x = many(tmp_path, make_broden, mask=(600, 400))
    rows, columns = raster_size(memory_reader(x, (2, 2)), Alignment(source, {3: 3}, lambda image: WHOLE), "mask")
    assert rows * columns == pytest.approx(224 * 224, rel=0.01)
    assert rows / columns == pytest.approx(1.5, rel=0.01)
