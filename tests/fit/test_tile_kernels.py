"""The compiled kernels: float32 against float64 where logits are extreme, the same bits for any number of threads."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from numba import njit

from fit import tile_backends as visits
from fit import tile_kernels as kernels
from fit.positive_stats import PositiveSums
from fit.row_sources import positions
from fit.tile_backends import Compiled, Slopes, in_pieces

NARROW, EXACT = np.float32, np.float64
ROWS = np.random.default_rng(0).normal(size=(40, 70)) * 4


@njit
def exp_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    for k in range(x.size):
        out[k] = kernels.exp(x[k])
    return out


@njit
def log1p_of(e: np.ndarray) -> np.ndarray:
    out = np.empty_like(e)
    for k in range(e.size):
        out[k] = kernels.log1p(e[k])
    return out


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(found.astype(EXACT) - wanted) / np.abs(wanted)))


def test_exp_has_float32s_digits_over_its_complete_range() -> None:
    for x in (np.linspace(-87.3, 0, 2_000_001), -np.logspace(-44, 0, 200_001), np.arange(126) * -math.log(2)):
        x = x.astype(NARROW)
        assert relative(exp_of(x), np.exp(x.astype(EXACT))) < 2e-7
    below = exp_of(np.linspace(-88, -87.3, 10_001).astype(NARROW))
    assert ((below >= 0) & (below < 1.3e-38)).all()
    assert not exp_of(np.array([-88, -89, -200, -1e30, -np.inf], NARROW)).any()
    assert exp_of(np.array([0.0, -0.0], NARROW)).tolist() == [1, 1]
    assert np.isnan(exp_of(np.array([np.nan], NARROW))).all()


def test_log1p_has_float32s_digits_over_its_complete_range() -> None:
    for e in (np.linspace(0, 1, 2_000_001)[1:], np.logspace(-37, 0, 200_001)):
        e = e.astype(NARROW)
        assert relative(log1p_of(e), np.log1p(e.astype(EXACT))) < 3e-7
    assert log1p_of(np.array([0.0], NARROW))[0] == 0
    assert np.isnan(log1p_of(np.array([np.nan], NARROW))).all()


def test_in_float64_they_are_exact() -> None:
    x = np.linspace(-745, 0, 10_001)
    np.testing.assert_allclose(exp_of(x), np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(log1p_of(np.exp(x)), np.log1p(np.exp(x)), rtol=1e-15)


def test_the_float32_kernel_is_vectorised() -> None:
    def seconds(dtype: type) -> float:
        z = np.zeros((2000, 64), dtype)
        visit(z.copy())
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            visit(z)
            taken.append(time.perf_counter() - start)
        return min(taken)

    assert 4 * seconds(NARROW) < seconds(EXACT)


def visit(z: np.ndarray, on: tuple[float, ...] = (0.7, 1.3, 0.0, 0.0)) -> tuple[np.ndarray, ...]:
    """(Σ ℓ, Σ L_ma), Σ y^γ, Σ dz, dz; the last one is z, written over."""
    column, thresholds = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    totals = kernels.visit(z, 1.1, *on, column, thresholds)
    return np.array(totals), column, thresholds, z


def oracle(z: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same in float64 by autograd, from log y, so that no row is too dark."""
    wide = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    log_y = torch.nn.functional.logsigmoid(wide)
    log_q = log_y - log_y.logsumexp(1, keepdim=True)
    entropy = -(log_q.exp() * log_q).sum(1) / math.log(2)
    activation = -(log_q.exp() * log_y).sum(1) / math.log(2)
    loss = (0.7 * entropy + 1.3 * activation).sum()
    (slope,) = torch.autograd.grad(loss, wide)
    totals = torch.stack([entropy.sum(), activation.sum()]).detach()
    return totals.numpy(), (1.1 * log_y).exp().sum(0).detach().numpy(), slope.sum(0).numpy(), slope.numpy()


CASES = {
    "as in a fit": ROWS - 6,
    "extreme": np.where(ROWS > 0, 200.0, -200.0),
    "all lit": np.full((3, 70), 200.0),
    "one lit": np.where(np.arange(70) == 3, 200.0, -200.0) + np.zeros((5, 1)),
    "all equal": np.full((4, 70), -1.5),
    "equal and dark": np.full((4, 70), -150.0),
    "dark": ROWS - 120,
    "some dark": np.concatenate([ROWS, ROWS - 100, ROWS]),
    "near the last digit": ROWS - 84,
    "one detector": ROWS[:, :1],
    "one position": ROWS[:1],
    "more detectors than a block": np.tile(ROWS, (1, 100)),
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("dtype", [NARROW, EXACT])
def test_the_kernel_gives_the_oracles_numbers(name: str, dtype: type) -> None:
    z = CASES[name].astype(dtype)
    wanted = oracle(z.astype(EXACT))
    found = visit(z)
    close = 1e-5 if dtype == NARROW else 1e-11
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=close, atol=close * max(np.abs(other).max(), 1e-3))


