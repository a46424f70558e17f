"""Is a model right more often without a concept? Strength chosen on held-out images, everything reported on the others.

The same is done along the filter (decoding direction) and along random directions, each with the strength that suits it best: if
the concept is written along its signal vector, only taking that out helps (EDDP's comparison).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluate.correct.correction import Correction
from evaluate.correct.judged import FLOOR, Judged, predict
from evaluate.influence.steering import random_units
from extract.head import Head
from stores.directions import Directions
from stores.errors import UsageError
from stores.progress import Progress, silent

log = logging.getLogger(__name__)

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0)  # of the concept's typical signal value
SHIFTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65)  # quantiles of the logits of the detector's positives


@dataclass(frozen=True)
class CorrectConfig:
    """How a correction is chosen.

    Parameters
    ----------
    tolerance : share of the clean images' accuracy that may be lost on the held-out ones.
    randoms : random directions to compare with.
    multiples, shifts : the strengths tried, in typical signal values, and the thresholds, in quantiles of the positives' logits.
    strength, shift : given instead of chosen.
    """

    tolerance: float = 0.005
    randoms: int = 20
    multiples: tuple[float, ...] = MULTIPLES
    shifts: tuple[float, ...] = SHIFTS
    strength: float | None = None
    shift: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise UsageError(f"The accuracy that may be lost must be from 0 to 1, got {self.tolerance}.")
        if self.randoms < 0 or self.seed < 0:
            raise UsageError(f"'randoms' and 'seed' must be at least 0, got {self.randoms} and {self.seed}.")
        if self.strength is not None and not 0 <= self.strength < np.inf:
            raise UsageError(f"The strength must be a number from 0, got {self.strength}.")


@dataclass(frozen=True)
class Tried:
    """One vector: every setting tried on the held-out images with its accuracies, and the one that was taken."""

    vector: str
    settings: list[Correction]
    clean: np.ndarray
    poisoned: np.ndarray | None
    best: int

    @property
    def chosen(self) -> Correction:
        return self.settings[self.best]


@dataclass(frozen=True)
class Study:
    """What a correction does. ``before``, ``after``: predicted classes (n,) of ``clean`` and ``poisoned`` images under no correction and
    under the chosen one; ``others``: by (vector, draw, setting) those of the comparison, setting being ``own`` or ``signal``."""

    correction: Correction
    tried: dict[str, Tried]
    typical: float
    clean: Judged
    poisoned: Judged | None
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    others: dict[tuple[str, int, str], dict[str, np.ndarray]]

    def sets(self) -> dict[str, Judged]:
        return {"clean": self.clean} | ({} if self.poisoned is None else {"poisoned": self.poisoned})

    def accuracy(self, which: str, found: np.ndarray, held: bool = False) -> float:
        """Share of the reported (or the held-out) images of a set that are predicted right."""
        of = self.sets()[which]
        return accuracy(of, found, of.held if held else ~of.held)


def accuracy(of: Judged, found: np.ndarray, where: np.ndarray) -> float:
    """Share of chosen images whose prediction (n,) is right; NaN for none."""
    return float((found[where] == of.classes[where]).mean()) if where.any() else float("nan")


def typical_signal(
    directions: Directions, chosen: Sequence[int], of: Judged, thresholds: np.ndarray
) -> tuple[float, np.ndarray]:
    """Mean signal value of the detectors' positives on held-out images, and the logits (n,) of these positives.

    The value is that of method's ``α̂ = w·(x − E[x]) / (w·s)``, or the projection on s where w·s is not positive.
    """
    w, s = directions.filters[:, chosen], directions.signals[:, chosen]
    gain = (w * s).sum(0)
    values, logits = [], []
    prefix = of.reader.spec.prefix
    for start in range(0, int(of.held.sum()), 64):
        rows = of.rows[of.held][start : start + 64]
        x = of.reader.images(rows)[:, prefix:].reshape(-1, of.reader.channels).astype(np.float32)
        z = x @ w - thresholds[chosen]
        on = z > 0
        alpha = np.where(
            gain > 1e-6, (x - directions.mean) @ w / np.where(gain > 1e-6, gain, 1), (x - directions.mean) @ s
        )
        values.append(alpha[on])
        logits.append(z[on])
    value, logit = (np.concatenate(part) if part else np.zeros(0) for part in (values, logits))
    positive = value[value > 0]
    return (float(positive.mean()) if len(positive) else 0.0), logit


def study_correction(
    directions: Directions,
    chosen: Sequence[int],
    thresholds: np.ndarray,
    head: Head,
    clean: Judged,
    poisoned: Judged | None,
    *,
    rectify: bool,
    config: CorrectConfig | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Study:
    """Choose how strongly to suppress directions, and hold what comes of it against filters and random directions.

    Parameters
    ----------
    chosen : numbers of the directions to suppress together.
    thresholds : (I,) of all detectors.
    clean, poisoned : images without and with the concept; without ``poisoned`` the strength is the concept's typical signal value.
    rectify : whether the layer's activations are never negative.

    Raises UsageError where the detectors fire on none of the held-out images: there is nothing to suppress.
    """
    config = config or CorrectConfig()
    spec = clean.reader.spec
    typical, logits = typical_signal(directions, chosen, poisoned or clean, thresholds)
    if not typical:
        raise UsageError(
            f"The detector{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))} fire{'' if len(chosen) > 1 else 's'} on no held-out "
            f"image of '{(poisoned or clean).reader.store.path}': there is nothing to suppress. Give images that show the concept, or another direction."
        )

    # one array for all: ``predictions`` then computes a gate once for all corrections that share it
    w, b = np.ascontiguousarray(directions.filters[:, chosen]), np.ascontiguousarray(thresholds[chosen], np.float32)

    def of(vectors: np.ndarray) -> Correction:
        taken_out = np.ascontiguousarray(vectors, np.float32)
        return Correction(w, b, taken_out, 0.0, 0.0, rectify, spec.name, spec.layout, spec.prefix)

    strengths = [m * typical for m in config.multiples] if config.strength is None else [config.strength]
    if poisoned is None and config.strength is None:
        strengths = [typical]
    shifts = (
        [0.0]
        if poisoned is None
        else sorted({max(0.0, float(np.quantile(logits, q))) if q else 0.0 for q in config.shifts})
    )
    if config.shift is not None:
        shifts = [config.shift]

    def settings(vectors: np.ndarray, thresholds_of: Sequence[float]) -> list[Correction]:
        base = of(vectors)
        return [base.with_strength(k, t) for t in thresholds_of for k in strengths]

    tried: dict[str, Tried] = {}

    def choose(name: str, vectors: np.ndarray, thresholds_of: Sequence[float]) -> None:
        tried[name] = _try(name, settings(vectors, thresholds_of), head, clean, poisoned, config.tolerance, device)
        progress("choosing the strength", len(tried), config.randoms + 2)

    choose("signal", unit(directions.signals[:, chosen]), shifts)
    choose("filter", unit(directions.filters[:, chosen]), shifts)
    taken = tried["signal"].chosen
    draws = random_units(directions.channels, config.randoms * len(chosen), config.seed).numpy()
    for r in range(config.randoms):  # the threshold that suits the concept, each its own strength
        choose(f"random {r}", draws[:, r * len(chosen) : (r + 1) * len(chosen)], [taken.shift])
    rows: dict[tuple[str, int, str], Correction] = {}
    for name, one in tried.items():
        vector, _, draw = name.partition(" ")
        rows[vector, int(draw or -1), "own"] = one.chosen
        if vector != "signal":
            rows[vector, int(draw or -1), "signal"] = replace(one.chosen, strength=taken.strength, shift=taken.shift)
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    others: dict[tuple[str, int, str], dict[str, np.ndarray]] = {key: {} for key in rows}
    for which, images in (("clean", clean), ("poisoned", poisoned)):
        if images is not None:
            before[which] = images.logits.argmax(1).astype(np.int64)
            found = predict(
                images, head, list(rows.values()), device=device, progress=progress, stage=f"{which} images"
            )
            for key, classes in zip(rows, found.classes, strict=True):
                others[key][which] = classes
            after[which] = others["signal", -1, "own"][which]
    return Study(taken, tried, typical, clean, poisoned, before, after, others)


def _try(
    name: str,
    settings: list[Correction],
    head: Head,
    clean: Judged,
    poisoned: Judged | None,
    tolerance: float,
    device: str,
) -> Tried:
    """All settings on the held-out images, and the one to take.

    Of those that cost clean images at most ``tolerance`` of accuracy, and are right about poisoned ones within a standard error of the
    best, it is the one under which clean images' own classes stay most probable (probabilities are less noisy than counts of a few
    images), then the weakest. Where none is allowed, the one that costs clean images least.
    """
    on_clean, sure = _held(clean, head, settings, device)
    on_poisoned = None if poisoned is None else _held(poisoned, head, settings, device)[0]
    least = accuracy(clean, clean.logits.argmax(1), clean.held) - tolerance
    allowed = np.nan_to_num(on_clean, nan=1.0) >= least - 1e-12
    if not allowed.any():
        return Tried(name, settings, on_clean, on_poisoned, int(on_clean.argmax()))
    if poisoned is not None and on_poisoned is not None:
        top = float(on_poisoned[allowed].max())
        allowed &= on_poisoned >= top - np.sqrt(top * (1 - top) / max(int(poisoned.held.sum()), 1))
    best = min(np.flatnonzero(allowed).tolist(), key=lambda r: (-round(float(sure[r]), 5), settings[r].strength))
    return Tried(name, settings, on_clean, on_poisoned, best)


def _held(of: Judged, head: Head, settings: list[Correction], device: str) -> tuple[np.ndarray, np.ndarray]:
    """(R,) accuracy on the held-out images, and (R,) mean probability of their own classes."""
    found = predict(of, head, settings, where=of.held, floor=FLOOR, device=device)
    right = np.array([accuracy(of, classes, of.held) for classes in found.classes])
    return right, found.right[:, of.held].mean(1) if of.held.any() else np.zeros(len(settings))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Columns (C, J) of unit norm; a zero column stays zero."""
    norm = np.linalg.norm(vectors, axis=0, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)


def confusion(classes: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """(K, K) images by class and by prediction."""
    return np.bincount(classes * count + found, minlength=count * count).reshape(count, count)
