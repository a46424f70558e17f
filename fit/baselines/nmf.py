"""Non-negative matrix factorisation, online: activations as sums of non-negative parts, ``x ≈ c H`` with c ≥ 0 and H ≥ 0.

Mairal, Bach, Ponce, Sapiro, "Online learning for matrix factorization and sparse coding", JMLR 11, 2010 (algorithms 1 and 2,
with non-negative codes and parts): of all batches seen only ``A = Σ cᵀc`` (I, I) and ``B = Σ cᵀx`` (I, C) are kept, old ones fading.
A batch's codes are the non-negative least squares solution, by accelerated projected gradient on the parts' Gram matrix (Beck,
Teboulle 2009; restarts: O'Donoghue, Candès 2015); then each part in turn is put where it is best, given the others.

A part is the signal vector: what is added when it is present. The filters are the columns of the pseudo-inverse ``H⁺`` (C, I): they
are least squares, the criterion that the factorisation minimises, without the sign, which no linear filter can keep. So
``x H⁺`` gives the codes back where x is exactly a sum of parts, and filter i does not see part j. The other candidate, Σ⁻¹h (the
inverse of Haufe et al.'s pattern), supposes codes that are uncorrelated; those of NMF are not, as they compete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from extract.network import Head
from fit.baselines.common import fitted
from fit.checkpoint import Checkpoint
from fit.fitter import Fitted, Fitter, FitterConfig
from stores.errors import FitError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.shuffle import WINDOW_BYTES, Shuffle, shuffled
from stores.statistics import statistics

LOG_ROWS = 200  # of the table, about
TILE = 8192


@dataclass(frozen=True)
class NMFConfig(FitterConfig):
    """``negative``: what to do with a layer that has negative activations: "refuse" it, or "clip" them to 0.

    ``epochs`` None: as many as make 500 batches. ``code_iterations``: of a batch's codes, at most. ``forget``: weight of what was
    summed an epoch ago.
    """

    negative: Literal["refuse", "clip"] = "refuse"
    epochs: int | None = None
    batch_rows: int = 1024
    code_iterations: int = 100
    forget: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_rows", "code_iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"'{name}' must be at least 1, got {value}.")
        if not 0 < self.forget <= 1:
            raise UsageError(f"'forget' must be above 0 and at most 1, got {self.forget}.")

    def epochs_in_force(self, rows: int) -> int:
        return self.epochs or max(1, round(500 / math.ceil(rows / self.batch_rows)))


class NMF(Fitter[NMFConfig]):
    """Non-negative parts of a layer's positions. See ``NMFConfig`` for the settings."""

    name: ClassVar[str] = "nmf"
    configuration: ClassVar[type[NMFConfig]] = NMFConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Factorise shuffled batches of all positions; in memory are a batch, the shuffle's windows, A, B and H.

        Raises FitError for negative activations, unless they are to be clipped, and for a layer of zeros.
        """
        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        lowest, highest, share = sign(reader, progress)
        if lowest < 0 and config.negative == "refuse":
            raise FitError(
                f"Layer '{reader.spec.name}' has negative activations ({100 * share:.3g} % of them, down to {lowest:.4g}), which are "
                "no sums of non-negative parts: take a layer after a ReLU, or take them for 0 with --set negative=clip."
            )
        if highest <= 0:
            raise FitError(f"Layer '{reader.spec.name}' has no positive activation, so there are no parts to find.")
        factors, log = self._factorise(reader, progress)
        parts = factors.parts.double().cpu()
        return Fitted(
            fitted(
                self.name,
                reader,
                config,
                filters=torch.linalg.pinv(F.normalize(parts, dim=1)),
                signals=parts.T,
                mean=moments.mean,
                epochs=config.epochs_in_force(reader.n_rows),
                order={"batch_rows": config.batch_rows, "seed": config.seed, "window_bytes": WINDOW_BYTES},
                reconstruction=round(log[-1]["reconstruction"], 6),
                lowest=lowest,
                negative_share=share,
            ).directions,
            log,
        )

    def _factorise(self, reader: LayerReader, progress: Progress) -> tuple[Factors, list[dict[str, float]]]:
        config = self.config
        epochs = config.epochs_in_force(reader.n_rows)
        steps = epochs * math.ceil(reader.n_rows / config.batch_rows)
        every = max(1, steps // LOG_ROWS)
        generator = torch.Generator().manual_seed(config.seed)
        factors: Factors | None = None
        log: list[dict[str, float]] = []
        step = 0
        for epoch in range(epochs):
            how = Shuffle(config.batch_rows, seed=config.seed, epoch=epoch, dtype=torch.float32, device=config.device)
            for batch in shuffled(reader, how):
                x = batch.x.clamp_min_(0)
                if factors is None:
                    factors = Factors.start(x, config.n_directions, generator)
                fade = config.forget ** (len(x) / reader.n_rows)
                row = factors.step(x, fade, config.code_iterations)
                if step % every == 0 or step == steps - 1:
                    log.append({"step": step, "epoch": epoch, **row})
                    progress("parts", step + 1, steps, f"R² {row['reconstruction']:.4f}")
                step += 1
        assert factors is not None  # statistics refuses a store without rows
        return factors, log


@dataclass
class Factors:
    """``parts`` H (I, C), and what is kept of all batches: ``gram`` A (I, I), ``cross`` B (I, C)."""

    parts: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def start(cls, x: torch.Tensor, count: int, generator: torch.Generator) -> Factors:
        """Parts that are rows of the first batch (B, C), drawn at random; random ones where there are too few rows."""
        noise = torch.rand(count, x.shape[1], generator=generator).to(x)
        chosen = torch.randperm(len(x), generator=generator)[:count].to(x.device)
        noise[: len(chosen)] = noise[: len(chosen)] * 1e-2 * x.mean() + x[chosen]
        parts = F.normalize(noise, dim=1)
        return cls(parts, parts.new_zeros(count, count), torch.zeros_like(parts))

    def step(self, x: torch.Tensor, fade: float, iterations: int) -> dict[str, float]:
        """Codes of a batch x (B, C), then the parts. What is logged is of the parts as they were before."""
        codes = nonnegative_codes(x, self.parts, iterations)
        residual = torch.addmm(x, codes, self.parts, alpha=-1)
        error, total = (float(t.double().square().sum()) for t in (residual, x - x.mean(0)))
        self.gram.mul_(fade).addmm_(codes.T, codes)
        self.cross.mul_(fade).addmm_(codes.T, x)
        unused = self.gram.diagonal() <= 1e-12 * self.gram.diagonal().max()
        if bool(unused.any()):
            self._replace(torch.flatten(torch.nonzero(unused)), residual)
        update_parts(self.parts, self.gram, self.cross)
        return {
            "loss": error / len(x),
            "reconstruction": 1 - error / max(total, 1e-30),
            "l0": float((codes > 0).sum()) / len(x),
            "unused": float(unused.double().mean()),
        }

    def _replace(self, unused: torch.Tensor, residual: torch.Tensor) -> None:
        """Parts that no position uses become what is missing from the worst positions."""
        size = torch.linalg.vector_norm(residual.clamp_min(0), dim=1)
        worst = torch.argsort(size, descending=True, stable=True)[: len(unused)]
        self.parts[unused[: len(worst)]] = F.normalize(residual[worst].clamp_min(0), dim=1)
        for sums in (self.gram, self.cross):
            sums[unused] = 0
        self.gram[:, unused] = 0


def nonnegative_codes(x: torch.Tensor, parts: torch.Tensor, iterations: int, tolerance: float = 1e-4) -> torch.Tensor:
    """Codes c ≥ 0 (B, I) that minimise ``|x − c H|²`` row by row, to a relative change of ``tolerance``."""
    gram, wanted = parts @ parts.T, x @ parts.T
    # an upper bound of the largest eigenvalue of a non-negative matrix, nearly tight (Collatz, Wielandt)
    vector = torch.ones_like(gram[0])
    for _ in range(10):
        vector = (gram @ vector).clamp_min_(1e-12)
        vector = vector / vector.max()
    step = 1 / float(((gram @ vector) / vector).max().clamp_min(1e-12))
    codes = torch.zeros_like(wanted)
    ahead, momentum = codes, 1.0
    for iteration in range(iterations):
        new = torch.addmm(wanted, ahead, gram, alpha=-1).mul_(step).add_(ahead).clamp_min_(0)
        change = new - codes
        if iteration % 10 == 9:
            if float(change.norm()) <= tolerance * float(new.norm()):
                return new
            if float(((ahead - new) * change).sum()) > 0:
                momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = torch.add(new, change, alpha=(momentum - 1) / following)
        codes, momentum = new, following
    return codes


def update_parts(parts: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor) -> None:
    """Each part in turn where ``Σ |x − c H|²`` is least, given the others: ``h_j ← max(0, h_j + (B_j − A_j H) / A_jj)``."""
    size = gram.diagonal().tolist()
    for j, weight in enumerate(size):
        if weight > 1e-12 * max(size):
            parts[j].add_((cross[j] - gram[j] @ parts) / weight).clamp_min_(0)


def sign(reader: LayerReader, progress: Progress = silent) -> tuple[float, float, float]:
    """The layer's lowest and highest activation, and the share of negative ones: one pass."""
    lowest, highest, negative, done = math.inf, -math.inf, 0, 0
    for index, block in reader.blocks(images=max(1, TILE // reader.positions)):
        if len(index):
            lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
            negative += int(np.count_nonzero(block < 0))
        done += len(index)
        progress("signs", done, reader.n_images)
    return lowest, highest, negative / (reader.n_rows * reader.channels)
