"""What needs several files, or another encoder: stability of fits, monosemanticity, the comparison of all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluate.detector_bank import Bank, make_bank
from evaluate.monosemanticity import monosemanticity
from evaluate.stability import firing_iou, stability_of, stability_rows
from pipeline.table_writer import Tables
from stores.directions import Directions
from stores.errors import UsageError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics
from stores.store import ActivationStore
from stores.tables import rows_to_columns

OWN = "own"  # --monosemanticity without a store: the model's own features


def add_stability(
    store: ActivationStore,
    layer: str,
    sets: Mapping[str, Directions],
    tables: Tables,
    summary: dict[str, Any],
    *,
    device: str,
    progress: Progress,
) -> None:
    """Match the files of each method pair by pair, if any method has several: two seeds, two halves of the data."""
    methods = [directions.method for directions in sets.values()]
    if len(set(methods)) == len(methods):
        return
    several = {name: d for name, d in sets.items() if methods.count(d.method) > 1}
    reader = LayerReader(store, layer)
    moments = statistics(reader, device=device, progress=progress)
    bank = make_bank(several, reader, device=device, progress=progress)
    rows = stability_rows(several, moments, firing_iou(reader, bank, progress), bank.slices)
    tables.write("stability", rows_to_columns(rows))
    for name, values in stability_of(rows).items():
        summary["directions"][name].update(values)


def _embeddings(path: Path) -> LayerReader:
    store = ActivationStore.open(path)
    if len(store.layers) > 1:
        raise UsageError(
            f"The store '{path}' (--monosemanticity) holds several layers ({', '.join(store.layers)}), and one gives the "
            "embeddings. Extract that one into a store of its own."
        )
    return LayerReader(store)


def add_monosemanticity(
    store: ActivationStore,
    layer: str,
    sets: Mapping[str, Directions],
    encoder: Path,
    summary: dict[str, Any],
    *,
    device: str,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Monosemanticity scores (I,) of each file over the store's images, in the features of the store ``encoder``, or in the
    model's own for ``OWN``. Fills in the summary."""
    embeddings = None if str(encoder) == OWN else _embeddings(encoder)
    slices, start = {}, 0
    for name, directions in sets.items():
        slices[name] = slice(start, start + directions.count)
        start += directions.count
    filters = torch.cat([torch.from_numpy(d.filters) for d in sets.values()], 1).to(device)
    # the score does not see a threshold: activations are scaled by each direction's own least and largest
    bank = Bank(filters, torch.zeros(filters.shape[1], device=device), slices)
    found = monosemanticity(LayerReader(store, layer), bank, embeddings, progress=progress)
    for name, part in slices.items():
        summary["directions"][name].update(found.summary(part))
    return {name: found.scores[part] for name, part in slices.items()}
