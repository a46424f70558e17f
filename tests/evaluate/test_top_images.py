"""The surest images of each detector, against sorting everything, and the strips drawn of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import evaluate.top_images
from evaluate.detector_bank import Bank, make_bank
from evaluate.top_images import Top, draw_strips, on_grid, top_images
from extract.image_io import read_image
from stores.directions import Directions
from stores.readers import LayerReader
from stores.store import ActivationStore

WHOLE = (0.0, 0.0, 1.0, 1.0)
SIZE = 16
Store = Callable[..., ActivationStore]
Make = Callable[..., Directions]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(11):
        Image.new("RGB", (32, 32), (200, 20 * i, 100)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def shown(tmp_path: Path, make_store: Store, make_directions: Make) -> tuple[LayerReader, Bank, np.ndarray]:
    x = np.random.default_rng(0).permutation(11 * 4 * 3).reshape(11, 4, 3).astype(np.float32)
    valid = np.arange(11) != 6
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 2), valid=valid))
    sets = {"a": make_directions([[1, -1], [0, 0], [0, 0]], [60, -60]), "b": make_directions([[0], [0], [1]], [0])}
    return reader, make_bank(sets, reader), x


def test_top_images_are_those_of_a_full_sort(
    shown: tuple[LayerReader, Bank, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, bank, x = shown
    logits = x @ bank.filters.numpy() - bank.thresholds.numpy()
    peak = logits.max(1)
    peak[6] = -np.inf  # that image could not be read
    order = np.argsort(-peak, axis=0)[:5]
    for images in (1, 3, 1000):
        monkeypatch.setattr(evaluate.top_images, "block_images", lambda reader, detectors, n=images: n)
        top = top_images(reader, bank, 5)
        np.testing.assert_array_equal(top.rows, order)
        np.testing.assert_array_equal(top.values, np.take_along_axis(peak, order, 0))
    assert top_images(reader, bank, 50).rows.shape == (10, 3)  # fewer images than asked for


@given(st.data())
def test_tops_of_parts_add_up_to_that_of_the_whole_in_any_order(data: st.DataObject) -> None:
    """Against a sort by value, then by row; the values are few, so that many are equal."""
    n, most = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5))
    values = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=2 * n, max_size=2 * n)), float).reshape(n, 2)
    edges = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = []
    for start, stop in pairwise([0, *edges, n]):
        order = [sorted(range(start, stop), key=lambda row, j=j: (-values[row, j], row))[:most] for j in range(2)]
        rows = np.array(order, int).reshape(2, -1).T
        parts.append(Top(rows, np.take_along_axis(values, rows, 0), most))
    whole = sum(data.draw(st.permutations(parts)), Top(np.zeros((0, 2), int), np.zeros((0, 2)), most))
    for j in range(2):
        assert whole.rows[:, j].tolist() == sorted(range(n), key=lambda row, j=j: (-values[row, j], row))[:most]
        assert whole.values[:, j].tolist() == [values[row, j] for row in whole.rows[:, j]]


def test_of_equals_the_lower_row_comes_first(tmp_path: Path, make_store: Store, make_directions: Make) -> None:
    x = np.array([1, 3, 3, 2, 3], np.float32).reshape(5, 1, 1)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 1), chunk_images=2))
    top = top_images(reader, make_bank({"a": make_directions([[1]], [0])}, reader), 4)
    assert top.rows[:, 0].tolist() == [1, 2, 4, 3]


def test_a_store_without_a_readable_image_has_no_top(tmp_path: Path, make_store: Store, make_directions: Make) -> None:
    x = np.zeros((2, 1, 1), np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 1), valid=np.zeros(2, bool)))
    assert top_images(reader, make_bank({"a": make_directions([[1]], [0])}, reader), 3).rows.shape == (0, 1)


def draw(reader: LayerReader, bank: Bank, photos: Path, folder: Path, columns: slice, count: int = 3) -> tuple:
    calls: list[int] = []
    files, tiles = draw_strips(
        reader,
        bank,
        top_images(reader, bank, count),
        columns,
        folder,
        picture_of=lambda row: read_image(photos / f"{row}.png"),
        box_of=lambda row: WHOLE,
        size=SIZE,
        prediction_of=lambda row: f"class {row % 2}",
        progress=lambda stage, done, total=None, note="": calls.append(done),
    )
    assert calls == list(range(columns.start + 1, columns.stop + 1))
    return files, tiles


def test_strips_show_the_top_images(tmp_path: Path, shown: tuple[LayerReader, Bank, np.ndarray], photos: Path) -> None:
    reader, bank, _ = shown
    top = top_images(reader, bank, 3)
    files, tiles = draw(reader, bank, photos, tmp_path / "out" / "a", bank.slices["a"])
    assert files == ["00000.jpg", "00001.jpg"]
    for j, file in enumerate(files):
        with Image.open(tmp_path / "out" / "a" / file) as picture:
            assert picture.size == (3 * SIZE, SIZE)
        assert [t.name for t in tiles[j]] == [f"{row}.png" for row in top.rows[:, j]]
        assert [t.value for t in tiles[j]] == [round(float(v), 3) for v in top.values[:, j]]
        assert [t.prediction for t in tiles[j]] == [f"class {row % 2}" for row in top.rows[:, j]]
    files, tiles = draw(reader, bank, photos, tmp_path / "out" / "b", bank.slices["b"])
    assert files == ["00000.jpg"]  # numbered within the set
    assert [t.name for t in tiles[0]] == [f"{row}.png" for row in top.rows[:, 2]]


def test_the_region_is_where_the_detector_fires(tmp_path: Path, make_store: Store, make_directions: Make) -> None:
    Image.new("RGB", (32, 32), (250, 250, 250)).save(tmp_path / "0.png")
    x = np.array([[[1], [-1], [-1], [-1]]], np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 2)))
    bank = make_bank({"a": make_directions([[1]], [0])}, reader)
    draw(reader, bank, tmp_path, tmp_path / "out", slice(0, 1), count=1)
    with Image.open(tmp_path / "out" / "00000.jpg") as picture:
        pixels = np.asarray(picture.convert("L"), float)
    assert pixels[1, 1] > 240
    assert pixels[-1, -1] < 130


def test_an_image_that_is_gone_is_left_out(
    tmp_path: Path, shown: tuple[LayerReader, Bank, np.ndarray], photos: Path
) -> None:
    reader, bank, _ = shown
    top = top_images(reader, bank, 3)
    (photos / f"{top.rows[1, 0]}.png").unlink()
    (photos / f"{top.rows[2, 0]}.png").write_bytes(b"no picture")
    files, tiles = draw(reader, bank, photos, tmp_path / "out", slice(0, 1))
    assert [t.name for t in tiles[0]] == [f"{top.rows[0, 0]}.png"]
    with Image.open(tmp_path / "out" / files[0]) as picture:
        assert picture.size == (SIZE, SIZE)


def test_a_strip_without_any_image_has_no_file(tmp_path: Path, shown: tuple[LayerReader, Bank, np.ndarray]) -> None:
    reader, bank, _ = shown
    assert draw(reader, bank, tmp_path / "nowhere", tmp_path / "out", slice(0, 2)) == (["", ""], [[], []])
    assert list((tmp_path / "out").iterdir()) == []


def test_sampled_positions_are_drawn_where_they_lie(
    tmp_path: Path, make_store: Store, make_directions: Make, photos: Path
) -> None:
    positions = np.array([[0, 8], [2, 6]], np.int32)
    x = np.array([[[5], [-5]], [[7], [-7]]], np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(3, 3), positions=positions))
    first, second = on_grid(reader, 0, x[0, :, 0]), on_grid(reader, 1, x[1, :, 0])
    assert first.tolist()[0] == [5, 5, 5]  # nearest to the corner 0; the middle row's tie goes to the first
    assert first.tolist()[2] == [5, -5, -5]
    assert second[0, 2] == second[1, 2] == 7
    assert second[2, 0] == second[2, 1] == -7
    bank = make_bank({"a": make_directions([[1]], [0])}, reader)
    files, tiles = draw(reader, bank, photos, tmp_path / "out", slice(0, 1))
    assert files == ["00000.jpg"]
    assert [t.value for t in tiles[0]] == [7, 5]
