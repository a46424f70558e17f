"""The refinement: Adam with cosine decay on the paper's losses, from detectors that a start gave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from fit.alignment import Uncertainty
from fit.batches import Batches
from fit.checkpoint import Checkpoint, State
from fit.detectors import Detectors
from fit.gradients import gradients
from fit.losses import (
    RowWeights,
    Sums,
    correlated_logits,
    excessively_active,
    filter_signal_orthogonality,
    inactive_classifier,
    streamed_sums,
)
from fit.optim import Plateau, adam_tensors, forget_columns, load_adam, refuse_non_finite
from fit.positive_stats import Wanted
from fit.reinit_dead import reseed
from fit.row_sources import Positions, positions, ranks_of
from fit.signals import Moments, pooled_signals, signals_from_sums
from stores.progress import Progress, silent

RESEED_AT = (0.2, 0.4)  # of all steps: detectors that found nothing by then begin anew
TOLERANCE = 1e-4  # share of the loss: what a step must gain to count as progress


@dataclass(frozen=True)
class Refinement:
    """Weights and steps; see ``fit.config.EDDPConfig``. ``rho`` is a number here."""

    rho: float
    steps: int
    seed: int
    learning_rate: float
    direction_rate: float
    batch_rows: int
    patience: int
    reseed: bool
    signals: Literal["pooled", "positives", "free"]
    lambda_s: float
    lambda_sb: float
    lambda_ma: float
    lambda_ic: float
    lambda_eac: float
    lambda_mm: float
    lambda_fso: float
    lambda_cl: float
    lambda_uncertainty: float
    tau: float
    gamma: float
    max_inverse_margin: float
    max_correlation: float


@dataclass(frozen=True)
class Refined:
    """``signals`` (r, I), not normalised; ``log``: a row a step; ``reseeded``: how many detectors began anew."""

    detectors: Detectors
    signals: torch.Tensor
    log: list[dict[str, float]]
    reseeded: int


def refine(
    rows: torch.Tensor | Positions,
    detectors: Detectors | None,
    how: Refinement,
    moments: Moments,
    uncertainty: Uncertainty | None = None,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    state: State | None = None,
    about: dict[str, Any] | None = None,
) -> Refined:
    """Refine detectors (or go on from ``state``) on all positions; ``about`` is kept with every state.

    Estimated signal vectors are constants for the gradient: as free parameters they drift away from the filters, and
    differentiating through the estimate does worse still.
    """
    checkpoint = checkpoint or Checkpoint()
    with checkpoint.resuming(state):
        if state is not None:
            where = positions(rows).device  # the file was read on the CPU
            detectors = Detectors(*(state.tensors[name].to(where) for name in ("directions", "offsets", "log_margins")))
            i = detectors.directions.shape[1]
            shapes = {"directions": (positions(rows).rank, i), "offsets": (i,), "log_margins": (i,)}
            state.check(shapes | {name: shapes["directions"] for name in ("signals", "held") if name in state.tensors})
        assert detectors is not None
        detectors = Detectors(*(t.detach().clone().requires_grad_(True) for t in detectors.parameters()))
        run = _Run(rows, detectors, how, moments, uncertainty, state)
    for step in range(run.step, how.steps):
        row = run.take(step)
        progress("refinement", step + 1, how.steps, f"loss {row['total']:.3f}")
        if run.settled:
            break
        if checkpoint.due:
            checkpoint.save(run.tensors(), {**run.values(step + 1), **(about or {})})
    return Refined(detectors, run.final_signals(), run.log, run.reseeded)


class _Run:
    """The state of a refinement, all of it in ``tensors`` and ``values``."""

    def __init__(
        self,
        rows: torch.Tensor | Positions,
        detectors: Detectors,
        how: Refinement,
        moments: Moments,
        uncertainty: Uncertainty | None,
        state: State | None,
    ) -> None:
        self.detectors, self.how, self.moments, self.uncertainty = detectors, how, moments, uncertainty
        self.weights = RowWeights(how.lambda_s, how.lambda_ma, how.lambda_sb)
        self.batches = Batches(rows, how.batch_rows, how.seed)
        self.ranks = ranks_of(self.batches.all)
        self.free: torch.Tensor | None = None
        self.held: torch.Tensor | None = None  # signal vectors of this epoch, with batches
        others = [detectors.offsets, detectors.log_margins]
        if how.signals == "free":
            # a state's are taken as they are: normalised again, the fit would go on to other bits
            if state is not None:
                begun = state.tensors["signals"].to(detectors.offsets.device)
            else:
                begun = F.normalize(self._estimate_on_all(), dim=0)
            self.free = begun.detach().clone().requires_grad_(True)
            others = [*others, self.free]
        # Adam moves each of the r numbers of a direction by its rate: together they turn it √r times as far
        self.optimiser = torch.optim.Adam(
            [{"params": [detectors.directions]}, {"params": others}], lr=how.learning_rate
        )
        self.plateau = Plateau(how.patience, TOLERANCE)
        self.step, self.log, self.reseeded = 0, [], 0  # type: int, list[dict[str, float]], int
        if state is not None:
            self._go_on(state)

    @property
    def settled(self) -> bool:
        return self._settled

    def take(self, step: int) -> dict[str, float]:
        """One step of the descent; returns its row of the log."""
        how = self.how
        if how.reseed and step in {int(share * how.steps) for share in RESEED_AT} - {0}:
            self._reseed(step)
        rate = how.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / how.steps)))
        directions, others = self.optimiser.param_groups
        directions["lr"], others["lr"] = how.direction_rate * rate, rate
        if self.batches.new_epoch(step) and not self.batches.full and self.free is None:
            self.held = self._estimate_on_all()
        estimates: Wanted = "none"
        if self.batches.full and how.signals != "free":
            estimates = how.signals
        self.optimiser.zero_grad()
        total, terms, _ = gradients(
            self.batches.at(step), self.detectors, self.weights, self._small, gamma=how.gamma, signals=estimates
        )
        refuse_non_finite(total, step, how.learning_rate)
        self.optimiser.step()
        row = {"step": step, **terms, "learning_rate": rate}
        self.log.append(row)
        # the uncertainty term changes with its images and κ: it would never look settled
        steady = total - how.lambda_uncertainty * terms.get("uncertainty", 0.0)
        self._settled = self.plateau.reached(steady) and self.batches.full
        self._agree()
        return row

    def _agree(self) -> None:
        """Every rank has taken the same step; but two machines may round differently, and a decision must be one."""
        if self.ranks.size > 1:
            settled = torch.tensor(float(self._settled), device=self.detectors.offsets.device)
            parameters = [t for group in self.optimiser.param_groups for t in group["params"]]
            self.ranks.broadcast(*parameters, settled)
            self._settled = bool(settled)

    def _small(self, sums: Sums, column: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses that are functions of I or I² numbers, and the uncertainty term, weighted."""
        how, detectors = self.how, self.detectors
        signals = self.free if self.free is not None else self.held
        if signals is None:
            with torch.no_grad():
                signals = self._estimate(sums)
        inverse = detectors.inverse_margins().mean()
        terms = {
            "inactive": (how.lambda_ic, inactive_classifier(column, how.tau)),
            "excessive": (how.lambda_eac, excessively_active(column, how.rho)),
            "margin": (how.lambda_mm, F.relu(inverse / how.max_inverse_margin - 1)),
            "orthogonality": (how.lambda_fso, filter_signal_orthogonality(detectors.unit(), signals)),
            "correlation": (
                how.lambda_cl,
                correlated_logits(detectors.unit(), self.moments.covariance, how.max_correlation),
            ),
        }
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        values: dict[str, float] = {name: float(value.detach()) for name, (_, value) in terms.items()}
        values["inverse_margin"] = float(inverse.detach())
        if self.uncertainty is not None:
            term, entropy = self.uncertainty(detectors, signals)
            loss = loss + how.lambda_uncertainty * term
            values["uncertainty"], values["entropy"] = float(term.detach()), entropy
        return loss, values

    def _estimate(self, sums: Sums) -> torch.Tensor:
        filters = self.detectors.linear()[0].detach()
        if self.how.signals == "pooled":
            return pooled_signals(sums, filters, self.moments)
        return signals_from_sums(sums, filters)

    @torch.no_grad()
    def _sums_of_all(self) -> Sums:
        filters, thresholds = self.detectors.linear()
        return streamed_sums(self.batches.all, filters, thresholds, self.weights, gamma=self.how.gamma)

    def _estimate_on_all(self) -> torch.Tensor:
        return self._estimate(self._sums_of_all())

    def final_signals(self) -> torch.Tensor:
        """Of the detectors as they ended, on all positions."""
        return self.free.detach() if self.free is not None else self._estimate_on_all()

    def _reseed(self, step: int) -> None:
        renewed = reseed(self.batches.all, self.detectors, self._sums_of_all(), seed=self.how.seed + step)
        if len(renewed):
            forget_columns(self.optimiser, renewed)
            self.reseeded += len(renewed)
            self.plateau.best, self.plateau.waited = math.inf, 0
            if self.held is not None:
                self.held = self._estimate_on_all()

    def tensors(self) -> dict[str, torch.Tensor]:
        kept = {**self.detectors.tensors(), **adam_tensors(self.optimiser)}
        if self.free is not None:
            kept["signals"] = self.free
        if self.held is not None:
            kept["held"] = self.held
        if self.uncertainty is not None:
            kept["generator"] = self.uncertainty.generator.get_state()
        return kept

    def values(self, step: int) -> dict[str, Any]:
        plateau = [self.plateau.best, self.plateau.waited]
        return {"step": step, "log": self.log, "reseeded": self.reseeded, "plateau": plateau}

    def _go_on(self, state: State) -> None:
        load_adam(self.optimiser, state.tensors)
        if self.uncertainty is not None:
            self.uncertainty.generator.set_state(state.tensors["generator"])
        if "held" in state.tensors:
            self.held = state.tensors["held"].to(self.detectors.offsets.device)
        self.step, self.log, self.reseeded = (state.values[name] for name in ("step", "log", "reseeded"))
        self.plateau.best, self.plateau.waited = state.values["plateau"]

    _settled = False
