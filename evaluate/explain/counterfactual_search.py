"""Turning a prediction by the head itself: what few changes of concepts do when the head is run, and, behind a ReLU, with activations clipped at 0.

The linear problem of ``counterfactual`` is exact behind pooling and an affine map. Where the path is bent, by another head or by ``relu(x_p + Σ_i δ_i s_i)``
at a layer that holds nothing below 0, it is solved with the mean slope along the path, ``J = ∫₀¹ ∂ logits(tδ)/∂δ dt``: for that δ the straight line
``logits(0) + δJ`` ends at the head's own answer. Solved again with the new slope, asking for as much more as was lacking,
until the head turns, at most 10 times; then directions are left out, and the change is shortened, as far as it still does [ours].

Without this, of the generated scenes' changes less than 1 % survive the ReLU: a minimal change takes more of a concept away from positions than there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from evaluate.explain.contributions import behind
from evaluate.explain.counterfactual import ConceptChange, few_changes

STEPS, AGAIN = 10, 4  # solutions at most: at first, and with one direction less
RIVALS = 10  # classes whose slopes are taken at first, and that are added in each step, where slopes cost
BISECTIONS = 6
_ROUNDING = 1e-6  # of a spread
_NODES, _WEIGHTS = (a / 2 + b for a, b in zip(np.polynomial.legendre.leggauss(3), (0.5, 0.0), strict=True))


class Moved(Protocol):
    """One image whose concepts can be changed, by δ (I,) at every position on it; a class token's stays."""

    bent: bool  # not a straight line in δ
    cheap: bool  # all classes' slopes cost no more than those of a few

    def logits(self, delta: np.ndarray) -> np.ndarray:
        """(K,) float64, of the image changed by δ."""

    def slopes(self, delta: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(I, len(classes)) float64: the mean of ∂ logits/∂δ over the path from 0 to δ."""


class PooledMoved:
    """Behind pooling and an affine map; ``keep``: activations below 0 become 0.

    Parameters
    ----------
    x : (prefix + P, C), ``signals`` (C, I), ``weight`` (K, C), ``bias`` (K,).
    prefix : positions at the front that stay as they are.
    """

    def __init__(
        self,
        x: np.ndarray,
        signals: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        *,
        prefix: int = 0,
        keep: bool = False,
    ) -> None:
        x, self._signals, self._weight = (a.astype(np.float64) for a in (x, signals, weight))
        self._bias, self.bent, self.cheap = bias, keep, True
        self._stays, self._x = x[:prefix].sum(0) / len(x), x[prefix:]
        self._share = len(self._x) / len(x)  # of the pooled positions

    def logits(self, delta: np.ndarray) -> np.ndarray:
        x = self._x + self._signals @ delta
        pooled = (np.maximum(x, 0) if self.bent else x).mean(0)
        moved: np.ndarray = self._weight @ (self._stays + self._share * pooled) + self._bias
        return moved

    def slopes(self, delta: np.ndarray, classes: np.ndarray) -> np.ndarray:
        signals = self._signals
        if self.bent:  # the share of the path on which a channel is above 0, at each position
            step = signals @ delta
            share = np.divide(np.clip(self._x, 0, np.abs(step)), -step, out=np.ones_like(self._x), where=step < 0)
            signals = signals * share.mean(0)[:, None]
        return self._share * (signals.T @ self._weight[classes].T)


class HeadMoved:
    """Behind any head, (n, prefix + P, C) float32 -> (n, K), asked for its gradients; ``x`` and ``signals`` (C, I) on its device."""

    bent, cheap = True, False

    def __init__(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        signals: torch.Tensor,
        *,
        prefix: int = 0,
        keep: bool = False,
    ) -> None:
        self._head, self._signals, self._keep = head, signals, keep
        self._stays, self._x = x[:prefix], x[prefix:]

    def _moved(self, deltas: torch.Tensor) -> torch.Tensor:
        x = self._x + (deltas @ self._signals.T)[:, None]  # (n, P, C)
        return self._head(behind(self._stays, x.clamp_min(0) if self._keep else x))

    def logits(self, delta: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self._moved(self._tensor(delta[None]))[0].double().cpu().numpy()

    def slopes(self, delta: np.ndarray, classes: np.ndarray) -> np.ndarray:
        with torch.enable_grad():
            deltas = self._tensor(_NODES[:, None] * delta).requires_grad_(True)
            mean = self._tensor(_WEIGHTS) @ self._moved(deltas)  # (K,)
            columns = [torch.autograd.grad(mean[k], deltas, retain_graph=True)[0].sum(0) for k in classes.tolist()]
        return torch.stack(columns, 1).double().cpu().numpy()

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._x)


@dataclass(frozen=True)
class Turned:
    """What a change does. ``after`` (K,): the head's logits with it; ``flips``: the target is the largest of them.

    ``after_kept``, ``flips_kept``: the same with activations clipped at 0; None at a layer that holds values below 0.
    """

    target: int
    change: ConceptChange
    after: np.ndarray
    flips: bool
    after_kept: np.ndarray | None
    flips_kept: bool | None


def turn(
    free: Moved, kept: Moved | None, target: int, spread: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Turned | None:
    """Find few changes that turn the prediction, and run the head with them.

    Parameters
    ----------
    free, kept : the image as it moves freely, and with activations clipped at 0 where the layer is behind a ReLU: then that is what must turn, and only
        where nothing is found for it the other.
    target : the class wanted.
    spread, low, high : (I,), see ``few_changes``.

    Returns
    -------
    Turned or None
        None where no change was found. Only if ``free`` is no bent path, and there is no ``kept``, does that say that there is none, of whatever
        size: a bent path's slopes, taken where the image is, may be 0 though the head would turn farther off.
        ``flips`` and ``flips_kept`` say what the head makes of the change.
    """
    found = None
    for moved in (kept, free):
        if moved is None:
            continue
        change, turned = follow(moved, target, spread, low, high)
        if change is not None and (turned or found is None):
            found = change
        if turned:
            break
    if found is None:
        return None
    after = free.logits(found.delta)
    after_kept = None if kept is None else kept.logits(found.delta)
    return Turned(
        target,
        found,
        after,
        int(after.argmax()) == target,
        after_kept,
        None if after_kept is None else int(after_kept.argmax()) == target,
    )


def follow(
    moved: Moved, target: int, spread: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[ConceptChange | None, bool]:
    """Solve with the path's mean slope until the head turns: the last change, and whether it does it."""
    change, turned = _follow(moved, target, np.arange(len(spread)), spread, low, high, STEPS)
    if change is None or not turned or not moved.bent:
        return change, turned
    kept = change.changed
    for i in kept[np.argsort(np.abs(change.delta / spread)[kept], kind="stable")]:  # the least of them first
        if i not in kept or len(kept) == 1:
            continue
        fewer, does = _follow(moved, target, kept[kept != i], spread, low, high, AGAIN)
        if fewer is not None and does and (change.beyond or not fewer.beyond):
            change, kept = fewer, fewer.changed
    shorter = _shortened(moved, change, target)
    return ConceptChange(shorter.delta, shorter.cost, outside(shorter.delta, spread, low, high)), True


def _follow(
    moved: Moved,
    target: int,
    some: np.ndarray,
    spread: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    steps: int,
) -> tuple[ConceptChange | None, bool]:
    """The same with only some of the directions, as many steps as are allowed; nothing is made smaller afterwards."""
    delta = np.zeros(len(spread))
    start = moved.logits(delta)
    order = np.argsort(-start, kind="stable")
    classes = np.union1d(order if moved.cheap else order[:RIVALS], [target])
    change, asked = None, start.copy()
    for _ in range(steps):
        slopes = moved.slopes(delta, classes)[some]
        place = int(np.flatnonzero(classes == target)[0])
        found = few_changes(asked[classes], slopes, place, spread[some], low[some], high[some])
        if found is None:
            break
        delta = np.zeros(len(spread))
        delta[some] = found.delta
        change = ConceptChange(delta, found.cost, outside(delta, spread, low, high))
        after = moved.logits(delta)
        if int(after.argmax()) == target:
            return change, True
        if not moved.bent:
            break
        asked[target] -= after.max() - after[target]  # slopes of what did not change yet are too good: ask for more
        above = np.argsort(-after, kind="stable")[:RIVALS]
        classes = np.union1d(classes, above[after[above] > after[target]])
    return change, False


def _shortened(moved: Moved, change: ConceptChange, target: int) -> ConceptChange:
    """The same change made smaller as long as the head still turns: a bent path may have been overshot."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if int(moved.logits(middle * change.delta).argmax()) == target:
            high = middle
        else:
            low = middle
    return ConceptChange(high * change.delta, high * change.cost, change.beyond)


def outside(delta: np.ndarray, spread: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether changes (I,) lead beyond their bounds, by more than rounding."""
    slack = _ROUNDING * spread
    return bool(((delta < low - slack) | (delta > high + slack)).any())
