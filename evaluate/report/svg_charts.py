"""Figures with axes, as inline SVG: the distribution of logits, steering, and the terms of a fit over its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from evaluate.number_format import minus
from evaluate.number_format import points as in_points
from evaluate.report.logit_histograms import Histogram
from evaluate.report.report_data import Steer
from evaluate.report.svg_shapes import coordinate as _n

WIDTH, HEIGHT = 360, 150  # of a figure, in its own units
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 22  # margins of its axes
POINTS = 200  # of a curve: more cannot be distinguished


def histogram(found: Histogram, kind: str, text: str) -> Markup:
    """Counts on a logarithmic scale over the logit; the bins above the threshold, 0, in the colour of ``kind``."""
    low, high = found.low, found.low + found.width * len(found.counts)
    left, right = min(low, 0.0), max(high, 0.0)
    peak = math.log10(1 + max(found.counts))

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - left) / (right - left)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(1 + count) / peak if peak else 0)

    parts = []
    for power in range(math.floor(peak) + 1):
        parts.append(_grid(y(10**power), str(10**power) if power < 4 else _power(power)))
    for name, above in (("below", False), (f"above {kind}", True)):
        steps = []
        for k, count in enumerate(found.counts):
            start = low + found.width * k
            if count and (start >= 0) == above:
                steps.append(
                    f"M{_n(x(start))} {_n(HEIGHT - BOTTOM)}V{_n(y(count))}H{_n(x(start + found.width))}V{_n(HEIGHT - BOTTOM)}z"
                )
        if steps:
            parts.append(Markup('<path class="{}" d="{}"/>').format(name, "".join(steps)))
    zero = x(0.0)
    parts.append(
        Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(_n(zero), TOP - 6, HEIGHT - BOTTOM)
    )
    near_end = zero > WIDTH - 75
    parts.append(Markup('<text class="tick" x="{}" y="{}"{}>threshold</text>').format(
        _n(zero - 4 if near_end else zero + 4), TOP + 3, Markup(' text-anchor="end"') if near_end else ""))  # fmt: skip
    parts += _axis([(x(v), _short(v)) for v in _apart([low, 0.0, high], (right - left) / 9)])
    return _figure(parts, text)


def steering(steer: Steer, random: Steer | None, text: str) -> Markup:
    """Percentage points of a class's probability gained over the length of the step (on a square-root scale), for the signal vector,
    the filter, and the middle half of random directions."""
    curves = {role: [100 * v for v in values] for role, values in steer.curves.items()}
    band = {end: [100 * v for v in values] for end, values in random.curves.items()} if random else {}
    values = [v for series in (*curves.values(), *band.values()) for v in series] + [0.0]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = -1.0, 1.0
    longest = max(steer.alphas) or 1.0

    def x(alpha: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.sqrt(max(alpha, 0) / longest)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [_grid(y(v), f"{_short(v)} pp" if v else "0") for v in _apart([low, 0.0, high], (high - low) / 8)]
    if random and band:
        there = [(x(a), y(v)) for a, v in zip(random.alphas, band["high"], strict=True)]
        back = [(x(a), y(v)) for a, v in zip(random.alphas, band["low"], strict=True)]
        parts.append(Markup('<path class="band" d="{}z"/>').format(_path(there + back[::-1])))
        middle = [(x(a), y(v)) for a, v in zip(random.alphas, band["middle"], strict=True)]
        parts.append(Markup('<path class="line random" d="{}"/>').format(_path(middle)))
    for role, series in curves.items():
        points = [(x(a), y(v)) for a, v in zip(steer.alphas, series, strict=True)]
        parts.append(Markup('<path class="line {}" d="{}"/>').format(role, _path(points)))
    ticks = [a for a in steer.alphas if a in (0, 2, 5, 12, 27) or a == longest]
    parts += _axis([(x(a), _short(a)) for a in ticks])
    return _figure(parts, text)


def curve(name: str, points: Sequence[tuple[float, float]]) -> Markup:
    """One term of a fit's log over the steps; its largest, smallest and last value in words."""
    points = [p for p in points if math.isfinite(p[1])]
    if not points:
        return _figure([], f"{name}: no value")
    step = max(1, math.ceil(len(points) / POINTS))
    kept = [*points[::step], points[-1]] if (len(points) - 1) % step else list(points[::step])
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = kept[0][0], kept[-1][0]
    span, steps = (high - low) or 1.0, (last - first) or 1.0

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - first) / steps
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (point[1] - low) / span

    parts = [_grid(at((first, v))[1], _short(v)) for v in dict.fromkeys((low, high))]
    parts.append(Markup('<path class="line signal" d="{}"/>').format(_path([at(p) for p in kept])))
    parts += _axis([(at((v, low))[0], _short(v)) for v in dict.fromkeys((first, last))])
    text = f"{name}: from {_short(kept[0][1])} to {_short(kept[-1][1])}, between {_short(low)} and {_short(high)}"
    return _figure(parts, text)


def histogram_text(found: Histogram, share: float) -> str:
    """What the figure of a distribution shows, in words."""
    total = sum(found.counts)
    if not total:
        return "No position was counted."
    return (
        f"{total} positions, logits from {_short(found.least)} to {_short(found.most)}; {100 * share:.3g} % are above the threshold, 0. "
        "The scale of the counts is logarithmic."
    )


def steering_text(steer: Steer) -> str:
    """What the figure of steering shows, in words."""
    found = []
    for role, title in (("signal", "the signal vector"), ("filter", "the filter")):
        if role in steer.curves:
            best = max(range(len(steer.alphas)), key=lambda k: steer.curves[role][k])
            if steer.alphas[best] == 0:
                found.append(f"{title} never raises it")
                continue
            gained = in_points(steer.curves[role][best])
            found.append(
                f"{title} gains at most {gained} (at α = {steer.alphas[best]:g}) and never falls up to α = {steer.monotone[role]:g}"
            )
    text = "; ".join(found)
    return text[:1].upper() + text[1:] + ". Lengths of the step are on a square-root scale, percentage points upwards."


def _figure(parts: Sequence[Markup], text: str) -> Markup:
    return Markup('<svg class="figure" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, text, Markup("").join(parts)
    )


def _grid(y: float, text: str) -> Markup:
    return Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
        LEFT, WIDTH - RIGHT, _n(y), _n(y), LEFT - 4, _n(y + 3), text
    )  # fmt: skip


def _axis(ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    out = []
    for x, text in ticks:
        anchor = "end" if x > WIDTH - RIGHT - 10 else "middle"
        out.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                _n(x), HEIGHT - 6, anchor, text
            )
        )
    return out


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Values in order, without those too near to 0, which stays."""
    return [v for v in values if v == 0 or abs(v) >= least]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _short(value: float) -> str:
    return minus(f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-"))


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
