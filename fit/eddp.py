"""EDDP: encoding-decoding direction pairs, in the paper's order (arXiv 2509.23926), by our fast steps.

1. whiten the activations; 2. cluster their directions (spherical k-means); 3. thresholds and margins from the
clusters; 4. refine filters, thresholds and margins on the paper's losses, re-estimating the signal vectors at every
step; 5. carry both directions back to activation space.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from extract.head import Head
from fit.clustering import spherical_kmeans
from fit.diagnosis import diagnose
from fit.fitter import Fitted, FitterConfig, provenance
from fit.losses import (
    RowWeights,
    Sums,
    column_gradient,
    excessively_active,
    filter_signal_orthogonality,
    inactive_classifier,
    streamed_sums,
)
from fit.signals import signals_from_sums
from fit.start import best_f1_thresholds, sample_rows
from fit.uncertainty import constrained_step, uncertainty_loss, unconstrained_step
from fit.whiten import WhitenedRows, Whitening, whiten_store, whitening
from stores.directions import Directions
from stores.errors import NonFiniteError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.statistics import statistics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EDDPConfig(FitterConfig):
    """Hyper-parameters of ``EDDP``; the λ are the weights of the losses with the paper's names.

    The balance of ``lambda_ma`` and ``lambda_s`` matters most: 3 to 1, near the paper's own (2.8 to 0.85 in step d), finds
    more than 1 to 1 on every data set tried. ``lambda_fso`` 2 sharpens the signal vectors; at 3 fits of few concepts collapse.
    ``rank`` None: the larger of 64 and n_directions. ``rho`` None: 12 τ / I, at most 0.9 (paper, step b).
    ``max_inverse_margin``: the mean of 1/M_i, in whitened units, above which sharper margins cost.
    ``uncertainty_images`` 0: 256 images a step for a pooled-affine head, 16 for any other (each goes through the network).
    """

    rank: int | None = None
    shrinkage: float = 0.0
    kmeans_iterations: int = 25
    kmeans_points: int = 1024
    refine_steps: int = 400
    learning_rate: float = 1e-2
    lambda_s: float = 1.0
    lambda_sb: float = 0.0
    lambda_ma: float = 3.0
    lambda_ic: float = 5.0
    lambda_eac: float = 5.0
    lambda_mm: float = 1.0
    lambda_fso: float = 2.0
    lambda_uncertainty: float = 0.25
    tau: float = 0.9
    rho: float | None = None
    gamma: float = 1.1
    max_inverse_margin: float = 64.0
    uncertainty_step: Literal["constrained", "unconstrained"] = "constrained"
    uncertainty_objective: Literal["kl", "entropy"] = "kl"
    uncertainty_ridge: float = 0.03
    uncertainty_images: int = 0
    max_rows: int = 4_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "kmeans_iterations",
            "kmeans_points",
            "max_rows",
            "learning_rate",
            "tau",
            "gamma",
            "max_inverse_margin",
        ):
            if getattr(self, name) <= 0:
                raise UsageError(f"'{name}' must be positive, got {getattr(self, name)}.")
        if self.refine_steps < 0 or self.shrinkage < 0 or (self.rank is not None and self.rank < 1):
            raise UsageError("'refine_steps' and 'shrinkage' must not be negative, and 'rank' must be at least 1.")
        if self.rho is not None and not 0 < self.rho < 1:
            raise UsageError(f"'rho' must lie between 0 and 1, got {self.rho}.")

    @property
    def rho_in_force(self) -> float:
        return self.rho if self.rho is not None else min(0.9, 12 * self.tau / self.n_directions)


@dataclass
class Detectors:
    """The state of a fit, in whitened coordinates: ``z = (y·ū − β) / M``.

    ``directions`` (r, I), normalised where used; ``offsets`` β (I,); ``log_margins`` (I,). Directions and margins are
    separate parameters (paper §3.2), so that a margin's growth does not slow its direction down.
    """

    directions: torch.Tensor
    offsets: torch.Tensor
    log_margins: torch.Tensor

    def parameters(self) -> list[torch.Tensor]:
        return [self.directions, self.offsets, self.log_margins]

    def unit(self) -> torch.Tensor:
        return F.normalize(self.directions, dim=0)

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W (r, I), b (I,)) with ``z = y W − b``."""
        inverse = torch.exp(-self.log_margins)
        return self.unit() * inverse, self.offsets * inverse


