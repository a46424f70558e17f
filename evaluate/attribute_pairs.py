"""Do directions move with what they are named after? Pairs of images that differ in one thing, without it and with it.

For each pair the mean logit over positions is compared, d_ij = z_i(with) − z_i(without). A direction moves with an attribute when

* its mean change over the attribute's pairs is beyond chance: its t is larger than the largest t of all directions in 95 % of sign flips (each
  pair is exchanged at random, for all directions alike: Westfall & Young 1993), and
* no other attribute raises it more, in units of t.

Against the names of directions: precision is the share of the directions named after an attribute that move with it, recall the share of the directions
that move with an attribute that are named after it. p: the names are shuffled among the directions; what is counted are the directions that move with
the attribute they are named after. (The pairs are the counterfactual check of a label; the tests are our definition.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.label_tests import wilson

FLIPS = 999  # of signs, and shuffles of names
LEVEL = 0.05


@dataclass(frozen=True)
class Moves:
    """Of I directions and T attributes: ``t``, ``p`` (I, T), ``change`` (I, T) the mean change of the logit, and ``moves`` (I,) the attribute that each
    direction moves with, −1 for none."""

    t: np.ndarray
    p: np.ndarray
    change: np.ndarray
    moves: np.ndarray


def moves_of(differences: Sequence[np.ndarray], seed: int = 0) -> Moves:
    """What each direction moves with.

    Parameters
    ----------
    differences : of each attribute (n, I), mean logit with it less mean logit without it, of n pairs.
    """
    generator = np.random.default_rng([seed, 0xA7])
    ts, ps = [], []
    for d in differences:
        t, flipped = _t(d, np.ones((1, len(d))))[0], _t(d, generator.choice([-1.0, 1.0], (FLIPS, len(d)))).max(1)
        ts.append(t)
        ps.append((1 + (flipped[:, None] >= t).sum(0)) / (FLIPS + 1))
    t, p = np.stack(ts, 1), np.stack(ps, 1)
    best = t.argmax(1)
    moves = np.where(p[np.arange(len(best)), best] <= LEVEL, best, -1)
    return Moves(t, p, np.stack([d.mean(0) for d in differences], 1), moves)


def _t(d: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """(F, I) mean over its standard error, of the differences (n, I) under each row of signs (F, n); 0 where nothing changes."""
    n = len(d)
    mean = signs @ d / n
    error = np.sqrt(np.maximum((d**2).sum(0) / n - mean**2, 0) / max(n - 1, 1))
    scale = np.sqrt((d**2).mean(0))
    return np.divide(mean, np.maximum(error, 1e-6 * scale), out=np.zeros_like(mean), where=scale > 0)


@dataclass(frozen=True)
class Agreement:
    """``named``: directions named after an attribute; ``moving``: that move with one; ``both``: with the one they are named after."""

    named: int
    moving: int
    both: int
    p: float

    def summary(self) -> dict[str, Any]:
        """Precision and recall with their intervals, None where nothing is named, or nothing moves."""
        found: dict[str, Any] = {
            "named": self.named,
            "moving": self.moving,
            "agreeing": self.both,
            "p": round(self.p, 4),
        }
        for key, count in (("precision", self.named), ("recall", self.moving)):
            low, high = wilson(self.both / count, count) if count else (None, None)
            values = {key: self.both / count if count else None, f"{key}_low": low, f"{key}_high": high}
            found |= {name: None if value is None else round(value, 4) for name, value in values.items()}
        return found


def agreement_of(moves: np.ndarray, named: np.ndarray, seed: int = 0) -> Agreement:
    """How far names agree with what directions move with, both (I,) attributes or −1."""

    def both(some: np.ndarray) -> int:
        return int(((some == moves) & (some >= 0)).sum())

    generator, found = np.random.default_rng([seed, 0xA8]), both(named)
    beyond = sum(both(generator.permutation(named)) >= found for _ in range(FLIPS))
    return Agreement(int((named >= 0).sum()), int((moves >= 0).sum()), found, (1 + beyond) / (FLIPS + 1))
