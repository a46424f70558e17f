"""How much of a fit comes back when it is done again: direction sets of one layer, matched one to one [ours].

Fits of another seed or of half the data find the same directions in another order, and methods without a sense of
sign find them turned round. So two sets are matched by the Hungarian method, by |cos| of their signal vectors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from stores.directions import Directions
from stores.errors import MismatchError
from stores.statistics import Statistics

ALIKE = 0.9  # |cos| above which a direction counts as found again
STABILITY = (
    "layer", "method", "first", "second", "directions_first", "directions_second", "matched",
    "signal_cos", "filter_cos", "logit_correlation", "signal_share", "filter_share", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Match:
    """Two direction sets of I and J directions, matched one to one: M = min(I, J) pairs, in the order of the first set.

    Parameters
    ----------
    first, second : (M,) numbers of the paired directions in either set.
    signals : (M,) |cos| of their signal vectors, what the matching maximises the sum of.
    filters : (M,) |cos| of their filters, for the same matching.
    logits : (M,) |correlation| of their logits over the data, or None when its statistics were not given.
    sizes : (I, J).

    A zero vector is like nothing: 0.
    """

    first: np.ndarray
    second: np.ndarray
    signals: np.ndarray
    filters: np.ndarray
    logits: np.ndarray | None
    sizes: tuple[int, int]

    @property
    def signal_cos(self) -> float:
        """Mean |cos| of S over the pairs."""
        return float(self.signals.mean())

    @property
    def filter_cos(self) -> float:
        """Mean |cos| of W over the pairs."""
        return float(self.filters.mean())

    @property
    def logit_correlation(self) -> float | None:
        """Mean |correlation| of logits over the pairs."""
        return None if self.logits is None else float(self.logits.mean())

    @property
    def note(self) -> str:
        """What was left out, where the sets are of different size; empty otherwise."""
        small, large = sorted(self.sizes)
        return "" if small == large else f"{small} of {large} directions matched: the sets are of different size"


def match(a: Directions, b: Directions, statistics: Statistics | None = None) -> Match:
    """Match two direction sets of one layer by |cos| of their signal vectors (Hungarian method) [ours].

    Parameters
    ----------
    a, b : I and J directions of the same layer.
    statistics : of the data (``stores.statistics``). With them the logits are compared too: filters that differ only
        where the data do not vary read the same, though their cosine may be far from 1.

    Raises MismatchError for directions of different layers.
    """
    b.check_store(a.layer, a.channels)
    if statistics is not None and statistics.covariance.shape != (a.channels, a.channels):
        raise MismatchError(
            f"The statistics are of {len(statistics.covariance)} channels, the directions of {a.channels}. Give those of "
            f"the layer '{a.layer}'."
        )
    signals = np.abs(cosines(a.signals, b.signals))
    first, second = linear_sum_assignment(signals, maximize=True)
    pairs = (first, second)
    return Match(
        first=first,
        second=second,
        signals=signals[pairs],
        filters=np.abs(cosines(a.filters, b.filters))[pairs],
        logits=None if statistics is None else np.abs(logit_correlation(a, b, statistics))[pairs],
        sizes=(a.count, b.count),
    )


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(I, J) cosines of the columns of ``a`` (C, I) and ``b`` (C, J), float64; 0 where one of them is zero."""
    return _unit(a.astype(np.float64)).T @ _unit(b.astype(np.float64))


def logit_correlation(a: Directions, b: Directions, statistics: Statistics) -> np.ndarray:
    """(I, J) correlations ``w^T Σ v / √(w^T Σ w · v^T Σ v)`` of logits over the data, float64; 0 where one is constant."""
    values, vectors = np.linalg.eigh(statistics.covariance)
    floor = values[-1] * np.finfo(np.float32).eps  # below: rounding of the sums, no variance
    root = vectors * np.sqrt(np.where(values > floor, values, 0))  # Σ = root · rootᵀ
    return cosines(root.T @ a.filters.astype(np.float64), root.T @ b.filters.astype(np.float64))


def stability_rows(
    sets: Mapping[str, Directions], statistics: Mapping[str, Statistics] | None = None
) -> list[dict[str, Any]]:
    """One row for each pair of files of the same method and layer: how alike their directions are (columns ``STABILITY``).

    ``statistics``: of the data, by layer; ``logit_correlation`` is None without. ``signal_share`` and ``filter_share``
    are the shares of pairs with |cos| above 0.9.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, directions in sets.items():
        groups[directions.layer, directions.method].append(name)
    rows = []
    for (layer, method), names in groups.items():
        for first, second in combinations(names, 2):
            found = match(sets[first], sets[second], (statistics or {}).get(layer))
            correlation = found.logit_correlation
            rows.append(
                {
                    "layer": layer,
                    "method": method,
                    "first": first,
                    "second": second,
                    "directions_first": found.sizes[0],
                    "directions_second": found.sizes[1],
                    "matched": len(found.first),
                    "signal_cos": round(found.signal_cos, 6),
                    "filter_cos": round(found.filter_cos, 6),
                    "logit_correlation": None if correlation is None else round(correlation, 6),
                    "signal_share": round(float((found.signals > ALIKE).mean()), 6),
                    "filter_share": round(float((found.filters > ALIKE).mean()), 6),
                    "note": found.note,
                }
            )
    return rows


def stability_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each file's mean ``signal_cos`` over the rows it occurs in: ``stability`` of its entry in ``summary.json``."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for side in ("first", "second"):
            values[row[side]].append(row["signal_cos"])
    return {name: round(float(np.mean(found)), 4) for name, found in values.items()}


def _unit(columns: np.ndarray) -> np.ndarray:
    """Columns of unit norm; zero columns stay zero. Scaled by their largest entry first: squares cannot vanish."""
    largest = np.abs(columns).max(0)
    scaled = columns / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(scaled, axis=0)
    return scaled / np.where(norms > 0, norms, 1)
