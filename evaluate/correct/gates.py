"""The detectors of what is to be suppressed, and how strong it is where they fire: measured once on the store they were found in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stores.directions import Directions
from stores.errors import UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

MARGIN = 3.0  # mean |logit| that a gate is given where the method has no scale of its own
_KEPT = 200_000  # logits of positives kept for their quantiles
_ROWS = 65_536


@dataclass(frozen=True)
class Gates:
    """J direction pairs to be suppressed together.

    ``filters`` (C, J), ``thresholds`` (J,): as gates, ``sigmoid(w·x − b)`` is near 0 where the concept is not. ``signals`` (C, J).
    ``typical``: mean signal value ``α̂ = w·(x − E[x]) / (w·s)`` of the positives (the projection on s where w·s is not positive), in the
    activations' unit. ``positives``: logits of (a sample of) the positives.
    """

    filters: np.ndarray
    thresholds: np.ndarray
    signals: np.ndarray
    typical: float
    positives: np.ndarray

    def shift(self, quantile: float) -> float:
        """How far thresholds are raised so that this share of the positives is not positive any more; 0 for 0."""
        return max(0.0, float(np.quantile(self.positives, quantile))) if quantile else 0.0


def measure_gates(
    directions: Directions,
    chosen: Sequence[int],
    thresholds: np.ndarray,
    reader: LayerReader,
    progress: Progress = silent,
) -> Gates:
    """Read the store once: the concept's typical signal value, and the logits of its positives.

    Where the method has no thresholds of its own, its logits have no scale either, and a sigmoid of them would be half open everywhere:
    filters and thresholds are then scaled so that |logit| is 3 on average (as ``fit`` sets margins).

    Raises UsageError where the detectors fire nowhere in the store: there is nothing to suppress.
    """
    w, s = directions.filters[:, chosen], directions.signals[:, chosen]
    b = thresholds[chosen].astype(np.float32)
    gain = (w * s).sum(0)
    usable = gain > 1e-6 * np.linalg.norm(w, axis=0)
    # in order of the random numbers, so that what is kept is a uniform sample, whatever the blocks
    generator = np.random.default_rng(0)
    kept, whose, keys = np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0)
    total, count, size, rows, done = 0.0, 0, np.zeros(len(chosen)), 0, 0
    for index, block in reader.blocks(images=max(1, _ROWS // reader.positions)):
        x = block.reshape(-1, reader.channels).astype(np.float32)
        z = x @ w - b
        on = z > 0
        projected = (z + b - directions.mean @ w) / np.where(usable, gain, 1)
        alpha = projected if usable.all() else np.where(usable, projected, (x - directions.mean) @ s)
        positive = alpha[on & (alpha > 0)]
        total, count = total + float(positive.sum(dtype=np.float64)), count + len(positive)
        size, rows = size + np.abs(z).sum(0, dtype=np.float64), rows + len(z)
        kept, whose = np.concatenate([kept, z[on]]), np.concatenate([whose, np.nonzero(on)[1]])
        keys = np.concatenate([keys, generator.random(int(on.sum()))])
        if len(kept) > 2 * _KEPT:
            smallest = np.argpartition(keys, _KEPT)[:_KEPT]
            kept, whose, keys = kept[smallest], whose[smallest], keys[smallest]
        done += len(index)
        progress("the concept's strength", done, reader.n_images)
    if not count:
        several = len(chosen) > 1
        raise UsageError(
            f"The detector{'s' if several else ''} {', '.join(map(str, chosen))} fire{'' if several else 's'} nowhere in "
            f"'{reader.store.path}': there is nothing to suppress. Name another direction."
        )
    scale = (
        np.ones(len(chosen)) if directions.thresholds is not None else MARGIN / np.maximum(size / max(rows, 1), 1e-12)
    )
    return Gates((w * scale).astype(np.float32), (b * scale).astype(np.float32), s, total / count, kept * scale[whose])
