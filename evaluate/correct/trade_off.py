"""The trade-off of a correction as a figure: accuracy on clean against accuracy on poisoned images, for every setting that was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from evaluate.correct.correction_study import Study, Tried

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40


def trade_off(study: Study) -> dict[str, Any] | None:
    """What the template draws, in the figure's units; None where there is nothing to weigh.

    A point a setting (``over``: its loss is significantly more than the tolerance), of a random direction at its own best strength alone;
    a line through the strengths at the chosen shift of each vector. ``chosen``: points with their intervals. ``start``: without correction; ``limit``: the tolerance.
    """
    signal = study.tried["signal"]
    if study.poisoned is None or signal.poisoned is None or len(signal.settings) < 2:
        return None
    shown = {
        name: [one.best] if name.startswith("random") else list(range(len(one.settings)))
        for name, one in study.tried.items()
    }
    before = signal.clean.before, signal.poisoned.before
    chosen = {name: _cross(study.tried[name]) for name in ("filter", "signal") if name in study.tried}
    corners = [before, (before[0] - study.tolerance, before[1]), *(end for cross in chosen.values() for end in cross)]
    corners += [_at(study.tried[name], r) for name, rows in shown.items() for r in rows]
    (x, x_ticks), (y, y_ticks) = (
        _axis([corner[i] for corner in corners], *ends)
        for i, ends in enumerate(((LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)))
    )

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return round(x(point[0]), 1), round(y(point[1]), 1)

    lines, points = [], []
    for name, rows in reversed(shown.items()):  # the signal's on top
        one, kind = study.tried[name], name.partition(" ")[0]
        mine = [place(_at(one, r)) for r in rows if one.settings[r].shift == one.chosen.shift]
        lines.append({"kind": kind, "points": " ".join(f"{a},{b}" for a, b in mine)})
        points += [
            {
                "kind": kind,
                "at": place(_at(one, r)),
                "over": bool(one.clean.high[r] < -study.tolerance),
                "title": _title(name, one, r),
            }
            for r in rows
        ]
    return {
        "size": (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
        "x_ticks": x_ticks,
        "y_ticks": y_ticks,
        "lines": lines,
        "points": points,
        "chosen": [{"kind": name, "ends": [place(end) for end in cross]} for name, cross in chosen.items()],
        "start": place(before),
        "limit": round(x(before[0] - study.tolerance), 1),
    }


def _at(tried: Tried, r: int) -> tuple[float, float]:
    assert tried.poisoned is not None
    return float(tried.clean.after[r]), float(tried.poisoned.after[r])


def _cross(tried: Tried) -> list[tuple[float, float]]:
    """The chosen point, and the ends of its intervals: left, right, lower, upper."""
    assert tried.poisoned is not None
    (x, y), r = _at(tried, tried.best), tried.best
    sides, heights = ([c.before + float(end[r]) for end in (c.low, c.high)] for c in (tried.clean, tried.poisoned))
    return [(x, y), *((min(side, 1), y) for side in sides), *((x, min(height, 1)) for height in heights)]


def _axis(values: Sequence[float], start: float, end: float) -> tuple[Any, list[tuple[float, str]]]:
    """A scale that shows all values, and its ticks: where, and what they say."""
    low, high = min(values), max(values)
    low, high = (low - 0.01, high + 0.01) if high - low < 0.01 else (low, high)

    def scale(value: float) -> float:
        return float(np.interp(value, (low, high), (start, end)))

    ticks = [
        t
        for t in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(100 * low, 100 * high)
        if low <= t / 100 <= min(high, 1)
    ]
    return scale, [(round(scale(t / 100), 1), f"{t:g} %") for t in ticks]


def _title(name: str, tried: Tried, r: int) -> str:
    setting, (clean, poisoned) = tried.settings[r], _at(tried, r)
    return f"{name}, strength {setting.strength:.3g}, shift {setting.shift:.3g}: clean {100 * clean:.1f} %, poisoned {100 * poisoned:.1f} %"
