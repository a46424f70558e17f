"""How alike directions of one layer are: by cosine, by their logits over the data, matched one to one, corrected for chance [ours]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from stores.statistics import Statistics


@dataclass(frozen=True)
class Matching:
    """Two sets of I and J directions compared by one measure of likeness.

    Parameters
    ----------
    first, second : (M,) numbers of the pairs matched one to one, M = min(I, J), in the order of the first set.
    values : (M,) likeness of the pairs, in [0, 1].
    chance : mean likeness of a set's directions matched with others of the same set, averaged over both sets; NaN where neither
        has two.
    """

    first: np.ndarray
    second: np.ndarray
    values: np.ndarray
    chance: float

    @property
    def matched(self) -> float:
        """Mean likeness of the pairs."""
        return float(self.values.mean())

    @property
    def kappa(self) -> float:
        """``(matched − chance) / (1 − chance)``."""
        return (self.matched - self.chance) / (1 - self.chance) if self.chance < 1 else float("nan")


def match(between: np.ndarray, within_first: np.ndarray, within_second: np.ndarray) -> Matching:
    """Match two sets one to one by a measure of likeness (Hungarian method), and say how alike they are by chance.

    Parameters
    ----------
    between : (I, J) likeness of the sets' directions; ``within_first`` (I, I) and ``within_second`` (J, J) of each set's own.
    """
    first, second = linear_sum_assignment(between, maximize=True)
    floors = [deranged(within) for within in (within_first, within_second) if len(within) > 1]
    chance = float(np.mean(floors)) if floors else float("nan")
    return Matching(first, second, between[first, second], chance)


def deranged(within: np.ndarray) -> float:
    """Mean likeness of the best matching of a set with itself in which no direction is matched with itself; (I, I), I > 1."""
    others = within.copy()
    np.fill_diagonal(others, -len(within) - 1.0)
    pairs = linear_sum_assignment(others, maximize=True)
    return float(within[pairs].mean())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(I, J) cosines of the columns of ``a`` (C, I) and ``b`` (C, J), float64; 0 where one of them is zero."""
    return unit(a.astype(np.float64)).T @ unit(b.astype(np.float64))


def logit_correlation(a: np.ndarray, b: np.ndarray, statistics: Statistics) -> np.ndarray:
    """(I, J) correlations ``w^T Σ v / √(w^T Σ w · v^T Σ v)`` of the logits of filters (C, I) and (C, J) over the data; 0 where one
    is constant. Filters that differ only where the data do not vary read the same, though their cosine may be far from 1."""
    return cosines(statistics.root @ a.astype(np.float64), statistics.root @ b.astype(np.float64))


def unit(columns: np.ndarray) -> np.ndarray:
    """Columns of unit norm; zero columns stay zero. Scaled by their largest entry first: squares cannot vanish."""
    largest = np.abs(columns).max(0)
    scaled = columns / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(scaled, axis=0)
    return scaled / np.where(norms > 0, norms, 1)
