"""Independent components: scikit-learn's FastICA (symmetric, log cosh) on a whitened sample of positions.

Hyvärinen, "Fast and robust fixed-point algorithms for independent component analysis", IEEE Transactions on Neural Networks
10(3), 1999. Filter ``w = Tᵀ u`` and signal vector ``T⁺ u``, the column of the mixing matrix, for a whitening ``y = T (x − μ)``.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig
from fit.whiten import whiten_store, whitening
from stores.errors import FitError, UsageError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics

log = logging.getLogger(__name__)

GAUSSIAN = 0.3745672  # E[log cosh ν], ν ~ N(0, 1)


@dataclass(frozen=True)
class ICAConfig(FitterConfig):
    """``signs`` "both": I / 2 components, each with + and −; "skewed": I components, signed so that their skewness is
    positive (the long tail is what is present).

    ``rank``: axes of largest variance that are used, and components that are estimated in them; the ones least Gaussian are
    given. None: as many as are needed. ``max_rows``: positions at most, a seeded sample of all. ``tolerance``: of the largest
    ``1 − |cos|`` between a component and itself an iteration before.
    """

    signs: Literal["both", "skewed"] = "both"
    rank: int | None = None
    iterations: int = 200
    tolerance: float = 1e-4
    max_rows: int = 262_144

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


class ICA(Fitter[ICAConfig]):
    """Directions along which the activations are as far from Gaussian as possible, and uncorrelated."""

    name: ClassVar[str] = "ica"
    configuration: ClassVar[type[ICAConfig]] = ICAConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Two passes over the layer (covariance, whitening), then FastICA of the sample in memory.

        Raises FitError when more components are asked for than there are axes with variance.
        """
        from sklearn.decomposition import FastICA  # slow to import, and only needed here
        from sklearn.exceptions import ConvergenceWarning

        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        transform = whitening(moments, rank=config.rank or config.components)
        if transform.rank < config.components:
            raise FitError(
                f"{config.components} independent components were asked for ({config.n_directions} directions, "
                f"signs={config.signs}), but the activations of layer '{reader.spec.name}' vary along {transform.rank} "
                "axes only. Ask for fewer --directions."
            )
        rows = whiten_store(
            reader, transform, config, max_rows=config.max_rows, pooled=False, progress=progress
        ).rows.cpu()
        progress("components", 0, None, f"{len(rows)} positions")
        ica = FastICA(whiten=False, max_iter=config.iterations, tol=config.tolerance, random_state=config.seed % 2**32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sources = ica.fit_transform(rows.numpy())
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        if not converged:
            log.warning(
                "ICA did not converge in %d iterations: raise --set iterations=, or ask for fewer --directions",
                ica.n_iter_,
            )
        # one by one: copies of all of them would need more memory than FastICA
        contrast, skewness = np.array([_shape(source) for source in sources.T]).T
        order = np.argsort(-np.abs(contrast - GAUSSIAN), kind="stable")[: config.components]
        upward = np.where(skewness < 0, -1.0, 1.0)
        chosen = torch.from_numpy((ica.components_ * upward[:, None])[order].T.astype(np.float64))  # (r, components)
        if config.signs == "both":
            chosen = torch.stack([chosen, -chosen], 2).reshape(len(chosen), -1)[:, : config.n_directions]
        return self.fitted(
            reader,
            filters=transform.forward.double().T @ chosen,
            signals=transform.backward.double() @ chosen,
            mean=moments.mean,
            converged=converged,
            iterations=ica.n_iter_,
            rank=transform.rank,
            variance_kept=round(transform.kept, 6),
            positions=len(rows),
            contrast=[round(float(v), 6) for v in contrast[order]],
            skewness=[round(float(v), 6) for v in np.abs(skewness[order])],
        )


def _shape(source: np.ndarray) -> tuple[float, float]:
    """Mean log cosh and skewness of a component (n,)."""
    s = source.astype(np.float64)
    size = np.abs(s)
    contrast = (size + np.log(1 + np.exp(-2 * size))).mean() - np.log(2)  # does not overflow
    s -= s.mean()
    square = s * s
    return float(contrast), float((square * s).mean() / square.mean() ** 1.5)
