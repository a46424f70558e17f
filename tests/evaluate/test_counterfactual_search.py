"""Predictions turned by the head itself: slopes along the path, ReLUs that undo a change, heads of any kind, many images at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.explain.counterfactual_search import HeadMoved, PooledMoved, follow, outside, turn
from evaluate.explain.explainer import Explainer
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


def test_what_is_clamped_at_0_is_what_a_relu_gives() -> None:
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


@pytest.mark.parametrize("keep", [False, True])
def test_a_prefix_stays_where_it_is(keep: bool) -> None:
    x, s, weight, bias = world(4)
    x[0, :2] -= 1  # below 0, and to stay there
    delta = np.random.default_rng(1).normal(size=DIRS) * 0.5
    own = x[0, 2:] + s @ delta
    after = np.concatenate([x[0, :2], np.maximum(own, 0) if keep else own])
    formula = PooledMoved(x[0], s, weight, bias, prefix=2, keep=keep)
    asked = HeadMoved(heads(weight, bias), torch.from_numpy(x[0]), torch.from_numpy(s), prefix=2, keep=keep)
    for moved in (formula, asked):
        np.testing.assert_allclose(moved.logits(delta), weight @ after.mean(0) + bias, atol=1e-4)
    straight = formula.logits(np.zeros(DIRS)) + delta @ formula.slopes(delta, np.arange(K))
    np.testing.assert_allclose(straight, formula.logits(delta), atol=1e-9)
    wanted = formula.slopes(delta, np.arange(K))
    np.testing.assert_allclose(
        asked.slopes(delta, np.arange(K)), wanted, atol=0.1 * np.abs(wanted).max() if keep else 1e-4
    )


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


def test_without_a_relu_nothing_is_clamped() -> None:
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


def test_beyond_is_said_of_the_change_that_is_left() -> None:
    """The straight line from 0 asks for more than images have; shortened to where the head really turns, it is within."""
    steep = lambda x: torch.stack([x[:, 0, 0] * 0 + 1, x[:, 0, 0] ** 3 + 0.2 * x[:, 0, 0]], 1)  # noqa: E731
    moved = HeadMoved(steep, torch.zeros(1, 1), torch.ones(1, 1))
    bounds = (np.ones(1), np.full(1, -2.0), np.full(1, 2.0))
    first, _ = follow(moved, 1, np.ones(1), np.full(1, -9.0), np.full(1, 9.0))
    assert first is not None
    assert 0.9 < first.delta[0] < 2
    change, does = follow(moved, 1, *bounds)
    assert does
    assert change is not None
    assert 0.9 < change.delta[0] < 2
    assert not change.beyond
    low, high = np.full(1, -0.5), np.full(1, 0.5)
    change, _ = follow(moved, 1, np.ones(1), low, high)
    assert change is not None
    assert change.beyond
    assert not outside(np.array([0.5 + 1e-9]), np.ones(1), low, high)
    assert outside(np.array([-0.6]), np.ones(1), low, high)


def test_a_head_that_is_flat_where_the_image_is_may_turn_all_the_same() -> None:
    """Nothing is found, and it would be wrong to say that there is nothing."""
    flat = lambda x: torch.stack([x[:, 0, 0] * 0 + 1, 3 * (x[:, 0, 0] - 2).relu()], 1)  # noqa: E731
    moved = HeadMoved(flat, torch.full((1, 1), 0.5), torch.ones(1, 1))
    assert turn(moved, None, 1, np.ones(1), np.full(1, -9.0), np.full(1, 9.0)) is None
    assert int(moved.logits(np.array([4.0])).argmax()) == 1


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
    for rank in (1, K - 1):  # into the runner-up, and into the least likely class
        turned = [who.turn(x, who.pooled(x), int(np.argsort(-logits)[rank])) for x, logits in images]
        assert np.mean([bool(t and t.flips_kept) for t in turned]) >= 0.9
        assert all(t and (t.flips or t.flips_kept) and len(t.change.changed) for t in turned)


def test_an_image_explained_fully() -> None:
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
    x = images[0][0]
    found = who.explain(x)
    assert found.alpha.shape == (P - 2, DIRS)
    assert found.cam.shape == (P - 2,)
    np.testing.assert_allclose(found.contributions.logits, images[0][1], atol=1e-5)
    np.testing.assert_allclose(found.maps.sum(0), found.contributions.parts[:, found.explained], atol=1e-4)
    assert found.turned is not None
    after = np.concatenate([x[:2], x[2:] + who.directions.signals @ found.turned.change.delta])
    weight, bias = who.affine or (x, x)
    np.testing.assert_allclose(found.turned.after, weight @ after.mean(0) + bias, atol=1e-4)


def test_a_class_token_that_is_the_same_in_all_images_moves_nothing() -> None:
    who, images = explainer(5, 3, pooled=False)
    token, weight = np.full((1, C), 2.0, np.float32), np.random.default_rng(0).normal(size=(C, K)).astype(np.float32)
    who.prefix, who.head = 1, lambda x: x[:, 0] @ torch.from_numpy(weight)
    found = who.explain(np.concatenate([token, images[0][0]]))
    assert found.unread
    assert not found.contributions.parts.any()
    assert not found.contributions.residual.any()
    np.testing.assert_array_equal(found.contributions.base, found.contributions.logits)
    assert found.turned is None
    who.head = lambda x: x[:, :2].mean(1) @ torch.from_numpy(weight)  # of the patches, the first counts
    assert not who.explain(np.concatenate([token, images[0][0]])).unread
