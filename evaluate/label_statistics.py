"""The pass after labels are chosen: how each detector's logits, and detectors of one label together, agree with the label.

It sums, for each detector and only its own label: histograms of the logits (average precision, supervised thresholds), the
union with all detectors of its set that carry the label, and per replicate of the bootstrap the weighted counts of val. As
in the first pass every sum is an integer, whatever parts it was added up from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from evaluate.average_precision import average_precision_from_bins
from evaluate.bootstrap import half_of, poisson_weights
from evaluate.dissection_batches import SPLITS, Material
from evaluate.label_counters import Chosen, CompiledCounter, TorchCounter
from stores.progress import Progress, silent


@dataclass
class Second:
    """``positive``, ``negative`` (2, J, bins): positions of annotated images by logit, where the detector's own label is
    and where it is not, on train and val. The rest is only of val: ``union_both``, ``union`` (U,): positions of each
    group's detectors together, on their label and in all; ``both``, ``detector``, ``label`` (B, J): the replicates' counts
    of each detector and its label, in images annotated in its category. ``half`` (2, 3, J): these three of each random half of the images,
    ``positive_half``, ``negative_half`` (J, bins): val's histograms of the second."""

    chosen: Chosen
    positive: np.ndarray
    negative: np.ndarray
    union_both: np.ndarray
    union: np.ndarray
    both: np.ndarray
    detector: np.ndarray
    label: np.ndarray
    half: np.ndarray
    positive_half: np.ndarray
    negative_half: np.ndarray

    def __add__(self, other: Second) -> Second:
        """The sums of two parts of the images together."""
        names = [one.name for one in fields(self) if one.name != "chosen"]
        return Second(self.chosen, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def average_precision(self) -> np.ndarray:
        """(J,) on val, of logits rounded to the bins; NaN where the label does not occur there."""
        return average_precision_from_bins(self.positive[1].astype(float), self.negative[1].astype(float))


def second_images(material: Material, chunks: range, chosen: Chosen, progress: Progress = silent) -> Second:
    """The second pass over the images of some chunks."""
    counter = (CompiledCounter if material.device.type == "cpu" else TorchCounter)(material, chosen)
    unions = np.zeros((2, len(chosen.groups)))
    replicated = np.zeros((3, chosen.replicates, material.bank.count))
    half = np.zeros((2, 3, material.bank.count))
    for block in material.blocks(chunks, "average precision", progress, splits=SPLITS):
        weights, counted = [], []
        for image in counter.images(block.images):
            unions += image.union
            counted.append(image.own)
            half[half_of(chosen.seed, image.number)] += image.own
            weights.append(poisson_weights(chosen.seed, image.number, chosen.replicates))
        if counted:  # (B, n) · (3, n, J): whole numbers, exact in float64
            w = torch.from_numpy(np.stack(weights, 1)).double()
            replicated += (w @ torch.from_numpy(np.stack(counted, 1))).numpy()
    present, absent = counter.histograms()
    for parts in (present, absent):
        parts[1] += parts[2]  # val, of both halves
    return Second(
        chosen=chosen, positive=present[:2], negative=absent[:2], union_both=unions[0], union=unions[1],
        both=replicated[0], detector=replicated[1], label=replicated[2],
        half=half, positive_half=present[2], negative_half=absent[2],
    )  # fmt: skip
