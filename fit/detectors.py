"""The detectors of a fit in its own coordinates, and their transform back to activation space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F

from fit.whiten import Whitening


class TensorFields:
    """A dataclass of tensors, by name for a checkpoint or for other ranks."""

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Its tensors by its fields' names, without those that are None."""
        named = {prefix + entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], device: torch.device | str, prefix: str = "") -> Self:
        """What ``tensors`` gave."""
        names = (entry.name for entry in fields(cls))  # type: ignore[arg-type]
        return cls(**{name: tensors[prefix + name].to(device) for name in names if prefix + name in tensors})

    def parameters(self) -> list[torch.Tensor]:
        return list(self.tensors().values())


@dataclass
class Detectors(TensorFields):
    """``z = (y·ū − β) / M`` for rows y of r numbers.

    ``directions`` (r, I), normalised where used; ``offsets`` β (I,); ``log_margins`` ln M (I,). Directions and margins are
    separate parameters (paper, §3.2), so that a margin's growth does not slow its direction down.
    """

    directions: torch.Tensor
    offsets: torch.Tensor
    log_margins: torch.Tensor

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


def in_activation_space(
    transform: Whitening, detectors: Detectors, signals: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``w = Tᵀ ū / M`` (C, I), ``s = T⁺ s_y`` (C, I) of given s_y (r, I), and ``b = β / M + w·μ`` (I,), in float64."""
    w_y, b_y = (tensor.detach().double() for tensor in detectors.linear())
    filters = transform.forward.double().T @ w_y
    return filters, transform.backward.double() @ signals.detach().double(), b_y + transform.mean.double() @ filters
