"""Which setting of a correction to take: what it gains on poisoned images against what it costs on clean ones, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of a 95 % interval

NO_GAIN = "no gain"  # no setting makes significantly more poisoned images right
TOO_COSTLY = "too costly"  # some do, but none within the tolerance
TOO_FEW = "too few images"  # the least costly is beyond the tolerance, as chance may be on so few images
SENTENCES = {
    NO_GAIN: "It cannot be corrected like this: no setting that was tried makes significantly more of the poisoned held-out images right.",
    TOO_COSTLY: "It cannot be corrected within the tolerance: what would help costs too much accuracy on clean held-out images.",
}


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy of the same images without correction, ``before``, and under R settings, ``after`` (R,); ``low``, ``high`` (R,): the
    ends of the 95 % interval of after − before. ``images``: how many."""

    images: int
    before: float
    after: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def change(self) -> np.ndarray:
        """(R,) after − before."""
        return self.after - self.before

    @property
    def lost(self) -> np.ndarray:
        """(R,) images that are right before, less those that are right after."""
        return np.rint(-self.images * self.change).astype(np.int64)


def paired_change(before: np.ndarray, after: np.ndarray) -> AccuracyChange:
    """What R settings change, only from the images that change sides: those right under both, or under neither, say nothing.

    The interval is Wald's with half an image added to each of the four cells (Agresti and Min 2005): it has a width where no image
    changes sides, too.

    Parameters
    ----------
    before : (n,) bool, images that are right without correction. Of none nothing changes.
    after : (R, n) bool, the same under each setting.
    """
    gained, lost = (after & ~before).sum(1), (before & ~after).sum(1)
    n = len(before) + 2
    middle = (gained - lost) / n
    half = Z * np.sqrt(((gained + lost + 1) / n - middle**2) / n)
    images = max(1, len(before))
    return AccuracyChange(len(before), before.sum() / images, after.sum(1) / images, middle - half, middle + half)


def choose(
    strengths: np.ndarray, clean: AccuracyChange, poisoned: AccuracyChange | None, tolerance: float
) -> tuple[int, str | None]:
    """The setting to take, and what is wrong with it: None, ``NO_GAIN``, ``TOO_COSTLY`` or ``TOO_FEW``.

    Of those that make significantly more poisoned images right, and whose loss on clean ones is not significantly more than the
    tolerance (the interval of the loss reaches down to it), the one of greatest gain − loss, of equals the weakest. Where none gains
    significantly, the same of all within the tolerance; where none is within it, the one that costs clean images least.

    Without poisoned images nothing is set against the loss: it is the strongest whose loss itself is at most the tolerance. Where there is
    none, and the least loss is not significantly more than the tolerance, or there are no images, these are ``TOO_FEW``.

    Parameters
    ----------
    strengths : (R,).
    clean, poisoned : what the R settings change on held-out images.
    tolerance : share of clean images.
    """
    if poisoned is None:
        gains, within, value = np.ones(len(strengths), bool), clean.change >= -tolerance - 1e-12, strengths
    else:
        gains, within, value = poisoned.low > 0, clean.high >= -tolerance, poisoned.change + clean.change
    for usable in (gains & within, within):
        if usable.any():
            break
    else:
        usable, value = ~within, clean.change
    best = max(np.flatnonzero(usable).tolist(), key=lambda r: (round(float(value[r]), 9), -strengths[r]))
    if poisoned is None and (not clean.images or (not within.any() and clean.high[best] >= -tolerance)):
        return best, TOO_FEW
    return best, None if (gains & within).any() else TOO_COSTLY if gains.any() else NO_GAIN
