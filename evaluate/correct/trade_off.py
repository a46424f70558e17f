"""Figures of a correction, for every setting that was tried: accuracy on clean against poisoned images, and over the strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from evaluate.correct.correction_study import Study, Tried
from evaluate.report.svg_shapes import element, points

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 546, 14, 290  # where the axes end
Scale = Callable[[float], float]


def trade_off(study: Study) -> Markup | None:
    """Accuracy on poisoned over accuracy on clean images; None where there is nothing to weigh.

    A point is a setting (hollow: its loss is significantly more than the tolerance), of a random direction only at its own best strength;
    a line goes through the strengths at the chosen shift of each vector. Rings: what was chosen, with its intervals.
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
    across, up = zip(*corners, strict=True)
    x, parts = _axis(across, LEFT, RIGHT)
    y, more = _axis(up, BOTTOM, TOP)
    limit = x(before[0] - study.tolerance)
    parts += [
        *more,
        element("line", class_="limit", x1=limit, x2=limit, y1=TOP, y2=BOTTOM),
        _named("tolerance", limit - 4, TOP + 9, "end"),
    ]
    marks = []
    for name, rows in reversed(shown.items()):  # the signal's on top
        one, kind = study.tried[name], name.partition(" ")[0]
        mine = [_at(one, r) for r in rows if one.settings[r].shift == one.chosen.shift]
        parts.append(element("polyline", class_=f"line {kind}", points=points([(x(a), y(b)) for a, b in mine])))
        for r in rows:
            a, b = _at(one, r)
            over = " over" if one.clean.high[r] < -study.tolerance else ""
            title = element("title", _title(name, one, r))
            marks.append(element("circle", title, class_=kind + over, cx=x(a), cy=y(b), r=2.5))
    start = x(before[0]), y(before[1])
    marks.append(element("path", class_="start", d=f"M{start[0] - 5:.1f} {start[1]:.1f}h10m-5 -5v10"))
    marks.append(_named("no correction", start[0] - 8, start[1] + 4, "end"))
    for name, cross in chosen.items():
        (a, b), *ends = ((x(u), y(v)) for u, v in cross)
        for line in (ends[:2], ends[2:]):
            marks.append(element("polyline", class_=f"line {name} chosen", points=points(line)))
        marks.append(element("circle", class_=f"chosen {name}", cx=a, cy=b, r=6))
    marks.append(_named("accuracy on clean images", (LEFT + RIGHT) / 2, HEIGHT - 6))
    turn = f"translate(12 {(TOP + BOTTOM) / 2}) rotate(-90)"
    marks.append(element("text", "accuracy on poisoned images", class_="tick", transform=turn, text_anchor="middle"))
    what = "Accuracy on poisoned images over accuracy on clean images, for every setting that was tried"
    return _figure([*parts, *marks], what)


def strengths(study: Study) -> tuple[Markup, list[tuple[str, str]]] | None:
    """Held-out accuracy over the strength, at the chosen shift, and its legend as kinds and names; None where one strength was tried."""
    top = max(one.strength for one in study.tried["signal"].settings) or 1.0
    y, parts = _axis((0.0, 1.0), BOTTOM, TOP)
    legend: list[tuple[str, str]] = []
    for name in ("signal", "filter"):
        tried = study.tried.get(name)
        if tried is None or len({one.strength for one in tried.settings}) < 2:
            continue
        mine = [r for r, one in enumerate(tried.settings) if one.shift == tried.chosen.shift]
        across = [LEFT + (RIGHT - LEFT) * tried.settings[r].strength / top for r in mine]

        def at(values: np.ndarray, across: list[float] = across) -> list[tuple[float, float]]:
            return list(zip(across, map(y, values), strict=True))

        for which, found in (("poisoned", tried.poisoned), ("clean", tried.clean)):
            if found is None:
                continue
            legend.append((name, f"{name}, {which}" + (" (dashed)" if which == "clean" else "")))
            low, high = (at((found.before + end[mine]).clip(0, 1)) for end in (found.low, found.high))
            if name == "signal":
                parts.append(element("polygon", class_="band", points=points([*low, *high[::-1]])))
            best = mine.index(tried.best)
            parts.append(element("polyline", class_=f"line {name} {which}", points=points(at(found.after[mine]))))
            parts.append(
                element("circle", class_=f"{name} {which}", cx=across[best], cy=y(found.after[tried.best]), r=4)
            )
    parts += [_named("0", LEFT, HEIGHT - 20), _named(f"strength {top:.3g}", RIGHT, HEIGHT - 20, "end")]
    what = "Accuracy on held-out images over the strength of the correction"
    return (_figure(parts, what), legend) if legend else None


def _figure(parts: Sequence[Markup], what: str) -> Markup:
    return element("svg", *parts, class_="figure large", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=what)


def _named(text: str, x: float, y: float, anchor: str = "middle") -> Markup:
    return element("text", text, class_="tick", x=x, y=y, text_anchor=anchor)


def _at(tried: Tried, r: int) -> tuple[float, float]:
    assert tried.poisoned is not None
    return float(tried.clean.after[r]), float(tried.poisoned.after[r])


def _cross(tried: Tried) -> list[tuple[float, float]]:
    """The chosen point, and the ends of its intervals: left, right, lower, upper."""
    assert tried.poisoned is not None
    (x, y), r = _at(tried, tried.best), tried.best
    sides, heights = ([c.before + float(end[r]) for end in (c.low, c.high)] for c in (tried.clean, tried.poisoned))
    return [(x, y), *((min(side, 1), y) for side in sides), *((x, min(height, 1)) for height in heights)]


def _axis(values: Sequence[float], start: float, end: float) -> tuple[Scale, list[Markup]]:
    """A scale of accuracies that shows all values between two places, and its lines with what they say."""
    low, high = min(values), max(values)
    low, high = (low - 0.01, high + 0.01) if high - low < 0.01 else (low, high)

    def scale(value: float) -> float:
        return float(np.interp(value, (low, high), (start, end)))

    parts = []
    for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(100 * low, 100 * high):
        if low <= tick / 100 <= min(high, 1):
            at, text = scale(tick / 100), f"{tick:g} %"
            if start < end:  # across
                parts += [
                    element("line", class_="grid", x1=at, x2=at, y1=TOP, y2=BOTTOM),
                    _named(text, at, BOTTOM + 15),
                ]
            else:
                line = element("line", class_="grid", x1=LEFT, x2=RIGHT, y1=at, y2=at)
                parts += [line, _named(text, LEFT - 6, at + 4, "end")]
    return scale, parts


def _title(name: str, tried: Tried, r: int) -> str:
    setting, (clean, poisoned) = tried.settings[r], _at(tried, r)
    return f"{name}, strength {setting.strength:.3g}, shift {setting.shift:.3g}: clean {100 * clean:.1f} %, poisoned {100 * poisoned:.1f} %"
