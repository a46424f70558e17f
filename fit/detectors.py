"""The detectors of a fit in its own coordinates, and their transform back to activation space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fit.whiten import Whitening

NAMES = ("directions", "offsets", "log_margins")


@dataclass
class Detectors:
    """``z = (y·ū − β) / M`` for rows y of r numbers.

    ``directions`` (r, I), normalised where used; ``offsets`` β (I,); ``log_margins`` ln M (I,). Directions and margins are
    separate parameters (paper, §3.2), so that a margin's growth does not slow its direction down.
    """

    directions: torch.Tensor
    offsets: torch.Tensor
    log_margins: torch.Tensor

    def parameters(self) -> list[torch.Tensor]:
        return [self.directions, self.offsets, self.log_margins]

    def unit(self) -> torch.Tensor:
        """ū (r, I)."""
        return F.normalize(self.directions, dim=0)

    def inverse_margins(self) -> torch.Tensor:
        """1/M (I,)."""
        return torch.exp(-self.log_margins)

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W (r, I), b (I,)) with ``z = y W − b``."""
        inverse = self.inverse_margins()
        return self.unit() * inverse, self.offsets * inverse

    def copy(self) -> Detectors:
        return Detectors(*(tensor.detach().clone() for tensor in self.parameters()))

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """By name, for a checkpoint or for other ranks."""
        return dict(zip((prefix + name for name in NAMES), self.parameters(), strict=True))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], device: torch.device, prefix: str = "") -> Detectors:
        """What ``tensors`` gave."""
        return cls(*(tensors[prefix + name].to(device) for name in NAMES))


def in_activation_space(
    transform: Whitening, detectors: Detectors, signals: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``w = Tᵀ ū / M`` (C, I), ``s = T⁺ s_y`` (C, I) of given s_y (r, I), and ``b = β / M + w·μ`` (I,), in float64."""
    w_y, b_y = (tensor.detach().double() for tensor in detectors.linear())
    filters = transform.forward.double().T @ w_y
    return filters, transform.backward.double() @ signals.detach().double(), b_y + transform.mean.double() @ filters
