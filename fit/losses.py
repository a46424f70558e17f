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
    ``thresholds_row`` (I,): gradient of the weighted row losses; ``filters_column``, ``thresholds_column``: derivative of
    each c_i by its own filter and threshold. ``positives`` (I,): positions with z > 0; ``mean`` (r, I), ``logit`` (I,),
    ``logit_square`` (I,), ``cross`` (r, I): means over the positives of y, z, z², y·z.
    """

    sparsity: float
    maximum_activation: float
    sparsity_bound: float
    column: torch.Tensor
    filters_row: torch.Tensor
    thresholds_row: torch.Tensor
    filters_column: torch.Tensor
    thresholds_column: torch.Tensor
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
    if tile is None:
        tile = max(256, (2**18 if rows.device.type == "cpu" else 2**26) // i)
    bound_4, bound_5 = _bound_sums(rows, filters, thresholds, tile) if weights.sparsity_bound else (1.0, 0.0)
    # accumulators are float64 where the data are float32: a million float32 additions would show
    wide = torch.float64
    totals = torch.zeros(2, dtype=wide, device=rows.device)
    column = torch.zeros(i, dtype=wide, device=rows.device)
    product = torch.zeros(r, 4 * i, dtype=wide, device=rows.device)
    sums = torch.zeros(4 * i, dtype=wide, device=rows.device)
    square = torch.zeros(i, dtype=wide, device=rows.device)
    right = torch.empty(min(tile, n), 4 * i, dtype=rows.dtype, device=rows.device)
    for start in range(0, n, tile):
        y = rows[start : start + tile]
        z = torch.addmm(-thresholds, y, filters)
        log_active = F.logsigmoid(z)  # never log(sigmoid(z))
        active = log_active.exp()
        slope = active * (1 - active)
        row_sum = active.sum(1, keepdim=True).clamp_min(1e-30)
        row_log = (active * log_active).sum(1, keepdim=True) / LN2
        ratio = row_log / row_sum
        entropy = row_sum.log2() - ratio
        totals += torch.stack([entropy.sum(dtype=wide), -ratio.sum(dtype=wide)])
        on_entropy: torch.Tensor | float = weights.sparsity / n
        if weights.sparsity_bound:
            # d R / d ℓ_p = (5 ℓ^4 Σℓ^4 − 4 ℓ^3 Σℓ^5) / (Σℓ^4)²
            on_entropy = on_entropy + weights.sparsity_bound * (
                (POWER + 1) * entropy.pow(POWER) / bound_4 - POWER * entropy.pow(POWER - 1) * (bound_5 / bound_4**2)
            )
        on_activation = weights.maximum_activation / n
        by_sum = on_entropy / (LN2 * row_sum) + (on_entropy + on_activation) * ratio / row_sum
        by_log = -(on_entropy + on_activation) / row_sum
        powered = (gamma * log_active).exp()
        block = right[: len(y)]
        positive = (z > 0).to(rows.dtype)
        block[:, :i] = slope * (by_sum + by_log * (log_active / LN2 + 1 / LN2))
        block[:, i : 2 * i] = powered * (1 - active) * (gamma / n)
        block[:, 2 * i : 3 * i] = positive * z
        block[:, 3 * i :] = positive
        product += y.T @ block
        sums += block.sum(0, dtype=wide)
        column += powered.sum(0, dtype=wide)
        square += (block[:, 2 * i : 3 * i] * z).sum(0, dtype=wide)
    count = sums[3 * i :]
    safe = count.clamp_min(1)
    dtype = rows.dtype
    return Sums(
        sparsity=float(totals[0]) / n,
        maximum_activation=float(totals[1]) / n,
        sparsity_bound=bound_5 / bound_4,
        column=(column / n).to(dtype),
        filters_row=product[:, :i].to(dtype),
        thresholds_row=-sums[:i].to(dtype),
        filters_column=product[:, i : 2 * i].to(dtype),
        thresholds_column=-sums[i : 2 * i].to(dtype),
        positives=count.to(torch.int64),
        mean=(product[:, 3 * i :] / safe).to(dtype),
        logit=(sums[2 * i : 3 * i] / safe).to(dtype),
        logit_square=(square / safe).to(dtype),
        cross=(product[:, 2 * i : 3 * i] / safe).to(dtype),
    )


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
