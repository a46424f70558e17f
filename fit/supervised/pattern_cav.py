"""Pattern-CAV: a label's signal vector is the difference of the class means, ``s ∝ E[x | label] − E[x | no label]``.

Pahde et al., "Navigating Neural Space: Revisiting Concept Activation Vectors to Overcome Directional Divergence", ICLR
2025 (arXiv:2202.03482): the pattern ``cov[x, t] / var[t]`` of a binary label t, which is that difference.

**Filter.** The source has none: it projects on the signal vector itself ("difference", w = s), which is what a CAV is used
for, and what distractors disturb. "lda": ``w = (Σ + εI)⁻¹ s``, the linear decoder whose pattern ``Σ w`` is s (Haufe et al.
2014, theorem 1; Fisher's discriminant), so that both directions of a pair belong to one linear model.
**Threshold.** The best F1 of ``w·x > b`` with the label over the labelled images: class means do not say where to cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from extract.network import Head
from fit.base import Fitted
from fit.checkpoint import Checkpoint
from fit.supervised.base import Supervised, SupervisedConfig, Task, best_f1_of_labels
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import Statistics


@dataclass(frozen=True)
class PatternCAVConfig(SupervisedConfig):
    """``shrinkage``: ε of "lda" as a multiple of the mean variance of a channel."""

    filter: Literal["lda", "difference"] = "lda"
    shrinkage: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(positive=("shrinkage",))


class PatternCAV(Supervised[PatternCAVConfig]):
    """Differences of class means as signal vectors. See ``PatternCAVConfig`` for the settings."""

    name: ClassVar[str] = "pattern-cav"
    configuration: ClassVar[type[PatternCAVConfig]] = PatternCAVConfig

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Three streamed passes: the layer's moments, the class means, the thresholds."""
        task = self.task(reader, progress)
        difference = mean_differences(task, progress)
        filters = F.normalize(difference, dim=0)
        if self.config.filter == "lda":
            filters = discriminants(task.moments, difference, self.config.shrinkage)
        thresholds = best_f1_of_labels(task, filters, progress)
        return self.fitted(
            reader,
            config=self.settled(task),
            filters=filters,
            signals=difference,
            mean=task.moments.mean,
            thresholds=thresholds,
            **task.info(),
        )


def mean_differences(task: Task, progress: Progress) -> torch.Tensor:
    """``E[x | label] − E[x | no label]`` (C, L) float64 over the images annotated in each label's category."""
    mean = torch.from_numpy(task.moments.mean).float().to(task.device)
    on, seen = (torch.zeros(len(mean), task.count, dtype=torch.float64) for _ in range(2))
    for block in task.blocks():
        x = block.x - mean  # a large common offset would cost digits
        on += (x.T @ (block.present & block.annotated).float()).double().cpu()
        seen += (x.T @ block.annotated.float()).double().cpu()
        progress("training", block.first + len(x), task.rows)
    positives, negatives = torch.from_numpy(task.positives), torch.from_numpy(task.negatives)
    return on / positives - (seen - on) / negatives


def discriminants(moments: Statistics, difference: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """``(Σ + εI)⁻¹ s`` (C, L) float64, scaled so that the score ``w·x`` has variance 1 over the layer."""
    covariance = torch.from_numpy(moments.covariance)
    epsilon = shrinkage * float(covariance.diagonal().mean())
    w = torch.linalg.solve(covariance + epsilon * torch.eye(len(covariance), dtype=torch.float64), difference)
    return w / ((covariance @ w) * w).sum(0).clamp_min(1e-30).sqrt()
