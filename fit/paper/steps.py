"""One learning step of the paper: epochs of Adam on its losses, weighted or by the augmented Lagrangian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fit.alignment import Detecting
from fit.batches import Batches
from fit.gradients import gradients
from fit.losses import (
    RowWeights,
    Sums,
    excessively_active,
    filter_signal_orthogonality,
    inactive_classifier,
    maximum_margin,
    streamed_sums,
)
from fit.optim import adam_tensors, load_adam, refuse_non_finite
from fit.paper.config import NUMBERS, Step
from fit.paper.lagrangian import Multipliers
from fit.row_sources import Positions, ranks_of

THRESHOLD = 1e-4  # by how much a loss must fall to count as lower; −H makes losses negative, so no share of it
SCHEDULER = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
CONSTRAINED = {
    "a": ("maximum_activation", "margin", "inactive"),
    "b": ("maximum_activation", "margin", "inactive", "excessive"),
    "d": ("maximum_activation", "margin", "inactive", "excessive", "orthogonality"),
}  # what step (a), (b), (d) keeps below a bound


class Learnt(Detecting, Protocol):
    """The detectors of a step."""

    def parameters(self) -> list[torch.Tensor]: ...

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]: ...

    def inverse_margins(self) -> torch.Tensor: ...

    def signals(self) -> torch.Tensor | None: ...

    def tensors(self) -> dict[str, torch.Tensor]: ...


Alignment = Callable[[Detecting, torch.Tensor], tuple[torch.Tensor, float]]


class AsPrinted:
    """Detectors for the printed manipulations ``(Wᵀ)⁺ z``, ``S (WᵀS)⁺ z``: with W, b and z themselves in place of unit filters.

    Both give the same where W has full rank. With more directions than channels the pseudo-inverse leaves a residual, and
    which one depends on the margins.
    """

    def __init__(self, detectors: Learnt) -> None:
        self._filters, self._thresholds = detectors.linear()

    def unit(self) -> torch.Tensor:
        return self._filters

    @property
    def offsets(self) -> torch.Tensor:
        return self._thresholds


class LearningStep:
    """Step (a), (b) or (d); its state is all in ``tensors`` and ``values``.

    Parameters
    ----------
    name : "a", "b" or "d".
    model : the detectors to learn, in place.
    batches : their positions.
    how : weights and rates.
    multipliers : for the Lagrangian form, of the losses in ``CONSTRAINED``; None: the weighted form.
    uncertainty : gives (L_uur or L_cur, entropy in bits); None: without it.
    printed : whether the manipulation is the one without a ridge, see ``AsPrinted``.
    settled : the step ends when its rate has fallen below this share of its start.
    """

    def __init__(
        self,
        name: str,
        model: Learnt,
        batches: Batches,
        how: Step,
        multipliers: Multipliers | None,
        uncertainty: Alignment | None,
        *,
        gamma: float = 1.1,
        settled: float = 0.0,
        printed: bool = True,
    ) -> None:
        self.name, self.model, self.batches, self.how = name, model, batches, how
        self.ranks = ranks_of(batches.all)
        self.multipliers, self.uncertainty = multipliers, uncertainty
        self.gamma, self.end, self.printed = gamma, settled * how.learning_rate, printed
        self.optimiser = torch.optim.Adam(model.parameters(), lr=how.learning_rate)
        self.scheduler = ReduceLROnPlateau(
            self.optimiser,
            factor=0.5,
            patience=how.patience,
            cooldown=how.patience,
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
            # the weight of a streamed loss must be known before its pass: one pass for the value alone
            with torch.no_grad():
                filters, thresholds = self.model.linear()
                sums = streamed_sums(rows, filters, thresholds, RowWeights(0, 0), gamma=self.gamma, signals="none")
            on_activation = self.multipliers.weight("maximum_activation", sums.maximum_activation)
        weights = RowWeights(how.lambda_s, on_activation, how.lambda_sb)
        total, terms, sums = gradients(rows, self.model, weights, self._small, gamma=self.gamma, signals="none")
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
            assert how.rho is not None
            terms["excessive"] = (how.lambda_eac, excessively_active(column, how.rho))
        if signals is not None:
            terms["orthogonality"] = (how.lambda_fso, filter_signal_orthogonality(model.unit(), signals))
        values = {name: float(value.detach()) for name, (_, value) in terms.items()}
        parts = [
            weight * value if self.multipliers is None else self.multipliers.term(name, value)
            for name, (weight, value) in terms.items()
        ]
        if self.uncertainty is not None:
            detectors = AsPrinted(model) if self.printed else model
            nowhere = column.new_zeros(0)  # (a) and (b) know no signal vectors, and their manipulation needs none
            value, values["entropy"] = self.uncertainty(detectors, nowhere if signals is None else signals)
            values["uncertainty"] = float(value.detach())
            parts.append(how.lambda_uncertainty * value)
        return torch.stack(parts).sum(), values

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        kept = {**self.model.tensors(), **adam_tensors(self.optimiser)}
        generator = getattr(self.uncertainty, "generator", None)
        return kept if generator is None else {**kept, "generator": generator.get_state()}

    def values(self) -> dict[str, Any]:
        """For a checkpoint."""
        scheduler = {name: getattr(self.scheduler, name) for name in SCHEDULER}
        multipliers = self.multipliers.values if self.multipliers else None
        return {"epoch": self.epoch, "rate": self.rate, "scheduler": scheduler, "multipliers": multipliers}

    def go_on(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Put back all but the model, which the step was made with."""
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
