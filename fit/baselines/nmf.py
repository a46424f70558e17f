"""Non-negative matrix factorisation, ``x ≈ c H`` with c ≥ 0 and H ≥ 0: scikit-learn's, by coordinate descent on a sample of positions.

Cichocki, Phan, "Fast local algorithms for large scale nonnegative matrix and tensor factorizations", IEICE Transactions E92-A(3), 2009.

A part is the signal vector: what is added when it is present. The filters are the columns of the pseudo-inverse ``H⁺`` (C, I): they
are least squares, the criterion that the factorisation minimises, without the sign, which no linear filter can keep. So
``x H⁺`` gives the codes back where x is exactly a sum of parts, and filter i does not see part j. The other candidate, Σ⁻¹h (the
inverse of Haufe et al.'s pattern), supposes codes that are uncorrelated; those of NMF are not, as they compete.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig
from stores.errors import FitError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics


@dataclass(frozen=True)
class NMFConfig(FitterConfig):
    """``negative``: what to do with a layer that has negative activations: "refuse" it, or "clip" them to 0.

    ``max_rows``: positions at most, a seeded sample of all; they are held in memory. ``iterations``: of the coordinate descent.
    """

    negative: Literal["refuse", "clip"] = "refuse"
    max_rows: int = 65_536
    iterations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=("max_rows", "iterations"))


class NMF(Fitter[NMFConfig]):
    """Non-negative parts of a layer's positions. See ``NMFConfig`` for the settings."""

    name: ClassVar[str] = "nmf"
    configuration: ClassVar[type[NMFConfig]] = NMFConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Factorise a sample of the positions.

        Raises FitError for negative activations, unless they are to be clipped, and for a layer of zeros.
        """
        from sklearn.decomposition import NMF as Factorisation  # slow to import, and only needed here

        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        x = reader.sampled_rows(config.max_rows, config.seed).astype(np.float32, copy=False)
        lowest, negative_share = float(x.min()), float((x < 0).mean())
        if lowest < 0 and config.negative == "refuse":
            raise FitError(
                f"Layer '{reader.spec.name}' has negative activations ({100 * negative_share:.3g} % of them, down to {lowest:.4g}), "
                "which are no sums of non-negative parts: take a layer after a ReLU, or take them for 0 with --set negative=clip."
            )
        if not (x > 0).any():
            raise FitError(f"Layer '{reader.spec.name}' has no positive activation, so there are no parts to find.")
        x.clip(0, out=x)
        progress("parts", 0, None, f"{len(x)} positions")
        nmf = Factorisation(
            config.n_directions, init="random", max_iter=config.iterations, random_state=config.seed % 2**32
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: ``iterations`` in the file says so
            nmf.fit(x)
        parts = torch.from_numpy(nmf.components_.astype(np.float64))
        mean = x.mean(0, dtype=np.float64)
        # in parts: float64 copies of all rows would need more memory than the factorisation
        total = sum(float(np.square(part - mean).sum()) for part in np.array_split(x, -(-len(x) // 4096)))
        return self.fitted(
            reader,
            filters=torch.linalg.pinv(F.normalize(parts, dim=1)),
            signals=parts.T,
            mean=moments.mean,
            iterations=nmf.n_iter_,
            positions=len(x),
            reconstruction=round(1 - float(nmf.reconstruction_err_) ** 2 / max(total, 1e-30), 6),
            lowest=lowest,
            negative_share=negative_share,
        )
