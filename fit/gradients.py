"""One full gradient: the streamed losses' by their sums, the small ones' by autograd, into whatever holds the detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from fit.losses import RowWeights, Sums, column_gradient, streamed_sums
from fit.positive_stats import Wanted
from fit.row_sources import Positions


class Linear(Protocol):
    """What can be learnt: (W (r, I), b (I,)), made from parameters."""

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]: ...


Small = Callable[[Sums, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]


def gradients(
    rows: torch.Tensor | Positions,
    detectors: Linear,
    weights: RowWeights,
    small: Small,
    *,
    gamma: float,
    signals: Wanted = "all",
) -> tuple[float, dict[str, float], Sums]:
    """Add the whole loss's gradient to the parameters' ``grad``; returns the loss, its terms and the pass's sums.

    Parameters
    ----------
    rows : (n, r) positions.
    weights : of the losses that are sums over positions; these are streamed.
    small : from the pass's sums and the column means c (I,), the weighted sum of all other losses, differentiable by c and
        by the detectors, and each one's value by name.
    signals : which sums over positives ``small`` needs.
    """
    filters, thresholds = detectors.linear()
    with torch.no_grad():
        sums = streamed_sums(rows, filters, thresholds, weights, gamma=gamma, signals=signals)
    column = sums.column.detach().requires_grad_(True)
    loss, terms = small(sums, column)
    by_filters, by_thresholds = sums.filters_row, sums.thresholds_row
    slope = torch.autograd.grad(loss, column, retain_graph=True, allow_unused=True)[0] if loss.requires_grad else None
    if slope is not None:
        with torch.no_grad():
            more, more_b = column_gradient(rows, filters, thresholds, slope, gamma=gamma)
        by_filters, by_thresholds = by_filters + more, by_thresholds + more_b
    roots, slopes = [filters, thresholds], [by_filters, by_thresholds]
    if loss.requires_grad:
        roots, slopes = [loss, *roots], [torch.ones_like(loss), *slopes]
    torch.autograd.backward(roots, slopes)
    total = (
        float(loss.detach())
        + weights.sparsity * sums.sparsity
        + weights.maximum_activation * sums.maximum_activation
        + weights.sparsity_bound * sums.sparsity_bound
    )
    named = {"total": total, "sparsity": sums.sparsity, "maximum_activation": sums.maximum_activation}
    if weights.sparsity_bound:
        named["sparsity_bound"] = sums.sparsity_bound
    return total, {**named, **terms}, sums
