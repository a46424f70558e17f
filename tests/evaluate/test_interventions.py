"""What a step along a direction does: the algebra behind pooled heads and the general way, against moving each image by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.influence import interventions as effects
from evaluate.influence.interventions import HeadEffect, PooledEffect
from extract.network import Network
from extract.stepped_head import SteppedHead, stepped_head


def moved_one_by_one(
    x: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], v: torch.Tensor, alpha: float, same: float = 1e-10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, mean change of probability and of logit (J, K), every image, direction and class in a loop."""
    j, k = v.shape[1], len(head(x[0]))
    held, probability, logit = (np.zeros((j, k)) for _ in range(3))
    for d in range(j):
        for image in x:
            before, after = head(image), head(image + alpha * v[:, d])
            p, q = torch.softmax(before, 0), torch.softmax(after, 0)
            for label in range(k):
                held[d, label] += float(q[label] >= p[label] * (1 - same))
                probability[d, label] += float(q[label] - p[label])
                logit[d, label] += float(after[label] - before[label])
    n = len(x)
    return 2 * held / n - 1, probability / n, logit / n


shapes = st.tuples(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6)
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([0.0, 0.3, 2.0, 20.0]), st.integers(1, 5))
def test_the_algebra_of_pooled_heads_is_moving_every_position_and_running_the_head(
    shape: tuple[int, ...], alpha: float, tile: int
) -> None:
    n, p, c, k, j, seed = shape
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, c, generator=g, dtype=torch.float64) * 3
    a, bias = torch.randn(k, c, generator=g, dtype=torch.float64), torch.randn(k, generator=g, dtype=torch.float64)
    v = torch.randn(c, j, generator=g, dtype=torch.float64)
    v = v / v.norm(dim=0)
    score, probability, logit = moved_one_by_one(x, lambda one: one.mean(0) @ a.T + bias, v, alpha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "_NUMBERS", tile * max(n, k))  # directions in tiles of any length
        pooled = PooledEffect(x.mean(1) @ a.T + bias, a)
        found = pooled(v, alpha)
    np.testing.assert_allclose(found.score, score, atol=1e-12)
    np.testing.assert_allclose(found.probability, probability, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.logit, logit, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pooled.base, torch.softmax(x.mean(1) @ a.T + bias, 1).mean(0), rtol=1e-12)


