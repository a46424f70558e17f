"""The clustering losses of EDDP and their exact gradient, streamed over tiles of positions.

Notation (paper §3, UIBE eqs. 3-7): logits ``z = y W − b``, detector ``y_pi = sigmoid(z_pi)``, ``q_pi = y_pi / Σ_j y_pj``.
With the two row sums ``r_p = Σ_i y_pi`` and ``A_p = Σ_i y_pi log2 y_pi`` and the column means ``c_i = E_p[y_pi^γ]``

* sparsity            ``ℓ_p = −Σ_i q log2 q = log2 r_p − A_p / r_p``,  L_s = E_p[ℓ_p]
* maximum activation  ``L_ma = E_p[−Σ_i q log2 y] = E_p[−A_p / r_p]``
* inactive classifier ``L_ic = E_i[relu(ν − c_i) / ν]``, ν = τ / I
* excessively active  ``L_eac = R_i(relu(c_i − ρ) / (1 − ρ))``
* sparsity bound      ``L_sb = R_p(ℓ_p)``
* self-weighted reduction ``R(L) = Σ L^{k+1} / Σ L^k``, k = 4

so nothing of size positions × directions is stored: a tile's logits are made, used and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fit.positive_stats import PositiveSums, Wanted
from fit.row_sources import Positions, positions, tiles
from fit.tile_backends import POWER, Slopes, visits
from stores.errors import FitError

OTHER_TILES = 16384  # rows at a time of the passes that make no logits, at most


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


def maximum_margin(inverse_margins: torch.Tensor) -> torch.Tensor:
    """``L_mm = (1/I) Σ_i 1/M_i`` from the inverse margins (I,); one shared margin gives one number."""
    return inverse_margins.mean()


def filter_signal_orthogonality(filters: torch.Tensor, signals: torch.Tensor) -> torch.Tensor:
    """``L_fso``: root mean square over i ≠ j of ū_i · s̄_j, both unit norm; filters and signals are (C, I)."""
    r, i = filters.shape
    if i < 2:
        return filters.sum() * 0
    u, s = F.normalize(filters, dim=0), F.normalize(signals, dim=0)
    if (
        i > r
    ):  # Σ_ij (ū_i · s̄_j)² from the r × r matrices; it is well above the diagonal's share, as more than r pairs overlap
        off = (((u @ u.T) * (s @ s.T)).sum() - (u * s).sum(0).square().sum()).clamp_min(0)
    else:
        gram = u.T @ s
        off = (gram - torch.diag(torch.diagonal(gram))).square().sum()
    return (off / (i * (i - 1)) + 1e-12).sqrt()


def correlated_logits(filters: torch.Tensor, covariance: torch.Tensor, most: float) -> torch.Tensor:
    """``L_cl`` [ours]: ``Σ_{i≠j} relu(ρ_ij − most)² / I``, ρ the correlation of two detectors' logits over all positions.

    It separates detectors that are nearly the same, among which halves of the images would divide one concept differently.
    Filters are (r, I), ``covariance`` (r, r) that of the rows.
    """
    covariance = covariance.to(filters.dtype)
    scale = (filters * (covariance @ filters)).sum(0).clamp_min(1e-12).rsqrt()
    unit = filters * scale  # whose logits have variance 1
    with torch.no_grad():  # the gradient by hand: autograd would hold ten arrays of I × I
        across = covariance @ unit
        excess = F.relu(unit.T @ across - most).fill_diagonal_(0)
        value, slope = excess.square().sum() / len(excess), across @ excess * (4 / len(excess))
    return value + (slope * (unit - unit.detach())).sum()


@dataclass(frozen=True)
class RowWeights:
    """Weights λ of the losses that are sums over positions."""

    sparsity: float
    maximum_activation: float
    sparsity_bound: float = 0.0


@dataclass
class Sums:
    """What one pass over all positions, ``count`` of them, leaves: loss values, column means, gradients, and what signal vectors need.

    ``sparsity``, ``maximum_activation``, ``sparsity_bound``: the losses. ``column`` (I,): c. ``filters_row`` (r, I) and
    ``thresholds_row`` (I,): gradient of the weighted row losses. ``positives`` (I,): positions with z > 0; ``mean``
    (r, I), ``logit`` (I,), ``logit_square`` (I,), ``cross`` (r, I): means over the positives of y, z, z², y·z. ``together`` (I, I) float64: share of
    positions at which both detectors are positive.
    """

    count: int
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
    together: torch.Tensor


def streamed_sums(
    rows: torch.Tensor | Positions,
    filters: torch.Tensor,
    thresholds: torch.Tensor,
    weights: RowWeights,
    *,
    gamma: float = 1.1,
    tile: int | None = None,
    signals: Wanted = "all",
) -> Sums:
    """One exact pass over all positions, in memory O(tile × directions); on several ranks each passes over its own.

    Parameters
    ----------
    rows : (n, r) activation vectors, whitened or not: a tensor, or Positions that hand them out.
    filters, thresholds : (r, I) and (I,), with ``z = rows @ filters − thresholds``.
    tile : rows at a time; by default as many as keep a tile's logits inside the processor's cache.
    signals : which sums over positives are wanted (see ``PositiveSums``); the others are 0.
    """
    data = positions(rows)
    n, r, i, ranks = data.count, data.rank, filters.shape[1], data.ranks
    tile = min(tile or tile_rows(r, i, data.device), n)
    visit = visits(data.device)(data, filters, thresholds, tile)
    positives = PositiveSums(
        r, i, 0 if signals == "none" else tile, dtype=data.dtype, device=data.device, wanted=signals
    )
    bound, slopes = 0.0, Slopes(weights.sparsity / n, weights.maximum_activation / n)
    if weights.sparsity_bound:
        # d R / d ℓ_p = (5 ℓ^4 Σℓ^4 − 4 ℓ^3 Σℓ^5) / (Σℓ^4)²: the sums come before the gradient can be streamed
        both = torch.zeros(2, dtype=torch.float64, device=data.device)
        for y in tiles(data, tile):
            visit.logits(y)
            both += torch.tensor(visit.bound(), dtype=torch.float64, device=data.device)
        ranks.sum(both)
        fourth, fifth = both.tolist()
        fourth = max(fourth, 1e-30)
        bound = fifth / fourth
        weight = weights.sparsity_bound / fourth
        slopes = replace(slopes, fourth=(POWER + 1) * weight, third=POWER * weight * bound)
    seen = 0
    for y in tiles(data, tile):
        z = visit.logits(y)
        if signals != "none":
            positives.add(y, z)
        visit.losses(y, slopes, gamma)
        seen += len(y)
    if ranks.size > 1:
        came = torch.tensor(seen, device=data.device)
        ranks.sum(came, visit.totals, visit.column, visit.thresholds, visit.filters, *positives.sums(signals))
        if int(came) != n:
            raise FitError(f"{n} positions were promised, {int(came)} came: the rows of some rank are incomplete.")
    dtype, safe = data.dtype, positives.count.clamp_min(1)
    return Sums(
        count=n,
        sparsity=float(visit.totals[0]) / n,
        maximum_activation=float(visit.totals[1]) / n,
        sparsity_bound=bound,
        column=(visit.column / n).to(dtype),
        filters_row=visit.filters.T.to(dtype).contiguous(),
        thresholds_row=-visit.thresholds.to(dtype),
        positives=positives.count.to(torch.int64),
        mean=(positives.rows.T / safe).to(dtype).contiguous(),
        logit=(positives.logit / safe).to(dtype),
        logit_square=(positives.square / safe).to(dtype),
        cross=(positives.cross.T / safe).to(dtype).contiguous(),
        together=positives.together / n,
    )


def column_gradient(
    rows: torch.Tensor | Positions,
    filters: torch.Tensor,
    thresholds: torch.Tensor,
    slope: torch.Tensor,
    *,
    gamma: float = 1.1,
    tile: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient by (filters, thresholds) of a loss that depends only on the column means c, ``slope`` (I,) = dL/dc.

    The slope is known only after a complete pass. Most detectors are neither idle nor overfull, so their slope is 0: only
    the others' logits are made again.
    """
    by_filters, by_thresholds = torch.zeros_like(filters), torch.zeros_like(thresholds)
    concerned = torch.flatten(torch.nonzero(slope))
    if not len(concerned):
        return by_filters, by_thresholds
    data = positions(rows)
    w, b = filters[:, concerned], thresholds[concerned]
    tile = min(tile or tile_rows(data.rank, len(b), data.device), data.count)
    visit = visits(data.device)(data, w, b, tile)
    for y in tiles(data, tile):
        visit.logits(y)
        visit.fade(y, gamma)
    data.ranks.sum(visit.filters, visit.thresholds)
    scale = slope[concerned].double() * (gamma / data.count)
    by_filters[:, concerned] = (visit.filters.T * scale).to(filters.dtype)
    by_thresholds[concerned] = -(visit.thresholds * scale).to(filters.dtype)
    return by_filters, by_thresholds


