"""EDDP in its published steps (arXiv 2509.23926, §3.4), and UIBE and CBE, which are its first one.

(a) orthonormal filters in standardised space, one margin and one threshold; (b) the same detectors in activation space,
each on its own; (c) signal vectors from the filters; (d) filters and signal vectors jointly.

Our own steps, faster and better at recovering what is known to be there (BENCHMARKS.md), are ``fit.eddp``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint, State
from fit.detectors import in_activation_space
from fit.diagnostics import diagnose
from fit.losses import RowWeights, longest_tile, streamed_sums
from fit.paper.config import CBEConfig, PaperConfig, UIBEConfig
from fit.paper.coordinates import Learnt, Orthonormal, Separate, plain, released, standardised
from fit.paper.step import BOUNDS, CONSTRAINED, LearningStep, Multipliers
from fit.row_sources import Batches, Positions, Stored, positions
from fit.signals import signals_from_sums
from fit.uncertainty import Uncertainty, usable_head
from fit.whiten import WhitenedRows, Whitening, whiten_store
from stores.errors import FitError
from stores.progress import Progress
from stores.ranks import Ranks
from stores.readers import LayerReader
from stores.statistics import Statistics, statistics

Config = TypeVar("Config", bound=UIBEConfig)


class _Published(Fitter[Config]):
    """What the three have in common: they take ``stages`` in order, and end in activation space."""

    resumes: ClassVar[bool] = True
    spreads: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ("a",)

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Fit on the positions of a layer; ``head`` is for uncertainty region alignment.

        Raises FitError when the activations do not vary, or when there are more directions than channels that do.
        """
        state = checkpoint.load()
        moments = statistics(reader, device=self.config.device, progress=progress, ranks=self.ranks)
        head = usable_head(reader.spec, head) if isinstance(self.config, CBEConfig) else None
        fit = _Fit(self.config, reader, head, moments, progress, checkpoint, self.ranks)
        model, signals, rows = fit.run(self.stages, state)
        filters, thresholds = model.linear()
        steps = [fit.how.steps[name] for name in self.stages]
        aligned = head is not None and any(step.lambda_uncertainty and step.epochs for step in steps)
        return self.fitted(
            reader,
            *in_activation_space(fit.activations, model.detectors(), signals),
            mean=moments.mean,
            log=fit.log,
            in_force=asdict(self.config.in_force),
            channels_used=fit.standard.rank,
            positions=rows.count,
            uncertainty="none" if not aligned else "pooled-affine" if head and head.affine else "general",
            steps=len(fit.log),
            epochs=fit.epochs,
            diagnosis=diagnose(rows, filters.detach(), thresholds.detach(), signals),
        )


