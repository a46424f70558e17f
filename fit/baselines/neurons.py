"""Natural neurons: each channel is a detector; its signal vector is its Haufe pattern, cov(x) e_c."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig
from fit.signals import pattern
from stores.errors import FitError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics


@dataclass(frozen=True)
class NeuronsConfig(FitterConfig):
    """``n_directions`` channels are taken, those of largest variance first."""


class Neurons(Fitter[NeuronsConfig]):
    """Channels of the layer as they are."""

    name: ClassVar[str] = "neurons"
    configuration: ClassVar[type[NeuronsConfig]] = NeuronsConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """One streamed pass for the covariance."""
        config = self.config
        if config.n_directions > reader.channels:
            raise FitError(
                f"{config.n_directions} directions were asked for, but layer '{reader.spec.name}' has {reader.channels} "
                "channels. Ask for fewer --directions."
            )
        moments = statistics(reader, device=config.device, progress=progress)
        order = np.argsort(-np.diag(moments.covariance), kind="stable")[: config.n_directions]
        filters = torch.zeros(reader.channels, config.n_directions)
        filters[torch.from_numpy(order.copy()), torch.arange(config.n_directions)] = 1
        signals = pattern(torch.from_numpy(moments.covariance).float(), filters)
        return self.fitted(reader, filters=filters, signals=signals, mean=moments.mean, neurons=order.tolist())
