"""Uncertainty region alignment: removing what the detectors see must leave the network undecided (paper, L_uur, L_cur).

``X'`` is the map with every ``x_p → x_p − κ dx_p``, κ ~ U(0.5, 0.9) drawn once a step. The manipulations are

* unconstrained ``dx = (Wᵀ)⁺ z``,
* constrained to the signals ``dx = S (WᵀS)⁺ z``; here with a ridge, ``dx = S (GᵀG + λI)⁻¹ Gᵀ z`` with G = WᵀS in unit
  filters (λ = 0 is the printed form). WᵀS of a real network is so badly conditioned (1e4) that the printed form throws
  the features a thousand times too far, where the network is certain of anything.

The loss is ``KL(uniform ‖ f+(X'))``, which has the optimum of the printed ``−H(f+(X'))`` but keeps a gradient where the
network is certain; ``objective="entropy"`` gives the printed one. Everything is in whitened coordinates.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def constrained_step(logits: torch.Tensor, filters: torch.Tensor, signals: torch.Tensor, ridge: float) -> torch.Tensor:
    """``dx = S (GᵀG + λI)⁻¹ Gᵀ z``, ``G = UᵀS``.

    Parameters
    ----------
    logits : (…, I) logits z of unit filters (distances from the thresholds' planes).
    filters : (r, I) unit filters U.
    signals : (r, I) unit signal vectors, constants for the gradient.
    ridge : λ; 0 uses the pseudo-inverse of G.

    Returns (…, r), in the coordinates of ``signals``.
    """
    r, i = filters.shape
    if ridge <= 0:
        return logits @ torch.linalg.pinv(filters.T @ signals).T @ signals.T
    eye = torch.eye(min(r, i), dtype=filters.dtype, device=filters.device)
    # solve for the matrix that all positions share, once, instead of for every position's values
    if i > r:  # the same by an r × r system: S Sᵀ (U Uᵀ S Sᵀ + λI)⁻¹ U
        spread = signals @ signals.T
        return logits @ (spread @ torch.linalg.solve(filters @ filters.T @ spread + ridge * eye, filters)).T
    gram = filters.T @ signals
    shared = torch.linalg.solve(gram.T @ gram + ridge * eye, gram.T)
    return logits @ shared.T @ signals.T


def unconstrained_step(logits: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """``dx = (Wᵀ)⁺ z``: the least change that brings every logit to zero; filters (r, I), logits (…, I)."""
    return logits @ torch.linalg.pinv(filters)


def uncertainty_loss(network_logits: torch.Tensor, objective: str = "kl") -> torch.Tensor:
    """Mean over images of ``KL(uniform ‖ p)`` ("kl") or of ``−H(p)`` ("entropy"), in bits; logits (n, K)."""
    log_p = F.log_softmax(network_logits, dim=1)
    if objective == "kl":
        value = -math.log(log_p.shape[1]) - log_p.mean(1)
    else:
        value = (log_p.exp() * log_p).sum(1)
    return value.mean() / math.log(2)
