"""From scores and those of null directions to p-values, and what is left of them after so many tests.

**The rule** [ours]: a direction moves a class significantly where it does so more than its null directions, and more than random
directions, each with a chance of at most 5 % of any false claim in the table (``significant`` of ``Standardised``). Each half fails on what the
other is about: held-out null directions, evaluated as if they had been found, are all beyond random ones somewhere, and random directions
beyond null ones; both halves together claimed something in 2 of 100 tables of either (16 directions × 1000 classes, BENCHMARKS.md). The
other rules have their own names.

**The paper's rule** takes ``p = b / N``, b of N null directions with a score at least as strong, and asks ``p < 0.05 / (I·K)``. With N = 100 that
means b = 0, whatever the number of tests.

**Counting.** A permutation test that holds its level counts the tested direction among its nulls, ``p = (b + 1) / (N + 1)`` (Phipson & Smyth
2010), and is then corrected for the number of tests: Holm (1979) bounds the chance of any false claim, Benjamini & Hochberg (1995) the
share of false ones among all claims. But p is never below 1 / (N + 1), so that N = 100 cannot tell one finding among thousands of tests:
Holm claims nothing beyond 5 tests, Benjamini & Hochberg nothing unless a fifth of all tests are at the least p.

**Standardising** [ours] needs no smaller p. The mean change of the logit, against the mean of all classes', is measured in standard
deviations of its null directions', t. The
largest |t| among all directions and classes in each of the N rounds of permutations is what chance can reach somewhere in the
complete table (Westfall & Young 1993): ``p_max`` bounds the chance of any false claim, at any number of tests. ``q_t`` is Benjamini &
Hochberg on Student's t with N − 1 degrees of freedom: it takes the nulls for normal, which they are not quite. Where there was
nothing to find, 8 directions × 40 classes, it claimed something in 9 to 15 of 100 tables instead of 5, ``p_max`` in 2 to 4 [measured].

**Which chance?** Null directions of permuted labels are signal vectors of a sample half of which shows the concept: where the layer has few
channels, or the concept is most of what varies, they point along the concept itself, and nothing can beat them. So the change is also
held against that of directions uniform on the sphere, ``t_random``: does this direction move the class more than one that knows nothing of
data and network? Its p-values are Student's, Holm's over the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Counted:
    """Of a table of tests, all arrays of its shape: p-values by the paper's count and by the honest one, Holm's adjusted
    p, Benjamini & Hochberg's q, and which stay below the level."""

    p_paper: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray
    q_bh: np.ndarray
    paper: np.ndarray
    holm: np.ndarray
    bh: np.ndarray


@dataclass(frozen=True)
class Standardised:
    """Of a table of tests: ``q_t`` and ``p_max`` against null directions, Holm's ``p_random`` against random ones, and which stay
    below the level; ``significant``: both ``max`` and ``random``."""

    q_t: np.ndarray
    p_max: np.ndarray
    p_random: np.ndarray
    t: np.ndarray
    max: np.ndarray
    random: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        return np.asarray(self.max & self.random)


def fewest_nulls(level: float = 0.05) -> int:
    """How many null directions ``significant`` needs to claim anything."""
    return math.ceil(1 / level - 1 - 1e-9)


def counted(reached: np.ndarray, nulls: np.ndarray, level: float = 0.05) -> Counted:
    """Test directions × classes by how many null directions reach them.

    Parameters
    ----------
    reached : (I, K) int, null directions of the detector at least as strong as the direction.
    nulls : (I,) how many null directions there were. Without any nothing is tested: p is 1 and nothing significant.
    """
    count = np.broadcast_to(nulls[:, None], reached.shape)
    tested = count > 0
    paper = np.where(tested, reached / np.maximum(count, 1), 1.0)
    p = np.where(tested, (reached + 1) / (count + 1), 1.0)
    holm, q = holm_adjusted(p), bh_adjusted(p)
    return Counted(
        paper, p, holm, q, tested & (paper < level / p.size), tested & (holm <= level), tested & (q <= level)
    )


