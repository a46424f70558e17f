"""Directions against the truth of a synthetic store: perfect, permuted, flipped, too few, too many."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from evaluate.ground_truth import against_truth, cosines, distinct_matches, ideal_filters, positives
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.attachments import Truth, read_truth
from stores.directions import Directions
from stores.errors import MismatchError
from stores.readers import LayerReader
from stores.store import ActivationStore


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[LayerReader, Truth, Directions]:
    """A store, its truth, and the directions that generated it: filters dual to signals and distractors."""
    path = tmp_path_factory.mktemp("truth") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=200, concepts=4, seed=3))
    reader = LayerReader(ActivationStore.open(path))
    truth = read_truth(reader.store.path)
    distractors = load_file(path / "truth.safetensors")["distractors"]
    dual = np.linalg.pinv(np.concatenate([truth.signals, distractors], 1).astype(float)).T[:, :4]
    x = np.concatenate([block for _, block in reader.blocks()]).reshape(-1, 16)
    return reader, truth, Directions(
        dual.astype(np.float32),
        truth.signals,
        x.mean(0).astype(np.float32),
        (10 * dual.sum(0) + 2.5).astype(np.float32),
        "perfect",
        "synthetic",
    )  # fmt: skip


def picked(directions: Directions, columns: list[int]) -> Directions:
    assert directions.thresholds is not None
    return dataclasses.replace(
        directions,
        filters=directions.filters[:, columns],
        signals=directions.signals[:, columns],
        thresholds=directions.thresholds[columns],
    )


def test_perfect_directions_are_perfect(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    found = against_truth(perfect, reader, truth)
    assert found["iou"] == [1.0] * 4
    assert found["cos"] == found["filter_cos"] == [1.0] * 4
    assert found["distinct_matches"] == 1
    assert found["rmse"] < 1e-3
    assert found["matched"] == 4
    assert found["match"] == [0, 1, 2, 3]


def test_the_order_of_directions_does_not_matter(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    found = against_truth(picked(perfect, [2, 0, 3, 1]), reader, truth)
    assert found["match"] == [1, 3, 0, 2]
    assert {k: v for k, v in found.items() if k != "match"} == {
        k: v for k, v in against_truth(perfect, reader, truth).items() if k != "match"
    }


def test_a_flipped_signal_vector_shows_in_its_cosine_only(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    signs = np.array([1, -1, 1, 1], np.float32)
    found = against_truth(dataclasses.replace(perfect, signals=perfect.signals * signs), reader, truth)
    assert found["iou"] == [1.0] * 4
    assert found["cos"] == [1.0, -1.0, 1.0, 1.0]
    x = np.concatenate([block for _, block in reader.blocks()]).reshape(-1, 16)
    wanted = np.sqrt(np.mean((2 * (truth.values[:, 1] - truth.values[:, 1].mean())) ** 2) / 4)
    assert found["rmse"] == pytest.approx(wanted, abs=2e-3)
    assert len(x) == len(truth.values)


def test_a_flipped_filter_finds_the_complement(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    assert perfect.thresholds is not None
    one = picked(perfect, [1])
    flipped = dataclasses.replace(one, filters=-one.filters, thresholds=-one.thresholds)  # type: ignore[operator]
    found = against_truth(flipped, reader, truth)
    (concept,) = [i for i, m in enumerate(found["match"]) if m == 0]
    off = ~truth.present[:, 1]
    ious = [(truth.present[:, i] & off).sum() / (truth.present[:, i] | off).sum() for i in range(4)]
    assert concept == int(np.argmax(ious)) != 1
    assert found["iou"][concept] == round(float(ious[concept]), 4)


def test_fewer_directions_than_concepts(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    found = against_truth(picked(perfect, [3, 1]), reader, truth)
    assert found["match"] == [-1, 1, -1, 0]
    assert found["iou"] == [0.0, 1.0, 0.0, 1.0]
    assert found["cos"] == found["filter_cos"] == [0.0, 1.0, 0.0, 1.0]
    assert found["matched"] == 2
    assert found["rmse"] < 1e-3  # over the matched pairs


def test_more_directions_than_concepts(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    g = np.random.default_rng(0)
    more = picked(perfect, [0, 1, 2, 3, 0, 1])
    noise = g.normal(size=(16, 2)).astype(np.float32)
    more.filters[:, [0, 5]] = noise  # the first is spoilt, its copy is the fifth
    found = against_truth(more, reader, truth)
    assert found["match"] == [4, 1, 2, 3]
    assert found["iou"] == [1.0] * 4


def test_iou_is_that_of_the_sets(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    assert perfect.thresholds is not None
    strict = dataclasses.replace(perfect, thresholds=perfect.thresholds + np.float32(1.25))
    found = against_truth(strict, reader, truth)
    wanted = [((truth.values[:, i] > 3.75).sum() / truth.present[:, i].sum()) for i in range(4)]
    np.testing.assert_allclose(found["iou"], wanted, atol=6e-3)
    assert found["matched"] == sum(v > 0.5 for v in wanted)


def test_without_thresholds_the_top_quantile_is_positive(known: tuple[LayerReader, Truth, Directions]) -> None:
    z = np.array([[1.0, 5], [2, 5], [3, 5], [4, 4]])
    toy = Directions(
        np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.zeros(2, np.float32), None, "pca", "x", 0.5
    )
    assert positives(toy, z)[:, 0].tolist() == [False, False, True, True]
    assert not positives(toy, z)[:, 1].any()  # tied at the threshold
    reader, truth, perfect = known
    share = float(truth.present[:, 0].mean())
    found = against_truth(dataclasses.replace(picked(perfect, [0]), thresholds=None, quantile=share), reader, truth)
    assert found["iou"][0] == 1.0


def test_directions_of_another_layer_are_refused(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    with pytest.raises(MismatchError, match="layer4"):
        against_truth(dataclasses.replace(perfect, layer="layer4"), reader, truth)


def test_the_cosine_of_filters_is_their_own(known: tuple[LayerReader, Truth, Directions]) -> None:
    reader, truth, perfect = known
    g = np.random.default_rng(1)
    filters = perfect.filters * g.uniform(1, 5, 4).astype(np.float32)  # lengths do not matter
    filters[:, 2] = g.normal(size=16)
    found = against_truth(dataclasses.replace(perfect, filters=filters), reader, truth)
    column = found["match"].index(2)
    wanted = filters[:, 2] @ perfect.filters[:, column]
    wanted /= np.linalg.norm(filters[:, 2]) * np.linalg.norm(perfect.filters[:, column])
    assert found["filter_cos"][column] == pytest.approx(wanted, abs=1e-3)
    assert found["cos"] != found["filter_cos"]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_ideal_filters_are_least_squares(noise: float) -> None:
    """Against one regression a concept, and without noise against the dual of the directions."""
    g = np.random.default_rng(0)
    directions = g.normal(size=(9, 5))
    values = g.exponential(size=(400, 5)) @ (np.eye(5) + 0.4)  # correlated
    x = values @ directions.T + 10 + noise * g.normal(size=(400, 9))
    found = ideal_filters(x, values[:, :3])
    for i in range(3):
        wanted, *_ = np.linalg.lstsq(x - x.mean(0), values[:, i] - values[:, i].mean(), rcond=1e-9)
        np.testing.assert_allclose(found[:, i], wanted, atol=1e-6)
    if not noise:
        np.testing.assert_allclose(found, np.linalg.pinv(directions).T[:, :3], atol=1e-6)


def test_matches_are_distinct_where_no_two_concepts_prefer_one_direction() -> None:
    iou = np.array([[0.9, 0.1, 0.2], [0.6, 0.5, 0.0], [0.0, 0.1, 0.3], [0.4, 0.3, 0.2]])
    assert distinct_matches(iou) == 0.25  # three prefer the first direction
    assert distinct_matches(iou[[0, 2]]) == 1
    assert distinct_matches(np.eye(3)) == 1
    assert distinct_matches(np.zeros((3, 4))) == 0  # nothing found
    assert distinct_matches(np.zeros((2, 1))) == 0


def test_cosines_of_columns() -> None:
    a, b = np.array([[3.0, 0, 1], [4, 0, 0]]), np.array([[4.0, 1, -2], [3, 0, 0]])
    np.testing.assert_allclose(cosines(a, b), [24 / 25, 0, -1])
