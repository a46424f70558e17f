"""L2-regularised logistic regression of many labels at once: one problem, one matrix product for all of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

MEMORY = 10  # pairs of steps and gradient changes that L-BFGS remembers
ENTRIES = 2**23  # rows × labels solved together: a handful of such tables is all that is in memory besides the rows


@dataclass(frozen=True)
class Solution:
    """``weights`` (r, L), ``bias`` (L,); ``gradient`` (L,): largest entry that is left; ``iterations`` made."""

    weights: torch.Tensor
    bias: torch.Tensor
    gradient: torch.Tensor
    iterations: int

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(m, L) of rows x (m, r)."""
        return x @ self.weights + self.bias


def solve(
    x: torch.Tensor,
    target: torch.Tensor,
    used: torch.Tensor,
    *,
    l2: float,
    iterations: int,
    tolerance: float,
    start: Solution | None = None,
) -> Solution:
    """Minimise, for every label l, ``mean over its used rows of log(1 + e^{−±z}) + l2/2 |w|²`` with ``z = w·x + b``.

    Parameters
    ----------
    x : (m, r) rows, best of unit variance. target : (m, L) bool. used : (m, L) bool, the rows that count for a label.
    l2 : > 0; the bias goes free. (scikit-learn's C is 1 / (l2 · number of used rows).)
    tolerance : a label is done when no entry of its gradient is larger. start : where to begin; None: at 0.
    """
    parts = []
    step = max(1, ENTRIES // max(1, len(x)))
    for first in range(0, target.shape[1], step):
        part = slice(first, first + step)
        theta = x.new_zeros(x.shape[1] + 1, target[:, part].shape[1])
        if start is not None:
            theta = torch.cat([start.weights[:, part], start.bias[None, part]])
        parts.append(_lbfgs(x, target[:, part], used[:, part], theta, l2, iterations, tolerance))
    theta = torch.cat([t for t, _, _ in parts], 1)
    return Solution(theta[:-1], theta[-1], torch.cat([g for _, g, _ in parts]), max(n for _, _, n in parts))


def _lbfgs(
    x: torch.Tensor,
    target: torch.Tensor,
    used: torch.Tensor,
    theta: torch.Tensor,
    l2: float,
    iterations: int,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """L-BFGS (Nocedal 1980), a step length for each label. Parameters θ (r + 1, L) have the bias as their last row.

    Logits are linear in θ, so each iteration costs two products: the step's own logits and the gradient.
    """
    share = used.to(x.dtype) / used.sum(0).clamp_min(1)  # (m, L)
    y = target.to(x.dtype)
    penalty = torch.full_like(theta[:, :1], l2)
    penalty[-1] = 0
    pairs: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque(maxlen=MEMORY)
    z = x @ theta[:-1] + theta[-1]
    gradient = _gradient(x, (torch.sigmoid(z) - y) * share, penalty * theta)
    done = 0
    for done in range(1, iterations + 1):
        open_ = gradient.abs().amax(0) > tolerance
        if not bool(open_.any()):
            return theta, gradient.abs().amax(0), done - 1
        step = -_two_loops(gradient, pairs) * open_
        change = x @ step[:-1] + step[-1]  # (m, L): what a whole step adds to the logits
        length = _length(z, change, y, share, theta, step, penalty) * open_
        theta = theta + length * step
        z = z + length * change
        before, gradient = gradient, _gradient(x, (torch.sigmoid(z) - y) * share, penalty * theta)
        moved, turned = length * step, gradient - before
        along = (moved * turned).sum(0)
        pairs.append((moved, turned, torch.where(along > 1e-30, 1 / along.clamp_min(1e-30), 0)))
    return theta, gradient.abs().amax(0), done


def _gradient(x: torch.Tensor, residual: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.T @ residual, residual.sum(0, keepdim=True)]) + penalty


def _two_loops(gradient: torch.Tensor, pairs: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The inverse Hessian's estimate times the gradient, label by label; pairs of inverse curvature 0 change nothing."""
    q, weights = gradient.clone(), []
    for moved, turned, inverse in reversed(pairs):
        a = inverse * (moved * q).sum(0)
        q -= a * turned
        weights.append(a)
    if pairs:
        moved, turned, _ = pairs[-1]
        square, along = turned.square().sum(0), (moved * turned).sum(0)
        q *= torch.where((square > 0) & (along > 0), along / square.clamp_min(1e-30), 1)
    for (moved, turned, inverse), a in zip(pairs, reversed(weights), strict=True):
        q += moved * (a - inverse * (turned * q).sum(0))
    return q


def _length(
    z: torch.Tensor,
    change: torch.Tensor,
    y: torch.Tensor,
    share: torch.Tensor,
    theta: torch.Tensor,
    step: torch.Tensor,
    penalty: torch.Tensor,
) -> torch.Tensor:
    """Step lengths (L,) at which the slope has fallen to a quarter: Newton's method on a convex function of one variable.

    Slopes and not values are compared: near the minimum differences of values are lost in rounding.
    """
    bend, linear = (penalty * step * step).sum(0), (penalty * step * theta).sum(0)
    length = torch.ones_like(bend)
    first: torch.Tensor | None = None
    for _ in range(12):
        t = length if first is not None else torch.zeros_like(length)
        p = torch.sigmoid(z + t * change)
        slope = ((p - y) * share * change).sum(0) + linear + t * bend
        if first is None:
            first = slope.abs()
            continue
        fine = slope.abs() <= 0.25 * first
        if bool(fine.all()):
            break
        curvature = (p * (1 - p) * share * change * change).sum(0) + bend
        newton = length - slope / curvature.clamp_min(1e-30)
        length = torch.where(fine, length, torch.minimum(torch.maximum(newton, length / 8), length * 8))
    return length
