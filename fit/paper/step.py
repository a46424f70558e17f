"""One learning step of the paper: epochs of Adam on its losses, weighted or by the augmented Lagrangian."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fit.losses import (
    RowWeights,
    Sums,
    excessively_active,
    filter_signal_orthogonality,
    gradients,
    inactive_classifier,
    maximum_margin,
    streamed_sums,
)
from fit.optim import adam_tensors, load_adam, refuse_non_finite
from fit.paper.config import NUMBERS, StepSettings
from fit.paper.coordinates import Learnt
from fit.row_sources import Batches, Positions

THRESHOLD = 1e-4  # by how much a loss must fall to count as lower; −H makes losses negative, so no share of it
SCHEDULER = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
BOUNDS = {
    "maximum_activation": "bound_ma",
    "margin": "bound_mm",
    "inactive": "bound_ic",
    "excessive": "bound_eac",
    "orthogonality": "bound_fso",
}  # the loss of each bound
CONSTRAINED = {name: tuple(BOUNDS)[:count] for name, count in (("a", 3), ("b", 4), ("d", 5))}  # in step (a), (b), (d)

Alignment = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, float]]


class Multipliers:
    """The augmented Lagrangian: multipliers m_c, at first 0, of losses that are held below bounds while others are minimised.

    ``L_A = f + Σ_c [max(0, m_c + ρ_c g_c)² − m_c²] / 2ρ_c`` with ``g_c = L_c − bound_c``, then ``m_c ← max(0, m_c + ρ_c g_c)``, once an
    epoch [I]. The penalties are constant, ``ρ_c = penalty / bound_c²`` [I]: a violation as large as its bound costs ``penalty / 2`` for
    every constraint alike, whatever the bound's size, and the multipliers' growth does the rest.

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


