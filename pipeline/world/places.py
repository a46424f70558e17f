"""Where things go and whether they are there: chances, numbers and places, all from the canvas's own generator."""

from __future__ import annotations

import numpy as np

from pipeline.world.canvas import Canvas

U = tuple[float, float]


def chance(c: Canvas, p: float) -> bool:
    return bool(c.rng.random() < p)


def spread(c: Canvas, n: int, x: U = (6, 90)) -> np.ndarray:
    """``n`` places along the picture in random order, well apart."""
    if n == 0:
        return np.zeros(0)
    step = (x[1] - x[0]) / n
    return c.rng.permutation(x[0] + step * (np.arange(n) + c.rng.uniform(0.2, 0.8, n)))


def number(c: Canvas, low: int, high: int) -> int:
    return int(c.rng.integers(low, high + 1))


def near_last(c: Canvas, n: int, y: U) -> np.ndarray:
    """``n`` ground lines from far to near: what is nearer is painted later."""
    return np.sort(c.rng.uniform(*y, n))
