"""Signal vectors: the positives-only and the pooled estimate against their definitions, and what each gets right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fit.losses import RowWeights, streamed_sums
from fit.signals import moments_of, pooled_signals, signals_from_sums
from tests.helpers.naive import naive_signals


def naive_pooled(y: torch.Tensor, z: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Residuals of the rows regressed on presence (with a constant), their covariance times the filters."""
    presence = torch.cat([torch.ones(len(y), 1, dtype=y.dtype), (z > 0).to(y.dtype)], 1)
    left = y - presence @ torch.linalg.lstsq(presence, y, driver="gelsd").solution
    return left.T @ left / len(y) @ unit


@settings(max_examples=25, deadline=None)
@given(n=st.integers(40, 120), r=st.integers(2, 6), i=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_pooled_is_the_covariance_that_presence_leaves(n: int, r: int, i: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    y, w = torch.randn(n, r, generator=g).double(), torch.randn(r, i, generator=g).double()
    b = torch.rand(i, generator=g).double()
    sums = streamed_sums(y, w, b, RowWeights(1, 1))
    found = pooled_signals(sums, w, moments_of(y))
    wanted = naive_pooled(y, y @ w - b, F.normalize(w, dim=0))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_together_counts_pairs_of_positives_in_both_ways() -> None:
    g = torch.Generator().manual_seed(1)
    for shift in (0.0, 6.0):  # many positives, few
        y, w, b = torch.randn(300, 40, generator=g), torch.randn(40, 5, generator=g), torch.full((5,), shift)
        on = (y @ w - b > 0).double()
        sums = streamed_sums(y, w, b, RowWeights(1, 1), tile=64)
        torch.testing.assert_close(sums.together, on.T @ on / 300)


def mixture(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x = S α + D β with one of 4 concepts on at a position: rows, ideal filters, thresholds, S."""
    g = torch.Generator().manual_seed(seed)
    basis = (
        torch.linalg.qr(torch.randn(12, 12, generator=g).double()).Q + 0.1 * torch.randn(12, 12, generator=g).double()
    )
    basis = F.normalize(basis[:, :10], dim=0)
    on = F.one_hot(torch.randint(4, (n,), generator=g), 4).double()
    alpha = 2.5 * torch.rand(n, 4, generator=g) + 2.5 * on
    beta = 5 * torch.rand(n, 6, generator=g)
    filters = torch.linalg.pinv(basis).T[:, :4]
    return torch.cat([alpha, beta], 1) @ basis.T, filters, torch.full((4,), 2.5).double(), basis[:, :4]


def test_pooled_errs_less_than_positives_only_and_neither_is_biased() -> None:
    errors = {"pooled": [], "positives": []}  # type: dict[str, list[float]]
    for seed in range(5):
        y, w, b, truth = mixture(2000, seed)
        sums = streamed_sums(y, w, b, RowWeights(1, 1))
        for name, found in (
            ("pooled", pooled_signals(sums, w, moments_of(y))),
            ("positives", signals_from_sums(sums, w)),
        ):
            errors[name].append(float((1 - (F.normalize(found, dim=0) * truth).sum(0)).mean()))
    # with ideal filters the error is all sampling: a quarter of the rows each has four times the squared error
    ratio = sum(errors["positives"]) / sum(errors["pooled"])
    assert 2.5 < ratio < 6
    y, w, b, truth = mixture(200_000, 9)
    sums = streamed_sums(y, w, b, RowWeights(1, 1))
    for found in (pooled_signals(sums, w, moments_of(y)), signals_from_sums(sums, w)):
        assert float((F.normalize(found, dim=0) * truth).sum(0).min()) > 0.9995


def test_positives_only_against_its_definition() -> None:
    y, w, b, _ = mixture(500, 3)
    sums = streamed_sums(y, w, b, RowWeights(1, 1))
    torch.testing.assert_close(signals_from_sums(sums, w), naive_signals(y, y @ w - b), rtol=1e-6, atol=1e-9)


def test_dead_and_identical_detectors_have_finite_signals() -> None:
    y, w, b, _ = mixture(400, 4)
    w = torch.cat([w, w[:, :1], w[:, 1:2]], 1)
    b = torch.cat([b, b[:1], torch.tensor([1e6]).double()])
    sums = streamed_sums(y, w, b, RowWeights(1, 1))
    found = F.normalize(pooled_signals(sums, w, moments_of(y)), dim=0)
    assert bool(torch.isfinite(found).all())
    assert float(found[:, 0] @ found[:, 4]) == pytest.approx(1, abs=1e-9)


def test_positives_that_are_all_the_same_tell_nothing() -> None:
    """Rounding is no variance: the detector gets its filter, not noise of unit norm."""
    g = torch.Generator().manual_seed(5)
    for count in range(2, 8):
        y, w = torch.randn(100, 6, generator=g), torch.randn(6, 1, generator=g)
        z = y @ w
        y = torch.cat([y[z[:, 0] < 0], y[z[:, 0].argmax()].expand(count, 6)])
        sums = streamed_sums(y, w, torch.zeros(1), RowWeights(1, 1))
        assert int(sums.positives) == count
        assert torch.equal(signals_from_sums(sums, w), w)
