"""From one published step to the next, from a checkpoint or from random filters, up to detectors in activation space."""

from __future__ import annotations

from typing import Literal

import torch

from extract.network import Head
from fit.alignment import Manipulation, Uncertainty
from fit.batches import Batches
from fit.checkpoint import Checkpoint, State
from fit.losses import RowWeights, longest_tile, streamed_sums
from fit.paper.config import CBEConfig, UIBEConfig
from fit.paper.lagrangian import Multipliers
from fit.paper.orthonormal import Orthonormal
from fit.paper.separate import Separate, plain, released, standardised
from fit.paper.steps import CONSTRAINED, LearningStep
from fit.row_sources import Positions, Stored, positions_of
from fit.signals import signals_from_sums
from fit.whiten import WhitenedRows, Whitening, whiten_store
from stores.errors import FitError
from stores.progress import Progress
from stores.ranks import ALONE, Ranks
from stores.readers import LayerReader
from stores.statistics import Statistics


class Stages:
    """A fit by the steps named in ``stages``, the first of them "a"; ``head`` is used where a step weighs L_uur or L_cur.

    ``log``: a row an epoch. ``epochs``: how many each step took. ``kind``: of head that uncertainty regions were aligned with.
    """

    def __init__(
        self,
        config: UIBEConfig,
        stages: tuple[str, ...],
        reader: LayerReader,
        head: Head | None,
        moments: Statistics,
        progress: Progress,
        checkpoint: Checkpoint,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.stages, self.ranks = config, stages, ranks
        self.how = self.config.in_force
        self.reader, self.head, self.progress, self.checkpoint = reader, head, progress, checkpoint
        self.standard = standardised(moments).to(self.config.device)
        self.activations = plain(self.standard, centre=self.how.centre)
        self.log: list[dict[str, float]] = []
        self.epochs: dict[str, int] = {}
        weighted = any(self.how.steps[name].lambda_uncertainty and self.how.steps[name].epochs for name in self.stages)
        self.kind = "none" if head is None or not weighted else "pooled-affine" if head.affine else "general"
        r, i = self.standard.rank, self.config.n_directions
        if i > r:
            raise FitError(
                f"Orthonormal filters (step a) can be at most as many as the channels that vary: layer '{reader.spec.name}' has "
                f"{r}, got {i} directions. Ask for --directions {r} or fewer, or fit by --method eddp --steps fast."
            )

    def run(self, state: State | None) -> tuple[Separate, torch.Tensor, Positions]:
        """All stages, or those from the state's on; detectors, signal vectors (r, I) and rows, in activation space."""
        current, i = "a", self.config.n_directions
        if state:
            with self.checkpoint.resuming(state):
                current = self.stages[self.stages.index(state.values["stage"])]
                self.log, self.epochs = state.values["log"], state.values["epochs"]
        model: Separate | None = None
        if current == "a":
            found = self._orthonormal(state)
            model = released(found, self.standard, self.activations)
        rows, data = self._rows(self.activations)
        for name in self.stages[self.stages.index(current) :]:
            if name == "a":
                continue
            going_on = state if name == current else None
            if going_on is None and name == "d":
                assert model is not None
                model = model.with_signals(self._signals(model, rows))  # (c)
            with self.checkpoint.resuming(going_on):
                if going_on is not None:
                    shapes = {"directions": (self.activations.rank, i), "log_margins": (i,), "thresholds": (i,)}
                    going_on.check(shapes | ({"encoding": shapes["directions"]} if name == "d" else {}))
                    model = Separate.from_tensors(going_on.tensors, self.config.device)
                assert model is not None
                step = self._step(name, model, rows, data, self.activations, going_on)
            self._learn(step)
        assert model is not None
        signals = model.signals()
        return model, self._signals(model, rows) if signals is None else signals.detach(), rows

    def _orthonormal(self, state: State | None) -> Orthonormal:
        """Step (a), from the state or from the best of its random starts."""
        config, device = self.config, self.config.device
        rows, data = self._rows(self.standard)
        if state is not None:
            with self.checkpoint.resuming(state):
                r = self.standard.rank
                state.check({"free": (r, config.n_directions), "base": (r, r), "log_margin": (), "threshold": ()})
                model = Orthonormal.from_tensors(state.tensors, device)
                step = self._step("a", model, rows, data, self.standard, state)
            self._learn(step)
            return model
        begun: list[tuple[float, Orthonormal, LearningStep, list[dict[str, float]]]] = []
        for turn in range(self.how.restarts):
            model = Orthonormal.random(
                self.standard.rank,
                config.n_directions,
                margin=config.margin,
                tau=self.how.steps["a"].tau,
                seed=config.seed + 1000 * turn,
                device=device,
            )
            step = self._step("a", model, rows, data, self.standard, None)
            begun.append((0.0, model, step, []))
            if self.how.restarts > 1:
                begun[-1] = self._try(model, step, turn)
        _, model, step, self.log = min(begun, key=lambda turn: turn[0])
        self._learn(step)
        return model

    def _try(
        self, model: Orthonormal, step: LearningStep, turn: int
    ) -> tuple[float, Orthonormal, LearningStep, list[dict[str, float]]]:
        rows: list[dict[str, float]] = []
        for done in range(self.config.restart_epochs):
            if step.finished:
                break
            rows.append({"step": float(done), **step.learn()})
            at, total = (epochs * self.config.restart_epochs for epochs in (turn, self.how.restarts))
            self.progress("random starts", at + done + 1, total, f"loss {step.merit:.3f}")
        return (step.merit if rows else 0.0, model, step, rows)

    def _learn(self, step: LearningStep) -> None:
        """All epochs that are left of a step, each with its row of the log and, when it is time, its checkpoint."""
        while not step.finished:
            row = step.learn()
            self.log.append({"step": float(len(self.log)), **row})
            self.progress(f"step {step.name}", step.epoch, step.how.epochs, f"loss {row['total']:.3f}")
            if self.checkpoint.due:
                values = {"stage": step.name, "log": self.log, "epochs": self.epochs, **step.values()}
                self.checkpoint.save(step.tensors(), values)
        self.epochs[step.name] = step.epoch

    def _step(
        self,
        name: str,
        model: Orthonormal | Separate,
        rows: Positions,
        data: WhitenedRows,
        transform: Whitening,
        state: State | None,
    ) -> LearningStep:
        how, config = self.how.steps[name], self.config
        uncertainty, printed = None, True
        if self.head is not None and isinstance(config, CBEConfig) and how.lambda_uncertainty and how.epochs:
            kind: Literal["constrained", "unconstrained"] = "constrained" if name == "d" else "unconstrained"
            ridge = config.uncertainty_ridge
            manipulation = Manipulation(kind, config.uncertainty_objective, ridge, config.uncertainty_images)
            uncertainty = Uncertainty(manipulation, transform, data, self.reader, self.head, config.seed)
            printed = kind == "unconstrained" or ridge == 0
        multipliers = None
        if self.how.form == "lagrangian":
            bounds = {
                "maximum_activation": how.bound_ma,
                "margin": how.bound_mm,
                "inactive": how.bound_ic,
                "excessive": how.bound_eac,
                "orthogonality": how.bound_fso,
            }
            multipliers = Multipliers({loss: bounds[loss] for loss in CONSTRAINED[name]}, config.penalty)
        batches = Batches(rows, self.how.batch_rows, config.seed)
        step = LearningStep(
            name,
            model,
            batches,
            how,
            multipliers,
            uncertainty,
            gamma=config.gamma,
            settled=config.settled,
            printed=printed,
        )
        if state is not None:
            step.go_on(state.tensors, state.values)
        return step

    def _rows(self, transform: Whitening) -> tuple[Positions, WhitenedRows]:
        """The positions in a step's coordinates."""
        config = self.config
        most, device = config.max_rows if config.rows == "memory" else 1, torch.device(config.device)
        data = whiten_store(
            self.reader,
            transform,
            max_rows=most,
            seed=config.seed,
            device=config.device,
            progress=self.progress,
            ranks=self.ranks,
            longest=longest_tile(transform.rank, device),
        )
        if config.rows == "memory":
            return positions_of(data), data
        return Stored(self.reader, transform, config.device, self.ranks), data

    @torch.no_grad()
    def _signals(self, model: Separate, rows: Positions) -> torch.Tensor:
        """Step (c): signal vectors over the positives of each detector (paper, §3.3)."""
        filters, thresholds = model.linear()
        sums = streamed_sums(rows, filters, thresholds, RowWeights(0, 0), gamma=self.config.gamma)
        return signals_from_sums(sums, filters)
