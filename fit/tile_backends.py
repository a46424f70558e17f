"""What a tile of logits goes through in a pass over all positions: compiled kernels on a processor, torch elsewhere.

Both make the logits of a tile, hand them out for the sums over positives, and write the gradient over them.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F

from fit.row_sources import Positions

LN2 = math.log(2.0)
POWER = 4  # k of the self-weighted reduction
SOFTPLUS = 40.0  # from here on softplus(x) is x to the last float64 digit
FAINT = 1e-30  # a row sum under which float32 shares would lose digits to underflow
PIECE = 2**16  # logits that one thread takes at a time: fixed, so that sums do not depend on the number of threads

T = TypeVar("T")


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="tile")


def in_pieces(work: Callable[[int], T], pieces: int) -> list[T]:
    """``[work(0), …, work(pieces − 1)]``, in as many threads as torch uses; ``work`` is a kernel, or little more."""
    threads = min(torch.get_num_threads(), pieces)
    if threads == 1:
        return [work(k) for k in range(pieces)]
    results: dict[int, T] = {}
    ahead = deque(range(pieces))

    def take() -> None:
        while ahead:
            try:
                k = ahead.popleft()
            except IndexError:  # another thread was faster
                return
            results[k] = work(k)

    others = [_pool(os.getpid()).submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        ahead.clear()
        for other in others:
            if not other.cancel():  # one that has not started finds nothing left
                other.result()
    return [results[k] for k in range(pieces)]


@dataclass(frozen=True)
class Slopes:
    """Gradient of the row losses by a position's entropy ℓ, ``entropy + fourth ℓ^4 − third ℓ^3``, and maximum ``activation``."""

    entropy: float
    activation: float
    fourth: float = 0.0
    third: float = 0.0


class Visit:
    """A pass over tiles: ``logits`` of one, then one of ``bound``, ``losses`` or ``fade``, which may overwrite them.

    ``logits(y)`` : (I, t) of the rows y (t, r). ``bound()`` : ``Σ_p ℓ_p^4`` and ``Σ_p ℓ_p^5`` of the tile.
    ``losses(y, slopes, gamma)`` adds its row losses, column sums and gradient, ``fade(y, gamma)`` the gradient of Σ_p y^γ / γ.
    The sums are float64: ``totals`` (2,) Σ ℓ and Σ L_ma, ``column`` (I,) Σ y^γ, ``thresholds`` (I,) Σ dz, ``filters`` (I, r) Σ dz y.
    """

    def __init__(self, data: Positions, filters: torch.Tensor, thresholds: torch.Tensor) -> None:
        self._w, self._b = filters, thresholds
        i = len(thresholds)
        # float64 where the data are float32: a million float32 additions would show
        self.totals, self.column, self.thresholds, self.filters = (
            torch.zeros(shape, dtype=torch.float64, device=data.device) for shape in ((2,), (i,), (i,), (i, data.rank))
        )
        self._part = torch.empty(i, data.rank, dtype=data.dtype, device=data.device)

    def _add(self, gradient: torch.Tensor, y: torch.Tensor) -> None:
        self.filters += torch.mm(gradient, y, out=self._part)