def by_deviations(
    t: np.ndarray,
    nulls: np.ndarray,
    extremes: np.ndarray,
    t_random: np.ndarray,
    randoms: int,
    level: float = 0.05,
) -> Standardised:
    """Test directions × classes by their standardised change.

    Parameters
    ----------
    t, t_random : (I, K) from ``standardised`` and ``deviations``.
    randoms : how many random directions there were.
    nulls : (I,) how many null directions there were; with fewer than three nothing is tested.
    extremes : (B,) the largest |t| of any null direction on any class, a round of permutations each.
    """
    from scipy.stats import t as student  # takes a second to import: only who tests waits for it

    count = np.broadcast_to(nulls[:, None], t.shape)
    tested = count > 2
    size = np.abs(t)
    q = bh_adjusted(np.where(tested, 2 * student.sf(size, np.maximum(count - 1, 1)), 1.0))
    above = len(extremes) - np.searchsorted(np.sort(extremes), size, side="left")  # rounds with an extreme ≥ |t|
    # no less than the detector's own nulls can tell, of which there may be fewer than rounds
    p_max = np.where(tested, np.maximum((above + 1) / (len(extremes) + 1), 1 / (count + 1)), 1.0)
    p_random = np.ones(t.shape)
    if randoms > 2:
        p_random = holm_adjusted(2 * student.sf(np.abs(t_random), randoms - 1))
    return Standardised(q, p_max, p_random, tested & (q <= level), tested & (p_max <= level), p_random <= level)


def deviations(values: np.ndarray, nulls: np.ndarray) -> np.ndarray:
    """How far changes (I, K) are from those of directions (n, K) that are the same chance to all, in their standard deviations."""
    n = len(nulls)
    sd = nulls.std(0, ddof=1) * np.sqrt(1 + 1 / n)
    least = 1e-12 * np.abs(nulls).max(0) + 1e-300
    return np.where(sd > least, (values - nulls.mean(0)) / np.maximum(sd, least), 0.0)


def standardised(value: np.ndarray, nulls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far a direction's changes (K,) are from those of its null directions (n, K), in their standard deviations.

    Returns t (K,), ``(x − mean) / (sd √(1 + 1/n))``, and the same (n, K) of each null direction against the others, which is what
    chance does to t. 0 where there are fewer than three nulls or they do not vary.
    """
    n = len(nulls)
    if n < 3:
        return np.zeros_like(value), np.zeros_like(nulls)
    centre = nulls.mean(0)
    off = nulls - centre
    square = (off * off).sum(0)
    least = 1e-12 * np.abs(nulls).max(0) + 1e-300

    def ratio(difference: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
        sd = np.sqrt(np.maximum(variance, 0) * (1 + 1 / count))
        return np.where(sd > least, difference / np.maximum(sd, least), 0.0)

    # without row b, with off summing to 0: the mean moves by −off_b / (n − 1)
    others = (square - off * off - off * off / (n - 1)) / (n - 2)
    return ratio(value - centre, square / (n - 1), n), ratio(off * n / (n - 1), others, n - 1)


def rounds(extreme: np.ndarray, count: int) -> np.ndarray:
    """A detector's largest |t| (n,), one a null direction, over ``count`` rounds of permutations: again from the first when they
    run out, for a detector with few nulls strays as far in the other rounds. Zeros where there is none."""
    return np.resize(extreme, count) if len(extreme) else np.zeros(count)


def holm_adjusted(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values, of p's shape: ``max_{j ≤ i} (m − j + 1) p_(j)``, at most 1."""
    flat = p.ravel()
    order = np.argsort(flat, kind="stable")
    raised = np.maximum.accumulate(flat[order] * (len(flat) - np.arange(len(flat))))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(raised, 1)
    return adjusted.reshape(p.shape)


def bh_adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini & Hochberg's step-up adjusted p-values, of p's shape: ``min_{j ≥ i} m p_(j) / j``, at most 1."""
    from scipy.stats import false_discovery_control  # takes a second to import: only who tests waits for it

    return np.asarray(false_discovery_control(p.ravel())).reshape(p.shape)