class LearningStep:
    """Step (a), (b) or (d); its state is all in ``tensors`` and ``values``.

    Parameters
    ----------
    name : "a", "b" or "d".
    model : the detectors to learn, in place.
    batches : their positions.
    how : weights and rates, every entry set.
    multipliers : for the Lagrangian form, of the losses in ``CONSTRAINED``; None: the weighted form.
    uncertainty : gives (L_uur or L_cur, entropy in bits) of filters (r, I), thresholds (I,) and signal vectors; None: without it.
    printed : whether the manipulations are those without a ridge, ``(Wᵀ)⁺ z`` and ``S (WᵀS)⁺ z``, in W and b themselves. In unit filters
        they are the same where W has full rank; with more directions than channels the residual depends on the margins.
    settled : the step ends when its rate has fallen below this share of its start.
    """

    def __init__(
        self,
        name: str,
        model: Learnt,
        batches: Batches,
        how: StepSettings,
        multipliers: Multipliers | None,
        uncertainty: Alignment | None,
        *,
        gamma: float = 1.1,
        settled: float = 0.0,
        printed: bool = True,
    ) -> None:
        self.name, self.model, self.batches = name, model, batches
        self.how = cast(Any, how)  # every entry is set
        self.ranks = batches.all.ranks
        self.multipliers, self.uncertainty = multipliers, uncertainty
        self.gamma, self.end, self.printed = gamma, settled * self.how.learning_rate, printed
        self.optimiser = torch.optim.Adam(model.parameters(), lr=self.how.learning_rate)
        self.scheduler = ReduceLROnPlateau(
            self.optimiser,
            factor=0.5,
            patience=self.how.patience,
            cooldown=self.how.patience,
            threshold=THRESHOLD,
            threshold_mode="abs",
            eps=0.0,
        )
        self.epoch = 0
        self.merit = math.inf  # what the learning rate goes by, of the last epoch: comparable between epochs and starts

    @property
    def rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    @property
    def finished(self) -> bool:
        return self.epoch >= self.how.epochs or self.rate < self.end

    def learn(self) -> dict[str, float]:
        """One epoch; returns its row of the log: means over the epoch's batches of the loss and its terms."""
        rate, count = self.rate, self.batches.per_epoch
        means: dict[str, float] = {}
        for k in range(count):
            number = self.epoch * count + k
            self.optimiser.zero_grad()
            terms = self.gradients(self.batches.at(number))
            refuse_non_finite(terms["total"], number, rate, f"{self.name}.learning_rate")
            self.optimiser.step()
            if self.ranks.size > 1:  # two machines may round differently
                self.ranks.broadcast(*self.optimiser.param_groups[0]["params"])
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value / count
        row = {"stage": float(NUMBERS[self.name]), "epoch": float(self.epoch), **means, "learning_rate": rate}
        self.merit = means["total"]
        if self.multipliers is not None:
            row |= {f"multiplier_{name}": value for name, value in self.multipliers.values.items()}
            self.merit = means["objective"] + self.multipliers.violation(means)
            self.multipliers.update(means)
        if self.ranks.size > 1:
            merit = torch.tensor(self.merit, dtype=torch.float64, device=self.model.parameters()[0].device)
            self.ranks.broadcast(merit)  # the learning rate goes by it
            self.merit = float(merit)
        self.scheduler.step(self.merit)
        self.epoch += 1
        return row

    def gradients(self, rows: torch.Tensor | Positions) -> dict[str, float]:
        """Add the gradient of the step's loss on these rows to the parameters'; returns the loss ("total") and its terms."""
        how = self.how
        on_activation = how.lambda_ma
        if self.multipliers is not None:
            # the weight of a streamed loss must be known before its pass: one pass only for the value
            with torch.no_grad():
                filters, thresholds = self.model.linear()
                sums = streamed_sums(rows, filters, thresholds, RowWeights(0, 0), gamma=self.gamma, signals="none")
            on_activation = self.multipliers.weight("maximum_activation", sums.maximum_activation)
        weights = RowWeights(how.lambda_s, on_activation, how.lambda_sb)
        total, terms, sums = gradients(
            rows, self.model.linear(), weights, self._small, gamma=self.gamma, signals="none"
        )
        if self.multipliers is not None:
            activation = torch.tensor(sums.maximum_activation, dtype=torch.float64)
            total += float(self.multipliers.term("maximum_activation", activation))
            total -= on_activation * sums.maximum_activation
            objective = how.lambda_s * sums.sparsity + how.lambda_sb * terms.get("sparsity_bound", 0.0)
            terms["objective"] = objective + how.lambda_uncertainty * terms.get("uncertainty", 0.0)
        return {**terms, "total": total}

    def _small(self, sums: Sums, column: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses that are functions of I or I² numbers, and the uncertainty term, as they count in this form."""
        how, model = self.how, self.model
        signals = model.signals()
        terms = {
            "inactive": (how.lambda_ic, inactive_classifier(column, how.tau)),
            "margin": (how.lambda_mm, maximum_margin(model.inverse_margins())),
        }
        if "excessive" in CONSTRAINED[self.name]:
            terms["excessive"] = (how.lambda_eac, excessively_active(column, how.rho))
        if signals is not None:
            terms["orthogonality"] = (how.lambda_fso, filter_signal_orthogonality(model.unit(), signals))
        values = {name: float(value.detach()) for name, (_, value) in terms.items()}
        parts = [
            weight * value if self.multipliers is None else self.multipliers.term(name, value)
            for name, (weight, value) in terms.items()
        ]
        if self.uncertainty is not None:
            filters, thresholds = model.linear() if self.printed else (model.unit(), model.offsets())
            given = column.new_zeros(0) if signals is None else signals  # the manipulations of (a) and (b) need none
            value, values["entropy"] = self.uncertainty(filters, thresholds, given)
            values["uncertainty"] = float(value.detach())
            parts.append(how.lambda_uncertainty * value)
        return torch.stack(parts).sum(), values

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        found = {**self.model.tensors(), **adam_tensors(self.optimiser)}
        generator = getattr(self.uncertainty, "generator", None)
        return found if generator is None else {**found, "generator": generator.get_state()}

    def values(self) -> dict[str, Any]:
        """For a checkpoint."""
        scheduler = {name: getattr(self.scheduler, name) for name in SCHEDULER}
        multipliers = self.multipliers.values if self.multipliers else None
        return {"epoch": self.epoch, "rate": self.rate, "scheduler": scheduler, "multipliers": multipliers}

    def resume(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Restore all but the model, which the step was made with."""
        load_adam(self.optimiser, tensors)
        for group in self.optimiser.param_groups:
            group["lr"] = values["rate"]
        self.scheduler.load_state_dict({name: values["scheduler"][name] for name in SCHEDULER})
        if self.multipliers is not None:
            self.multipliers.values = {name: values["multipliers"][name] for name in self.multipliers.values}
        generator = getattr(self.uncertainty, "generator", None)
        if generator is not None:
            generator.set_state(tensors["generator"])
        self.epoch = values["epoch"]