class _Fit:
    """One fit. ``log``: a row an epoch; ``epochs``: how many each step took."""

    def __init__(
        self,
        config: UIBEConfig,
        reader: LayerReader,
        head: Head | None,
        moments: Statistics,
        progress: Progress,
        checkpoint: Checkpoint,
        ranks: Ranks,
    ) -> None:
        self.config, self.how, self.reader, self.head = config, config.in_force, reader, head
        self.progress, self.checkpoint, self.ranks = progress, checkpoint, ranks
        self.standard = standardised(moments).to(config.device)
        self.activations = plain(self.standard, centre=self.how.centre)
        self.log: list[dict[str, float]] = []
        self.epochs: dict[str, int] = {}
        r, i = self.standard.rank, config.n_directions
        if i > r:
            raise FitError(
                f"Orthonormal filters (step a) can be at most as many as the channels that vary: layer '{reader.spec.name}' has "
                f"{r}, got {i} directions. Ask for --directions {r} or fewer, or fit by --method eddp --steps fast."
            )

    def run(self, stages: tuple[str, ...], state: State | None) -> tuple[Separate, torch.Tensor, Positions]:
        """All stages, or those from the state's on; detectors, signal vectors (r, I) and rows, in activation space."""
        current = "a"
        if state:
            with self.checkpoint.resuming(state):
                current = stages[stages.index(state.values["stage"])]
                self.log, self.epochs = state.values["log"], state.values["epochs"]
        model: Separate | None = None
        if current == "a":
            model = released(self._orthonormal(state), self.standard, self.activations)
        rows, data = self._rows(self.activations)
        for name in stages[max(1, stages.index(current)) :]:
            resumed = state if name == current else None
            if model is not None and name == "d":
                signals = F.normalize(self._signals(model, rows), dim=0)  # (c)
                model = Separate(model.directions, model.log_margins, model.thresholds, signals)
            with self.checkpoint.resuming(resumed):
                if resumed is not None:
                    i = (self.config.n_directions,)
                    shapes = {"directions": (self.activations.rank, *i), "log_margins": i, "thresholds": i}
                    resumed.check(shapes | ({"encoding": shapes["directions"]} if name == "d" else {}))
                    model = Separate.from_tensors(resumed.tensors, self.config.device)
                assert model is not None
                step = self._step(name, model, rows, data, self.activations, resumed)
            self._learn(step)
        assert model is not None
        learnt = model.signals()
        return model, self._signals(model, rows) if learnt is None else learnt.detach(), rows

    def _orthonormal(self, state: State | None) -> Orthonormal:
        """Step (a), from the state or from the best of its random starts."""
        config, r, i = self.config, self.standard.rank, self.config.n_directions
        rows, data = self._rows(self.standard)
        if state is not None:
            with self.checkpoint.resuming(state):
                state.check({"free": (r, i), "base": (r, r), "log_margins": (1,), "thresholds": (1,)})
                model = Orthonormal.from_tensors(state.tensors, config.device)
                step = self._step("a", model, rows, data, self.standard, state)
            self._learn(step)
            return model
        tau = self.how.steps["a"].tau
        assert tau is not None
        starts: list[tuple[float, Orthonormal, LearningStep, list[dict[str, float]]]] = []
        for turn in range(self.how.restarts):
            seed = config.seed + 1000 * turn
            model = Orthonormal.random(r, i, margin=config.margin, tau=tau, seed=seed, device=config.device)
            step = self._step("a", model, rows, data, self.standard, None)
            merit, tried = self._try(step, turn) if self.how.restarts > 1 else (0.0, [])
            starts.append((merit, model, step, tried))
        _, model, step, self.log = min(starts, key=lambda start: start[0])
        self._learn(step)
        return model

    def _try(self, step: LearningStep, turn: int) -> tuple[float, list[dict[str, float]]]:
        """The first epochs of a random start: its merit, and rows of the log."""
        rows: list[dict[str, float]] = []
        each = self.config.restart_epochs
        while len(rows) < each and not step.finished:
            rows.append({"step": float(len(rows)), **step.learn()})
            done, total = turn * each + len(rows), self.how.restarts * each
            self.progress("random starts", done, total, f"loss {step.merit:.3f}")
        return (step.merit if rows else 0.0), rows

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
        model: Learnt,
        rows: Positions,
        data: WhitenedRows,
        transform: Whitening,
        state: State | None,
    ) -> LearningStep:
        how, config = self.how.steps[name], self.config
        uncertainty, printed, multipliers = None, True, None
        if self.head is not None and isinstance(config, CBEConfig) and how.lambda_uncertainty and how.epochs:
            uncertainty = Uncertainty(
                transform,
                data,
                self.reader,
                self.head,
                config.seed,
                step="constrained" if name == "d" else "unconstrained",
                objective=config.uncertainty_objective,
                ridge=config.uncertainty_ridge,
                images=config.uncertainty_images,
            )
            printed = name != "d" or config.uncertainty_ridge == 0
        if self.how.form == "lagrangian":
            multipliers = Multipliers({loss: getattr(how, BOUNDS[loss]) for loss in CONSTRAINED[name]}, config.penalty)
        step = LearningStep(
            name,
            model,
            Batches(rows, self.how.batch_rows, config.seed),
            how,
            multipliers,
            uncertainty,
            gamma=config.gamma,
            settled=config.settled,
            printed=printed,
        )
        if state is not None:
            step.resume(state.tensors, state.values)
        return step

    def _rows(self, transform: Whitening) -> tuple[Positions, WhitenedRows]:
        """The positions in a step's coordinates."""
        config, in_memory = self.config, self.config.rows == "memory"
        data = whiten_store(
            self.reader,
            transform,
            config,
            max_rows=config.max_rows if in_memory else 1,
            progress=self.progress,
            ranks=self.ranks,
            longest=longest_tile(transform.rank, torch.device(config.device)),
        )
        return positions(data) if in_memory else Stored(self.reader, transform, config.device, self.ranks), data

    @torch.no_grad()
    def _signals(self, model: Separate, rows: Positions) -> torch.Tensor:
        """Step (c): signal vectors over the positives of each detector (paper, §3.3)."""
        filters, thresholds = model.linear()
        sums = streamed_sums(rows, filters, thresholds, RowWeights(0, 0), gamma=self.config.gamma)
        return signals_from_sums(sums, filters)


class UIBE(_Published[UIBEConfig]):
    """Unsupervised interpretable basis extraction (arXiv 2303.10523): step (a) on only the clustering losses.

    UIBE knows no signal vectors: they are estimated from its filters, as in step (c).
    """

    name: ClassVar[str] = "uibe"
    configuration: ClassVar[type[UIBEConfig]] = UIBEConfig


class CBE(_Published[CBEConfig]):
    """Concept basis extraction (Doumanoglou et al., VISAPP 2024): step (a), with directions that the predictions depend on.

    CBE's own classification loss enforces directions of maximal influence on the predictions. Its exact formula is not
    known to us; in its place stands uncertainty region alignment (L_uur), the same authors' successor of it [I].
    Signal vectors are estimated from the filters, as in step (c).
    """

    name: ClassVar[str] = "cbe"
    configuration: ClassVar[type[CBEConfig]] = CBEConfig
    uses_head: ClassVar[bool] = True


class PaperEDDP(_Published[PaperConfig]):
    """EDDP by its published steps (a) to (d). See ``PaperConfig`` for the settings."""

    name: ClassVar[str] = "eddp-paper"
    configuration: ClassVar[type[PaperConfig]] = PaperConfig
    uses_head: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ("a", "b", "d")