@pytest.mark.parametrize("block", [1, 3, 50])
def test_any_head_gives_what_the_algebra_gives(block: int) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20, 6, 5, generator=g)
    a, bias = torch.randn(4, 5, generator=g), torch.randn(4, generator=g)
    v = torch.nn.functional.normalize(torch.randn(5, 3, generator=g), dim=0)
    kept = x.clone()
    through = HeadEffect(lambda: iter(x.split(block)), SteppedHead(lambda y: y.mean(1) @ a.T + bias))
    pooled = PooledEffect(x.mean(1) @ a.T + bias, a)
    for alpha in (0.5, 5.0):
        one, other = through(v, alpha), pooled(v, alpha)
        np.testing.assert_allclose(one.score, other.score)
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-6)
        np.testing.assert_allclose(one.logit, other.logit, atol=1e-5)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("model", "layer"), [("residual", "stem"), ("build", "first"), ("tokens", "embed"), ("tokens", "block")]
)
def test_a_models_own_head_gives_what_a_loop_through_the_untouched_one_gives(
    monkeypatch: pytest.MonkeyPatch, model: str, layer: str, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    network = Network.load(f"tiny_net:{model}", "none", layer)
    x = torch.randn(7, network.layout.positions, network.layout.channels)
    v = torch.nn.functional.normalize(torch.randn(x.shape[2], 3), dim=0)
    kept = x.clone()
    head = stepped_head(network, x[:2])
    assert len(head.start(x)) == (2 if layer in ("stem", "embed") else 1)  # what is affine runs once
    effect = HeadEffect(lambda: iter(x.split(4)), head)
    for alpha in (0.5, 20.0):
        found = effect(v, alpha)
        with torch.no_grad():
            wanted = moved_one_by_one(x, lambda one: network.head(one[None])[0].double(), v, alpha, effects.SAME_32)
        np.testing.assert_allclose(found.score, wanted[0])
        np.testing.assert_allclose(found.probability, wanted[1], atol=1e-5)
        np.testing.assert_allclose(found.logit, wanted[2], rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)


def test_rounding_of_a_float32_head_is_no_fall() -> None:
    """Steps that the head does not read: logits of about 60 move in their last digits, and no class falls for that."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 49, 256, generator=g).relu() * 3
    a = torch.randn(50, 256, generator=g)
    v = torch.randn(256, 4, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(a.double().T).Q
    v = torch.nn.functional.normalize(v - basis @ (basis.T @ v), dim=0).float()
    found = HeadEffect(lambda: iter([x]), SteppedHead(lambda y: y.mean(1) @ a.T))(v, 5.0)
    assert float(found.logit.abs().max()) > 0
    assert (found.score == 1).all()


def test_by_hand_two_images_two_classes() -> None:
    """One channel; logits (x, 0). A step of +1 raises class 0 for both images: scores +1 and −1."""
    found = PooledEffect(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0], [0.0]]))(torch.ones(1, 1), 1.0)
    assert found.score.tolist() == [[1.0, -1.0]]
    before = [0.5, 1 / (1 + np.exp(-2))]
    after = [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))]
    assert float(found.probability[0, 0]) == pytest.approx(np.mean(after) - np.mean(before), rel=1e-9)
    assert found.logit.tolist() == [[1.0, 0.0]]


def test_a_class_that_rises_for_some_images_only() -> None:
    """Three classes, d = (0, 1, −1). Class 0 holds where Σ p e^d ≤ 1, that is p1 (e − 1) ≤ p2 (1 − 1/e)."""
    logits = torch.tensor([[0.0, 0.0, 2.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    found = PooledEffect(logits, torch.tensor([[0.0], [1.0], [-1.0]]))(torch.ones(1, 1), 1.0)
    p = torch.softmax(logits, 1)
    holds = p[:, 1] * (np.e - 1) <= p[:, 2] * (1 - 1 / np.e)
    assert holds.tolist() == [True, False, False, True]
    assert found.score.tolist() == [[0.0, 1.0, -1.0]]


def test_a_direction_that_does_nothing_lets_nothing_fall() -> None:
    """Ties: rounding must not decide. The step is orthogonal to what the head reads."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 7, generator=g) * 5
    found = PooledEffect(logits, torch.cat([torch.randn(7, 3, generator=g), torch.zeros(7, 1)], 1))(
        torch.tensor([[0.0], [0.0], [0.0], [1.0]]), 5.0
    )
    assert (found.score == 1).all()
    assert not found.influence.any()
    assert float(found.probability.abs().max()) < 1e-15


def test_a_class_that_no_float_had_left_takes_over() -> None:
    """Logits (0, −800): the other class has probability 0 to any float, until a step adds 900 to it."""
    effect = PooledEffect(torch.tensor([[0.0, -800.0]]), torch.tensor([[-900.0], [0.0]]))
    found = effect(torch.ones(1, 1), 1.0)
    assert found.probability[0].tolist() == pytest.approx([-1.0, 1.0])
    assert found.score.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("alpha", [1e3, 1e6])
def test_enormous_steps_stay_finite(alpha: float) -> None:
    g = torch.Generator().manual_seed(0)
    effect = PooledEffect(torch.randn(30, 5, generator=g) * 100, torch.randn(5, 4, generator=g))
    found = effect(torch.nn.functional.normalize(torch.randn(4, 6, generator=g), dim=0), alpha)
    assert all(bool(torch.isfinite(part).all()) for part in (found.score, found.probability, found.logit))
    total = effect.base + found.probability
    torch.testing.assert_close(total.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6)
