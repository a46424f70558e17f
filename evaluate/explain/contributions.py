"""What every concept adds to every logit of one prediction: a sum that comes out at the logits.

Contribution of direction i to logit k: the change when its component along ``s_i`` is set to its mean at every position,
``x_p → x_p − α_pi s_i``. Behind pooling and an affine map, ``logits = A mean_p x_p + c``, the sum is exact:

    logit_k = [A_k E[x] + c_k] + Σ_i mean_p(α_pi) A_k·s_i + A_k·mean_p(r_p),     r_p = x_p − E[x] − Σ_i α_pi s_i

(base, contributions, residual: what no direction of the set explains). Any other head is run once a direction; its remainder is called
the interaction: what concepts do together, and what no direction explains.

Positions that are nowhere on the image (``prefix``: class and register tokens) are left as they are, in the base as well: E[x] is a mean over the
image's own positions, and says nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Head = Callable[[torch.Tensor], torch.Tensor]
ROUNDING = 1e-5  # of logits: batches of different sizes round apart
_AT_ONCE = 2**25  # numbers of activations


@dataclass(frozen=True)
class Contributions:
    """``logits`` (K,) = ``base`` (K,) + the sum of ``parts`` (I, K) + ``residual`` (K,), all float64.

    ``exact``: the head is pooling and an affine map. Otherwise the residual holds interactions as well.
    """

    logits: np.ndarray
    base: np.ndarray
    parts: np.ndarray
    residual: np.ndarray
    exact: bool

    def between(self, one: int, other: int | None) -> tuple[float, float, np.ndarray, float]:
        """Of one logit, or of one minus another: the total, the base, the parts (I,) and the residual."""
        columns = [
            array[..., one] - (0 if other is None else array[..., other])
            for array in (self.logits, self.base, self.parts, self.residual)
        ]
        return float(columns[0]), float(columns[1]), columns[2], float(columns[3])


def pooled_contributions(
    x: np.ndarray,
    mean: np.ndarray,
    alpha: np.ndarray,
    signals: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    prefix: int = 0,
) -> Contributions:
    """Behind pooling and an affine map.

    Parameters
    ----------
    x : (prefix + P, C), one image's activations, and ``alpha`` (P, I) its signal values, of the positions on the image.
    mean : (C,), E[x]; ``signals`` (C, I).
    weight, bias : (K, C) and (K,): A and c.
    prefix : positions at the front that are pooled as they are.
    """
    x, mean, signals, weight = (a.astype(np.float64) for a in (x, mean, signals, weight))
    own = x[prefix:]
    share = len(own) / len(x)  # of the pooled positions
    base = weight @ (x[:prefix].sum(0) / len(x) + share * mean) + bias
    parts = share * alpha.mean(0)[:, None] * (signals.T @ weight.T)
    left = share * (own - mean - alpha @ signals.T).mean(0)
    return Contributions(weight @ x.mean(0) + bias, base, parts, weight @ left, True)


@torch.no_grad()
def measured_contributions(
    head: Head,
    x: torch.Tensor,
    mean: torch.Tensor,
    alpha: torch.Tensor,
    signals: torch.Tensor,
    *,
    prefix: int = 0,
) -> Contributions:
    """Through any head, run once for every direction.

    Parameters
    ----------
    head : (n, prefix + P, C) float32 -> logits (n, K).
    x : (prefix + P, C), ``mean`` (C,), ``alpha`` (P, I), ``signals`` (C, I): as above, float32 tensors on the head's device.
    prefix : positions at the front that the head is given as they are.
    """
    own = x[prefix:]
    logits = head(x[None]).double()[0]
    base = head(torch.cat([x[:prefix], mean.expand_as(own)])[None]).double()[0]
    step = max(1, _AT_ONCE // x.numel())
    parts = []
    for some in torch.arange(signals.shape[1], device=x.device).split(step):
        without = own - alpha.T[some, :, None] * signals.T[some, None]  # (n, P, C)
        parts.append(logits - head(behind(x[:prefix], without)).double())
    joined = torch.cat(parts)
    residual = logits - base - joined.sum(0)
    found = [t.cpu().numpy() for t in (logits, base, joined, residual)]
    return Contributions(found[0], found[1], found[2], found[3], False)


def behind(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Positions (n, P, C) of n changed images behind the same prefix (p, C): (n, p + P, C)."""
    return torch.cat([prefix.expand(len(own), -1, -1), own], 1) if len(prefix) else own


@torch.no_grad()
def reads_positions(head: Head, x: torch.Tensor, prefix: int) -> bool:
    """Whether a head's logits for x (prefix + P, C) depend on the positions behind the prefix: NaN there must show in them."""
    spoilt = torch.cat([x[:prefix], torch.full_like(x[prefix:], torch.nan)])
    return not torch.allclose(head(spoilt[None]), head(x[None]), rtol=ROUNDING)
