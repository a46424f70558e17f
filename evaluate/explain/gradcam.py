"""The "where" of a prediction: what a logit's gradient says of each position, for the class and for each concept.

Nothing is hooked: the head is run separately from the layer's activations, and asked for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def logit_gradient(head: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, k: int) -> torch.Tensor:
    """∂ logit_k / ∂ x_p: (P, C), at one image's activations x (P, C), which get no gradient themselves."""
    with torch.enable_grad():
        at = x.detach()[None].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(head(at)[0, k], at)
    return gradient[0].detach()


def grad_cam(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2): ``relu(Σ_c mean_p(g_pc) x_pc)``, (P,).

    ``x``, ``gradient`` (P, C): the layer's activations and the logit's gradient with respect to them, of the image's own positions.
    """
    map_: np.ndarray = np.maximum(x.astype(np.float64) @ gradient.astype(np.float64).mean(0), 0)
    return map_


def contribution_maps(alpha: np.ndarray, signals: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """What each concept adds to the logit at each position, to first order: ``α_pi (g_p·s_i)``, (P, I).

    Behind pooling and an affine map it is exact, and sums over the positions to the contribution.
    """
    return alpha * (gradient.astype(np.float64) @ signals.astype(np.float64))
