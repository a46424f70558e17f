"""Signal vectors: the direction that is added to the activations when a concept is present (paper §3.3).

``s_i = cov[x_p, z_pi] / var[z_pi]`` over the positives of detector i only, then unit norm. Over all positions the
estimate would be biased: concepts exclude each other, so their signal values are anti-correlated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fit.losses import Sums


def signals_from_sums(sums: Sums, fallback: torch.Tensor) -> torch.Tensor:
    """Signal vectors (r, I), not normalised, from one pass's sums over the positives.

    A detector with fewer than two different positives has no estimate; it gets its column of ``fallback`` (r, I).
    """
    variance = sums.logit_square.double() - sums.logit.double().square()
    covariance = sums.cross.double() - sums.mean.double() * sums.logit.double()
    known = (sums.positives > 1) & (variance > 1e-12 * sums.logit_square.double().clamp_min(1e-30))
    signals = covariance / torch.where(known, variance, torch.ones_like(variance))
    return torch.where(known, signals, fallback.double()).to(fallback.dtype)


def pattern(covariance: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Haufe et al. 2014: ``cov(x) W``, unit columns; the encoding that belongs to linear decoders W (C, I).

    For methods that know only filters. Columns of a filter without variance are the filter itself.
    """
    signals = covariance @ filters
    norms = signals.norm(dim=0)
    return F.normalize(torch.where(norms > 1e-12, signals, filters), dim=0)
