"""Network Dissection (Bau et al. 2017): how well each detector's positions agree with each label's.

Two passes over the images of a concept dataset: ``count`` for what chooses labels and scores them (``evaluate.counts``),
``second`` for what is asked of each detector and its own label (``evaluate.label_statistics``). What is computed from them is in
``evaluate.metrics``.
"""

from __future__ import annotations

import numpy as np
import torch

from evaluate.average_precision import average_precision_from_bins
from evaluate.bootstrap import REPLICATES
from evaluate.counts import Counts, count_images
from evaluate.detector_bank import Bank, block_images
from evaluate.dissection_batches import SPLITS, Material, Resolution, raster_size, upsample
from evaluate.label_counters import BINS, Chosen, groups_of
from evaluate.label_statistics import Second, second_images
from evaluate.parallel import Scheduler, spread
from extract.labels import Alignment
from stores.errors import DatasetError
from stores.progress import Progress, silent
from stores.readers import LayerReader

__all__ = [
    "BINS", "SPLITS", "Counts", "Dissector", "Resolution", "Second", "average_precision_from_bins", "raster_size", "upsample",
]  # fmt: skip


class Dissector:
    """Compares a bank of detectors with all labels of a concept dataset.

    Parameters
    ----------
    scheduler : where the passes run, see ``evaluate.parallel.spread``; the sums are the same everywhere.
    """

    def __init__(
        self,
        reader: LayerReader,
        bank: Bank,
        alignment: Alignment,
        resolution: Resolution = "mask",
        *,
        scheduler: Scheduler = None,
    ) -> None:
        source = alignment.source
        readable = set(reader.image_indices.tolist())
        present = {source.split(image) for row, image in alignment.rows.items() if row in readable}
        missing = [split for split in SPLITS if split not in present]
        if missing:
            raise DatasetError(
                f"{source.listing} has no image of the split '{missing[0]}' in the store "
                f"(it has {', '.join(sorted(present)) or 'none'}): labels are chosen on train and scored on val."
            )
        self.material = Material(reader, bank, alignment, resolution, raster_size(reader, alignment, resolution))
        self.scheduler = scheduler
        self._range: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def bank(self) -> Bank:
        return self.material.bank

    @property
    def raster(self) -> tuple[int, int]:
        return self.material.raster

    def count(self, progress: Progress = silent) -> Counts:
        """One pass over all images: everything that IoU, precision and recall need."""
        counts = spread(count_images, self.material, self.scheduler, progress=progress, stage="dissection")
        self._range = counts.low, counts.high
        return counts

    def second(
        self, label_of: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0, progress: Progress = silent
    ) -> Second:
        """One more pass, once labels are chosen.

        Parameters
        ----------
        label_of : (J,) column of each detector's label, −1 for none.
        replicates : B of the bootstrap over images; each image's draws depend only on ``seed`` and its number.

        Logits are binned (2000 bins between each detector's smallest and largest grid logit), so that memory does not
        grow with the number of positions.
        """
        low, high = self._range or self._logit_range()
        groups = groups_of(label_of, self.bank.slices)
        chosen = Chosen(np.asarray(label_of), low, high, groups, replicates, seed)
        stage = "average precision"
        return spread(second_images, self.material, self.scheduler, chosen, progress=progress, stage=stage)

    def average_precision(self, label_of: np.ndarray, progress: Progress = silent) -> np.ndarray:
        """Average precision (J,) on val of each detector's logits for its own label; NaN where that does not occur."""
        return self.second(label_of, replicates=1, progress=progress).average_precision

    def _logit_range(self) -> tuple[np.ndarray, np.ndarray]:
        """What ``count`` finds on its way, for a second pass without a first."""
        low = torch.full((self.bank.count,), float("inf"), device=self.bank.filters.device)
        high = -low
        for index, block in self.material.reader.blocks(images=block_images(self.material.reader, self.bank.count)):
            if len(index):
                z = self.bank.logits(block).reshape(-1, self.bank.count)
                low, high = torch.minimum(low, z.amin(0)), torch.maximum(high, z.amax(0))
        return low.cpu().numpy(), high.cpu().numpy()
