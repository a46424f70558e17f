"""Measures of examples: by hand on a few vectors, by literal loops on random ones, and with images that cannot be read."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch

from evaluate.crop_embeddings import Embeddings
from evaluate.examples import Examples
from evaluate.meaning import MEASURES, Meaning, measure_examples, polysemanticity, two_clusters
from extract.image_text import ImageTextEncoder


def in_a_file(embedded: np.ndarray) -> Embeddings:
    """NaN: images that cannot be read."""
    found, known = Embeddings(len(embedded)), np.flatnonzero(np.isfinite(embedded[:, 0]))
    found.add(known, embedded[known])
    return found


def examples(embedded: np.ndarray, number: np.ndarray, by_chance: list[int], own: int) -> Examples:
    encoder = ImageTextEncoder("toy", "1", None)
    return Examples(in_a_file(embedded), number, np.array(by_chance), {"d": slice(0, own)}, encoder)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def test_by_hand() -> None:
    """Direction 0 shows two things, direction 1 one of them, direction 2 the opposite; a random direction shows as direction 0."""
    embedded = np.array([[1, 0], [0, 1], [-1, 0]])
    number = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [2, 2, 2, 2], [0, 1, 0, 1]]).T
    found = measure_examples(examples(embedded, number, [0, 1], own=3))["d"]
    assert found.own["clarity"] == pytest.approx([1 / 3, 1, 1])  # two of six pairs are of one thing
    assert found.own["polysemanticity"] == pytest.approx([1, 0, 0])
    assert found.own["semantic_redundancy"] == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)])
    assert found.nearest.tolist() == [1, 0, 0]
    # less the mean of random images, (½, ½): both things are opposite, as are the random images, whose value −1 is subtracted
    assert found.own["firing_monosemanticity"] == pytest.approx([-1 / 3 + 1, 2, 2])
    assert found.randoms["clarity"] == pytest.approx([1 / 3])
    assert found.images["clarity"] == pytest.approx(np.zeros(200), abs=1e-12)
    entry = found.summary()
    assert entry["clarity"] == round(7 / 9, 4)
    assert (entry["meaning"]["clarity"]["random"], entry["meaning"]["clarity"]["beyond"]) == (round(1 / 3, 4), 2)
    assert entry["meaning"]["polysemanticity"]["beyond"] == 2  # less is better


def slow(embedded: np.ndarray, number: np.ndarray, by_chance: list[int], own: int) -> dict[str, list[float]]:
    """Each measure of the first ``own`` directions, a pair at a time; clusters by trying all."""

    def pairs(e: np.ndarray) -> float:
        return float(np.mean([a @ b for a, b in combinations(e, 2)]))

    def spread(e: np.ndarray) -> float:
        return float(((e - e.mean(0)) ** 2).sum())

    centre = embedded[by_chance].mean(0)
    base = pairs(unit(embedded[by_chance] - centre))
    found: dict[str, list[float]] = {key: [] for key in MEASURES}
    means = unit(np.array([embedded[number[:, j]].mean(0) for j in range(own)]))
    for j in range(own):
        e = embedded[number[:, j]]
        found["clarity"].append(pairs(e))
        found["firing_monosemanticity"].append(pairs(unit(e - centre)) - base)
        splits = [np.array(bits, bool) for bits in product((0, 1), repeat=len(e)) if 0 < sum(bits) < len(e)]
        side = min(splits, key=lambda bits: spread(e[bits]) + spread(e[~bits]))
        first, second = unit(np.array([e[side].mean(0), e[~side].mean(0)]))
        found["polysemanticity"].append(float(1 - first @ second))
        found["semantic_redundancy"].append(max(float(means[j] @ means[k]) for k in range(own) if k != j))
    return found


def test_as_literal_loops() -> None:
    g = np.random.default_rng(0)
    things = unit(g.normal(size=(6, 5)))
    embedded = unit(np.repeat(things, 8, 0) + 0.15 * g.normal(size=(48, 5)))
    # eight examples of two things each, four and four
    number = np.array(
        [[8 * (j % 6) + k for k in range(4)] + [8 * ((j + 1) % 6) + k for k in range(4)] for j in range(9)]
    ).T
    by_chance = list(range(0, 48, 3))
    found = measure_examples(examples(embedded, number, by_chance, own=4))["d"]
    expected = slow(embedded, number, by_chance, own=4)
    for key in MEASURES:
        assert found.own[key] == pytest.approx(expected[key], abs=1e-6), key
    assert len(found.randoms["clarity"]) == 5
    # a random direction is held against the three after it, as many as a direction of the file has others
    means = unit(np.array([embedded[number[:, 4 + j]].mean(0) for j in range(5)]))
    nearest = [max(float(means[j] @ means[(j + k) % 5]) for k in (1, 2, 3)) for j in range(5)]
    assert found.randoms["semantic_redundancy"] == pytest.approx(nearest, abs=1e-6)


def test_an_image_apart_is_no_second_meaning() -> None:
    e = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]], dtype=torch.float64)
    assert sorted([int(two_clusters(e).sum()), int((~two_clusters(e)).sum())]) == [1, 3]
    mean = unit(np.array([3.0, 1]))
    assert polysemanticity(e) == pytest.approx(1 - (3 * mean[0] + mean[1]) / 4)
    assert polysemanticity(e[:3]) == pytest.approx(0)  # all the same


def test_images_that_cannot_be_read_are_left_out() -> None:
    g = np.random.default_rng(1)
    embedded = unit(g.normal(size=(20, 4)))
    number = g.integers(0, 19, (6, 3))
    holes = np.vstack([number, [[19] * 3]])
    embedded[19] = np.nan

    def found(number: np.ndarray, by_chance: list[int]) -> Meaning:
        return measure_examples(examples(embedded, number, by_chance, own=2))["d"]

    whole, less = found(number, [0, 5, 9]), found(holes, [0, 5, 19, 9])
    for key in MEASURES:
        assert np.array_equal(whole.own[key], less.own[key]), key


def test_a_direction_without_others_has_no_redundancy() -> None:
    number = np.array([[0, 1, 0], [1, 0, 1]]).T
    found = measure_examples(examples(np.eye(2), number, [0, 1], own=1))["d"]
    assert np.isnan(found.own["semantic_redundancy"]).all()
    assert found.summary()["semantic_redundancy"] is None
    assert found.summary()["meaning"]["semantic_redundancy"]["random"] is None
