"""The settings of EDDP, and what of them a refinement goes by."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from fit.base import FitterConfig
from fit.refine import Refinement
from stores.errors import UsageError

POSITIVE = (
    "rank",
    "kmeans_iterations", "kmeans_points", "max_rows", "learning_rate", "tau", "gamma", "max_inverse_margin", "max_correlation", "sharpness",
    "restarts", "restart_rows", "power", "direction_rate",
)  # fmt: skip
NOT_NEGATIVE = (
    "refine_steps", "restart_steps", "patience", "shrinkage", "batch_rows", "lambda_s", "lambda_sb", "lambda_ma", "lambda_ic",
    "lambda_eac", "lambda_mm", "lambda_fso", "lambda_cl", "lambda_uncertainty", "uncertainty_ridge", "uncertainty_images",
)  # fmt: skip
SHARP = {"sharpness": 5.0, "learning_rate": 2e-2, "lambda_ma": 2.0, "tau": 0.2}
SOFT = {"sharpness": 1.0, "learning_rate": 1e-2, "lambda_ma": 3.0, "tau": 0.9}
BRIEF = {"refine_steps": 200, "max_rows": 10_000}  # of refits
PARTIAL = {"power": 0.5, "direction_rate": 0.1}  # of soft detectors on layers without a gap in their eigenvalues


@dataclass(frozen=True)
class EDDPConfig(FitterConfig):
    """Hyper-parameters of ``EDDP``; the λ are the weights of the losses with the paper's names.

    **Coordinates.** ``rank`` None: as many axes as lie in front of a gap in the covariance's eigenvalues, where there is one, else the
    larger of 64 and n_directions. ``power`` of the whitening, Λ^(−power/2): None takes 0.5 for soft detectors on layers without such a
    gap, and 1 otherwise; ``direction_rate``, the share of the learning rate that directions move by, 0.1 and 1. On real layers half
    whitening and slow directions make fits of two halves of the images more alike, and score higher; where the truth is known they would
    lose concepts (BENCHMARKS.md). At most ``max_rows`` positions are used, a seeded sample of
    all; ``rows`` "memory" keeps them whitened in memory, "store" uses every position and reads the store at each step.

    **Start.** ``restarts`` runs of k-means, and independent components by skewness where there are 32 positions a direction, each refined for ``restart_steps`` on ``restart_rows`` positions; the one of least loss
    is taken.

    **Regime.** "sharp": margins begin at a fifteenth of the mean distance from the threshold's plane, the learning rate at 2e-2, with
    ``lambda_ma`` 2 and ``tau`` 0.2; "soft": a third, 1e-2, 3 and 0.9: detectors end overlapping, several positive at a position. "auto"
    decides by the best start: if sharp detectors share no more than ``crisp`` bits of a position on average (L_s), the data hold
    one concept a position and sharp detectors recover it, rare ones too; real layers hold several at once, and soft detectors
    keep them whole where sharp ones split them (BENCHMARKS.md). ``sharpness`` (5, or 1 for up to 64 directions and more above), ``learning_rate``, ``lambda_ma`` and
    ``tau`` overrule the regime's where they are given.

    **Losses.** The balance of ``lambda_ma`` and ``lambda_s`` matters most: 3 to 1, near the paper's own (2.8 to 0.85 in step d), finds
    more than 1 to 1 on every real layer tried. ``rho`` None: 12 τ / I, at most 0.9 (paper, step b). ``max_inverse_margin``: the mean of
    1/M_i, in whitened units, above which sharper margins cost. ``lambda_cl`` keeps detectors apart whose logits correlate above
    ``max_correlation`` over the data (``fit.losses.correlated_logits``). ``signals``: how signal vectors are estimated at every step:
    "pooled" and "positives" are explained in ``fit.signals``; "free": learnt like the filters, as the paper does.

    **Steps.** ``batch_rows`` 0: every step sees all positions; else so many, drawn anew each epoch (signal vectors are then
    re-estimated once an epoch, on all). The learning rate falls along a cosine; ``patience`` steps without a lower loss end the fit.
    """

    refits: int = 8
    rank: int | None = None
    shrinkage: float = 0.0
    max_rows: int = 4_000_000
    rows: Literal["memory", "store"] = "memory"
    kmeans_iterations: int = 25
    kmeans_points: int = 1024
    restarts: int = 4
    restart_steps: int = 150
    restart_rows: int = 16384
    regime: Literal["auto", "sharp", "soft"] = "auto"
    crisp: float = 0.15
    sharpness: float | None = None
    refine_steps: int = 400
    learning_rate: float | None = None
    batch_rows: int = 0
    patience: int = 100
    reseed: bool = True
    signals: Literal["pooled", "positives", "free"] = "pooled"
    whiten: bool = True
    power: float | None = None
    direction_rate: float | None = None
    lambda_s: float = 1.0
    lambda_sb: float = 0.0
    lambda_ma: float | None = None
    lambda_ic: float = 5.0
    lambda_eac: float = 5.0
    lambda_mm: float = 1.0
    lambda_fso: float = 2.0
    lambda_cl: float = 5.0
    lambda_uncertainty: float = 0.05
    tau: float | None = None
    rho: float | None = None
    gamma: float = 1.1
    max_inverse_margin: float = 64.0
    max_correlation: float = 0.8
    uncertainty_step: Literal["constrained", "unconstrained"] = "constrained"
    uncertainty_objective: Literal["kl", "entropy"] = "kl"
    uncertainty_ridge: float = 0.03
    uncertainty_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=POSITIVE, not_negative=NOT_NEGATIVE)
        if self.rho is not None and not 0 < self.rho < 1:
            raise UsageError(f"'rho' must lie between 0 and 1, got {self.rho}.")

    def begun_sharpness(self, soft: bool) -> float:
        """``sharpness``, or the regime's.

        Soft detectors that are off still add up: what sigmoid leaves of each, times I. Above 64 directions they begin sharper
        with the logarithm of I, or all of them would stay active everywhere (measured at 128: S2 5.2 without, 6.5 with).
        """
        crowd = 1 + 0.45 * max(0.0, math.log(self.n_directions / 64)) if soft else 1.0
        return self.sharpness or crowd * (SOFT if soft else SHARP)["sharpness"]

    def refinement(self, soft: bool, partial: bool = False) -> Refinement:
        """What of this the refinement goes by, in one regime or the other, in fully or partially whitened coordinates."""
        chosen = {name: value for name, value in asdict(self).items() if name in Refinement.__dataclass_fields__}
        for name, value in (SOFT if soft else SHARP).items():
            if name in chosen and chosen[name] is None:
                chosen[name] = value
        if self.direction_rate is None:
            chosen["direction_rate"] = PARTIAL["direction_rate"] if partial else 1.0
        if self.rho is None:
            chosen["rho"] = min(0.9, 12 * chosen["tau"] / self.n_directions)
        return Refinement(**{**chosen, "steps": self.refine_steps})
