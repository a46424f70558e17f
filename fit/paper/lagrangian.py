"""The augmented Lagrangian form: a few losses are minimised while others are held below bounds (paper, for small problems).

``L_A = f + Σ_c [max(0, m_c + ρ_c g_c)² − m_c²] / 2ρ_c`` with ``g_c = L_c − bound_c``, then ``m_c ← max(0, m_c + ρ_c g_c)``, once an epoch [I].
The penalties ρ_c are constant, ``penalty / bound_c²`` [I]: a violation as large as its bound costs ``penalty / 2`` for every
constraint alike, whatever the bound's size, and the multipliers' growth does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F


class Multipliers:
    """m_c of each constraint by the loss's name; they begin at 0.

    Parameters
    ----------
    bounds : what each loss must stay below, positive.
    penalty : ρ_c times the square of the bound.
    """

    def __init__(self, bounds: Mapping[str, float], penalty: float) -> None:
        self.bounds = dict(bounds)
        self.penalties = {name: penalty / bound**2 for name, bound in self.bounds.items()}
        self.values = dict.fromkeys(self.bounds, 0.0)

    def weight(self, name: str, loss: float) -> float:
        """``dL_A/dL_c = max(0, m_c + ρ_c g_c)`` at a value of the loss: its gradient counts this much."""
        return max(0.0, self.values[name] + self.penalties[name] * (loss - self.bounds[name]))

    def term(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        """The constraint's part of L_A, differentiable by the loss."""
        m, rho = self.values[name], self.penalties[name]
        return (F.relu(m + rho * (loss - self.bounds[name])).square() - m**2) / (2 * rho)

    def violation(self, losses: Mapping[str, float]) -> float:
        """``Σ_c ρ_c max(0, g_c)² / 2``: with f, what can be compared from epoch to epoch, while L_A changes with its multipliers."""
        return sum(0.5 * rho * max(0.0, losses[name] - self.bounds[name]) ** 2 for name, rho in self.penalties.items())

    def update(self, losses: Mapping[str, float]) -> None:
        """``m_c ← max(0, m_c + ρ_c g_c)`` at the losses' means over an epoch."""
        self.values = {name: self.weight(name, losses[name]) for name in self.bounds}
