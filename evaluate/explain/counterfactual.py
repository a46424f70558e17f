"""The smallest change of a few concepts that turns one prediction into another: a linear problem in how much of each there is.

ConceptChange the mean signal value of direction i by δ_i at every position, ``x_p → x_p + Σ_i δ_i s_i``. Behind pooling and an affine map the logits become
``logits + Σ_i δ_i A s_i``; any other head is followed step by step (``turning``). Asked for: the target's logit above all others, as few δ_i ≠ 0
as possible, and then the least ``Σ_i |δ_i| / spread_i``, with every signal value left where the images of the store have it [ours].

1. One direction: the interval of δ_i that does it, in closed form. If there is any, the cheapest is the answer, and no smaller one exists.
2. Else linear programmes (HiGHS), reweighted so that small changes are pushed to zero (Candès, Wakin and Boyd 2008, ``w_i = 1 / (|u_i| + ε)``); what is
   left is pruned one by one. Of many classes, only those that get in the way enter the programme.
3. Where nothing does it within what images have, the same without those bounds, and the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

ROUNDS = 4  # of reweighting, at most
RIVALS = 10  # classes in the first programme
_MARGIN, _LEAST = 0.01, 1e-4  # of the gap, of the largest logit: float32 heads round
_HAIR = 1e-5  # of the largest logit, where no more is to be had
_ZERO = 1e-7  # of the largest change, in spreads


@dataclass(frozen=True)
class ConceptChange:
    """``delta`` (I,) changes of the mean signal values; ``cost`` = Σ |δ_i| / spread_i; ``beyond``: it leads out of what images have."""

    delta: np.ndarray
    cost: float
    beyond: bool

    @property
    def changed(self) -> np.ndarray:
        """The directions that change."""
        return np.flatnonzero(self.delta)


def few_changes(
    logits: np.ndarray,
    effects: np.ndarray,
    target: int,
    spread: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    within: bool = True,
) -> ConceptChange | None:
    """Find the few changes that make ``target`` the largest logit.

    Parameters
    ----------
    logits : (K,), of the image as it is.
    effects : (I, K), what a unit of δ_i adds to the logits.
    target : the class wanted.
    spread : (I,) > 0, what counts as one unit of cost in each direction.
    low, high : (I,), bounds of δ, low ≤ 0 ≤ high.
    within : keep to the bounds, and leave them only where nothing else does it.

    Returns
    -------
    ConceptChange or None
        All zero where the target is the largest logit already. None where no change of any size lifts the target above all others
        by 1e-5 of the largest logit. ``beyond`` where none within the bounds does it.
    """
    others = np.delete(np.arange(len(logits)), target)
    gap = float(logits.max() - logits[target])
    size = max(1.0, float(np.abs(logits).max()))
    if not len(others) or gap <= 0:
        return ConceptChange(np.zeros(len(effects)), 0.0, False)
    need = logits[others] - logits[target]  # (K-1,)
    gain = (effects[:, [target]] - effects[:, others]) * spread[:, None]  # (I, K-1), per spread
    everything = np.full(len(effects), np.inf)
    for margin in (_MARGIN * gap + _LEAST * size, _HAIR * size):
        for beyond in (False, True) if within else (True,):
            bounds = (-everything, everything) if beyond else (low / spread, high / spread)
            for search in (_one, _several):
                if (found := search(need + margin, gain, *bounds)) is not None:
                    return ConceptChange(found * spread, float(np.abs(found).sum()), beyond)
    return None


def _one(need: np.ndarray, gain: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The cheapest change of a single direction, (I,), or None."""
    with np.errstate(divide="ignore", invalid="ignore"):
        at = need / gain  # (I, K-1): where the target passes a rival
    least = np.where(gain > 0, at, -np.inf).max(1)
    most = np.where(gain < 0, at, np.inf).min(1)
    never = ((gain == 0) & (need > 0)).any(1)
    least, most = np.maximum(least, low), np.minimum(most, high)
    u = np.clip(0.0, least, np.maximum(least, most))
    usable = (least <= most) & ~never & np.isfinite(u)
    if not usable.any():
        return None
    best = int(np.where(usable, np.abs(u), np.inf).argmin())
    out = np.zeros(len(gain))
    out[best] = u[best]
    return out


def _several(need: np.ndarray, gain: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """Few changes by reweighting and pruning, (I,), or None where the programme has no solution."""
    programme = _Programme(need, gain, low, high)
    everything = np.arange(len(gain))
    u = programme.solve(everything, np.ones(len(gain)))
    if u is None:
        return None
    best, final = u, True
    for _ in range(ROUNDS):
        size = np.abs(u)
        u = programme.solve(everything, 1 / (size + 0.1 * size.max()))
        if u is None or np.count_nonzero(u) >= np.count_nonzero(best):
            break
        best, final = u, False
    kept = np.flatnonzero(best)
    for i in kept[np.argsort(np.abs(best[kept]), kind="stable")]:
        fewer = kept[kept != i]
        if i in kept and len(fewer) and (without := programme.solve(fewer, np.ones(len(fewer)))) is not None:
            kept, best, final = np.flatnonzero(without), without, True
    cheapest = None if final else programme.solve(kept, np.ones(len(kept)))
    return best if cheapest is None else cheapest


class _Programme:
    """``min Σ w_i |u_i|`` with ``gainᵀu ≥ need`` and bounds, over some of the directions; rivals are added as they get in the way."""

    def __init__(self, need: np.ndarray, gain: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        self.need, self.gain, self.low, self.high = need, gain, low, high
        self.slack = 1e-6 * max(1.0, float(np.abs(need).max()))
        self.rivals = np.argsort(-need, kind="stable")[:RIVALS]

    def solve(self, some: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
        """The solution (I,), zero outside ``some``; None where there is none."""
        while True:
            u = self._solve(some, weights)
            if u is None:
                return None
            lacking = self.need - u @ self.gain
            lacking[self.rivals] = 0
            if lacking.max() <= self.slack:
                return u
            worst = np.argsort(-lacking, kind="stable")[:RIVALS]
            self.rivals = np.union1d(self.rivals, worst[lacking[worst] > self.slack])

    def _solve(self, some: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
        rows = self.gain[some][:, self.rivals].T  # (rivals, m)
        found = milp(
            np.concatenate([weights, weights]) / weights.max(),  # u = p − q, both from 0
            constraints=LinearConstraint(np.concatenate([rows, -rows], 1), self.need[self.rivals], np.inf),
            bounds=Bounds(0, np.concatenate([self.high[some], -self.low[some]])),
        )
        if found.x is None:
            return None
        part = found.x[: len(some)] - found.x[len(some) :]
        part[np.abs(part) <= _ZERO * np.abs(part).max(initial=0)] = 0
        u = np.zeros(len(self.gain))
        u[some] = part
        return u