class EDDP:
    """Finds I direction pairs in a layer. See ``EDDPConfig`` for the settings."""

    name: ClassVar[str] = "eddp"
    uses_head: ClassVar[bool] = True

    def __init__(self, config: EDDPConfig | None = None) -> None:
        self.config = config or EDDPConfig()

    def fit(self, reader: LayerReader, head: Head | None = None, progress: Progress = silent) -> Fitted:
        """Fit on all positions of a layer; ``head`` adds uncertainty region alignment.

        Raises FitError when the activations do not vary or have too few directions, NonFiniteError for NaN.
        """
        config = self.config
        # 1. whitened coordinates
        moments = statistics(reader, device=config.device, progress=progress)
        rank = config.rank or max(64, config.n_directions)
        transform = whitening(moments, rank=rank, shrinkage=config.shrinkage).to(config.device)
        data = whiten_store(
            reader, transform, max_rows=config.max_rows, seed=config.seed, device=config.device, progress=progress
        )
        # 2. directions, 3. thresholds and margins
        progress("clustering", 0, None, f"{len(data.rows)} positions")
        detectors = start(data.rows, config)
        # 4. refinement
        uncertainty = None
        if head is not None and self._can_use_head(reader):
            uncertainty = Uncertainty(config, transform, data, reader, head)
        detectors, signals, table = refine(data.rows, detectors, config, uncertainty, progress)
        # 5. back to activation space
        filters, thresholds = detectors.linear()
        directions = self._activation_space(reader, transform, detectors, signals)
        info = {
            **provenance(reader, config),
            "rank": transform.rank,
            "variance_kept": round(transform.kept, 6),
            "positions": len(data.rows),
            "uncertainty": uncertainty.kind if uncertainty else "none",
            "diagnosis": diagnose(data.rows, filters.detach(), thresholds.detach(), signals),
        }
        return Fitted(replace(directions, info=info), table)

    def _can_use_head(self, reader: LayerReader) -> bool:
        if self.config.lambda_uncertainty == 0 or self.config.refine_steps == 0:
            return False
        if reader.spec.sampled or reader.spec.prefix:
            log.warning("uncertainty region alignment is left out: it needs every position of the layer")
            return False
        return True

    def _activation_space(
        self, reader: LayerReader, transform: Whitening, detectors: Detectors, signals: torch.Tensor
    ) -> Directions:
        """``w = Tᵀ ū / M``, ``b = β / M + w·μ``, ``s = T⁺ s_y`` with unit norm."""
        w_y, b_y = (t.detach().double() for t in detectors.linear())
        filters = transform.forward.double().T @ w_y
        mean = transform.mean.double()
        encoding = F.normalize(transform.backward.double() @ signals.double(), dim=0)

        def plain(t: torch.Tensor) -> np.ndarray:
            return t.cpu().numpy().astype(np.float32)

        return Directions(
            filters=plain(filters),
            signals=plain(encoding),
            mean=plain(mean),
            thresholds=plain(b_y + mean @ filters),
            method=self.name,
            layer=reader.spec.name,
        )


def start(rows: torch.Tensor, config: EDDPConfig) -> Detectors:
    """Detectors from spherical k-means of whitened rows (n, r): centroid, best-F1 threshold, margin ``mean|z| / 3``."""
    clusters = spherical_kmeans(
        rows,
        config.n_directions,
        seed=config.seed,
        iterations=config.kmeans_iterations,
        points_per_centroid=config.kmeans_points,
    )
    sample = sample_rows(len(rows), config.seed, rows.device)
    projection = rows[sample] @ clusters.centroids.T
    offsets = best_f1_thresholds(projection, clusters.assignment[sample])
    margins = (projection - offsets).abs().mean(0).clamp_min(1e-6) / 3
    return Detectors(clusters.centroids.T.contiguous(), offsets, margins.log())


def refine(
    rows: torch.Tensor,
    detectors: Detectors,
    config: EDDPConfig,
    uncertainty: Uncertainty | None = None,
    progress: Progress = silent,
) -> tuple[Detectors, torch.Tensor, list[dict[str, float]]]:
    """Full-batch Adam with cosine decay on the paper's losses; returns detectors, signals (r, I) and the log's rows.

    Signal vectors are re-estimated at every step from the positives and are constants for the gradient: as free
    parameters they drift away from the filters, and differentiating through the estimate does worse still.
    """
    weights = RowWeights(config.lambda_s, config.lambda_ma, config.lambda_sb)
    parameters = detectors.parameters()
    for tensor in parameters:
        tensor.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(t / max(config.refine_steps, 1), 1)))
    )
    table: list[dict[str, float]] = []
    for step in range(config.refine_steps):
        filters, thresholds = detectors.linear()
        with torch.no_grad():
            sums = streamed_sums(rows, filters, thresholds, weights, gamma=config.gamma)
            signals = signals_from_sums(sums, filters)
        loss, terms = small_losses(detectors, sums, signals, config)
        if uncertainty is not None:
            term, entropy = uncertainty(detectors, signals, step)
            loss = loss + config.lambda_uncertainty * term
            terms["uncertainty"], terms["entropy"] = float(term.detach()), entropy
        optimiser.zero_grad()
        slope = torch.autograd.grad(loss, sums.column, retain_graph=True)[0]
        with torch.no_grad():
            filters_column, thresholds_column = column_gradient(rows, filters, thresholds, slope, gamma=config.gamma)
        # the streamed losses enter through their gradient by (W, b), the small ones by autograd
        torch.autograd.backward(
            [loss, filters, thresholds],
            [
                torch.ones_like(loss),
                sums.filters_row + filters_column,
                sums.thresholds_row + thresholds_column,
            ],
        )
        optimiser.step()
        schedule.step()
        total = (
            float(loss.detach())
            + weights.sparsity * sums.sparsity
            + weights.maximum_activation * sums.maximum_activation
        )
        total += weights.sparsity_bound * sums.sparsity_bound
        if not math.isfinite(total):
            raise NonFiniteError(
                f"The loss became {total} at step {step}: lower the learning rate (--set learning_rate={config.learning_rate / 10:g})."
            )
        table.append(
            {
                "step": step,
                "total": total,
                "sparsity": sums.sparsity,
                "maximum_activation": sums.maximum_activation,
                "sparsity_bound": sums.sparsity_bound if weights.sparsity_bound else 0.0,
                **terms,
                "learning_rate": float(schedule.get_last_lr()[0]),
            }
        )
        progress("refinement", step + 1, config.refine_steps, f"loss {total:.3f}")
    with torch.no_grad():
        filters, thresholds = detectors.linear()
        sums = streamed_sums(rows, filters, thresholds, weights, gamma=config.gamma)
        signals = signals_from_sums(sums, filters)
    return detectors, signals, table


