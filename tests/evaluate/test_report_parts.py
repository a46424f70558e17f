"""What a site is made of: similarity, influence read back, classes, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import write_store

import evaluate.report.similarity_map
from evaluate.detector_bank import make_bank
from evaluate.image_tiles import region
from evaluate.report.class_predictions import class_predictions, class_titles, true_classes
from evaluate.report.influence_reader import Pushes, read_pushes, read_steering
from evaluate.report.report_images import EXAMPLE, GAP, SMALL, TILE, draw_pictures, example_file, strip_file, tile_file
from evaluate.report.similarity_map import nearest, scaled, similarity_map
from evaluate.top_images import Top, on_grid
from stores.directions import Directions
from stores.errors import ImageError
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import TableError, write_parts, write_table

# similarity


def test_neighbours_are_those_of_largest_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.array([[3, 0, 1, 0], [0, 2, 1, 0]], np.float32)
    for block in (3, 1024):
        monkeypatch.setattr(evaluate.report.similarity_map, "BLOCK", block)
        order, value = nearest(vectors, 2)
        assert order.tolist() == [[2, 1], [2, 0], [0, 1], [0, 1]]  # equal ones in their own order
        assert value == pytest.approx(np.array([[2**-0.5, 0], [2**-0.5, 0], [2**-0.5, 2**-0.5], [0, 0]]))
    assert nearest(vectors, 99)[0].shape == (4, 3)
    assert nearest(vectors[:, :1], 5)[0].shape == (1, 0)


def test_classical_scaling_keeps_distances_in_a_plane() -> None:
    angle = np.array([0.0, 0.7, 1.5, 4.0, 5.5])
    unit = np.stack([np.cos(angle), np.sin(angle)])
    places = scaled(unit)

    def distances(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - x[None], axis=2)

    assert distances(places) == pytest.approx(distances(unit.T), abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 24])
def test_a_map_fills_the_unit_square_and_is_the_same_again(count: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((6, count))
    vectors[:, -1] = vectors[:, 0]  # twins
    places = similarity_map(vectors)
    assert places.shape == (count, 2)
    assert places.min() >= 0
    assert places.max() <= 1
    assert (places == similarity_map(vectors)).all()


def test_a_map_has_one_scale_for_both_axes() -> None:
    angle = np.array([0.0, 0.1, 0.2, 0.3, 0.4])  # nearly on a line
    unit = np.stack([np.cos(angle), np.sin(angle)])
    places, plain = similarity_map(unit), scaled(unit)
    apart = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (places, plain)]
    assert apart[0] / apart[0].max() == pytest.approx(apart[1] / apart[1].max(), abs=1e-6)
    assert np.ptp(places, axis=0)[0] == pytest.approx(1)
    assert (places.min(0) + places.max(0)) / 2 == pytest.approx([0.5, 0.5])


def test_groups_stay_together_on_the_map() -> None:
    g = np.random.default_rng(1)
    centres = g.standard_normal((20, 3))
    vectors = np.repeat(centres, 8, axis=1) + 0.1 * g.standard_normal((20, 24))
    places = similarity_map(vectors)
    group = np.repeat(np.arange(3), 8)
    gap = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(24)
    assert (group[gap.argmin(1)] == group).all()


# influence, read back


def influence_table(folder: Path, *, directions: int = 3, classes: int = 4) -> dict[tuple[str, str, float], np.ndarray]:
    """A table of two sets, two roles and two steps, rows of each part shuffled; returns the changes by set, role and step."""
    g = np.random.default_rng(0)
    truth, parts = {}, []
    for name in ("a", "b"):
        for role in ("signal", "filter"):
            for alpha in (0.5, 2.0):
                change = g.standard_normal((directions, classes)).round(3)
                truth[name, role, alpha] = change
                order = g.permutation(change.size)
                index, k = (part.ravel()[order] for part in np.indices(change.shape))
                flat = change.ravel()[order]
                parts.append(
                    {
                        "directions": [name] * len(order), "index": index, "label": ["x"] * len(order), "role": [role] * len(order),
                        "alpha": np.full(len(order), alpha), "class": k, "probability_change": flat,
                        "significant": np.abs(flat) > 0.3,
                    }
                )  # fmt: skip
    write_parts(folder, "influence", parts)
    return truth


@pytest.mark.parametrize(("name", "alpha"), [("a", 2.0), ("b", 0.5)])
def test_influence_is_read_for_one_set_and_step(tmp_path: Path, name: str, alpha: float) -> None:
    truth = influence_table(tmp_path)
    found = read_pushes(tmp_path / "influence.parquet", name, alpha, 3, 4)
    for role in ("signal", "filter"):
        change = truth[name, role, alpha]
        assert found[role].change == pytest.approx(change)
        assert (found[role].significant == (np.abs(change) > 0.3)).all()


def test_a_table_about_something_else_is_refused(tmp_path: Path) -> None:
    influence_table(tmp_path)
    with pytest.raises(TableError, match="out of bounds"):
        read_pushes(tmp_path / "influence.parquet", "a", 2.0, 2, 4)
    (tmp_path / "influence.parquet").write_bytes(b"PAR1 no such thing")
    with pytest.raises(TableError, match="is damaged"):
        read_pushes(tmp_path / "influence.parquet", "a", 2.0, 3, 4)


def test_the_ends_of_a_push() -> None:
    change = np.array([[0.1, -0.2, 0.0, 0.3, 0.1], [0.0, 0.5, 0.0, -0.1, -0.3]], np.float32)
    significant = np.zeros((2, 5), bool)
    significant[0, [0, 1]] = True
    pushes = Pushes(change, significant)
    assert [p.other for p in pushes.of_direction(0, 2)] == [3, 0, 1]  # no zeros, equal ones in their order
    assert [p.other for p in pushes.of_class(1, 9)] == [1, 0]
    first, second, third = pushes.of_direction(0, 2)
    assert (first.significant, second.significant) == (False, True)
    assert third.change == pytest.approx(-0.2)
    assert pushes.moved(0) == ([0], [1])
    assert pushes.moved(1) == ([], [])
    assert [p.other for p in pushes.strongest(0, 3)] == [1, 0]  # of the significant ones, largest first
    up, down = pushes.extremes(1)
    assert up is None
    assert down is not None
    assert (down.other, down.significant) == (0, True)


def test_steering_is_what_is_gained(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    curves = {("signal", 0): [0.2, 0.5, 0.4], ("filter", 0): [0.2, 0.1, 0.3]} | {
        ("random", r): [0.1, 0.1 + 0.1 * r, 0.1] for r in range(5)
    }
    for (role, index), values in curves.items():
        for alpha, value in reversed(list(zip((0.0, 1.0, 4.0), values, strict=True))):  # in no order
            rows.append({"directions": "a", "index": index, "role": role, "class": 3, "alpha": alpha,
                         "probability": value, "monotone_up_to": 1.0 + index})  # fmt: skip
    write_table(tmp_path, "steering", {key: [row[key] for row in rows] for key in rows[0]})
    import pyarrow.parquet

    each, random = read_steering(pyarrow.parquet.read_table(tmp_path / "steering.parquet"), 2)
    assert each[1] is None
    assert each[0] is not None
    assert (each[0].target, each[0].alphas) == (3, [0, 1, 4])
    assert each[0].curves["signal"] == pytest.approx([0, 0.3, 0.2])
    assert each[0].curves["filter"] == pytest.approx([0, -0.1, 0.1])
    assert random is not None
    assert random.curves["low"] == pytest.approx([0, 0.1, 0])
    assert random.curves["high"] == pytest.approx([0, 0.3, 0])
    assert random.monotone == {"random": 3.0}
    none, no_random = read_steering(pyarrow.parquet.read_table(tmp_path / "steering.parquet").slice(0, 0), 1)
    assert (none, no_random) == ([None], None)


# classes


def class_store(folder: Path, **more: Any) -> ActivationStore:
    logits = np.array([[3, 0, 0], [0, 2, 0], [0, 5, 0], [0, 5, 0], [9, 9, 0], [1, 2, 3]], np.float32)
    valid = np.array([1, 1, 1, 1, 0, 1], bool)
    options = {"logits": logits, "valid": valid, "labels": np.array([0, 1, 0, 1, 0, -1]), "n_classes": 3}
    path = write_store(folder / "s.zarr", {"conv": np.ones((6, 2, 2), np.float32)}, **{**options, **more})
    return ActivationStore.open(path)


def test_what_images_are_read_as(tmp_path: Path) -> None:
    names = ["dog", "Grey Cat", "cow"]
    made = {"model": "x", "dataset": {"path": "d", "kind": "k", "images": 6, "class_names": ["grey_cat", "dog"]}}
    found = class_predictions(class_store(tmp_path, class_names=names, provenance=made), 2)
    assert found.prediction.tolist() == [0, 1, 1, 1, -1, 2]
    assert found.count.tolist() == [1, 3, 1]
    assert found.rows == [[0], [2, 3], [5]]  # surest first, equal ones in the store's order
    assert found.probability[0] == pytest.approx([np.exp(3) / (np.exp(3) + 2)])
    assert found.labelled is not None
    assert found.right is not None
    assert found.labelled.tolist() == [
        2,
        2,
        0,
    ]  # label 0 is class 1, label 1 is class 0; the unreadable one does not count
    assert found.right.tolist() == [0, 1, 0]
    assert found.accuracy == 0.25


@pytest.mark.parametrize(
    ("classes", "given", "expected"),
    [
        (["a", "b", "c"], ["c", "a"], [2, 0, 2, 0, 2, -1]),
        (["a", "b", "c"], ["n01", "n02"], None),  # folders that are no classes
        (["a", "b", "c"], None, None),  # labels of who knows what
    ],
)
def test_which_labels_are_classes(tmp_path: Path, classes: Any, given: Any, expected: Any) -> None:
    made = {"model": "x", "dataset": {"path": "d", "kind": "k", "images": 6, "class_names": given}}
    store = class_store(tmp_path, class_names=classes, provenance=made)
    found = true_classes(store)
    assert (None if found is None else found.tolist()) == expected
    assert (class_predictions(store, 1).accuracy is None) == (expected is None)


def test_labels_of_a_synthetic_store_are_classes(tmp_path: Path) -> None:
    found = true_classes(class_store(tmp_path, provenance={"synthetic": {}}))
    assert found is not None
    assert found.tolist() == [0, 1, 0, 1, 0, -1]
    assert class_titles(["a", ""], 3) == ["a", "class 1", "class 2"]


# pictures


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_pictures_show_the_region_and_what_is_missing_is_reported(tmp_path: Path, compress: str) -> None:
    g = np.random.default_rng(0)
    x = g.standard_normal((9, 4, 3)).astype(np.float32)
    from stores.format import LayerSpec

    path = write_store(
        tmp_path / "s.zarr", {"conv": x}, compress=compress, specs={"conv": LayerSpec("conv", (2, 2), 3)}
    )
    reader = LayerReader(path)
    w = np.eye(3, dtype=np.float32)
    bank = make_bank({"d": Directions(w, w, np.zeros(3, np.float32), np.zeros(3, np.float32), "m", "conv")}, reader)
    top = Top(np.array([[8, 1, 1], [2, 8, 5], [-1, -1, 4]]), np.zeros((3, 3)))

    def frames(row: int) -> list[Image.Image]:
        if row == 5:
            raise ImageError("gone")
        return [Image.new("RGB", (50, 30), (200, 20, row * 20))]

    gone = draw_pictures(reader, bank, top.rows, 2, [[3, 8], [5]], tmp_path / "out", tmp_path / "out", frames)
    assert gone == {5}
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.webp"))
    expected = [
        example_file(0, 0),
        example_file(0, 1),
        *map(strip_file, range(3)),
        *(tile_file(j, r) for j, r in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)]),
    ]
    assert written == sorted(expected)
    with Image.open(tmp_path / "out" / example_file(0, 1)) as image:
        assert image.size == (EXAMPLE, EXAMPLE)
    for j, count in ((0, 2), (1, 2), (2, 1)):  # one of the last one's is gone
        with Image.open(tmp_path / "out" / strip_file(j)) as image:
            assert image.size == (count * (SMALL + GAP) - GAP, SMALL)
            left = np.asarray(image.convert("RGB").crop((0, 0, SMALL, SMALL)).resize((8, 8)), float)
        with Image.open(tmp_path / "out" / tile_file(j, 0)) as image:
            assert np.abs(left - np.asarray(image.convert("RGB").resize((8, 8)), float)).mean() < 25
    for j, rank in ((0, 0), (1, 1), (2, 0)):
        row = int(top.rows[rank, j])
        inside = region(on_grid(reader, row, x[row, :, j])[0], TILE)
        with Image.open(tmp_path / "out" / tile_file(j, rank)) as image:
            red = np.asarray(image.convert("RGB"))[..., 0]
        assert image.size == (TILE, TILE)
        if inside.any():
            assert np.median(red[inside]) > 180  # as it is
        if (~inside).mean() > 0.3:
            assert np.quantile(red[~inside], 0.3) < 120  # dimmed
