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

import logging
import math
from typing import Literal

import torch
import torch.nn.functional as F

from extract.memory import is_out_of_memory
from extract.network import Head
from fit.whiten import WhitenedRows, Whitening
from stores.errors import OutOfMemoryError
from stores.format import LayerSpec
from stores.readers import LayerReader

log = logging.getLogger(__name__)


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


def usable_head(spec: LayerSpec, head: Head | None) -> Head | None:
    """``head``, or None, with a warning, where the store lacks positions of the layer: the term needs complete maps."""
    if head is not None and (spec.sampled or spec.prefix):
        log.warning("uncertainty region alignment is left out: it needs every position of the layer")
        return None
    return head


class Uncertainty:
    """A call gives (loss, mean entropy in bits of f+(X')) for the next κ and the next images.

    Where the head is pooled-affine, pooled vectors and stored logits suffice; any other head is run on the images' maps.

    Parameters
    ----------
    transform : from activations to the coordinates y of the detectors.
    data : its ``pooled`` and ``images``.
    step, objective, ridge : how X' is made and what is asked of it, see above.
    images : a step; 0: 256 for a pooled-affine head, 16 for any other.
    """

    def __init__(
        self,
        transform: Whitening,
        data: WhitenedRows,
        reader: LayerReader,
        head: Head,
        seed: int,
        *,
        step: Literal["constrained", "unconstrained"] = "constrained",
        objective: Literal["kl", "entropy"] = "kl",
        ridge: float = 0.03,
        images: int = 0,
    ) -> None:
        self.transform, self.data, self.reader, self.head = transform, data, reader, head
        self.step, self.objective, self.ridge = step, objective, ridge
        self.generator = torch.Generator().manual_seed(seed + 17)
        self.kind = "pooled-affine" if head.affine else "general"
        self.batch = min(reader.n_images, images or (256 if head.affine else 16))
        if head.affine:
            self.readout = head.affine[0] @ transform.backward  # (K, r): what a step in y does to the logits

    def __call__(self, unit: torch.Tensor, offsets: torch.Tensor, signals: torch.Tensor) -> tuple[torch.Tensor, float]:
        """For detectors with distances ``y·ū − β`` from their planes: ``unit`` ū (r, I), ``offsets`` β (I,), ``signals`` (r, I)."""
        n = self.reader.n_images
        kappa = 0.5 + 0.4 * float(torch.rand((), generator=self.generator))
        if self.batch < n:
            chosen = torch.randperm(n, generator=self.generator)[: self.batch].sort().values
        else:
            chosen = torch.arange(n)
        if self.head.affine:
            # N × K logits may be gigabytes: only this step's images are read
            clean = torch.from_numpy(self.reader.store.rows("logits", self.data.images[chosen.numpy()]))
            dy = self._manipulation(self.data.pooled_of(chosen), unit, offsets, signals)
            moved = clean.to(dy.device) - kappa * dy @ self.readout.T
        elif self.data.ranks.size > 1:
            return self._on_all_ranks(chosen, unit, offsets, signals, kappa)
        else:
            moved = self._through_the_network(chosen, unit, offsets, signals, kappa)
        with torch.no_grad():
            entropy = -uncertainty_loss(moved, "entropy")
        return uncertainty_loss(moved, self.objective), float(entropy)

    def _through_the_network(
        self, chosen: torch.Tensor, unit: torch.Tensor, offsets: torch.Tensor, signals: torch.Tensor, kappa: float
    ) -> torch.Tensor:
        """Logits of f+(X') for the maps of chosen images; raises OutOfMemoryError when they do not fit into memory."""
        try:
            x = torch.from_numpy(self.reader.images(self.data.images[chosen.numpy()])).to(self.transform.mean.device)
            dy = self._manipulation(self.transform(x), unit, offsets, signals)
            return self.head(x.float() - kappa * dy @ self.transform.backward.T)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"Memory does not take {len(chosen)} images at once through the network after layer '{self.reader.spec.name}': use "
                f"--set uncertainty_images={max(1, len(chosen) // 2)}, or leave the term out with --set lambda_uncertainty=0."
            ) from error

    def _on_all_ranks(
        self, chosen: torch.Tensor, unit: torch.Tensor, offsets: torch.Tensor, signals: torch.Tensor, kappa: float
    ) -> tuple[torch.Tensor, float]:
        """Each rank runs its share of the images; reduced are the term and its gradient by the given tensors, I (2 r + 1) numbers.

        The returned value carries that gradient into autograd.
        """
        ranks, given = self.data.ranks, (unit, offsets, signals)
        leaves = [tensor.detach().requires_grad_(True) for tensor in given]
        both = torch.zeros(2, dtype=torch.float64, device=signals.device)  # the term, and the mean entropy
        slopes = [torch.zeros_like(leaf) for leaf in leaves]
        if len(mine := chosen[ranks.rank :: ranks.size]):
            moved = self._through_the_network(mine, leaves[0], leaves[1], leaves[2], kappa)
            term = uncertainty_loss(moved, self.objective) * (len(mine) / len(chosen))
            found = torch.autograd.grad(term, leaves, allow_unused=True)
            slopes = [zero if slope is None else slope for zero, slope in zip(slopes, found, strict=True)]
            entropy = -uncertainty_loss(moved.detach(), "entropy") * (len(mine) / len(chosen))
            both = torch.stack([term.detach(), entropy]).double()
        ranks.sum(both, *slopes)
        value = both[0].to(signals.dtype)
        for tensor, slope in zip(given, slopes, strict=True):
            value = value + (slope * (tensor - tensor.detach())).sum()
        return value, float(both[1])

    def _manipulation(
        self, y: torch.Tensor, unit: torch.Tensor, offsets: torch.Tensor, signals: torch.Tensor
    ) -> torch.Tensor:
        """dy for vectors y (…, r), positions or their means: the step is affine in y."""
        distance = y @ unit - offsets
        if self.step == "unconstrained":
            return unconstrained_step(distance, unit)
        return constrained_step(distance, unit, F.normalize(signals, dim=0), self.ridge)
