"""Step (a)'s detectors: orthonormal filters by the Cayley map, one margin and one threshold for all."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch


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
    half = torch.nn.functional.pad(lower, (0, r - i)) / 2
    half = half - half.T
    eye = torch.eye(r, dtype=base.dtype, device=base.device)
    turned: torch.Tensor = torch.linalg.solve(eye + half, (eye - half)[:, :i])
    return base @ turned


class Orthonormal:
    """``z = y·ū / M − b`` for standardised rows y (r numbers), ``ūᵢ·ūⱼ = δᵢⱼ``, one M > 0 and one b (paper, step a).

    ``free`` (r, I) and ``base`` (r, r) float64: see ``cayley``; ``log_margin`` ln M and ``threshold`` b: one number each.
    """

    def __init__(
        self, free: torch.Tensor, log_margin: torch.Tensor, threshold: torch.Tensor, base: torch.Tensor
    ) -> None:
        self.free, self.log_margin, self.threshold = (
            t.detach().clone().requires_grad_(True) for t in (free, log_margin, threshold)
        )
        self.base = base.detach()

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
            torch.tensor(math.log(margin), device=device),
            torch.tensor(threshold, device=device),
            base.to(device),
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], device: str) -> Orthonormal:
        """What ``tensors`` gave."""
        return cls(*(tensors[name].to(device) for name in ("free", "log_margin", "threshold", "base")))

    def parameters(self) -> list[torch.Tensor]:
        return [self.free, self.log_margin, self.threshold]

    def unit(self) -> torch.Tensor:
        """ū (r, I)."""
        return cayley(self.free, self.base).to(self.free.dtype)

    def inverse_margins(self) -> torch.Tensor:
        """1/M (1,)."""
        return torch.exp(-self.log_margin)[None]

    @property
    def offsets(self) -> torch.Tensor:
        """β (I,): distances from the thresholds' planes are ``y·ū − β``."""
        return (self.threshold * torch.exp(self.log_margin)).expand(self.free.shape[1])

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W (r, I), b (I,)) with ``z = y W − b``."""
        return self.unit() * self.inverse_margins(), self.threshold.expand(self.free.shape[1])

    def signals(self) -> torch.Tensor | None:
        return None

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {
            "free": self.free,
            "log_margin": self.log_margin,
            "threshold": self.threshold,
            "base": self.base,
        }
