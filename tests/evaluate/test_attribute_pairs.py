"""Pairs of images: a change by hand, sign flips one by one, and how often chance passes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from evaluate.attribute_pairs import agreement_of, moves_of


def test_by_hand() -> None:
    """Six pairs each: direction 0 rises with the first attribute, 1 with both but more surely with the second, 2 falls, 3 stays."""
    wobble = np.array([1, -1, 1, -1, 1, -1]) / 10
    first = np.stack([2 + wobble, 1 + 4 * wobble, -2 + wobble, 0 * wobble], 1)
    second = np.stack([0 + wobble, 1 + wobble, -2 + wobble, 0 * wobble], 1)
    found = moves_of([first, second])
    assert found.moves.tolist() == [0, 1, -1, -1]
    np.testing.assert_allclose(found.change, [[2, 0], [1, 1], [-2, -2], [0, 0]], atol=1e-12)
    assert found.t[0, 0] == pytest.approx(2 / (first[:, 0].std(ddof=1) / np.sqrt(6)))
    assert (found.p[0, 0], found.p[2, 0]) == (found.p[:, 0].min(), 1)
    agreed = agreement_of(found.moves, np.array([0, 0, 1, -1]))
    assert (agreed.named, agreed.moving, agreed.both) == (3, 2, 1)
    assert (agreed.summary()["precision"], agreed.summary()["recall"]) == (0.3333, 0.5)
    none = agreement_of(found.moves, np.full(4, -1))
    assert (none.p, none.summary()["precision"], none.summary()["recall"]) == (1, None, 0)


def test_p_is_that_of_all_sign_flips() -> None:
    g = np.random.default_rng(0)
    d = g.normal(size=(7, 3)) + np.array([0.9, 0.3, 0])

    def largest(signs: tuple[int, ...]) -> float:
        flipped = np.array(signs)[:, None] * d
        return max(flipped[:, i].mean() / (flipped[:, i].std(ddof=1) / np.sqrt(7)) for i in range(3))

    found = moves_of([d])
    every = np.array([largest(signs) for signs in itertools.product((-1, 1), repeat=7)])
    np.testing.assert_allclose(found.p[:, 0], [(every >= t - 1e-9).mean() for t in found.t[:, 0]], atol=0.04)


def test_chance_moves_no_direction_and_agrees_with_no_name() -> None:
    """Of 100 sets without any effect: those with a direction that moves with an attribute, and names that are drawn."""
    moved, agreed = [], []
    for seed in range(100):
        g = np.random.default_rng(seed)
        moved.append((moves_of([g.normal(size=(8, 10))], seed).moves >= 0).any())
        agreed.append(agreement_of(g.integers(-1, 4, 60), g.integers(-1, 4, 60), seed).p <= 0.05)
    assert np.mean(moved) <= 0.12
    assert np.mean(agreed) <= 0.12
    names = np.arange(40) % 4
    assert agreement_of(names, names).p == 0.001
