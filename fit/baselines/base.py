"""What all baselines need: filters turned into a Directions of their own method."""

from __future__ import annotations

import numpy as np
import torch

from fit.base import Fitted, FitterConfig, provenance
from fit.optim import refuse_non_finite_result
from stores.directions import Directions
from stores.readers import LayerReader


def fitted(
    method: str,
    reader: LayerReader,
    config: FitterConfig,
    *,
    filters: torch.Tensor,
    signals: torch.Tensor,
    mean: np.ndarray,
    thresholds: torch.Tensor | None = None,
    **info: object,
) -> Fitted:
    """Directions of a baseline; without thresholds its detectors are positive on the top quantile (Network Dissection)."""
    refuse_non_finite_result(filters, signals, *(() if thresholds is None else (thresholds,)))
    directions = Directions(
        filters=filters.cpu().numpy().astype(np.float32),
        signals=torch.nn.functional.normalize(signals, dim=0).cpu().numpy().astype(np.float32),
        mean=mean.astype(np.float32),
        thresholds=None if thresholds is None else thresholds.cpu().numpy().astype(np.float32),
        method=method,
        layer=reader.spec.name,
        info={**provenance(reader, config), **info},
    )
    return Fitted(directions)