Small = Callable[[Sums, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]


def gradients(
    rows: torch.Tensor | Positions,
    linear: tuple[torch.Tensor, torch.Tensor],
    weights: RowWeights,
    small: Small,
    *,
    gamma: float,
    signals: Wanted = "all",
) -> tuple[float, dict[str, float], Sums]:
    """Add the gradient of all losses to the ``grad`` of the parameters: the streamed ones' by their sums, the small ones' by autograd.

    Parameters
    ----------
    rows : (n, r) positions.
    linear : (W (r, I), b (I,)), made from the parameters.
    weights : of the losses that are sums over positions; these are streamed.
    small : from the pass's sums and the column means c (I,), the weighted sum of all other losses, differentiable by c and
        by the parameters, and each one's value by name.
    signals : which sums over positives ``small`` needs.

    Returns the loss, its terms by name, and the pass's sums.
    """
    filters, thresholds = linear
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
    streamed = {"sparsity": sums.sparsity, "maximum_activation": sums.maximum_activation}
    total = (
        float(loss.detach())
        + weights.sparsity * sums.sparsity
        + weights.maximum_activation * sums.maximum_activation
        + weights.sparsity_bound * sums.sparsity_bound
    )
    if weights.sparsity_bound:
        streamed["sparsity_bound"] = sums.sparsity_bound
    return total, {"total": total, **streamed, **terms}, sums


def tile_rows(rank: int, directions: int, device: torch.device) -> int:
    """Rows at a time: a tile's logits take about 4 MB on a processor, 256 MB on a GPU, its rows of ``rank`` numbers at most twice that."""
    numbers = 2**20 if device.type == "cpu" else 2**26
    return min(max(256, numbers // max(directions, rank // 2, 1)), 2**20)


def longest_tile(rank: int, device: torch.device) -> int:
    """Rows of the largest tile that a pass over all positions asks for: 8 MB at most on a processor, 512 MB on a GPU."""
    return max(OTHER_TILES, tile_rows(rank, 1, device))