class Compiled(Visit):
    """On a processor; logits are stored as (t, I)."""

    def __init__(self, data: Positions, filters: torch.Tensor, thresholds: torch.Tensor, tile: int) -> None:
        super().__init__(data, filters, thresholds)
        from fit import tile_kernels as kernels

        self._kernels = kernels
        i = len(thresholds)
        self._flat = torch.empty(tile * i, dtype=data.dtype)
        self._rows = max(1, PIECE // i)
        self._sums = torch.empty(-(-tile // self._rows), 2, i, dtype=torch.float64)

    def logits(self, y: torch.Tensor) -> torch.Tensor:
        self._z = self._flat[: len(y) * len(self._b)].view(len(y), len(self._b))
        return torch.addmm(-self._b, y, self._w, out=self._z).T

    def bound(self) -> tuple[float, float]:
        z = self._z.numpy()
        parts = in_pieces(lambda k: self._kernels.bound(z[self._piece(k)]), self._pieces)
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    def losses(self, y: torch.Tensor, slopes: Slopes, gamma: float) -> None:
        z, sums = self._z.numpy(), self._sums[: self._pieces].zero_()
        each = sums.numpy()
        of_rows = (float(gamma), slopes.entropy, slopes.activation, slopes.fourth, slopes.third)
        totals = in_pieces(lambda k: self._kernels.visit(z[self._piece(k)], *of_rows, *each[k]), self._pieces)
        self.totals += torch.tensor(totals, dtype=torch.float64).sum(0)
        column, thresholds = sums.sum(0)
        self.column += column
        self.thresholds += thresholds
        self._add(self._z.T, y)

    def fade(self, y: torch.Tensor, gamma: float) -> None:
        z, sums = self._z.numpy(), self._sums[: self._pieces, 0].zero_()
        each = sums.numpy()
        in_pieces(lambda k: self._kernels.fade(z[self._piece(k)], float(gamma), each[k]), self._pieces)
        self.thresholds += sums.sum(0)
        self._add(self._z.T, y)

    @property
    def _pieces(self) -> int:
        return -(-len(self._z) // self._rows)

    def _piece(self, k: int) -> slice:
        return slice(k * self._rows, (k + 1) * self._rows)


class Torch(Visit):
    """Anywhere; logits are stored as (I, t). A tile's arrays are made once and written over: fresh ones would cost as much as the arithmetic."""

    def __init__(self, data: Positions, filters: torch.Tensor, thresholds: torch.Tensor, tile: int) -> None:
        super().__init__(data, filters, thresholds)
        self._flat = torch.empty(4, tile * len(thresholds), dtype=data.dtype, device=data.device)

    def logits(self, y: torch.Tensor) -> torch.Tensor:
        i, t = len(self._b), len(y)
        self._z, self._active, self._surprise, self._spare = (part[: i * t].view(i, t) for part in self._flat)
        return torch.addmm(-self._b[:, None], self._w.T, y.T, out=self._z)

    def bound(self) -> tuple[float, float]:
        entropy = self._row_terms()[2]
        fourth, fifth = (entropy.pow(power).sum(dtype=torch.float64) for power in (POWER, POWER + 1))
        return float(fourth), float(fifth)

    def losses(self, y: torch.Tensor, slopes: Slopes, gamma: float) -> None:
        share, total, entropy, activation = self._row_terms()
        surprise, gradient = self._surprise, self._spare
        self.totals += torch.stack([entropy.sum(dtype=torch.float64), activation.sum(dtype=torch.float64)])
        # exp2: several times faster than exp in some builds of torch, as exact
        self.column += torch.mul(surprise, -gamma / LN2, out=gradient).exp2_().sum(1)
        on_entropy: torch.Tensor | float = slopes.entropy
        if slopes.fourth or slopes.third:
            on_entropy = on_entropy + (slopes.fourth * entropy - slopes.third) * entropy.pow(POWER - 1)
        both = on_entropy + slopes.activation
        # dz = (1 − y) q (both · (−ln y) / ln 2 − activation / ln 2 − both · L_ma,p), with q = share / total
        torch.mul(surprise, both / (LN2 * total), out=gradient)
        gradient.sub_((slopes.activation / LN2 + both * activation) / total).mul_(share)
        gradient.addcmul_(gradient, self._active, value=-1)
        self.thresholds += gradient.sum(1)
        self._add(gradient, y)

    def fade(self, y: torch.Tensor, gamma: float) -> None:
        opposite = self._z.neg_()
        # y^γ = 2^(−γ softplus(−z) / ln 2), and 1 − y = sigmoid(−z)
        power = F.softplus(opposite, threshold=SOFTPLUS, out=self._surprise)  # type: ignore[call-arg]  # its stub lacks out
        power.mul_(-gamma / LN2).exp2_()
        gradient = power.mul_(opposite.sigmoid_())
        self.thresholds += gradient.sum(1)
        self._add(gradient, y)

    def _row_terms(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each position: ``share`` (I, t) and ``total`` (t,), whose ratio is q, entropy ℓ_p and L_ma,p (t,) in bits.

        Negates the logits, fills ``active`` y and ``surprise`` −ln y, overwrites ``spare``.
        """
        share = torch.sigmoid(self._z, out=self._active)
        # −ln y as softplus(−z), never −log(sigmoid(z))
        surprise = F.softplus(self._z.neg_(), threshold=SOFTPLUS, out=self._surprise)  # type: ignore[call-arg]
        total = share.sum(0)
        least: torch.Tensor | float = 0.0
        if float(total.min()) < FAINT:
            # some position is dark to all detectors: relative to the least dark one its shares are still exact
            least = surprise.amin(0)
            share = torch.exp(least - surprise)
            total = share.sum(0)
        activation = torch.mul(share, surprise, out=self._spare).sum(0) / (total * LN2)
        return share, total, total.log2() + (activation - least / LN2), activation


def visits(device: torch.device) -> type[Compiled] | type[Torch]:
    """How a tile is visited on ``device``."""
    return Compiled if device.type == "cpu" else Torch