@pytest.mark.parametrize("dtype", [NARROW, EXACT])
def test_sums_of_powers_and_what_follows_from_them(dtype: type) -> None:
    z = CASES["some dark"].astype(dtype)
    wide = torch.tensor(z, dtype=torch.float64)
    log_q = torch.log_softmax(torch.nn.functional.logsigmoid(wide), 1)
    entropy = -(log_q.exp() * log_q).sum(1) / math.log(2)
    assert kernels.bound(z) == pytest.approx([float(entropy.pow(k).sum()) for k in (4, 5)], rel=1e-5)
    each = np.zeros((4, z.shape[1]))
    plain, by_entropy = z.copy(), z.copy()
    kernels.visit(plain, 1.1, 1.0, 0.0, 0.0, 0.0, each[0], each[1])
    kernels.visit(by_entropy, 1.1, 0.5, 0.0, 5.0, 4.0, each[2], each[3])
    factor = (0.5 + 5 * entropy**4 - 4 * entropy**3).numpy()[:, None]
    np.testing.assert_allclose(by_entropy, plain * factor, rtol=1e-4, atol=1e-5)
    faded, thresholds = z.copy(), np.zeros(z.shape[1])
    kernels.fade(faded, 1.1, thresholds)
    y = torch.sigmoid(wide)
    wanted = (y**1.1 * torch.sigmoid(-wide)).numpy()
    np.testing.assert_allclose(faded, wanted, rtol=1e-4, atol=1e-37)
    np.testing.assert_allclose(thresholds, wanted.sum(0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [NARROW, EXACT])
def test_what_is_not_a_number_shows(dtype: type) -> None:
    z = ROWS.astype(dtype)
    clean = visit(z.copy())
    z[7, 3] = math.nan
    totals, column, thresholds, slope = visit(z.copy())
    assert np.isnan(totals).all()
    assert np.isnan(column[3])
    assert np.isfinite(np.delete(column, 3)).all()
    assert np.isnan(thresholds).all()
    assert np.isnan(slope[7]).all()
    assert np.array_equal(np.delete(slope, 7, 0), np.delete(clean[3], 7, 0))
    assert np.isnan(kernels.bound(z)).all()
    kernels.fade(z, 1.1, thresholds)
    assert np.isnan(z[7, 3])


@pytest.mark.parametrize("directions", [1, 7, 63, 64, 65, 130, 200])
@pytest.mark.parametrize("shift", [-9.0, 0.0, 4.0, 9.0])
def test_positives_are_found(directions: int, shift: float) -> None:
    z = np.random.default_rng(directions).normal(size=(30, directions)).astype(NARROW) * 3 - shift
    z[4, 0] = math.nan
    z[5, 0] = 0
    found, ends = np.empty(z.size, np.int32), np.empty(len(z), np.int32)
    count = kernels.find(z, found, ends)
    position, detector = np.nonzero(z > 0)
    assert count == len(detector)
    assert np.array_equal(found[:count], detector)
    assert np.array_equal(ends, np.searchsorted(position, np.arange(len(z)), side="right"))


@pytest.fixture
def small_pieces() -> Iterator[None]:
    with mock.patch.object(visits, "PIECE", 700), mock.patch("fit.positive_stats.PIECE", 700):
        yield


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(333, 20, generator=g, dtype=dtype)
    w, b = torch.eye(20, 17, dtype=dtype), torch.full((17,), 1.5, dtype=dtype)  # products of these are exact

    def everything(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        visit = Compiled(positions(y), w, b, 300)
        positives = PositiveSums(20, 17, 300, dtype=dtype, device=y.device)
        left, bounds = [], []
        for tile in y.split(300):
            z = visit.logits(tile)
            bounds += visit.bound()
            positives.add(tile, z)
            visit.losses(tile, Slopes(0.7, 1.3, 0.1, 0.2), 1.1)
            left.append(z.clone())
            visit.logits(tile)
            visit.fade(tile, 1.1)
            left.append(z.clone())
        sums = (positives.count, positives.logit, positives.square, positives.rows, positives.cross, positives.together)
        return [visit.totals, visit.column, visit.thresholds, torch.tensor(bounds), *left, *sums]

    before = torch.get_num_threads()
    try:
        once, *again = (everything(threads) for threads in (1, 2, 3))
    finally:
        torch.set_num_threads(before)
    assert (once[-1] > 0).any()
    for other in again:
        assert all(torch.equal(a, b) for a, b in zip(once, other, strict=True))


def test_pieces_come_back_in_order_from_several_threads_and_their_errors_too() -> None:
    together = threading.Barrier(2, timeout=30)
    seen = set()

    def work(k: int) -> int:
        if k < 2:
            together.wait()  # passes only when two threads are at it
        seen.add(threading.get_ident())
        return k * k

    def fails(k: int) -> None:
        raise ValueError(f"piece {k}")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_pieces(work, 9) == [k * k for k in range(9)]
        assert len(seen) == 2
        with pytest.raises(ValueError, match="piece"):
            in_pieces(fails, 5)
        assert in_pieces(work, 0) == []
    finally:
        torch.set_num_threads(before)


def test_the_compiler_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, fit, evaluate.dissect; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
