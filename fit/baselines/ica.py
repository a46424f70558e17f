"""Independent components: FastICA on whitened positions, all components at once, contrast log cosh.

Hyvärinen, "Fast and robust fixed-point algorithms for independent component analysis", IEEE Transactions on Neural Networks
10(3), 1999: the fixed point ``u ← E[y g(uᵀy)] − E[g'(uᵀy)] u`` with g = tanh, then symmetric decorrelation (eqs. 20 and 45).
Each iteration is one pass of sums over tiles of whitened positions, r numbers a position.

Filter ``w = Tᵀ u`` and signal vector ``T⁺ u``, the column of the mixing matrix, for a whitening ``y = T (x − μ)``.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from extract.network import Head
from fit.baselines.common import fitted
from fit.checkpoint import Checkpoint
from fit.fitter import Fitted, Fitter, FitterConfig
from fit.whiten import whiten_store, whitening
from stores.errors import FitError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.statistics import statistics

log = logging.getLogger(__name__)

TILE = 16384
GAUSSIAN = 0.3745672  # E[log cosh ν], ν ~ N(0, 1)


@dataclass(frozen=True)
class ICAConfig(FitterConfig):
    """``signs`` "both": I / 2 components, each with + and −; "skewed": I components, signed so that their skewness is
    positive (the long tail is what is present).

    ``rank``: axes of largest variance that are kept, and components that are estimated in them; the ones least Gaussian are
    given. None: as many as are needed. ``max_rows``: positions at most, a seeded sample of all. ``tolerance``: of the largest
    ``1 − |cos|`` between a component and itself an iteration before.
    """

    signs: Literal["both", "skewed"] = "both"
    rank: int | None = None
    iterations: int = 200
    tolerance: float = 1e-4
    max_rows: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=("iterations", "max_rows", "tolerance"))
        if self.rank is not None and self.rank < self.components:
            raise UsageError(
                f"'rank' must be at least the number of components, {self.components} for {self.n_directions} "
                f"--directions with signs={self.signs}, got {self.rank}."
            )

    @property
    def components(self) -> int:
        return -(-self.n_directions // 2) if self.signs == "both" else self.n_directions


@dataclass(frozen=True)
class Components:
    """``unmixing`` U (r, r), orthogonal, a component a row; ``changes``: the largest change of each iteration."""

    unmixing: torch.Tensor
    changes: list[float]
    converged: bool


class ICA(Fitter[ICAConfig]):
    """Directions along which the activations are as far from Gaussian as possible, and uncorrelated."""

    name: ClassVar[str] = "ica"
    configuration: ClassVar[type[ICAConfig]] = ICAConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Two passes over the layer (covariance, whitening), then passes over whitened rows, until nothing changes.

        Raises FitError when more components are asked for than there are axes with variance.
        """
        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        rank = config.rank or config.components
        transform = whitening(moments, rank=rank)
        if transform.rank < config.components:
            raise FitError(
                f"{config.components} independent components were asked for ({config.n_directions} directions, "
                f"signs={config.signs}), but the activations of layer '{reader.spec.name}' vary along {transform.rank} "
                "axes only. Ask for fewer --directions."
            )
        rows = whiten_store(
            reader,
            transform,
            max_rows=config.max_rows,
            seed=config.seed,
            device=config.device,
            pooled=False,
            progress=progress,
        ).rows
        found = fast_ica(
            rows, seed=config.seed, iterations=config.iterations, tolerance=config.tolerance, progress=progress
        )
        if not found.converged:
            log.warning(
                "ICA did not converge in %d iterations (change %.2g, tolerance %.2g): raise --set iterations=, or ask for fewer "
                "--directions",
                len(found.changes),
                found.changes[-1],
                config.tolerance,
            )
        contrast, skewness = shapes(rows, found.unmixing)
        order = torch.argsort((contrast - GAUSSIAN).abs(), descending=True, stable=True)[: config.components]
        upward = torch.where(skewness < 0, -1.0, 1.0).to(found.unmixing)
        chosen = (found.unmixing * upward[:, None])[order].T.cpu()  # (r, components)
        if config.signs == "both":
            chosen = torch.stack([chosen, -chosen], 2).reshape(len(chosen), -1)[:, : config.n_directions]
        fit = fitted(
            self.name,
            reader,
            config,
            filters=transform.forward.double().T @ chosen,
            signals=transform.backward.double() @ chosen,
            mean=moments.mean,
            converged=found.converged,
            iterations=len(found.changes),
            rank=transform.rank,
            variance_kept=round(transform.kept, 6),
            positions=len(rows),
            contrast=[round(v, 6) for v in contrast[order].tolist()],
            skewness=[round(v, 6) for v in skewness[order].abs().tolist()],
        )
        table = [{"step": float(i), "change": change} for i, change in enumerate(found.changes)]
        return Fitted(fit.directions, table)


def fast_ica(
    rows: torch.Tensor, *, seed: int = 0, iterations: int = 200, tolerance: float = 1e-4, progress: Progress = silent
) -> Components:
    """Symmetric FastICA of whitened rows (n, r): all r components, from a random orthogonal start."""
    n, r = rows.shape
    generator = torch.Generator().manual_seed(seed)
    u = decorrelated(torch.randn(r, r, generator=generator, dtype=torch.float64)).to(rows.device)
    changes: list[float] = []
    for step in range(iterations):
        product, slope = torch.zeros_like(u), u.new_zeros(r)
        for y in rows.split(TILE):
            g = torch.tanh(y @ u.T.to(y.dtype))  # (tile, r)
            product += (g.T @ y).double()
            slope += len(y) - torch.linalg.vector_norm(g, dim=0).double().square()  # tanh' = 1 − tanh²
        new = decorrelated(product / n - (slope / n)[:, None] * u)
        changes.append(float(((new * u).sum(1).abs() - 1).abs().max()))
        u = new
        progress("components", step + 1, iterations, f"change {changes[-1]:.1e}")
        if changes[-1] < tolerance:
            break
    return Components(u, changes, changes[-1] < tolerance)


def decorrelated(u: torch.Tensor) -> torch.Tensor:
    """``(U Uᵀ)^{-1/2} U``: the orthogonal matrix nearest to U."""
    values, vectors = torch.linalg.eigh(u @ u.T)
    return (vectors * values.clamp_min(1e-30).rsqrt()) @ vectors.T @ u


def shapes(rows: torch.Tensor, unmixing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(r,) mean log cosh and (r,) skewness of each component of whitened rows, float64 on the CPU."""
    contrast, cube = (torch.zeros(len(unmixing), dtype=torch.float64) for _ in range(2))
    for y in rows.split(TILE):
        s = (y @ unmixing.T.to(y.dtype)).double()
        # log cosh s = |s| + log(1 + e^{−2|s|}) − log 2, which does not overflow
        contrast += (s.abs() + torch.log1p(torch.exp(-2 * s.abs())) - math.log(2)).sum(0).cpu()
        cube += s.pow(3).sum(0).cpu()
    return contrast / len(rows), cube / len(rows)
