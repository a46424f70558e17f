"""Label maps on a raster: which mask pixel is nearest to which point, and which labels count where."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import trusted

import extract.labels
from extract.labels import align, labels_ahead, labels_on_raster, raster_index
from extract.segmentation.broden import BrodenSource
from stores.errors import DatasetError, MismatchError
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]
WHOLE = (0.0, 0.0, 1.0, 1.0)
LABELS = [(1, "sky", "object"), (2, "wing", "part"), (3, "sand", "object(5);material(2)"), (300, "beach", "scene")]
edges = st.tuples(st.integers(-16, 24), st.integers(1, 40)).map(lambda e: (Fraction(e[0], 16), Fraction(sum(e), 16)))


def naive_index(size: int, count: int, low: Fraction, high: Fraction) -> list[int]:
    """The pixel that holds each centre, in exact arithmetic; −1 outside."""
    places = []
    for k in range(count):
        centre = low + Fraction(2 * k + 1, 2 * count) * (high - low)
        places.append(math.floor(centre * size) if 0 <= centre < 1 else -1)
    return places


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), edges, edges)
def test_raster_index_is_the_pixel_under_each_centre(
    h: int, w: int, rows: int, columns: int, down: tuple[Fraction, Fraction], across: tuple[Fraction, Fraction]
) -> None:
    box = (float(across[0]), float(down[0]), float(across[1]), float(down[1]))
    found = raster_index((h, w), (rows, columns), box)
    assert found[0].tolist() == naive_index(h, rows, *down)
    assert found[1].tolist() == naive_index(w, columns, *across)


@pytest.mark.parametrize("slip", [-1e-12, -1e-16, 0.0, 1e-16, 1e-12])
def test_a_centre_on_the_border_never_points_outside(slip: float) -> None:
    rows, _ = raster_index((112, 112), (3, 3), (-0.25 + slip, -0.25 + slip, 1.25 + slip, 1.25 + slip))
    assert rows.tolist() == [0, 56, -1]  # centres 0, ½ and 1: the last is no longer in the image


def test_the_same_size_is_the_identity_and_a_coarse_raster_takes_the_middle() -> None:
    assert raster_index((4, 6), (4, 6), WHOLE)[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert raster_index((9, 9), (3, 3), WHOLE)[0].tolist() == [1, 4, 7]
    assert raster_index((8, 8), (2, 2), (0.5, 0.5, 1.0, 1.0))[0].tolist() == [5, 7]  # centres .625 and .875


@pytest.fixture
def source(tmp_path: Path, make_broden: Callable[..., BrodenSource]) -> BrodenSource:
    first = np.array([[1, 1, 0, 3], [1, 1, 0, 3]])
    parts = [np.array([[2, 0, 0, 0], [0, 0, 0, 0]]), np.array([[0, 0, 0, 2], [1, 0, 0, 0]])]
    return make_broden(
        tmp_path / "broden",
        LABELS,
        [
            {"image": "a.png", "split": "train", "mask": (2, 4),
             "cells": {"object": [first], "part": parts, "material": [], "scene": [300]}},
            {"image": "b.png", "split": "val", "mask": (2, 4),
             "cells": {"material": [np.full((2, 4), 3)], "part": [np.zeros((2, 4), int)]}},
        ],
    )  # fmt: skip


def test_labels_of_all_layers_and_of_full_images(source: BrodenSource) -> None:
    found = labels_on_raster(source, 0, (2, 4), WHOLE)
    assert found.categories == ("object", "part", "scene")
    assert found.numbers.tolist() == [1, 2, 3, 300]
    assert found.maps.dtype == bool
    maps = {int(n): m.reshape(2, 4).astype(int).tolist() for n, m in zip(found.numbers, found.maps, strict=True)}
    assert maps[1] == [[1, 1, 0, 0], [1, 1, 0, 0]]  # once more in a layer of parts, on a position it already has
    assert maps[2] == [[1, 0, 0, 1], [0, 0, 0, 0]]  # two layers
    assert maps[3] == [[0, 0, 0, 1], [0, 0, 0, 1]]
    assert maps[300] == [[1] * 4] * 2


def test_a_label_counts_only_where_its_main_category_is_annotated(source: BrodenSource) -> None:
    """'sand' is an object first: an image annotated in materials alone is in no union of it, so its sand is in none."""
    found = labels_on_raster(source, 1, (2, 4), WHOLE)
    assert found.categories == ("part", "material")
    assert found.numbers.tolist() == []
    assert found.maps.shape == (0, 8)


def test_points_outside_the_image_carry_no_label(source: BrodenSource) -> None:
    found = labels_on_raster(source, 0, (4, 8), (-0.5, -0.5, 1.5, 1.5))
    inside = np.zeros((4, 8), bool)
    inside[1:3, 2:6] = True
    beach = found.maps[found.numbers.tolist().index(300)].reshape(4, 8)
    np.testing.assert_array_equal(beach, inside)
    assert not found.maps[:, ~inside.reshape(-1)].any()


def test_a_crop_sees_its_part_only(source: BrodenSource) -> None:
    found = labels_on_raster(source, 0, (1, 2), (0.5, 0.0, 1.0, 0.5))
    assert found.numbers.tolist() == [2, 3, 300]
    assert found.maps.astype(int).tolist() == [[0, 1], [0, 1], [1, 1]]
    assert found.categories == ("object", "part", "scene")


def test_reading_ahead_keeps_the_order(source: BrodenSource) -> None:
    order = [0, 1, 1, 0] * 20
    found = list(labels_ahead(source, order, (2, 4), lambda i: WHOLE))
    assert [len(f.numbers) for f in found] == [4, 0, 0, 4] * 20


def test_leaving_early_reads_no_further_and_leaves_no_thread(
    source: BrodenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def slow(*arguments: object) -> None:
        read.append(1)
        time.sleep(0.02)

    monkeypatch.setattr(extract.labels, "labels_on_raster", slow)
    ahead = labels_ahead(source, [0] * 1000, (2, 4), lambda i: WHOLE)
    next(ahead)
    ahead.close()
    assert len(read) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_a_bad_mask_is_reported_and_ends_the_threads(source: BrodenSource) -> None:
    (source.root / "images" / "a_object_0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"a_object_0\.png.*line 2"):
        list(labels_ahead(source, [1, 1, 0, 1], (2, 4), lambda i: WHOLE))
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.fixture
def four(tmp_path: Path, make_broden: Callable[..., BrodenSource]) -> BrodenSource:
    rows = [{"image": f"some/{i}.png", "split": "train", "mask": (8, 8), "cells": {"object": [1]}} for i in range(4)]
    return make_broden(tmp_path / "four", LABELS[:1], rows)


def test_rows_are_matched_by_name_whatever_their_order(
    tmp_path: Path, four: BrodenSource, make_store: Store, network: str
) -> None:
    names = ["some/3.png", "gone.png", "some/0.png"]
    made = {"model": network, "weights": "DEFAULT", "seed": 0}
    store = make_store(tmp_path / "s.zarr", np.zeros((3, 16, 4), np.float32), grid=(4, 4), names=names, provenance=made)
    found = align(trusted(store.path), four)
    assert found.rows == {0: 3, 2: 0}
    assert found.source is four
    np.testing.assert_allclose(found.box_of(3), (0, 0, 1, 1), atol=0.01)  # resized whole to 8 × 8


def test_a_store_without_any_of_the_images_is_refused(
    tmp_path: Path, four: BrodenSource, make_store: Store, network: str
) -> None:
    made = {"model": network, "weights": "DEFAULT"}
    store = make_store(tmp_path / "s.zarr", np.zeros((1, 1, 4), np.float32), grid=(1, 1), provenance=made)
    with pytest.raises(MismatchError, match=r"None of the images .* they are other images"):
        align(trusted(store.path), four)
