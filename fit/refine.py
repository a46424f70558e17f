"""The refinement: Adam with cosine decay on the paper's losses, from detectors that a start gave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from fit.checkpoint import Checkpoint, State
from fit.config import EDDPConfig, Regime
from fit.detectors import Detectors
from fit.losses import (
    RowWeights,
    Sums,
    correlated_logits,
    excessively_active,
    filter_signal_orthogonality,
    gradients,
    inactive_classifier,
    streamed_sums,
)
from fit.optim import Plateau, adam_tensors, forget_columns, load_adam, refuse_non_finite
from fit.positive_stats import Wanted
from fit.reinit_dead import reseed
from fit.row_sources import Batches, Positions, positions
from fit.signals import Moments, pooled_signals, signals_from_sums
from fit.uncertainty import Uncertainty
from stores.progress import Progress, silent

RESEED_AT = (0.2, 0.4)  # of all steps: detectors that found nothing by then start again
TOLERANCE = 1e-4  # share of the loss: what a step must gain to count as progress


@dataclass(frozen=True)
class Refined:
    """``signals`` (r, I), not normalised; ``log``: a row a step; ``reseeded``: how many detectors started again."""

    detectors: Detectors
    signals: torch.Tensor
    log: list[dict[str, float]]
    reseeded: int


def refine(
    rows: torch.Tensor | Positions,
    detectors: Detectors | None,
    config: EDDPConfig,
    regime: Regime,
    moments: Moments,
    uncertainty: Uncertainty | None = None,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    state: State | None = None,
    about: dict[str, Any] | None = None,
) -> Refined:
    """Refine detectors (or resume from ``state``) on all positions; ``about`` is stored with every state.

    Estimated signal vectors are constants for the gradient: as free parameters they drift away from the filters, and
    differentiating through the estimate does worse still.
    """
    checkpoint = checkpoint or Checkpoint()
    data = positions(rows)
    with checkpoint.resuming(state):
        if state is not None:
            i = state.tensors["directions"].shape[1]
            shapes = {"directions": (data.rank, i), "offsets": (i,), "log_margins": (i,)}
            state.check(shapes | {name: shapes["directions"] for name in ("signals", "held") if name in state.tensors})
            detectors = Detectors.from_tensors(state.tensors, data.device)
        assert detectors is not None
        detectors = Detectors(*(t.detach().clone().requires_grad_(True) for t in detectors.parameters()))
        descent = _Descent(data, detectors, config, regime, moments, uncertainty, state)
    for step in range(descent.step, config.refine_steps):
        row = descent.take(step)
        progress("refinement", step + 1, config.refine_steps, f"loss {row['total']:.3f}")
        if descent.settled:
            break
        if checkpoint.due:
            checkpoint.save(descent.tensors(), {**descent.values(step + 1), **(about or {})})
    return Refined(detectors, descent.final_signals(), descent.log, descent.reseeded)


class _Descent:
    """The state of a refinement, all of it in ``tensors`` and ``values``."""

    def __init__(
        self,
        rows: Positions,
        detectors: Detectors,
        config: EDDPConfig,
        regime: Regime,
        moments: Moments,
        uncertainty: Uncertainty | None,
        state: State | None,
    ) -> None:
        self.detectors, self.config, self.regime = detectors, config, regime
        self.moments, self.uncertainty = moments, uncertainty
        self.weights = RowWeights(config.lambda_s, regime.lambda_ma, config.lambda_sb)
        self.batches = Batches(rows, config.batch_rows, config.seed)
        self.plateau = Plateau(config.patience, TOLERANCE)
        self.settled, self.step, self.reseeded = False, 0, 0
        self.log: list[dict[str, float]] = []
        self.free: torch.Tensor | None = None
        self.held: torch.Tensor | None = None  # signal vectors of this epoch, with batches
        others = [detectors.offsets, detectors.log_margins]
        if config.signals == "free":
            # a state's are not normalised again: the fit would continue with other bits
            first = state.tensors["signals"].to(rows.device) if state else F.normalize(self._estimate_on_all(), dim=0)
            self.free = first.detach().clone().requires_grad_(True)
            others.append(self.free)
        # Adam moves each of the r numbers of a direction by its rate: together they turn it √r times as far
        self.optimiser = torch.optim.Adam(
            [{"params": [detectors.directions]}, {"params": others}], lr=regime.learning_rate
        )
        if state is not None:
            self._resume(state)

    def take(self, step: int) -> dict[str, float]:
        """One step of the descent; returns its row of the log."""
        config, rate = self.config, self.regime.learning_rate
        if config.reseed and step in {int(share * config.refine_steps) for share in RESEED_AT} - {0}:
            self._reseed(step)
        rate = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.refine_steps)))
        directions, others = self.optimiser.param_groups
        directions["lr"], others["lr"] = self.regime.direction_rate * rate, rate
        if step % self.batches.per_epoch == 0 and not self.batches.full and self.free is None:
            self.held = self._estimate_on_all()
        estimates: Wanted = "none"
        if self.batches.full and config.signals != "free":
            estimates = config.signals
        self.optimiser.zero_grad()
        total, terms, _ = gradients(
            self.batches.at(step),
            self.detectors.linear(),
            self.weights,
            self._small,
            gamma=config.gamma,
            signals=estimates,
        )
        refuse_non_finite(total, step, self.regime.learning_rate)
        self.optimiser.step()
        row = {"step": step, **terms, "learning_rate": rate}
        self.log.append(row)
        # the uncertainty term changes with its images and κ: it would never look settled
        steady = total - config.lambda_uncertainty * terms.get("uncertainty", 0.0)
        self.settled = self.plateau.reached(steady) and self.batches.full
        self._agree()
        return row

    def _agree(self) -> None:
        """Every rank has taken the same step; but two machines may round differently, and a decision must be one."""
        ranks = self.batches.all.ranks
        if ranks.size > 1:
            settled = torch.tensor(float(self.settled), device=self.detectors.offsets.device)
            ranks.broadcast(*(t for group in self.optimiser.param_groups for t in group["params"]), settled)
            self.settled = bool(settled)

    def _small(self, sums: Sums, column: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """The losses that are functions of I or I² numbers, and the uncertainty term, weighted."""
        config, regime, detectors = self.config, self.regime, self.detectors
        signals = self.free if self.free is not None else self.held
        if signals is None:
            with torch.no_grad():
                signals = self._estimate(sums)
        inverse = detectors.inverse_margins().mean()
        covariance, most = self.moments.covariance, config.max_correlation
        terms = {
            "inactive": (config.lambda_ic, inactive_classifier(column, regime.tau)),
            "excessive": (config.lambda_eac, excessively_active(column, regime.rho)),
            "margin": (config.lambda_mm, F.relu(inverse / config.max_inverse_margin - 1)),
            "orthogonality": (config.lambda_fso, filter_signal_orthogonality(detectors.unit(), signals)),
            "correlation": (config.lambda_cl, correlated_logits(detectors.unit(), covariance, most)),
        }
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        values: dict[str, float] = {name: float(value.detach()) for name, (_, value) in terms.items()}
        values["inverse_margin"] = float(inverse.detach())
        if self.uncertainty is not None:
            term, entropy = self.uncertainty(detectors.unit(), detectors.offsets, signals)
            loss = loss + config.lambda_uncertainty * term
            values["uncertainty"], values["entropy"] = float(term.detach()), entropy
        return loss, values

    def _estimate(self, sums: Sums) -> torch.Tensor:
        filters = self.detectors.linear()[0].detach()
        if self.config.signals == "pooled":
            return pooled_signals(sums, filters, self.moments)
        return signals_from_sums(sums, filters)

    @torch.no_grad()
    def _sums_of_all(self) -> Sums:
        return streamed_sums(self.batches.all, *self.detectors.linear(), self.weights, gamma=self.config.gamma)

    def _estimate_on_all(self) -> torch.Tensor:
        return self._estimate(self._sums_of_all())

    def final_signals(self) -> torch.Tensor:
        """Of the detectors as they ended, on all positions."""
        return self.free.detach() if self.free is not None else self._estimate_on_all()

    def _reseed(self, step: int) -> None:
        renewed = reseed(self.batches.all, self.detectors, self._sums_of_all(), seed=self.config.seed + step)
        if len(renewed):
            forget_columns(self.optimiser, renewed)
            self.reseeded += len(renewed)
            self.plateau.best, self.plateau.waited = math.inf, 0
            if self.held is not None:
                self.held = self._estimate_on_all()

    def tensors(self) -> dict[str, torch.Tensor]:
        own = {"signals": self.free, "held": self.held}
        found = {**self.detectors.tensors(), **adam_tensors(self.optimiser)}
        found |= {name: tensor for name, tensor in own.items() if tensor is not None}
        return found if self.uncertainty is None else {**found, "generator": self.uncertainty.generator.get_state()}

    def values(self, step: int) -> dict[str, Any]:
        plateau = [self.plateau.best, self.plateau.waited]
        return {"step": step, "log": self.log, "reseeded": self.reseeded, "plateau": plateau}

    def _resume(self, state: State) -> None:
        load_adam(self.optimiser, state.tensors)
        if self.uncertainty is not None:
            self.uncertainty.generator.set_state(state.tensors["generator"])
        if "held" in state.tensors:
            self.held = state.tensors["held"].to(self.detectors.offsets.device)
        self.step, self.log, self.reseeded = (state.values[name] for name in ("step", "log", "reseeded"))
        self.plateau.best, self.plateau.waited = state.values["plateau"]
