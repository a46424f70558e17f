"""Surrogate fidelity: two images by hand, contributions of one image at a time, and how often random sets pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import write_store

from evaluate.evidence_facts import evidence_facts, fidelity_problem
from evaluate.explain import fidelity as module
from evaluate.explain.contributions import pooled_contributions
from evaluate.explain.fidelity import fidelity_of, surrogate_fidelity
from evaluate.explain.values import RIDGE, readout
from stores.directions import Directions
from stores.format import LayerSpec
from stores.readers import LayerReader


def some(filters: np.ndarray, signals: np.ndarray, mean: np.ndarray) -> Directions:
    return Directions(*(np.asarray(a, np.float32) for a in (filters, signals, mean)), None, "toy", "conv")


def patterns(covariance: np.ndarray, filters: np.ndarray) -> np.ndarray:
    found = covariance @ filters
    return found / np.linalg.norm(found, axis=0)


def test_by_hand() -> None:
    """Mean 0, one class per channel, one direction: the first channel. What it leaves is the second channel's logit."""
    pooled = np.array([[1.0, 2.0], [3.0, -2.0]])
    found = fidelity_of(some([[1], [0]], [[1], [0]], np.zeros(2)), pooled, pooled, np.eye(2), np.eye(2))
    kept = 1 / (1 + RIDGE)
    # class 0 loses (1 − kept) of 1 and of 3; class 1 is 0 instead of 2 and −2: both errors are 2, whichever image has which
    np.testing.assert_allclose(found.own, [((1 - kept) * 2 + 2) / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(found.constant, [2, 2])
    # exchanged logits: the distributions agree, the images do not
    swapped = fidelity_of(some([[1]], [[-1]], np.zeros(1)), np.array([[1.0], [-1.0]]), np.array([[1.0], [-1.0]]),
                          np.array([[1.0]]), np.eye(1))  # fmt: skip
    assert swapped.own[0] == pytest.approx(1 - kept, rel=1e-4)


@pytest.mark.parametrize(
    ("value", "verdict", "constant", "wrong"),
    [
        (0.9, "below all", 3.0, ""),
        (0.9, "below all", 1.5, "better than random directions, but"),
        (1.4, "within those of", 3.0, "as well as these"),
        (2.1, "above all", 3.0, "random directions rebuild the logits better"),
    ],
)
def test_the_error_is_held_against_random_sets(value: float, verdict: str, constant: float, wrong: str) -> None:
    entry = {"fidelity": {"mae": {"value": value, "random_low": 1.0, "random_high": 2.0, "constant": constant}}}
    share = {(0.9, 3.0): 70, (0.9, 1.5): 40, (1.4, 3.0): 53, (2.1, 3.0): 30}[value, constant]
    for text in filter(None, (evidence_facts(entry)["Logits rebuilt"], fidelity_problem(entry))):
        assert f"{value:.3f}, {verdict} random sets" in text
        assert f"{share} % of their variation" in text
        assert wrong in text
    assert (bool(fidelity_problem(entry)), "with care" in evidence_facts(entry)["Logits rebuilt"]) == (bool(wrong),) * 2


def test_it_is_the_contributions_of_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(9, 4, 5)).astype(np.float32) + 1
    weight, bias = g.normal(size=(3, 5)).astype(np.float32), g.normal(size=3).astype(np.float32)
    logits = x.mean(1) @ weight.T + bias
    kept = {"specs": {"conv": LayerSpec("conv", (2, 2), 5)}, "logits": logits}
    valid, heads = np.arange(9) != 4, {"conv": (weight, bias)}
    store = write_store(tmp_path / "s", {"conv": x}, valid=valid, heads=heads, **kept)
    d = some(g.normal(size=(5, 2)), patterns(np.eye(5), g.normal(size=(5, 2))), x.mean((0, 1)))
    found = surrogate_fidelity(LayerReader(store), {"a": d})["a"]
    rebuilt = []
    for one in np.delete(x, 4, 0):
        parts = pooled_contributions(one, d.mean, (one - d.mean) @ readout(d), d.signals, weight, bias)
        rebuilt.append(parts.base + parts.parts.sum(0))
    own = np.delete(logits, 4, 0)
    mae = np.mean([abs(r[k] - z[k]) for r, z in zip(rebuilt, own, strict=True) for k in range(3)])
    emd = np.mean([np.abs(np.sort([r[k] for r in rebuilt]) - np.sort(own[:, k])).mean() for k in range(3)])
    np.testing.assert_allclose(found.own, [mae, emd], rtol=1e-4)
    assert (found.images, found.classes) == (8, 3)
    monkeypatch.setattr(module, "IMAGES", 5)
    assert surrogate_fidelity(LayerReader(store), {"a": d})["a"].images == 5
    other = write_store(tmp_path / "t", {"conv": x}, **kept)
    assert surrogate_fidelity(LayerReader(other), {"a": d}) == {}  # a head of another kind


def test_random_sets_pass_as_often_as_the_level_says() -> None:
    g = np.random.default_rng(1)
    spread = np.diag(g.uniform(0.5, 2, 8))
    pooled, weight = g.normal(size=(60, 8)) @ spread, g.normal(size=(4, 8))
    covariance = spread @ spread
    passed = []
    for seed in range(60):
        filters = np.random.default_rng([9, seed]).normal(size=(8, 3))
        d = some(filters, patterns(covariance, filters), np.zeros(8))
        passed.append(fidelity_of(d, pooled, pooled @ weight.T, weight, covariance, seed).p <= 0.1)
    assert (np.mean(passed, 0) <= 0.2).all()  # of 60 sets at a level of 0.1, 6 expected
    # the directions that the logits are made of pass
    _, _, rows = np.linalg.svd(weight)
    best = fidelity_of(some(rows[:4].T, rows[:4].T, np.zeros(8)), pooled, pooled @ weight.T, weight, covariance)
    assert (best.p == 1 / 40).all()
    assert (best.own < 0.1 * best.random.min(0)).all()
