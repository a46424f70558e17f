"""A logistic probe for each label: what linear detectors can do when they may see the labels.

As in Interpretable Basis Decomposition (Zhou et al., ECCV 2018): a logistic regression a label on single positions, at most
20 negatives for a positive, and among more of them the hard ones. Here all labels are one convex problem, solved to its
optimum, in standardised channels ``x̂ = (x − μ) / σ`` (conditioning; l2 means the same on every layer).

**Filter and threshold.** ``w = v / σ`` of the probe ``v·x̂ + c``, and b = w·μ − c: positive where the probe says more than ½.
**Signal vector.** As for any detector, ``s = cov[x, z] / var[z]`` over the positives z > 0 (EDDP, §3.3): over all positions
concepts that exclude each other would bias it. A detector that is positive nowhere gets Haufe's pattern ``cov(x) w``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from extract.network import Head
from fit.base import Fitted
from fit.checkpoint import Checkpoint
from fit.positive_stats import PositiveSums
from fit.supervised.base import Supervised, SupervisedConfig, best_f1_of_labels, images_at_once
from fit.supervised.logistic import Solution, solve
from fit.supervised.pool import HARD, Pool, draw
from stores.errors import FitError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import Statistics


@dataclass(frozen=True)
class ProbeConfig(SupervisedConfig):
    """``negatives``: at most so many for a positive. ``rounds``: how often hard ones are mined. ``max_rows``: positions in
    memory, shared by all labels: 4 bytes a channel and 3 a label each. ``iterations``, ``tolerance``: of the solver, in each round.

    ``threshold`` "bias": where the probe says ½; "f1": where it agrees best with the label over all labelled positions.
    """

    negatives: int = 20
    rounds: int = 2
    l2: float = 1e-3
    max_rows: int = 100_000
    iterations: int = 300
    tolerance: float = 1e-4
    threshold: Literal["bias", "f1"] = "bias"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=("negatives", "l2", "max_rows", "iterations", "tolerance"), not_negative=("rounds",))


@dataclass(frozen=True)
class Standardise:
    """``x̂ = (x − mean) · inverse``; channels without variance become 0."""

    mean: torch.Tensor
    inverse: torch.Tensor

    @classmethod
    def of(cls, moments: Statistics, device: str) -> Standardise:
        deviation = np.sqrt(np.diag(moments.covariance).clip(0))
        alive = deviation > 1e-6 * deviation.max()
        inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=alive)
        mean, factor = (torch.from_numpy(a).float().to(device) for a in (moments.mean, inverse))
        return cls(mean, factor)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * self.inverse


class Probe(Supervised[ProbeConfig]):
    """Logistic probes, all labels at once. See ``ProbeConfig`` for the settings."""

    name: ClassVar[str] = "probe"
    configuration: ClassVar[type[ProbeConfig]] = ProbeConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Draw positions, train, mine negatives that score as the label, train again; then estimate signal vectors.

        In memory are ``max_rows`` positions; everything else is a pass over the store.
        """
        config, task = self.config, self.task(reader, progress)
        scale = Standardise.of(task.moments, task.device)
        pool = draw(task, scale, config.max_rows, config.seed, progress)
        seen = (pool.present & pool.annotated).any(0) & (~pool.present & pool.annotated).any(0)
        if not bool(seen.all()):
            raise FitError(
                f"Of {task.count} labels {int((~seen).sum())} are at none or at all of the {len(pool.x)} positions in memory: "
                "keep more with --set max_rows=N, or leave out rare labels with --set min_positives=N."
            )
        solution: Solution | None = None
        generator = torch.Generator().manual_seed(config.seed)
        limit = np.minimum(task.negatives, config.negatives * task.positives)
        rounds = 0
        for rounds in range(1, config.rounds + 2):
            progress("training", rounds, config.rounds + 1, f"{len(pool.x)} positions, {task.count} labels")
            if solution is not None and not pool.complete:
                pool.mine(solution.logits, int(HARD * config.max_rows) // config.rounds, limit, progress)
            used = choose(pool, config.negatives, solution, generator)
            last = rounds > config.rounds or (pool.complete and bool((used == pool.annotated).all()))
            solution = solve(
                pool.x,
                pool.present,
                used,
                l2=config.l2,
                iterations=config.iterations,
                tolerance=config.tolerance * (1 if last else 10),  # mining needs no precise solution
                start=solution,
            )
            if last:
                break  # all negatives are in already: there are none to mine
        assert solution is not None
        filters = (solution.weights * scale.inverse[:, None]).double().cpu()
        thresholds = torch.from_numpy(task.moments.mean) @ filters - solution.bias.double().cpu()
        if config.threshold == "f1":
            thresholds = best_f1_of_labels(task, filters, progress)
        info: dict[str, Any] = {"rounds": rounds, "pool": len(pool.x), "iterations": solution.iterations}
        return self.fitted(
            reader,
            config=self.settled(task),
            filters=filters,
            signals=signals_of(reader, filters, thresholds, task.moments, task.device, progress),
            mean=task.moments.mean,
            thresholds=thresholds,
            gradient=float(solution.gradient.max()),
            **info,
            **task.info(),
        )


def choose(pool: Pool, negatives: int, solution: Solution | None, generator: torch.Generator) -> torch.Tensor:
    """Which rows train which label (m, L) bool: its positives, and at most ``negatives`` times as many others.

    Where there are more, half of them are those of the highest logits so far and half are drawn from the rest, so that
    the bias still knows the bulk; in the first round all are drawn.
    """
    used = pool.annotated.clone()
    off = pool.annotated & ~pool.present
    allowed = negatives * (pool.annotated & pool.present).sum(0)
    for group in torch.nonzero(off.sum(0) > allowed).flatten().split(64):
        logits = None if solution is None else pool.x @ solution.weights[:, group]
        for k, column in enumerate(group.tolist()):
            rows = torch.nonzero(off[:, column]).squeeze(1)
            quota = int(allowed[column])
            hard = rows[:0]
            if logits is not None:
                order = logits[rows, k].argsort(descending=True, stable=True)
                hard, rows = rows[order[: quota // 2]], rows[order[quota // 2 :]]
            drawn = torch.randperm(len(rows), generator=generator)[: quota - len(hard)].to(rows.device)
            used[off[:, column], column] = False
            used[hard, column] = True
            used[rows[drawn], column] = True
    return used


def signals_of(
    reader: LayerReader,
    filters: torch.Tensor,
    thresholds: torch.Tensor,
    moments: Statistics,
    device: str,
    progress: Progress,
) -> torch.Tensor:
    """``cov[x, z] / var[z]`` over the positives of each detector (C, L) float64, from one pass over the layer."""
    mean = torch.from_numpy(moments.mean)
    w = filters.float().to(device)
    b = (thresholds - mean @ filters).float().to(device)[:, None]
    shift = mean.float().to(device)
    count = w.shape[1]
    step = images_at_once(reader.positions, count)
    sums = PositiveSums(len(w), count, step * reader.positions, dtype=torch.float32, device=w.device)
    done = 0
    for index, block in reader.blocks(images=step):
        x = torch.from_numpy(np.ascontiguousarray(block)).to(device).float().reshape(-1, reader.channels) - shift
        if len(x):
            sums.add(x, torch.addmm(-b, w.T, x.T).contiguous())
        done += len(index)
        progress("signal vectors", done, reader.n_images)
    n = sums.count.clamp_min(1)
    variance = sums.square / n - (sums.logit / n).square()
    covariance = sums.cross / n[:, None] - (sums.rows / n[:, None]) * (sums.logit / n)[:, None]
    known = (sums.count > 1) & (variance > 1e-5 * (sums.square / n).clamp_min(1e-30))
    pattern = torch.from_numpy(moments.covariance) @ filters
    found = (covariance / torch.where(known, variance, 1)[:, None]).T.cpu()
    return torch.where(known.cpu(), found, pattern)
