"""The detectors of the published steps, their coordinates, and the change of variables from step (a) to (b)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F

from fit.detectors import Detectors, TensorFields
from fit.whiten import NO_VARIANCE, Whitening
from stores.errors import FitError
from stores.statistics import Statistics

CONSTANT = 1e-10  # variance over mean square, under which a channel is constant but for rounding


def standardised(statistics: Statistics) -> Whitening:
    """Per-channel z-scores ``y = (x − μ) / σ`` [I], r numbers a position: channels without variance are left out.

    Raises FitError when no channel varies.
    """
    variance = statistics.covariance.diagonal()
    varies = np.flatnonzero(variance > CONSTANT * (variance + statistics.mean**2))
    if not len(varies):
        raise FitError(NO_VARIANCE)
    deviation = np.sqrt(variance[varies])
    forward = np.zeros((len(varies), len(variance)), np.float32)
    forward[np.arange(len(varies)), varies] = 1 / deviation
    backward = np.zeros((len(variance), len(varies)), np.float32)
    backward[varies, np.arange(len(varies))] = deviation
    mean = torch.from_numpy(np.ascontiguousarray(statistics.mean, np.float32))
    return Whitening(torch.from_numpy(forward), torch.from_numpy(backward), mean, 1.0)


def plain(standard: Whitening, *, centre: bool) -> Whitening:
    """The activations themselves in the channels that vary, less their mean with ``centre``."""
    forward = (standard.forward != 0).to(standard.forward.dtype)
    mean = standard.mean if centre else torch.zeros_like(standard.mean)
    return Whitening(forward, forward.T.contiguous(), mean, 1.0)


def cayley(free: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns (r, I): the first I of ``B (I + A/2)⁻¹ (I − A/2)``, ``A = L − Lᵀ`` with L strictly lower.

    Parameters
    ----------
    free : (r, I) any numbers; below the diagonal they are L's first I columns, the others are not used.
    base : (r, r) orthogonal B, the value at ``free`` = 0; its dtype is that of the arithmetic.

    Every orthonormal frame with B's orientation but a set of measure zero is reached. ``torch.nn.utils.parametrizations`` would do the
    same, but completes its base from the global random state.
    """
    r, i = free.shape
    lower = torch.tril(free.to(base.dtype), -1)
    half = F.pad(lower, (0, r - i)) / 2
    half = half - half.T
    eye = torch.eye(r, dtype=base.dtype, device=base.device)
    # singular only where a number has overflowed: then the loss is not finite, which ends the fit
    turned: torch.Tensor = torch.linalg.solve_ex(eye + half, (eye - half)[:, :i])[0]
    return base @ turned


class Learnt(TensorFields):
    """``z = y·ū / M − b`` for rows y of r numbers: I unit filters ū, margins M > 0 and thresholds b, whose tensors a step learns."""

    log_margins: torch.Tensor
    thresholds: torch.Tensor

    def __post_init__(self) -> None:
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.detach().clone().requires_grad_(name != "base"))

    def parameters(self) -> list[torch.Tensor]:
        return [tensor for tensor in self.tensors().values() if tensor.requires_grad]

    def unit(self) -> torch.Tensor:
        """ū (r, I)."""
        raise NotImplementedError

    def signals(self) -> torch.Tensor | None:
        """s̄ (r, I), None where they are not learnt."""
        return None

    def inverse_margins(self) -> torch.Tensor:
        """1/M (I,), or (1,) where it is one for all."""
        return torch.exp(-self.log_margins)

    def offsets(self) -> torch.Tensor:
        """β (I,): distances from the thresholds' planes are ``y·ū − β``."""
        return self.thresholds * torch.exp(self.log_margins)

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W (r, I), b (I,)) with ``z = y W − b``."""
        unit = self.unit()
        return unit * self.inverse_margins(), self.thresholds.expand(unit.shape[1])


@dataclass(eq=False)
class Orthonormal(Learnt):
    """Step (a) in standardised space: ``ūᵢ·ūⱼ = δᵢⱼ`` by the Cayley map, one margin and one threshold for all.

    ``free`` (r, I) and ``base`` (r, r) float64: see ``cayley``; ``log_margins`` ln M and ``thresholds`` b: (1,).
    """

    free: torch.Tensor
    log_margins: torch.Tensor
    thresholds: torch.Tensor
    base: torch.Tensor

    @classmethod
    def random(
        cls, rank: int, directions: int, *, margin: float, tau: float, seed: int, device: str = "cpu"
    ) -> Orthonormal:
        """Random filters; the threshold lets pass a share τ / I of values that are normally distributed [I]."""
        generator = torch.Generator().manual_seed(seed)
        base, upper = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
        base = base * torch.sign(upper.diagonal())  # else the signs would be the LAPACK's
        share = min(max(tau / directions, 1e-6), 0.9)
        threshold = NormalDist().inv_cdf(1 - share) / margin
        return cls(
            torch.zeros(rank, directions, device=device),
            torch.tensor([math.log(margin)], device=device),
            torch.tensor([threshold], device=device),
            base.to(device),
        )

    def unit(self) -> torch.Tensor:
        return cayley(self.free, self.base).to(self.free.dtype)


@dataclass(eq=False)
class Separate(Learnt):
    """Steps (b) and (d) in activation space: each detector its own filter, margin and threshold, in (d) also its signal vector.

    ``directions`` and ``encoding`` (r, I), normalised where used; ``log_margins`` ln M (I,); ``thresholds`` b (I,).
    """

    directions: torch.Tensor
    log_margins: torch.Tensor
    thresholds: torch.Tensor
    encoding: torch.Tensor | None = None

    def unit(self) -> torch.Tensor:
        return F.normalize(self.directions, dim=0)

    def signals(self) -> torch.Tensor | None:
        return None if self.encoding is None else F.normalize(self.encoding, dim=0)

    def detectors(self) -> Detectors:
        """The same in float64, in the parameters of the project's other fits."""
        return Detectors(*(t.detach().double() for t in (self.directions, self.offsets(), self.log_margins)))


@torch.no_grad()
def released(found: Orthonormal, standard: Whitening, activations: Whitening) -> Separate:
    """The exact affine change of variables that starts step (b): the logits of every activation stay what they are.

    With ``y = T(x − μ)`` and ``z = y·w − b``: ``w' = Tᵀw``, ``b' = b + w'·(μ − μ')`` for activations less μ' (0 or μ). In float64.
    """
    w, b = (t.double() for t in found.linear())
    filters = standard.forward.double().T @ w
    thresholds = b + (standard.mean - activations.mean).double() @ filters
    filters = activations.forward.double() @ filters
    norms = filters.norm(dim=0)
    dtype = found.free.dtype
    return Separate((filters / norms).to(dtype), -norms.log().to(dtype), thresholds.to(dtype))
