"""Contributions: sums that come out at the logits, against setting one component after the other to its mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluate.explain.contributions import measured_contributions, pooled_contributions, reads_positions
from evaluate.explain.gradcam import contribution_maps, grad_cam, logit_gradient

P, C, DIRS, K = 5, 6, 4, 3


@pytest.fixture
def case() -> dict[str, np.ndarray]:
    g = np.random.default_rng(3)
    s = g.normal(size=(C, DIRS))
    return {
        "x": g.normal(size=(P, C)),
        "mean": g.normal(size=C),
        "alpha": g.normal(size=(P, DIRS)),
        "signals": s / np.linalg.norm(s, axis=0),
        "weight": g.normal(size=(K, C)),
        "bias": g.normal(size=K),
    }


def bent(x: torch.Tensor) -> torch.Tensor:
    """A head that is no affine map: positions multiply."""
    return torch.stack([x.tanh().mean((1, 2)), x.prod(1).sum(1), x.amax((1, 2))], 1)


def tensors(case: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(case[name].astype(np.float32)) for name in ("x", "mean", "alpha", "signals")]


def test_pooled_contributions_sum_to_every_logit_and_difference(case: dict[str, np.ndarray]) -> None:
    found = pooled_contributions(**case)
    np.testing.assert_allclose(found.logits, case["x"].mean(0) @ case["weight"].T + case["bias"])
    for one, other in ((0, None), (2, None), (0, 1), (2, 0)):
        total, base, parts, residual = found.between(one, other)
        assert total == pytest.approx(base + parts.sum() + residual, abs=1e-12)
        assert total == pytest.approx(found.logits[one] - (0 if other is None else found.logits[other]))
    assert found.exact


def test_a_contribution_is_what_setting_the_component_to_its_mean_changes(case: dict[str, np.ndarray]) -> None:
    found = pooled_contributions(**case)
    for i in range(DIRS):
        without = case["x"].copy()
        for p in range(P):
            without[p] -= case["alpha"][p, i] * case["signals"][:, i]
        change = found.logits - (without.mean(0) @ case["weight"].T + case["bias"])
        np.testing.assert_allclose(found.parts[i], change, atol=1e-12)


def test_measured_through_a_pooled_head_is_the_same(case: dict[str, np.ndarray]) -> None:
    weight, bias = (torch.from_numpy(case[name].astype(np.float32)) for name in ("weight", "bias"))
    found = measured_contributions(lambda x: x.mean(1) @ weight.T + bias, *tensors(case))
    exact = pooled_contributions(**case)
    for name in ("logits", "base", "parts", "residual"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-5)
    assert not found.exact


def test_measured_through_any_head_in_pieces(case: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured_contributions(bent, *tensors(case))
    monkeypatch.setattr("evaluate.explain.contributions._AT_ONCE", 1)
    found = measured_contributions(bent, *tensors(case))
    np.testing.assert_allclose(found.parts, whole.parts, atol=1e-6)
    x, _, alpha, signals = tensors(case)
    without = bent((x - alpha[:, [2]] * signals[:, 2])[None])[0]
    np.testing.assert_allclose(found.parts[2], (bent(x[None])[0] - without).numpy(), atol=1e-6)
    for k in range(K):
        total, base, parts, residual = found.between(k, None)
        assert total == pytest.approx(base + parts.sum() + residual, abs=1e-6)
    assert np.abs(found.residual).max() > 1e-3  # positions multiply: together they do more


def test_a_class_token_stays_as_it_is(case: dict[str, np.ndarray]) -> None:
    """Both ways against setting the component of the image's own positions to its mean, one after the other."""
    weight, bias = case["weight"], case["bias"]
    alpha = case["alpha"][2:]  # of the three positions behind two tokens
    exact = pooled_contributions(**{**case, "alpha": alpha}, prefix=2)
    a, c = (torch.from_numpy(v.astype(np.float32)) for v in (weight, bias))
    x, mean, tensor, signals = tensors({**case, "alpha": alpha})
    measured = measured_contributions(lambda x: x.mean(1) @ a.T + c, x, mean, tensor, signals, prefix=2)
    for name in ("logits", "base", "parts", "residual"):
        np.testing.assert_allclose(getattr(measured, name), getattr(exact, name), atol=1e-5)

    def logits(own: np.ndarray) -> np.ndarray:
        return np.concatenate([case["x"][:2], own]).mean(0) @ weight.T + bias

    own = case["x"][2:]
    np.testing.assert_allclose(exact.logits, logits(own))
    np.testing.assert_allclose(exact.base, logits(np.tile(case["mean"], (P - 2, 1))))
    np.testing.assert_allclose(exact.base + exact.parts.sum(0) + exact.residual, exact.logits)
    for i in range(DIRS):
        without = own - alpha[:, [i]] * case["signals"][:, i]
        np.testing.assert_allclose(exact.parts[i], exact.logits - logits(without), atol=1e-12)


def test_a_head_that_reads_a_class_token_only(case: dict[str, np.ndarray]) -> None:
    x, mean, alpha, signals = tensors(case)
    found = measured_contributions(lambda x: x[:, 0].tanh(), x, mean, alpha[1:], signals, prefix=1)
    assert not found.parts.any()
    assert not found.residual.any()
    np.testing.assert_array_equal(found.base, found.logits)


def test_whether_a_head_reads_the_positions() -> None:
    x = torch.full((P, C), 0.5)
    assert not reads_positions(lambda x: x[:, 0].tanh(), x, 1)
    assert reads_positions(lambda x: x[:, 1].tanh(), x, 1)
    flat = lambda x: 3 * (x.mean(1) - 2).relu()  # noqa: E731  flat where x is, and read all the same
    assert reads_positions(flat, x, 0)
    assert reads_positions(lambda x: x.amax(1), x, 1)


def test_gradients_of_any_head() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(P, C)).astype(np.float32))
    found = logit_gradient(bent, x, 0).numpy()
    np.testing.assert_allclose(found, (1 - np.tanh(x.numpy()) ** 2) / (P * C), rtol=1e-5)
    assert not x.requires_grad
    with torch.no_grad():  # whatever the caller does
        np.testing.assert_array_equal(logit_gradient(bent, x, 0).numpy(), found)


def test_grad_cam_by_hand() -> None:
    x = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    gradient = np.array([[2.0, 0.0], [1.0, -3.0], [0.0, 0.0]])  # means 1 and -1
    assert grad_cam(x, gradient).tolist() == [0, 3, 0]


def test_maps_sum_to_the_contributions_behind_pooling(case: dict[str, np.ndarray]) -> None:
    gradient = np.repeat(case["weight"][[1]] / P, P, 0)
    maps = contribution_maps(case["alpha"], case["signals"], gradient)
    np.testing.assert_allclose(maps.sum(0), pooled_contributions(**case).parts[:, 1])
