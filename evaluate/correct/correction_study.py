"""Is a model right more often without a concept? Strength chosen on held-out images (``choice``), everything reported on the others.

The same is done along the filter (decoding direction), with strength and threshold that suit it best, and along random directions, with the
signal's threshold and the strength that suits each: if the concept is written along its signal vector, only taking that out helps (EDDP's comparison).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluate.correct.choice import AccuracyChange, choose, paired_change
from evaluate.correct.correction import Correction
from evaluate.correct.gates import Gates
from evaluate.correct.heldout_evaluation import FLOOR, Judged, predict
from evaluate.influence.steering import random_units
from extract.network import Head
from stores.errors import UsageError
from stores.progress import Progress, silent

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0)  # of the concept's typical signal value
SHIFTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65)  # quantiles of the logits of the detector's positives


@dataclass(frozen=True)
class CorrectConfig:
    """How a correction is chosen.

    Parameters
    ----------
    tolerance : accuracy on clean images that may be lost, a share; a larger loss that chance explains on the held-out ones is none.
    randoms : random directions to compare with.
    multiples, shifts : the strengths tried, in typical signal values, and the thresholds, in quantiles of the positives' logits.
    strength, shift : given instead of chosen.
    """

    tolerance: float = 0.01
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
        if self.shift is not None and not np.isfinite(self.shift):
            raise UsageError(f"The shift of the threshold must be a number, got {self.shift}.")


@dataclass(frozen=True)
class Tried:
    """One vector: every setting tried, what each changes on the held-out images, the one that was taken, and what is wrong with it
    (``choose``)."""

    vector: str
    settings: list[Correction]
    clean: AccuracyChange
    poisoned: AccuracyChange | None
    best: int
    problem: str | None

    @property
    def chosen(self) -> Correction:
        return self.settings[self.best]


@dataclass(frozen=True)
class Study:
    """What a correction does. ``before``, ``after``: predicted classes (n,) of ``clean`` and ``poisoned`` images under no correction and
    under the chosen one, −1 for images held out; ``others``: by (vector, draw, setting) those of the comparison, setting being ``own`` or ``signal``; ``tolerance``: clean accuracy that may be lost."""

    correction: Correction
    tried: dict[str, Tried]
    typical: float
    clean: Judged
    poisoned: Judged | None
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    others: dict[tuple[str, int, str], dict[str, np.ndarray]]
    tolerance: float

    def sets(self) -> dict[str, Judged]:
        return {"clean": self.clean} | ({} if self.poisoned is None else {"poisoned": self.poisoned})

    def accuracy(self, which: str, found: np.ndarray) -> float:
        """Share of the images of a set that were not held out that are predicted right."""
        of = self.sets()[which]
        return accuracy(of, found, ~of.held)

    def change(self, which: str) -> AccuracyChange:
        """What the chosen correction (R = 1) changes on the images of a set that were not held out."""
        of = self.sets()[which]
        before, after = (found[which] == of.classes for found in (self.before, self.after))
        return paired_change(before[~of.held], after[None, ~of.held])


def accuracy(of: Judged, found: np.ndarray, where: np.ndarray) -> float:
    """Share of chosen images whose prediction (n,) is right; NaN for none."""
    return float((found[where] == of.classes[where]).mean()) if where.any() else float("nan")


def study_correction(
    gates: Gates,
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
    gates : the directions to suppress together, and how strong their concept is in the store that they were found in.
    clean, poisoned : images without and with the concept. Without ``poisoned`` strengths go up to the concept's typical signal value,
        and the threshold stays.
    rectify : whether the layer's activations are never negative.
    """
    config = config or CorrectConfig()
    spec = clean.reader.spec
    # one array for all: ``predict`` then computes a gate once for all corrections that share it
    w, b = np.ascontiguousarray(gates.filters), np.ascontiguousarray(gates.thresholds, np.float32)
    typical, c, j = gates.typical, *w.shape

    def settings(vectors: np.ndarray, shifts: Sequence[float]) -> list[Correction]:
        taken_out = np.ascontiguousarray(unit(vectors), np.float32)
        base = Correction(w, b, taken_out, 0.0, 0.0, rectify, spec.name, spec.layout, spec.prefix)
        return [base.with_strength(k, t) for t in shifts for k in strengths]

    multiples = config.multiples if poisoned is not None else [m for m in config.multiples if m <= 1]
    strengths = [m * typical for m in multiples] if config.strength is None else [config.strength]
    shifts = sorted({gates.shift(q) for q in config.shifts}) if poisoned is not None else [0.0]
    if config.shift is not None:
        shifts = [config.shift]

    def attempt(candidates: Mapping[str, list[Correction]]) -> dict[str, Tried]:
        return _try(candidates, head, clean, poisoned, config.tolerance, device, progress)

    tried = attempt({"signal": settings(gates.signals, shifts), "filter": settings(gates.filters, shifts)})
    taken = tried["signal"].chosen
    draws = random_units(c, config.randoms * j, config.seed).numpy().reshape(c, config.randoms, j)
    # the threshold that suits the concept, each its own strength
    tried |= attempt({f"random {r}": settings(draws[:, r], [taken.shift]) for r in range(config.randoms)})
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
        if images is None:
            continue
        before[which] = images.logits.argmax(1).astype(np.int64)
        found = predict(
            images,
            head,
            list(rows.values()),
            where=~images.held,
            device=device,
            progress=progress,
            stage=f"{which} images",
        )
        for key, classes in zip(rows, found, strict=True):
            others[key][which] = classes
        after[which] = others["signal", -1, "own"][which]
    return Study(taken, tried, typical, clean, poisoned, before, after, others, config.tolerance)


def _try(
    candidates: Mapping[str, list[Correction]],
    head: Head,
    clean: Judged,
    poisoned: Judged | None,
    tolerance: float,
    device: str,
    progress: Progress,
) -> dict[str, Tried]:
    """Try all settings of several vectors on the held-out images, in one pass over each set, and choose one of each vector."""
    every = [one for settings in candidates.values() for one in settings]
    if not every:
        return {}

    def right(of: Judged, what: str) -> tuple[np.ndarray, np.ndarray]:
        stage = f"choosing the strength, {what} images"
        found = predict(of, head, every, where=of.held, floor=FLOOR, device=device, progress=progress, stage=stage)
        return (of.logits.argmax(1) == of.classes)[of.held], (found == of.classes)[:, of.held]

    on_clean = right(clean, "clean")
    on_poisoned = None if poisoned is None else right(poisoned, "poisoned")
    tried, start = {}, 0
    for name, settings in candidates.items():
        part = slice(start, start + len(settings))
        start = part.stop
        costs = paired_change(on_clean[0], on_clean[1][part])
        gains = None if on_poisoned is None else paired_change(on_poisoned[0], on_poisoned[1][part])
        best, problem = choose(np.array([one.strength for one in settings]), costs, gains, tolerance)
        tried[name] = Tried(name, settings, costs, gains, best, problem)
    return tried


def unit(vectors: np.ndarray) -> np.ndarray:
    """Columns (C, J) of unit norm; a zero column stays zero."""
    norm = np.linalg.norm(vectors, axis=0, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)


def confusion(classes: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """(K, K) images by class and by prediction."""
    return np.bincount(classes * count + found, minlength=count * count).reshape(count, count)
