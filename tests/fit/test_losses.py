"""The streamed losses and gradients against the literal formulas and autograd, in float64, on random shapes.

Everything runs twice: compiled, as on a processor, and by torch, as elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import naive_losses, naive_orthogonality, naive_signals

from fit import losses
from fit import positive_stats as positives
from fit.losses import (
    RowWeights,
    Sums,
    column_gradient,
    correlated_logits,
    excessively_active,
    filter_signal_orthogonality,
    inactive_classifier,
    maximum_margin,
    self_weighted,
    streamed_sums,
    tile_rows,
)
from fit.signals import EQUAL_LOGITS, signals_from_sums
from fit.tile_backends import Compiled, Torch
from stores.errors import FitError
from stores.ranks import ALONE, Ranks

CLOSE = {"rtol": 1e-6, "atol": 1e-10}


@pytest.fixture(scope="module", autouse=True, params=[Compiled, Torch])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """How a processor visits a tile."""

    def visits(device: torch.device) -> type:
        return request.param if device.type == "cpu" else Torch

    with mock.patch.object(losses, "visits", visits):
        yield


def problem(n: int, r: int, i: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(n, r, generator=g, dtype=torch.float64)
    return y, torch.randn(r, i, generator=g, dtype=torch.float64) * 2, torch.randn(i, generator=g, dtype=torch.float64)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6), st.integers(1, 41))


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


def branch(share: float) -> AbstractContextManager[object]:
    """Sums over positives one by one (1), by dense products (0), or as each tile has it."""
    return mock.patch.object(positives, "sparse_share", return_value=share)


@settings(max_examples=80, deadline=None)
@given(shapes, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 3.0]))
def test_sums_over_positives_give_the_naive_signal_vectors(
    shape: tuple[int, int, int, int, int], share: float, harder: float
) -> None:
    n, r, i, seed, tile = shape
    y, w, b = problem(n, r, i, seed)
    b = b + harder  # few positives, or none
    fallback = torch.full_like(w, -7)
    with branch(share):
        sums = streamed_sums(y, w, b, RowWeights(1, 1), tile=tile)
    z = y @ w - b
    on = (z > 0).double()
    assert torch.equal(sums.positives, on.sum(0).long())
    count = on.sum(0).clamp_min(1)
    torch.testing.assert_close(sums.mean, y.T @ on / count, **CLOSE)
    torch.testing.assert_close(sums.cross, y.T @ (on * z) / count, **CLOSE)
    torch.testing.assert_close(sums.logit, (on * z).sum(0) / count, **CLOSE)
    torch.testing.assert_close(sums.logit_square, (on * z * z).sum(0) / count, **CLOSE)
    found = signals_from_sums(sums, fallback)
    wanted = naive_signals(y, y @ w - b)
    # positives whose logits hardly differ count as equal (in float32 their variance would be rounding)
    spread = (on * z * z).sum(0) / count - ((on * z).sum(0) / count).square()
    equal = spread <= EQUAL_LOGITS * (on * z * z).sum(0) / count
    for column in range(i):
        if torch.isnan(wanted[:, column]).any() or equal[column]:
            assert (found[:, column] == -7).all()
        else:
            torch.testing.assert_close(found[:, column], wanted[:, column], rtol=1e-6, atol=1e-8)


@dataclass
class Cut:
    """Rows handed out in tiles of any lengths, as a store with shards would."""

    rows: torch.Tensor
    lengths: list[int]
    missing: int = 0
    asked: int = 0
    ranks: Ranks = ALONE

    @property
    def count(self) -> int:
        return len(self.rows) + self.missing

    @property
    def rank(self) -> int:
        return self.rows.shape[1]

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def tiles(self, size: int) -> Iterator[torch.Tensor]:
        self.asked = max(self.asked, size)
        start = turn = 0
        while start < len(self.rows):
            length = min(self.lengths[turn % len(self.lengths)], size)
            yield self.rows[start : start + length].clone()
            start, turn = start + length, turn + 1


def assert_same(found: Sums, wanted: Sums) -> None:
    for field in fields(Sums):
        torch.testing.assert_close(
            torch.as_tensor(getattr(found, field.name)), torch.as_tensor(getattr(wanted, field.name)), **CLOSE
        )


@settings(max_examples=60, deadline=None)
@given(shapes, st.lists(st.integers(1, 20), min_size=1, max_size=5), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_result_does_not_depend_on_how_tiles_are_cut(
    shape: tuple[int, int, int, int, int], lengths: list[int], share: float
) -> None:
    n, r, i, seed, tile = shape
    y, w, b = problem(n, r, i, seed)
    weights = RowWeights(0.7, 1.3, 0.4)
    data = Cut(y, lengths)
    with branch(share):
        assert_same(streamed_sums(data, w, b, weights, tile=tile), streamed_sums(y, w, b, weights))
    assert data.asked <= tile
    slope = torch.linspace(-1, 1, i, dtype=torch.float64)
    for found, wanted in zip(
        column_gradient(data, w, b, slope, tile=tile), column_gradient(y, w, b, slope), strict=True
    ):
        torch.testing.assert_close(found, wanted, **CLOSE)


def test_positions_that_do_not_add_up_are_refused() -> None:
    y, w, b = problem(20, 3, 4, 0)
    with pytest.raises(FitError, match="23 positions were promised, 20 came"):
        streamed_sums(Cut(y, [7], missing=3), w, b, RowWeights(1, 1))
    for wrong in (torch.zeros(30, 3), torch.zeros(4, 2)):
        data = Cut(y, [7])
        with (
            mock.patch.object(data, "tiles", lambda size, wrong=wrong: iter([wrong])),
            pytest.raises(FitError, match="at most 20 × 3"),
        ):
            streamed_sums(data, w, b, RowWeights(1, 1), tile=20)


def test_tiles_are_bounded_however_few_the_directions() -> None:
    cpu = torch.device("cpu")
    assert tile_rows(512, 1, cpu) * 512 <= 2**21
    assert tile_rows(64, 64, cpu) == 2**14
    assert tile_rows(10**6, 10**6, cpu) == 256


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]))
def test_decided_logits_and_dead_detectors_give_the_oracles_gradient(n: int, i: int, seed: int, share: float) -> None:
    g = torch.Generator().manual_seed(seed)
    # every logit is ±80; detector 0 is dead, and so is every detector at position 0
    z = (torch.randint(0, 2, (n, i), generator=g).double() * 2 - 1) * 80
    z[:, 0], z[0] = -80, -80
    y, w = torch.cat([z, torch.randn(n, 2, generator=g).double()], 1), torch.eye(i + 2, i, dtype=torch.float64)
    b = torch.zeros(i, dtype=torch.float64)
    w.requires_grad_(True)
    b.requires_grad_(True)
    naive = naive_losses(y, w, b, 1.1, 1.0, 0.5)
    by_w, by_b = torch.autograd.grad(0.7 * naive["s"] + 1.3 * naive["ma"], (w, b))
    naive = {name: float(value.detach()) for name, value in naive.items()}
    with branch(share):
        sums = streamed_sums(y, w.detach(), b.detach(), RowWeights(0.7, 1.3))
    assert sums.sparsity == pytest.approx(naive["s"], rel=1e-6, abs=1e-10)
    assert sums.maximum_activation == pytest.approx(naive["ma"], rel=1e-6, abs=1e-10)
    assert int(sums.positives[0]) == 0
    torch.testing.assert_close(sums.filters_row, by_w, **CLOSE)
    torch.testing.assert_close(sums.thresholds_row, by_b, **CLOSE)
    column = sums.column.requires_grad_(True)
    slope = torch.autograd.grad(inactive_classifier(column, 1.0), column)[0]
    assert all(torch.isfinite(part).all() for part in column_gradient(y, w.detach(), b.detach(), slope))


def test_float32_keeps_its_digits_at_positions_that_are_dark_to_all_detectors() -> None:
    # sigmoid(−200) is 0 in float32; relative to each other the detectors are still told apart
    w, b = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([200.0, 201.0, 202.0])
    y = torch.tensor([[0.5], [1.0]])
    wide_w, wide_b = (t.double().requires_grad_(True) for t in (w, b))
    naive = naive_losses(y.double(), wide_w, wide_b, 1.1, 1.0, 0.5)
    by_w, by_b = torch.autograd.grad(naive["s"] + naive["ma"], (wide_w, wide_b))
    sums = streamed_sums(y, w, b, RowWeights(1, 1))
    assert sums.sparsity == pytest.approx(float(naive["s"].detach()), rel=1e-4)
    assert sums.maximum_activation == pytest.approx(float(naive["ma"].detach()), rel=1e-5)
    torch.testing.assert_close(sums.filters_row.double(), by_w, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sums.thresholds_row.double(), by_b, rtol=1e-3, atol=1e-4)


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


def test_maximum_margin_is_the_mean_inverse_margin() -> None:
    assert float(maximum_margin(torch.tensor([0.5, 1.5, 4.0]))) == pytest.approx(2.0)
    assert float(maximum_margin(torch.tensor([0.25]))) == 0.25


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


def test_correlated_logits_is_that_of_the_logits() -> None:
    g = np.random.default_rng(3)
    y, w = g.normal(size=(500, 6)) @ g.normal(size=(6, 6)), g.normal(size=(6, 5))
    w[:, 1] = w[:, 0] + 0.1 * g.normal(size=6)  # a near-twin
    w[:, 2] = -w[:, 0]  # its opposite is none
    rho = np.corrcoef((y @ w).T)
    by_hand = sum(max(rho[i, j] - 0.7, 0) ** 2 for i in range(5) for j in range(5) if i != j) / 5
    found = correlated_logits(torch.from_numpy(w), torch.from_numpy(np.cov(y.T)), 0.7)
    assert float(found) == pytest.approx(by_hand, rel=1e-9)
    assert by_hand > 0.01
    assert float(correlated_logits(torch.from_numpy(w[:, [0, 2]]), torch.from_numpy(np.cov(y.T)), 0.7)) == 0


def test_more_directions_than_coordinates_hold_nothing_of_their_square_for_the_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    w, s = (torch.randn(4, 90, generator=g, dtype=torch.float64) for _ in range(2))
    w.requires_grad_(True)
    covariance = torch.cov(torch.randn(4, 50, generator=g, dtype=torch.float64))
    unit = F.normalize(w, dim=0)
    rho = w.T @ covariance @ w
    rho = rho / rho.diagonal().sqrt() / rho.diagonal().sqrt()[:, None]
    off = 1 - torch.eye(90, dtype=torch.float64)
    excess, gram = (rho - 0.7).relu() * off, (unit.T @ F.normalize(s, dim=0)) * off
    pairs = (
        (lambda: correlated_logits(w, covariance, 0.7), excess.square().sum() / 90),
        (lambda: filter_signal_orthogonality(w, s), (gram.square().sum() / (90 * 89)).sqrt()),
    )
    sizes: list[int] = []
    for ours, literal in pairs:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            found = ours()
        torch.testing.assert_close(found, literal)
        slopes = [torch.autograd.grad(value, w, retain_graph=True)[0] for value in (found, literal)]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-9)
    assert max(sizes) <= 4 * 90
