"""A full-batch step against its bare matrix products and against plain autograd."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from fit.losses import (
    RowWeights,
    column_gradient,
    excessively_active,
    filter_signal_orthogonality,
    inactive_classifier,
    self_weighted,
    streamed_sums,
)
from fit.signals import Moments, moments_of, pooled_signals
from tests.benchmarks.measure import Row, in_turns

GAMMA, TAU, RHO = 1.1, 0.9, 0.5
MOMENTS: dict[tuple[int, ...], Moments] = {}  # of the rows, by their shape: computed once a fit, not once a step
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def fit_like(n: int, r: int, i: int) -> State:
    """Rows, filters and thresholds as late in a fit: each row belongs to two or three concepts, margins are sharp."""
    g = torch.Generator().manual_seed(0)
    concepts = F.normalize(torch.randn(i, r, generator=g), dim=1)
    y = torch.randn(n, r, generator=g)
    for share in (1.0, 1.0, 0.5):
        present = torch.rand(n, generator=g) < share
        y[present] += 8 * concepts[torch.randint(i, (int(present.sum()),), generator=g)]
    MOMENTS[y.shape] = moments_of(y)
    return y, (2 * concepts.T).contiguous(), torch.full((i,), 8.0)


def random(n: int, r: int, i: int) -> State:
    """The worst case: a quarter of all entries are positive."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, r, generator=g), torch.randn(r, i, generator=g) / r**0.5 * 3, torch.full((i,), 2.0)


def products(y: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> None:
    z = y @ w
    _ = y.T @ z


def streamed(y: torch.Tensor | Again, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Every loss and its whole gradient by (w, b), (r + 1, I)."""
    sums = streamed_sums(y, w, b, RowWeights(1, 1), gamma=GAMMA, signals="pooled")
    w = w.detach().requires_grad_()
    column = sums.column.requires_grad_()
    signals = pooled_signals(sums, w.detach(), MOMENTS[y.shape if isinstance(y, torch.Tensor) else y.rows.shape])
    small = inactive_classifier(column, TAU) + excessively_active(column, RHO) + filter_signal_orthogonality(w, signals)
    slope, by_signals = torch.autograd.grad(small, (column, w))
    by_w, by_b = column_gradient(y, w.detach(), b, slope, gamma=GAMMA)
    return torch.cat([by_w + sums.filters_row + by_signals, (by_b + sums.thresholds_row)[None]])


def autograd(y: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same as the formulas are written, from the (n, I) matrices, by autograd."""
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    z = y @ w - b
    active = torch.sigmoid(z)
    q = active / active.sum(1, keepdim=True)
    use = active.pow(GAMMA).mean(0)
    with torch.no_grad():
        on = (z > 0).to(z.dtype)
        off = on - on.mean(0)
        presence, with_rows = off.T @ off / len(y), off.T @ y / len(y)
        ridge = 1e-6 * presence.diagonal().mean() * torch.eye(len(presence))
        unit = F.normalize(w, dim=0)
        signals = MOMENTS[y.shape].covariance.float() @ unit - with_rows.T @ torch.linalg.solve(
            presence + ridge, with_rows @ unit
        )
    loss = -(q * torch.log2(q + 1e-12)).sum(1).mean() - (q * F.logsigmoid(z)).sum(1).mean() / 0.6931471805599453
    nu = TAU / w.shape[1]
    loss = loss + F.relu(nu - use).mean() / nu + self_weighted(F.relu(use - RHO) / (1 - RHO))
    loss = loss + filter_signal_orthogonality(w, signals)
    loss.backward()
    assert w.grad is not None
    assert b.grad is not None
    return torch.cat([w.grad, b.grad[None]])


@dataclass(frozen=True)
class Again:
    """The rows of a small tensor again and again: as many positions as wanted without their memory."""

    rows: torch.Tensor
    count: int

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
        size = min(size, len(self.rows))
        for start in range(0, self.count, size):
            yield self.rows[: min(size, self.count - start)]


STEPS: dict[str, Callable[..., torch.Tensor]] = {"streamed": streamed, "autograd": autograd, "again": streamed}


def status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def extra_memory(name: str, n: int, r: int, i: int) -> int:
    """kB that one step takes at its peak beyond what lay in memory before it (rows included there)."""
    y, w, b = fit_like(20_000 if name == "again" else n, r, i)
    data = Again(y, n) if name == "again" else y
    STEPS[name](*fit_like(64, 8, 4))  # libraries loaded, threads started
    ctypes.CDLL(None).malloc_trim(0)  # pages that earlier work left would hide what the step takes
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    STEPS[name](data, w, b)
    return status("VmHWM") - before


def extra_memory_apart(name: str, n: int, r: int, i: int) -> float:
    """MB, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.fitting", name, *map(str, (n, r, i))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def rows(folder: Path) -> Iterator[Row]:
    for n, r, i in ((50_000, 64, 64), (100_000, 512, 256)):
        shape = f"{n:,} × {r} × {i}".replace(",", " ")
        for state, name in ((fit_like, "as in a fit"), (random, "a quarter positive")):
            y, w, b = state(n, r, i)

            def sums(y: torch.Tensor = y, w: torch.Tensor = w, b: torch.Tensor = b) -> None:
                streamed_sums(y, w, b, RowWeights(1, 1), signals="pooled")

            def bare(y: torch.Tensor = y, w: torch.Tensor = w, b: torch.Tensor = b) -> None:
                products(y, w, b)

            a, c = in_turns(sums, bare, repeats=5)
            what = f"losses, gradient and signals, {shape}, {name}"
            yield Row(what, "its two bare products", a / c, "lower", f"{1000 * a:.0f} ms")
        y, w, b = fit_like(n, r, i)
        ours, theirs = streamed(y, w, b), autograd(y, w, b)
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
        a, c = in_turns(lambda y=y, w=w, b=b: streamed(y, w, b), lambda y=y, w=w, b=b: autograd(y, w, b), repeats=3)
        yield Row(f"whole step, {shape}, as in a fit", "autograd", c / a, "higher", f"{1000 * a:.0f} ms")
        a, c = (extra_memory_apart(name, n, r, i) for name in ("streamed", "autograd"))
        yield Row(f"peak memory of that step, {shape}", "autograd", c / a, "higher", f"{a:.0f} MB, {c:.0f} MB")
    a, c = (extra_memory_apart("again", n, 512, 256) for n in (1_000_000, 100_000))
    yield Row("peak memory of a step, 1 000 000 × 512 × 256", "100 000 positions", a / c, "lower", f"{a:.0f} MB")


if __name__ == "__main__":
    print(extra_memory(sys.argv[1], *map(int, sys.argv[2:])))  # noqa: T201
