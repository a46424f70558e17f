"""The clustering losses of EDDP and their exact gradient, streamed over tiles of positions.

Notation (paper §3, UIBE eqs. 3-7): logits ``z = y W − b``, detector ``y_pi = sigmoid(z_pi)``, ``q_pi = y_pi / Σ_j y_pj``.
With the two row sums ``r_p = Σ_i y_pi`` and ``A_p = Σ_i y_pi log2 y_pi`` and the column means ``c_i = E_p[y_pi^γ]``

* sparsity            ``ℓ_p = −Σ_i q log2 q = log2 r_p − A_p / r_p``,  L_s = E_p[ℓ_p]
* maximum activation  ``L_ma = E_p[−Σ_i q log2 y] = E_p[−A_p / r_p]``
* inactive classifier ``L_ic = E_i[relu(ν − c_i) / ν]``, ν = τ / I
* excessively active  ``L_eac = R_i(relu(c_i − ρ) / (1 − ρ))``
* sparsity bound      ``L_sb = R_p(ℓ_p)``
* self-weighted reduction ``R(L) = Σ L^{k+1} / Σ L^k``, k = 4

so nothing of size positions × directions has to be kept: a tile's logits are made, used and dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LN2 = math.log(2.0)
POWER = 4  # k of the self-weighted reduction


def self_weighted(values: torch.Tensor) -> torch.Tensor:
    """``R(L) = Σ L^{k+1} / Σ L^k`` over all entries of a non-negative tensor: a soft maximum, 0 where all are 0."""
    weights = values.pow(POWER)
    return (weights * values).sum() / weights.sum().clamp_min(1e-30)


def inactive_classifier(column: torch.Tensor, tau: float) -> torch.Tensor:
    """``L_ic`` from the column means c (I,): detectors below their share ν = τ/I of the positions."""
    nu = tau / len(column)
    return F.relu(nu - column).mean() / nu


def excessively_active(column: torch.Tensor, rho: float) -> torch.Tensor:
    """``L_eac`` from the column means c (I,): detectors active on more than a share ρ of the positions."""
    return self_weighted(F.relu(column - rho) / (1 - rho))


def filter_signal_orthogonality(filters: torch.Tensor, signals: torch.Tensor) -> torch.Tensor:
    """``L_fso``: root mean square over i ≠ j of ū_i · s̄_j, both unit norm; filters and signals are (C, I)."""
    i = filters.shape[1]
    if i < 2:
        return filters.sum() * 0
    gram = F.normalize(filters, dim=0).T @ F.normalize(signals, dim=0)
    off = gram - torch.diag(torch.diagonal(gram))
    return (off.square().sum() / (i * (i - 1)) + 1e-12).sqrt()


@dataclass(frozen=True)
class RowWeights:
    """Weights λ of the losses that are sums over positions."""

    sparsity: float
    maximum_activation: float
    sparsity_bound: float = 0.0


@dataclass
class Sums:
    """What one pass over all positions leaves: loss values, column means, gradients, and what signal vectors need.

    ``sparsity``, ``maximum_activation``, ``sparsity_bound``: the losses. ``column`` (I,): c. ``filters_row`` (r, I) and
    ``thresholds_row`` (I,): gradient of the weighted row losses. ``positives`` (I,): positions with z > 0; ``mean``
    (r, I), ``logit`` (I,), ``logit_square`` (I,), ``cross`` (r, I): means over the positives of y, z, z², y·z.
    """

    sparsity: float
    maximum_activation: float
    sparsity_bound: float
    column: torch.Tensor
    filters_row: torch.Tensor
    thresholds_row: torch.Tensor
    positives: torch.Tensor
    mean: torch.Tensor
    logit: torch.Tensor
    logit_square: torch.Tensor
    cross: torch.Tensor


def streamed_sums(
    rows: torch.Tensor,
    filters: torch.Tensor,
    thresholds: torch.Tensor,
    weights: RowWeights,
    *,
    gamma: float = 1.1,
    tile: int | None = None,
) -> Sums:
    """One exact pass over all positions, in memory O(tile × directions).

    Parameters
    ----------
    rows : (n, r) activation vectors, whitened or not.
    filters, thresholds : (r, I) and (I,), with ``z = rows @ filters − thresholds``.
    tile : rows at a time; by default as many as keep a tile's logits inside the processor's cache.
    """
    n, r = rows.shape
    i = filters.shape[1]
    tile = tile or default_tile(rows, i)
    bound_4, bound_5 = _bound_sums(rows, filters, thresholds, tile) if weights.sparsity_bound else (1.0, 0.0)
    # accumulators are float64 where the data are float32: a million float32 additions would show
    totals, column, square = (rows.new_zeros(size, dtype=torch.float64) for size in (2, i, i))
    product = rows.new_zeros((r, 3 * i), dtype=torch.float64)
    sums = rows.new_zeros(3 * i, dtype=torch.float64)
    shape = (min(tile, n), i)
    # a tile's arrays are made once and written over: fresh ones would cost as much as the arithmetic
    right = torch.empty(shape[0], 3 * i, dtype=rows.dtype, device=rows.device)
    z_, active_, spare_ = (torch.empty(shape, dtype=rows.dtype, device=rows.device) for _ in range(3))
    for start in range(0, n, tile):
        y = rows[start : start + tile]
        z, active, spare, block = z_[: len(y)], active_[: len(y)], spare_[: len(y)], right[: len(y)]
        torch.addmm(-thresholds, y, filters, out=z)
        gradient, positive_z, positive = block[:, :i], block[:, i : 2 * i], block[:, 2 * i :]
        torch.clamp_min(z, 0, out=positive_z)
        positive.copy_(z > 0)
        square += torch.linalg.vector_norm(positive_z, dim=0).double().square()
        log_active = F.logsigmoid(z)  # never log(sigmoid(z))
        torch.exp(log_active, out=active)
        column += torch.mul(log_active, gamma, out=spare).exp_().sum(0)
        row_sum = active.sum(1, keepdim=True).clamp_min_(1e-30)
        weighted = log_active.mul_(active)
        ratio = weighted.sum(1, keepdim=True) / (LN2 * row_sum)
        entropy = row_sum.log2() - ratio
        totals += torch.stack([entropy.sum(), -ratio.sum()])
        on_entropy: torch.Tensor | float = weights.sparsity / n
        if weights.sparsity_bound:
            # d R / d ℓ_p = (5 ℓ^4 Σℓ^4 − 4 ℓ^3 Σℓ^5) / (Σℓ^4)²
            on_entropy = on_entropy + weights.sparsity_bound * (
                (POWER + 1) * entropy.pow(POWER) / bound_4 - POWER * entropy.pow(POWER - 1) * (bound_5 / bound_4**2)
            )
        on_ratio = on_entropy + weights.maximum_activation / n
        by_sum = on_entropy / (LN2 * row_sum) + on_ratio * ratio / row_sum
        by_log = -on_ratio / (LN2 * row_sum)
        # dz = y (1 − y) (g_r + g_A (log2 y + 1 / ln 2)), with y log y at hand from the row sums
        torch.mul(active, by_sum + by_log, out=spare).addcmul_(weighted, by_log)
        torch.mul(spare, active.neg_().add_(1), out=gradient)
        product += y.T @ block
        sums += block.sum(0)
    count = sums[2 * i :]
    safe = count.clamp_min(1)
    dtype = rows.dtype
    return Sums(
        sparsity=float(totals[0]) / n,
        maximum_activation=float(totals[1]) / n,
        sparsity_bound=bound_5 / bound_4,
        column=(column / n).to(dtype),
        filters_row=product[:, :i].to(dtype),
        thresholds_row=-sums[:i].to(dtype),
        positives=count.to(torch.int64),
        mean=(product[:, 2 * i :] / safe).to(dtype),
        logit=(sums[i : 2 * i] / safe).to(dtype),
        logit_square=(square / safe).to(dtype),
        cross=(product[:, i : 2 * i] / safe).to(dtype),
    )


def column_gradient(
    rows: torch.Tensor,
    filters: torch.Tensor,
    thresholds: torch.Tensor,
    slope: torch.Tensor,
    *,
    gamma: float = 1.1,
    tile: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient by (filters, thresholds) of a loss that depends on the column means c alone, ``slope`` (I,) = dL/dc.

    Most detectors are neither idle nor overfull, so their slope is 0: only the others' logits are made again.
    """
    by_filters, by_thresholds = torch.zeros_like(filters), torch.zeros_like(thresholds)
    concerned = torch.flatten(torch.nonzero(slope))
    if not len(concerned):
        return by_filters, by_thresholds
    w, b = filters[:, concerned].contiguous(), thresholds[concerned]
    total = torch.zeros(w.shape, dtype=torch.float64, device=rows.device)
    total_b = torch.zeros(len(b), dtype=torch.float64, device=rows.device)
    tile = tile or default_tile(rows, len(concerned))
    for start in range(0, len(rows), tile):
        y = rows[start : start + tile]
        log_active = F.logsigmoid(torch.addmm(-b, y, w))
        dz = (gamma * log_active).exp_() * (1 - log_active.exp())
        total += y.T @ dz
        total_b += dz.sum(0)
    scale = slope[concerned].double() * (gamma / len(rows))
    by_filters[:, concerned] = (total * scale).to(filters.dtype)
    by_thresholds[concerned] = -(total_b * scale).to(filters.dtype)
    return by_filters, by_thresholds


def default_tile(rows: torch.Tensor, directions: int) -> int:
    """Rows at a time: a tile's logits take about 1 MB on a processor, 256 MB on a GPU."""
    return max(256, (2**18 if rows.device.type == "cpu" else 2**26) // max(directions, 1))


def _bound_sums(rows: torch.Tensor, filters: torch.Tensor, thresholds: torch.Tensor, tile: int) -> tuple[float, float]:
    """``(Σ_p ℓ_p^4, Σ_p ℓ_p^5)``: what the sparsity bound's gradient needs before it can be streamed."""
    fourth, fifth = 0.0, 0.0
    for start in range(0, len(rows), tile):
        log_active = F.logsigmoid(torch.addmm(-thresholds, rows[start : start + tile], filters))
        active = log_active.exp()
        row_sum = active.sum(1).clamp_min(1e-30)
        entropy = row_sum.log2() - (active * log_active).sum(1) / (LN2 * row_sum)
        fourth += float(entropy.pow(POWER).sum(dtype=torch.float64))
        fifth += float(entropy.pow(POWER + 1).sum(dtype=torch.float64))
    return max(fourth, 1e-30), fifth
