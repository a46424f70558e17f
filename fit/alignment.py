"""Uncertainty region alignment for the head at hand: on the pooled vectors where it is pooled-affine, else through the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from extract.memory import is_out_of_memory
from extract.network import Head
from fit.uncertainty import constrained_step, uncertainty_loss, unconstrained_step
from fit.whiten import WhitenedRows, Whitening
from stores.errors import OutOfMemoryError
from stores.readers import LayerReader


class Detecting(Protocol):
    """Detectors with unit filters ū (r, I) and offsets β (I,): distances from their planes are ``y·ū − β``."""

    def unit(self) -> torch.Tensor: ...

    @property
    def offsets(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class _Given:
    """Detectors by their unit filters and offsets alone."""

    filters: torch.Tensor
    offsets: torch.Tensor

    def unit(self) -> torch.Tensor:
        return self.filters


@dataclass(frozen=True)
class Manipulation:
    """How X' is made and what is asked of it (see ``fit.uncertainty``).

    ``images`` a step; 0: 256 for a pooled-affine head, 16 for any other (each goes through the network).
    """

    step: Literal["constrained", "unconstrained"] = "constrained"
    objective: Literal["kl", "entropy"] = "kl"
    ridge: float = 0.03
    images: int = 0


class Uncertainty:
    """A call gives (loss, mean entropy in bits of f+(X')) for the next κ and the next images.

    Parameters
    ----------
    transform : from activations to the coordinates y of the detectors.
    data : its ``pooled`` and ``images``.
    """

    def __init__(
        self,
        how: Manipulation,
        transform: Whitening,
        data: WhitenedRows,
        reader: LayerReader,
        head: Head,
        seed: int,
    ) -> None:
        self.how, self.transform, self.data, self.reader, self.head = how, transform, data, reader, head
        self.generator = torch.Generator().manual_seed(seed + 17)
        self.kind = "pooled-affine" if head.affine else "general"
        self.batch = min(reader.n_images, how.images or (256 if head.affine else 16))
        if head.affine:
            weight, _ = head.affine
            self.readout = weight @ transform.backward  # (K, r): what a step in y does to the logits

    def __call__(self, detectors: Detecting, signals: torch.Tensor) -> tuple[torch.Tensor, float]:
        n = self.reader.n_images
        kappa = 0.5 + 0.4 * float(torch.rand((), generator=self.generator))
        if self.batch < n:
            chosen = torch.randperm(n, generator=self.generator)[: self.batch].sort().values
        else:
            chosen = torch.arange(n)
        if self.head.affine:
            # N × K logits may be gigabytes: only this step's images are read
            clean = torch.from_numpy(self.reader.store.rows("logits", self.data.images[chosen.numpy()]))
            dy = self._step(self.data.pooled_of(chosen), detectors, signals)
            moved = clean.to(dy.device) - kappa * dy @ self.readout.T
        elif self.data.ranks.size > 1:
            return self._on_all_ranks(chosen, detectors, signals, kappa)
        else:
            moved = self._through_the_network(chosen, detectors, signals, kappa)
        with torch.no_grad():
            entropy = -uncertainty_loss(moved, "entropy")
        return uncertainty_loss(moved, self.how.objective), float(entropy)

    def _through_the_network(
        self, chosen: torch.Tensor, detectors: Detecting, signals: torch.Tensor, kappa: float
    ) -> torch.Tensor:
        """Logits of f+(X') for the whole maps of chosen images; raises OutOfMemoryError when memory does not take them."""
        try:
            x = torch.from_numpy(self.reader.images(self.data.images[chosen.numpy()])).to(self.transform.mean.device)
            dy = self._step(self.transform(x), detectors, signals)
            return self.head(x.float() - kappa * dy @ self.transform.backward.T)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"Memory does not take {len(chosen)} images at once through the network after layer '{self.reader.spec.name}': use "
                f"--set uncertainty_images={max(1, len(chosen) // 2)}, or leave the term out with --set lambda_uncertainty=0."
            ) from error

    def _on_all_ranks(
        self, chosen: torch.Tensor, detectors: Detecting, signals: torch.Tensor, kappa: float
    ) -> tuple[torch.Tensor, float]:
        """Every rank takes its share of the images through the network; what is reduced is the term and its gradient.

        The gradient by unit filters, offsets and signal vectors is I (2 r + 1) numbers; a term that has it, and the value, takes it
        into autograd.
        """
        ranks = self.data.ranks
        given = (detectors.unit(), detectors.offsets, signals)
        leaves = [tensor.detach().requires_grad_(True) for tensor in given]
        both = torch.zeros(2, dtype=torch.float64, device=signals.device)  # the term, and the mean entropy
        slopes = [torch.zeros_like(leaf) for leaf in leaves]
        if len(mine := chosen[ranks.rank :: ranks.size]):
            moved = self._through_the_network(mine, _Given(leaves[0], leaves[1]), leaves[2], kappa)
            term = uncertainty_loss(moved, self.how.objective) * (len(mine) / len(chosen))
            found = torch.autograd.grad(term, leaves, allow_unused=True)
            slopes = [zero if slope is None else slope for zero, slope in zip(slopes, found, strict=True)]
            entropy = -uncertainty_loss(moved.detach(), "entropy") * (len(mine) / len(chosen))
            both = torch.stack([term.detach(), entropy]).double()
        ranks.sum(both, *slopes)
        value = both[0].to(signals.dtype)
        for tensor, slope in zip(given, slopes, strict=True):
            value = value + (slope * (tensor - tensor.detach())).sum()
        return value, float(both[1])

    def _step(self, y: torch.Tensor, detectors: Detecting, signals: torch.Tensor) -> torch.Tensor:
        """dy for vectors y (…, r), positions or their means: the step is affine in y."""
        unit = detectors.unit()
        distance = y @ unit - detectors.offsets
        if self.how.step == "unconstrained":
            return unconstrained_step(distance, unit)
        encoding = F.normalize(signals, dim=0)
        return constrained_step(distance, unit, encoding, self.how.ridge)
