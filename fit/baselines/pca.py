"""Principal components, both signs of each: the sign of an eigenvector means nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig
from fit.whiten import principal_axes
from stores.errors import FitError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics


@dataclass(frozen=True)
class PCAConfig(FitterConfig):
    """``signs`` "both": I / 2 components, each with + and −; "largest": I components, signed so that the largest
    entry is positive."""

    signs: Literal["both", "largest"] = "both"


class PCA(Fitter[PCAConfig]):
    """Eigenvectors of the covariance, by falling variance; filter and signal vector are the same."""

    name: ClassVar[str] = "pca"
    configuration: ClassVar[type[PCAConfig]] = PCAConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """One streamed pass for the covariance, then an eigendecomposition."""
        config = self.config
        moments = statistics(reader, device=config.device, progress=progress)
        values, vectors = principal_axes(moments)
        components = -(-config.n_directions // 2) if config.signs == "both" else config.n_directions
        if components > vectors.shape[1]:
            raise FitError(
                f"{config.n_directions} directions were asked for, but {vectors.shape[1]} channels have only "
                f"{vectors.shape[1]} principal components (twice that with both signs). Ask for fewer --directions."
            )
        chosen = vectors[:, :components]
        if config.signs == "both":
            chosen = np.stack([chosen, -chosen], 2).reshape(len(chosen), -1)[:, : config.n_directions]
        filters = torch.from_numpy(np.ascontiguousarray(chosen, np.float32))
        explained = float(values[:components].clip(0).sum() / max(values.clip(0).sum(), 1e-30))
        return self.fitted(
            reader,
            filters=filters,
            signals=filters,
            mean=moments.mean,
            explained=round(explained, 6),
        )
