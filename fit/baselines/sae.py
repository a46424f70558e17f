"""Sparse autoencoders: many units, few of them active at a position; decoder rows are signal vectors, encoders filters.

TopK: Gao et al., "Scaling and evaluating sparse autoencoders", 2024 (arXiv:2406.04093). L1: Bricken et al., "Towards
monosemanticity", 2023. From both: unit signal vectors, their gradient without the part that changes lengths. From Gao et al.:
encoders that start as the signal vectors, and the auxiliary loss that revives units that do not fire.

**Input.** ``x̂ = (x − μ) / σ`` with the layer's mean μ (the pre-bias, fixed) and one number ``σ² = trace of the covariance``, so
that ``E|x̂|² = 1`` on every layer: settings carry over, and the squared error is the share of the variance that is lost.

**Detectors.** Positive where a unit's pre-activation exceeds θ. L1: θ = 0, where its code is positive. TopK: a unit's code also
depends on the other units; θ is the value that its pre-activation exceeds at as many positions as the unit is among the k
largest (with a positive code), counted over the layer in bins of relative width 1/32 (``stores.sketch``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.baselines.autoencoder import Autoencoder, Codes, Gradients, gradients, positive_codes, top_codes
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig
from fit.whiten import check_varies
from stores.errors import NonFiniteError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.shuffle import WINDOW_BYTES, Shuffle, shuffled
from stores.sketch import EDGES, Sketch
from stores.statistics import Statistics, statistics

LOG_ROWS = 200  # of the table, about
TILE = 4096  # rows at a time when detectors are counted


@dataclass(frozen=True)
class SAEConfig(FitterConfig):
    """``n_directions`` is the number of units.

    ``k`` None: an eighth of the units, 32 at most. ``l1_weight``: of the mean sum of codes, where the squared error of no
    reconstruction at all is 1. ``epochs`` None: as many as make 4000 steps. ``learning_rate`` None: 2e-4 √(2^14 / units), at most
    5e-3 (Gao et al.); it falls to 0 over the last fifth of the steps. A unit is dead when it did not fire in ``dead_rows``
    positions (None: an epoch, 256 batches at most); the ``aux_k`` dead units of largest pre-activation (None: half as many as
    channels) learn to decode what the others leave, with weight ``aux_weight`` (0: never).
    """

    kind: Literal["topk", "l1"] = "topk"
    k: int | None = None
    l1_weight: float = 0.03
    epochs: int | None = None
    batch_rows: int = 1024
    learning_rate: float | None = None
    aux_weight: float = 1 / 32
    aux_k: int | None = None
    dead_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            positive=("k", "epochs", "batch_rows", "learning_rate", "aux_k", "dead_rows"),
            not_negative=("l1_weight", "aux_weight"),
        )
        if self.k is not None and self.k > self.n_directions:
            raise UsageError(f"'k' must be at most the number of --directions ({self.n_directions}), got {self.k}.")

    @property
    def k_in_force(self) -> int:
        return self.k or min(32, max(1, self.n_directions // 8))

    @property
    def rate_in_force(self) -> float:
        return self.learning_rate or min(5e-3, 2e-4 * math.sqrt(2**14 / self.n_directions))

    def epochs_in_force(self, rows: int) -> int:
        return self.epochs or max(1, round(4000 / math.ceil(rows / self.batch_rows)))

    def dead_in_force(self, rows: int) -> int:
        return self.dead_rows or min(rows, 256 * self.batch_rows)


class SAE(Fitter[SAEConfig]):
    """A sparse autoencoder of a layer's positions. See ``SAEConfig`` for the settings."""

    name: ClassVar[str] = "sae"
    configuration: ClassVar[type[SAEConfig]] = SAEConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Train on shuffled batches of all positions, then count what the detectors' thresholds are read from.

        In memory are a batch, the shuffle's windows, and the parameters with Adam's moments, whatever the store's size.
        Raises FitError when the activations do not vary, NonFiniteError when the loss is no number any more.
        """
        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        check_varies(moments)
        training = Training(config, reader, moments)
        log = training.run(progress)
        model = training.model
        theta = training.firing_thresholds(progress) if config.kind == "topk" else torch.zeros_like(model.bias)
        # z = E x̂ + b > θ, with x̂ = (x − μ) / σ, is w·x > β with w = E / σ and β = w·μ − b + θ
        filters = model.encoder.double().T / training.scale
        thresholds = torch.from_numpy(moments.mean).to(filters) @ filters - model.bias + theta
        return self.fitted(
            reader,
            filters=filters,
            signals=model.decoder.T,
            mean=moments.mean,
            thresholds=thresholds,
            k=config.k_in_force if config.kind == "topk" else None,
            learning_rate=config.rate_in_force,
            aux_k=config.aux_k or max(1, reader.channels // 2),
            dead_rows=training.dead_rows,
            steps=training.steps,
            epochs=training.epochs,
            order={"batch_rows": config.batch_rows, "seed": config.seed, "window_bytes": WINDOW_BYTES},
            scale=training.scale,
            reconstruction=round(log[-1]["reconstruction"], 6),
            dead=torch.flatten(torch.nonzero(training.dead())).tolist(),
            log=log,
        )


class Training:
    """The state of a training on ``x̂ = (x − mean) / scale``: the model, Adam's moments, and how long ago each unit fired."""

    def __init__(self, config: SAEConfig, reader: LayerReader, moments: Statistics) -> None:
        self.config, self.reader = config, reader
        self.mean = torch.from_numpy(moments.mean).float().to(config.device)
        self.scale = math.sqrt(float(np.trace(moments.covariance)))
        self.epochs = config.epochs_in_force(reader.n_rows)
        self.steps = self.epochs * math.ceil(reader.n_rows / config.batch_rows)
        self.dead_rows = config.dead_in_force(reader.n_rows)
        generator = torch.Generator().manual_seed(config.seed)
        self.model = Autoencoder.random(config.n_directions, reader.channels, generator, config.device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.rate_in_force, eps=6.25e-10, fused=True)
        self.silent = torch.zeros(config.n_directions, dtype=torch.int64, device=config.device)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """x̂ of activations x (…, C)."""
        return x.sub(self.mean).mul_(1 / self.scale)

    def encode(self, z: torch.Tensor) -> Codes:
        """The codes of pre-activations z (B, I)."""
        return top_codes(z, self.config.k_in_force) if self.config.kind == "topk" else positive_codes(z)

    def run(self, progress: Progress = silent) -> list[dict[str, float]]:
        """All epochs; returns the log's rows."""
        log: list[dict[str, float]] = []
        every = max(1, self.steps // LOG_ROWS)
        for step, (epoch, x) in enumerate(self._batches()):
            rate = self.config.rate_in_force * min(1.0, 5 * (1 - step / self.steps))
            self.optimiser.param_groups[0]["lr"] = rate
            said = step % every == 0 or step == self.steps - 1
            row = self.step(self.scaled(x), measure=said)
            if row is None:
                continue
            if not math.isfinite(row["loss"]):
                raise NonFiniteError(
                    f"The loss became {row['loss']} at step {step}: lower the learning rate "
                    f"(--set learning_rate={self.config.rate_in_force / 10:.2g})."
                )
            log.append({"step": step, "epoch": epoch, **row, "learning_rate": rate})
            progress("training", step + 1, self.steps, f"R² {row['reconstruction']:.3f}, {row['l0']:.1f} active")
        return log

    def _batches(self) -> Iterator[tuple[int, torch.Tensor]]:
        for epoch in range(self.epochs):
            how = Shuffle(
                batch_rows=self.config.batch_rows,
                seed=self.config.seed,
                epoch=epoch,
                dtype=torch.float32,
                device=self.config.device,
            )
            for batch in shuffled(self.reader, how):
                yield epoch, batch.x

    @torch.no_grad()
    def step(self, x: torch.Tensor, *, measure: bool = False) -> dict[str, float] | None:
        """One step of Adam on x̂ (B, C); what is logged of it, if it is to be measured."""
        model, config = self.model, self.config
        z = model.logits(x)
        codes = self.encode(z)
        penalty = config.l1_weight if config.kind == "l1" else 0.0
        by = gradients(x, x, codes, model.decoder, model.offset, penalty=penalty)
        fired = codes.fired()
        self.silent.add_(len(x)).masked_fill_(fired > 0, 0)
        dead = self.dead()
        if config.aux_weight and bool(dead.any()):
            self._revive(x, z, by, dead)
        model.project(by.decoder)
        for parameter, gradient in zip(model.parameters(), (by.encoder, by.bias, by.decoder, by.offset), strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        model.normalise()
        if not measure:
            return None
        error, total = (float(t.double().square().sum()) for t in (by.residual, x))
        return {
            "loss": (error + penalty * float(codes.value.double().sum())) / len(x),
            "reconstruction": 1 - error / max(total, 1e-30),
            "l0": float(fired.sum()) / len(x),
            "dead": float(dead.double().mean()),
        }

    def dead(self) -> torch.Tensor:
        """(I,) bool: units that have not fired for a long time."""
        return self.silent >= self.dead_rows

    def _revive(self, x: torch.Tensor, z: torch.Tensor, by: Gradients, dead: torch.Tensor) -> None:
        """Add the gradient of AuxK (Gao et al. 2024, appendix A.2): dead units decode the residual, taken as constant."""
        chosen = torch.flatten(torch.nonzero(dead))
        k = min(self.config.aux_k or max(1, x.shape[1] // 2), len(chosen))
        codes = top_codes(z[:, chosen], k)
        more = gradients(x, -by.residual, codes, self.model.decoder[chosen], torch.zeros_like(self.model.offset))
        for all_units, part in ((by.encoder, more.encoder), (by.bias, more.bias), (by.decoder, more.decoder)):
            all_units.index_add_(0, chosen, part, alpha=self.config.aux_weight)

    @torch.no_grad()
    def firing_thresholds(self, progress: Progress = silent) -> torch.Tensor:
        """(I,) θ such that ``z > θ`` at as many positions as a unit is among its row's k largest and positive.

        One pass over the layer. A unit that never is gets a threshold above all its pre-activations.
        """
        reader, units = self.reader, self.config.n_directions
        sketch, fired, done = Sketch(units), np.zeros(units, np.int64), 0
        for index, block in reader.blocks(images=max(1, TILE // reader.positions)):
            x = torch.from_numpy(np.ascontiguousarray(block)).to(self.config.device).float()
            for rows in x.reshape(-1, reader.channels).split(TILE):
                z = self.model.logits(self.scaled(rows))
                fired += self.encode(z).fired().cpu().numpy()
                sketch.update(z.cpu().numpy())
            done += len(index)
            progress("thresholds", done, reader.n_images)
        theta = np.empty(units, np.float32)
        for first in range(0, units, 64):  # all units at once would need the counts' memory three times more
            counts, wanted = sketch.counts[first : first + 64], fired[first : first + 64]
            above = counts[:, ::-1].cumsum(1)[:, ::-1]  # (units, bins): values in this bin or a higher one
            nearest = EDGES[np.abs(above - wanted[:, None]).argmin(1)]
            beyond = EDGES[1:][counts.cumsum(1).argmax(1)]  # the upper edge of the last bin with a value
            theta[first : first + 64] = np.maximum(np.where(wanted > 0, nearest, beyond), 0)
        return torch.from_numpy(theta).to(self.model.bias)
