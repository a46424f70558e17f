"""How much of a fit comes back when it is done again: direction sets of one layer, matched one to one [ours].

Three measures of likeness: what detectors fire on (IoU), their logits (|correlation| over the data) and signal vectors (|cos|).
Signs and order do not count: pairs are matched by the Hungarian method, separately for each measure. Likeness has a floor: the
directions of one set are like each other, too. So each measure is also given by chance, as the mean over a set matched with itself
where no direction may have itself, and as κ = (matched − chance) / (1 − chance): 0 is no better than any two directions of a set,
1 is the same directions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from evaluate.detector_bank import Bank, block_images
from stores.directions import Directions
from stores.errors import MismatchError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.similarity import cosines, logit_correlation, match
from stores.statistics import Statistics

ALIKE = {
    "detector_iou": 0.5,
    "logit_correlation": 0.9,
    "signal_cos": 0.9,
}  # from where a pair counts in a measure's share
STABILITY = (
    "layer", "method", "first", "second", "directions_first", "directions_second", "matched",
    *(f"{measure}{part}" for measure in ALIKE for part in ("", "_chance", "_kappa", "_share")),
    "mutual", "nearest_first", "nearest_second", "note",
)  # fmt: skip


def firing_iou(reader: LayerReader, bank: Bank, progress: Progress = silent) -> np.ndarray:
    """(J, J) intersection over union of the positions on which the detectors of a bank fire; one streamed pass.

    0 for two detectors that never fire.
    """
    both = torch.zeros(bank.count, bank.count, dtype=torch.float64, device=bank.filters.device)
    done, step = 0, block_images(reader, bank.count)
    for index, x in reader.chunks(range(reader.store.n_chunks)):
        for start in range(0, len(index), step):
            fires = (bank.logits(x[start : start + step]) > 0).flatten(0, 1).float()  # (n·P, J)
            both += (fires.T @ fires).double()
        done += len(index)
        progress("stability", done, reader.n_images)
    counts = both.cpu().numpy()
    own = counts.diagonal()
    union = own[:, None] + own[None, :] - counts
    return np.divide(counts, union, out=np.zeros_like(counts), where=union > 0)


def stability_rows(
    sets: Mapping[str, Directions], statistics: Statistics, iou: np.ndarray, slices: Mapping[str, slice]
) -> list[dict[str, Any]]:
    """One row for each pair of files of the same method: how alike their directions are (columns ``STABILITY``).

    Parameters
    ----------
    sets : direction files of one layer, by name.
    statistics : of the layer's data.
    iou : (J, J) of all their detectors (``firing_iou``), ``slices`` those of each file.

    Raises MismatchError for directions of different layers.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, directions in sets.items():
        groups[directions.method].append(name)
        if statistics.covariance.shape != (directions.channels, directions.channels):
            raise MismatchError(
                f"The statistics are of {len(statistics.covariance)} channels, the directions of {directions.channels}. Give those "
                f"of the layer '{directions.layer}'."
            )

    def likeness(measure: str, a: str, b: str) -> np.ndarray:
        if measure == "detector_iou":
            return iou[slices[a], slices[b]]
        if measure == "signal_cos":
            return np.abs(cosines(sets[a].signals, sets[b].signals))
        return np.abs(logit_correlation(sets[a].filters, sets[b].filters, statistics))

    rows = []
    for method, names in groups.items():
        for a, b in combinations(names, 2):
            sets[b].check_store(sets[a].layer, sets[a].channels)
            small, large = sorted((sets[a].count, sets[b].count))
            row: dict[str, Any] = {
                "layer": sets[a].layer, "method": method, "first": a, "second": b,
                "directions_first": sets[a].count, "directions_second": sets[b].count, "matched": small,
            }  # fmt: skip
            for measure, above in ALIKE.items():
                found = match(likeness(measure, a, b), likeness(measure, a, a), likeness(measure, b, b))
                row[measure] = found.matched
                row[f"{measure}_chance"], row[f"{measure}_kappa"] = found.chance, found.kappa
                row[f"{measure}_share"] = float((found.values > above).mean())
            logits = likeness("logit_correlation", a, b)
            nearest = logits.argmax(1)
            row["mutual"] = float((logits.argmax(0)[nearest] == np.arange(len(nearest))).mean())
            for side, name in (("first", a), ("second", b)):
                row[f"nearest_{side}"] = _nearest(likeness("logit_correlation", name, name))
            row["note"] = (
                "" if small == large else f"{small} of {large} directions matched: the sets are of different size"
            )
            rows.append({key: _rounded(value) for key, value in row.items()})
    return rows


def stability_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """For each file the mean over the rows it occurs in: ``stability`` (logit correlation) and ``stability_kappa`` in ``summary.json``."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        for side in ("first", "second"):
            found[row[side]].append(row)
    return {
        name: {
            key: _mean([row[column] for row in mine])
            for key, column in (("stability", "logit_correlation"), ("stability_kappa", "logit_correlation_kappa"))
        }
        for name, mine in found.items()
    }


def _nearest(within: np.ndarray) -> float:
    """Mean likeness of a set's directions with the nearest other one of the set."""
    others = within.copy()
    np.fill_diagonal(others, -1)
    return float(others.max(1).mean()) if len(within) > 1 else float("nan")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if np.isnan(value) else round(value, 6)
