"""Predictions turned by the head itself: slopes along the path, ReLUs that undo a change, heads of any kind, many images at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.explain.explainer import Explainer
from evaluate.explain.trial import another, runner_up, try_counterfactuals
from evaluate.explain.turning import HeadMoved, PooledMoved, follow, turn
from evaluate.explain.values import Usual, readout
from stores.directions import Directions
from stores.errors import NonFiniteError

P, C, DIRS, K = 9, 12, 6, 4


def world(seed: int, images: int = 1):  # type: ignore[no-untyped-def]
    """Activations behind a ReLU, signal vectors of both signs, a pooled-affine head."""
    g = np.random.default_rng(seed)
    s = g.normal(size=(C, DIRS))
    s /= np.linalg.norm(s, axis=0)
    x = np.maximum(g.normal(size=(images, P, C)) + 1.5 * g.random((images, P, DIRS)) @ s.T, 0).astype(np.float32)
    return x, s.astype(np.float32), g.normal(size=(K, C)), g.normal(size=K)


@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_the_mean_slope_ends_at_the_heads_own_answer(seed: int, size: float) -> None:
    x, s, weight, bias = world(seed)
    delta = size * np.random.default_rng(seed).normal(size=DIRS)
    for keep in (False, True):
        moved = PooledMoved(x[0], s, weight, bias, keep=keep)
        straight = moved.logits(np.zeros(DIRS)) + delta @ moved.slopes(delta, np.arange(K))
        np.testing.assert_allclose(straight, moved.logits(delta), atol=1e-9)


def test_what_is_kept_at_0_is_what_a_relu_gives() -> None:
    x, s, weight, bias = world(1)
    delta = np.random.default_rng(0).normal(size=DIRS)
    moved = PooledMoved(x[0], s, weight, bias, keep=True).logits(delta)
    expected = weight @ np.maximum(x[0] + s @ delta, 0).mean(0) + bias
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def heads(weight: np.ndarray, bias: np.ndarray):  # type: ignore[no-untyped-def]
    a, c = (torch.from_numpy(v).float() for v in (weight, bias))
    return lambda x: x.mean(1) @ a.T + c


@pytest.mark.parametrize("keep", [False, True])
def test_any_head_by_its_gradients(keep: bool) -> None:
    """Asked for its gradients, a pooled head gives what the formula gives: exactly, or as well as three points of the path can."""
    x, s, weight, bias = world(2)
    delta = np.random.default_rng(1).normal(size=DIRS) * 0.5
    formula = PooledMoved(x[0], s, weight, bias, keep=keep)
    asked = HeadMoved(heads(weight, bias), torch.from_numpy(x[0]), torch.from_numpy(s), keep=keep)
    np.testing.assert_allclose(asked.logits(delta), formula.logits(delta), atol=1e-4)
    classes = np.array([0, 3])
    wanted = formula.slopes(delta, classes)
    np.testing.assert_allclose(asked.slopes(delta, classes), wanted, atol=0.1 * np.abs(wanted).max() if keep else 1e-4)


FREE = (np.ones(DIRS), np.full(DIRS, -4.0), np.full(DIRS, 4.0))


def test_a_change_that_a_relu_would_undo_is_made_to_last() -> None:
    turned, undone = 0, 0
    for seed in range(20):
        x, s, weight, bias = world(seed)
        free, kept = (PooledMoved(x[0], s, weight, bias, keep=keep) for keep in (False, True))
        target = int(np.argsort(free.logits(np.zeros(DIRS)))[-2])
        plain, does = follow(free, target, *FREE)
        if plain is None or not does:
            continue
        undone += int(kept.logits(plain.delta).argmax()) != target
        found = turn(free, kept, target, *FREE)
        assert found is not None
        turned += bool(found.flips_kept)
        assert found.after_kept is not None
        np.testing.assert_allclose(found.after, free.logits(found.change.delta))
        np.testing.assert_allclose(found.after_kept, kept.logits(found.change.delta))
        assert found.flips == (int(found.after.argmax()) == target)
    assert undone >= 8  # the test would show nothing otherwise
    assert turned >= 18


def test_without_a_relu_nothing_is_kept() -> None:
    x, s, weight, bias = world(0)
    free = PooledMoved(x[0], s, weight, bias)
    target = int(np.argsort(free.logits(np.zeros(DIRS)))[-2])
    found = turn(free, None, target, *FREE)
    assert found is not None
    assert found.flips
    assert found.flips_kept is None
    assert found.after_kept is None


def test_where_nothing_turns_it() -> None:
    x, s, weight, bias = world(0)
    weight = np.repeat(weight[:1], K, 0)  # all classes read the same: no change of any size
    free, kept = (PooledMoved(x[0], s, weight, bias, keep=keep) for keep in (False, True))
    assert turn(free, kept, int(bias.argmin()), *FREE) is None


def curved(x: torch.Tensor) -> torch.Tensor:
    """No affine map, with a class that only a product raises."""
    m = x.mean(1)
    return torch.stack([m[:, 0] + 1, torch.tanh(m[:, 1]) * 3, m[:, 2] * m[:, 3]], 1)


def test_a_curved_head_is_followed_and_not_overshot() -> None:
    s = torch.eye(C)[:, :DIRS]
    for level, target, concepts in ((0.0, 1, {0, 1}), (0.0, 2, {0, 1}), (0.5, 2, {0, 1, 2, 3})):
        moved = HeadMoved(curved, torch.full((P, C), level), s)
        change, does = follow(moved, target, np.ones(DIRS), np.full(DIRS, -9.0), np.full(DIRS, 9.0))
        assert does
        assert change is not None
        assert set(change.changed.tolist()) <= concepts
        assert int(moved.logits(change.delta).argmax()) == target
        assert int(moved.logits(0.9 * change.delta).argmax()) != target


def explainer(seed: int, images: int, *, pooled: bool = True) -> tuple[Explainer, list[tuple[np.ndarray, np.ndarray]]]:
    x, s, weight, bias = world(seed, images)
    mean = x.mean((0, 1))
    d = Directions(s, s, mean, np.zeros(DIRS, np.float32), "toy", "conv")
    values = (x.mean(1) - mean) @ readout(d)
    usual = Usual(values.std(0), values.min(0) - 1, values.max(0) + 1, True, images)
    affine = (weight, bias) if pooled else None
    logits = x.mean(1) @ weight.T + bias
    return Explainer(heads(weight, bias), d, np.zeros(DIRS), usual, affine=affine), list(zip(x, logits, strict=True))


@pytest.mark.parametrize("pooled", [True, False])
def test_nine_in_ten_images_turn(pooled: bool) -> None:
    who, images = explainer(7, 40 if pooled else 12, pooled=pooled)
    for choose in (runner_up, another(0)):
        found = try_counterfactuals(who, images, choose)
        summary = found.summary()
        assert summary["images"] == len(images)
        assert found.flips_kept.mean() >= 0.9
        assert (found.flips | found.flips_kept).all()
        assert sum(summary["changed"].values()) == len(images)  # type: ignore[attr-defined]
        assert (found.changed[found.flips] > 0).all()


def test_other_classes_are_picked_by_the_seed() -> None:
    logits = np.array([1.0, 3.0, 2.0])
    assert runner_up(logits) == 2
    first, second = another(1), another(1)
    picked = [first(logits) for _ in range(20)]
    assert picked == [second(logits) for _ in range(20)]
    assert set(picked) == {0, 2}


def test_an_image_explained_whole() -> None:
    who, images = explainer(5, 10)
    x, logits = images[0]
    found = who.explain(x)
    order = np.argsort(-logits)
    assert (found.predicted, found.explained, found.against, found.target) == (order[0], order[0], order[1], order[1])
    np.testing.assert_allclose(found.contributions.logits, logits, atol=1e-5)
    np.testing.assert_allclose(found.maps.sum(0), found.contributions.parts[:, order[0]], atol=1e-4)
    np.testing.assert_allclose(found.alpha.mean(0), found.pooled)
    np.testing.assert_allclose(who.pooled(x), found.pooled)
    assert found.probabilities.sum() == pytest.approx(1)
    other = who.explain(x, explained=int(order[2]))
    assert (other.explained, other.against, other.target) == (order[2], order[0], order[2])
    same = who.explain(x, target=int(order[0]))
    assert same.target == order[0]
    assert same.turned is None
    with pytest.raises(NonFiniteError, match="activations"):
        who.explain(np.full_like(x, np.nan))


def test_the_prefix_is_run_but_not_shown() -> None:
    who, images = explainer(5, 3)
    who.prefix = 2
    found = who.explain(images[0][0])
    assert found.alpha.shape == (P - 2, DIRS)
    assert found.cam.shape == (P - 2,)
    np.testing.assert_allclose(found.contributions.logits, images[0][1], atol=1e-5)
