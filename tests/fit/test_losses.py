"""The streamed losses and gradients against the literal formulas and autograd, in float64, on random shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import naive_losses, naive_orthogonality, naive_signals

from fit.losses import (
    RowWeights,
    column_gradient,
    excessively_active,
    filter_signal_orthogonality,
    inactive_classifier,
    self_weighted,
    streamed_sums,
)

CLOSE = {"rtol": 1e-6, "atol": 1e-10}


def problem(n: int, r: int, i: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(n, r, generator=g, dtype=torch.float64)
    return y, torch.randn(r, i, generator=g, dtype=torch.float64) * 2, torch.randn(i, generator=g, dtype=torch.float64)


shapes = st.tuples(st.integers(3, 40), st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6), st.integers(1, 41))


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_row_losses_and_their_gradient_equal_autograd_for_any_tile(shape: tuple[int, int, int, int, int]) -> None:
    n, r, i, seed, tile = shape
    y, w, b = problem(n, r, i, seed)
    w.requires_grad_(True)
    b.requires_grad_(True)
    weights = RowWeights(sparsity=0.7, maximum_activation=1.3, sparsity_bound=0.4 if i > 1 else 0.0)
    naive = naive_losses(y, w, b, 1.1, 0.9, 0.5)
    total = 0.7 * naive["s"] + 1.3 * naive["ma"] + (0.4 * naive["sb"] if i > 1 else 0)
    by_w, by_b = torch.autograd.grad(total, (w, b))
    naive = {name: value.detach() for name, value in naive.items()}
    sums = streamed_sums(y, w.detach(), b.detach(), weights, tile=tile)
    assert sums.sparsity == pytest.approx(float(naive["s"]), rel=1e-6, abs=1e-10)
    assert sums.maximum_activation == pytest.approx(float(naive["ma"]), rel=1e-6)
    if i > 1:
        assert sums.sparsity_bound == pytest.approx(float(naive["sb"]), rel=1e-6, abs=1e-10)
    torch.testing.assert_close(sums.filters_row, by_w, **CLOSE)
    torch.testing.assert_close(sums.thresholds_row, by_b, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(0.1, 3), st.floats(0.05, 0.6))
def test_column_losses_and_their_gradient_equal_autograd(
    shape: tuple[int, int, int, int, int], tau: float, rho: float
) -> None:
    n, r, i, seed, tile = shape
    y, w, b = problem(n, r, i, seed)
    w.requires_grad_(True)
    b.requires_grad_(True)
    naive = naive_losses(y, w, b, 1.1, tau, rho)
    by_w, by_b = torch.autograd.grad(5 * naive["ic"] + 3 * naive["eac"], (w, b))
    column = streamed_sums(y, w.detach(), b.detach(), RowWeights(1, 1), tile=tile).column.requires_grad_(True)
    ic, eac = inactive_classifier(column, tau), excessively_active(column, rho)
    torch.testing.assert_close(ic.detach(), naive["ic"].detach(), **CLOSE)
    torch.testing.assert_close(eac.detach(), naive["eac"].detach(), **CLOSE)
    slope = torch.autograd.grad(5 * ic + 3 * eac, column)[0]
    found_w, found_b = column_gradient(y, w.detach(), b.detach(), slope, tile=tile)
    torch.testing.assert_close(found_w, by_w, **CLOSE)
    torch.testing.assert_close(found_b, by_b, **CLOSE)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_sums_over_positives_give_the_naive_signal_vectors(shape: tuple[int, int, int, int, int]) -> None:
    from fit.signals import signals_from_sums

    n, r, i, seed, tile = shape
    y, w, b = problem(n, r, i, seed)
    fallback = torch.full_like(w, -7)
    found = signals_from_sums(streamed_sums(y, w, b, RowWeights(1, 1), tile=tile), fallback)
    wanted = naive_signals(y, y @ w - b)
    for column in range(i):
        if torch.isnan(wanted[:, column]).any():
            assert (found[:, column] == -7).all()
        else:
            torch.testing.assert_close(found[:, column], wanted[:, column], rtol=1e-6, atol=1e-8)


def test_extreme_logits_stay_finite() -> None:
    y = torch.tensor([[1.0], [-1.0], [0.0]])
    w, b = torch.tensor([[4000.0, -4000.0]]), torch.zeros(2)
    sums = streamed_sums(y, w, b, RowWeights(1, 1))
    for name in ("column", "filters_row", "thresholds_row", "cross"):
        assert torch.isfinite(getattr(sums, name)).all(), name
    # rows 1 and 2 are decided (entropy 0); row 3 is two detectors at one half each: one bit of entropy, 1 of -log2
    assert sums.sparsity == pytest.approx(1 / 3)
    assert sums.maximum_activation == pytest.approx(1 / 3)


def test_float32_with_many_rows_keeps_its_digits() -> None:
    y, w, b = problem(50_000, 8, 5, 3)
    wide = streamed_sums(y, w, b, RowWeights(1, 1))
    narrow = streamed_sums(y.float(), w.float(), b.float(), RowWeights(1, 1))
    torch.testing.assert_close(narrow.filters_row.double(), wide.filters_row, rtol=2e-5, atol=2e-7)
    assert narrow.sparsity == pytest.approx(wide.sparsity, rel=1e-6)


def test_self_weighted_reduction_is_a_soft_maximum() -> None:
    assert float(self_weighted(torch.tensor([1.0, 2.0]))) == pytest.approx((1 + 32) / (1 + 16))
    assert float(self_weighted(torch.zeros(3))) == 0.0


def test_inactive_classifier_by_hand() -> None:
    # I = 2, tau = 1: nu = 0.5; shares 0.1 and 0.6 -> relu(0.4), 0 -> mean 0.2 over nu
    assert float(inactive_classifier(torch.tensor([0.1, 0.6]), 1.0)) == pytest.approx(0.4)


def test_excessively_active_by_hand() -> None:
    # rho = 0.5: 0.75 -> 0.5; the reduction of one non-zero value is that value
    assert float(excessively_active(torch.tensor([0.75, 0.2]), 0.5)) == pytest.approx(0.5)


def test_orthogonality_equals_its_double_loop_and_has_no_signs() -> None:
    g = torch.Generator().manual_seed(0)
    w, s = (torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    found = filter_signal_orthogonality(w, s)
    assert float(found) == pytest.approx(float(naive_orthogonality(w, s)), rel=1e-6)
    assert float(filter_signal_orthogonality(-w, s)) == pytest.approx(float(found))
    eye = torch.eye(3, dtype=torch.float64)
    assert float(filter_signal_orthogonality(eye, eye)) < 1e-5
    assert float(filter_signal_orthogonality(w[:, :1], s[:, :1])) == 0.0


@pytest.mark.gpu
def test_the_gpu_gives_the_processors_numbers() -> None:
    y, w, b = (t.float() for t in problem(20_000, 16, 12, 5))
    here = streamed_sums(y, w, b, RowWeights(1, 1, 0.5))
    there = streamed_sums(y.cuda(), w.cuda(), b.cuda(), RowWeights(1, 1, 0.5))
    torch.testing.assert_close(there.filters_row.cpu(), here.filters_row, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(there.column.cpu(), here.column, rtol=1e-5, atol=1e-8)