def small_losses(
    detectors: Detectors, sums: Sums, signals: torch.Tensor, config: EDDPConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """The losses that are functions of I or I² numbers, weighted; differentiable by the detectors and by ``sums.column``."""
    column = sums.column.requires_grad_(True)
    inverse = torch.exp(-detectors.log_margins).mean()
    terms = {
        "inactive": (config.lambda_ic, inactive_classifier(column, config.tau)),
        "excessive": (config.lambda_eac, excessively_active(column, config.rho_in_force)),
        "margin": (config.lambda_mm, F.relu(inverse / config.max_inverse_margin - 1)),
        "orthogonality": (config.lambda_fso, filter_signal_orthogonality(detectors.unit(), signals)),
    }
    loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
    values: dict[str, float] = {name: float(value.detach()) for name, (_, value) in terms.items()}
    return loss, {**values, "inverse_margin": float(inverse.detach())}


class Uncertainty:
    """Uncertainty region alignment for the head at hand; a call gives (loss, mean entropy in bits of f+(X'))."""

    def __init__(
        self, config: EDDPConfig, transform: Whitening, data: WhitenedRows, reader: LayerReader, head: Head
    ) -> None:
        self.config = config
        self.transform = transform
        self.data = data
        self.reader = reader
        self.head = head
        self.generator = torch.Generator().manual_seed(config.seed + 17)
        self.kind = "pooled-affine" if head.affine else "general"
        n = reader.n_images
        # a pooled-affine head needs one vector an image; any other one needs the whole map through the network
        self.batch = min(n, config.uncertainty_images or (256 if head.affine else 16))
        if head.affine:
            weight, _ = head.affine
            self.readout = weight @ transform.backward  # (K, r): what a whitened step does to the logits

    def __call__(self, detectors: Detectors, signals: torch.Tensor, step: int) -> tuple[torch.Tensor, float]:
        n = self.reader.n_images
        kappa = 0.5 + 0.4 * float(torch.rand((), generator=self.generator))
        if self.batch < n:
            chosen = torch.randperm(n, generator=self.generator)[: self.batch].sort().values
        else:
            chosen = torch.arange(n)
        if self.head.affine:
            # N × K logits may be gigabytes: only this step's images are read
            clean = torch.from_numpy(self.reader.store.rows("logits", self.data.images[chosen.numpy()]))
            dy = self._step(self.data.pooled[chosen.to(self.data.pooled.device)], detectors, signals)
            moved = clean.to(dy.device) - kappa * dy @ self.readout.T
        else:
            x = torch.from_numpy(self.reader.images(self.data.images[chosen.numpy()])).to(self.transform.mean.device)
            dy = self._step(self.transform(x), detectors, signals)
            moved = self.head(x.float() - kappa * dy @ self.transform.backward.T)
        with torch.no_grad():
            entropy = -uncertainty_loss(moved, "entropy")
        return uncertainty_loss(moved, self.config.uncertainty_objective), float(entropy)

    def _step(self, y: torch.Tensor, detectors: Detectors, signals: torch.Tensor) -> torch.Tensor:
        """dx in whitened coordinates for vectors y (…, r), positions or their means: the step is affine in y."""
        unit = detectors.unit()
        distance = y @ unit - detectors.offsets
        if self.config.uncertainty_step == "unconstrained":
            return unconstrained_step(distance, unit)
        encoding = F.normalize(signals, dim=0)
        return constrained_step(distance, unit.T @ encoding, encoding, self.config.uncertainty_ridge)
