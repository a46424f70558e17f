"""Figures with axes, as inline SVG: the distribution of logits, steering, and the terms of a fit over its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from evaluate.number_format import minus
from evaluate.number_format import points as in_points
from evaluate.report.logit_histograms import Histogram
from evaluate.report.report_data import Steer
from evaluate.report.svg_shapes import coordinate as _n
from evaluate.report.svg_shapes import element

WIDTH, HEIGHT = 360, 150  # of a figure, in its own units
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 22  # margins of its axes
ACROSS, UP = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)  # the ends of its axes
POINTS = 200  # of a curve: more cannot be distinguished


def histogram(found: Histogram, kind: str, text: str) -> Markup:
    """Counts on a logarithmic scale over the logit; the bins above the threshold, 0, in the colour of ``kind``."""
    low, high = found.low, found.low + found.width * len(found.counts)
    left, right = min(low, 0.0), max(high, 0.0)
    peak = math.log10(1 + max(found.counts))
    x, y = _scale((left, right), ACROSS), _scale((0, peak), UP)
    powers = [10**power for power in range(math.floor(peak) + 1)]
    parts = [_grid(y(math.log10(1 + n)), str(n) if n < 10**4 else _power(len(str(n)) - 1)) for n in powers]
    for name, above in (("below", False), (f"above {kind}", True)):
        starts = [(low + found.width * k, count) for k, count in enumerate(found.counts) if count]
        steps = [
            f"M{_n(x(start))} {_n(UP[0])}V{_n(y(math.log10(1 + count)))}H{_n(x(start + found.width))}V{_n(UP[0])}z"
            for start, count in starts
            if (start >= 0) == above
        ]
        if steps:
            parts.append(element("path", class_=name, d="".join(steps)))
    zero = x(0.0)
    at, anchor = (zero - 4, "end") if zero > WIDTH - 75 else (zero + 4, None)
    parts.append(element("line", class_="mark", x1=zero, x2=zero, y1=TOP - 6, y2=UP[0]))
    parts.append(element("text", "threshold", class_="tick", x=at, y=TOP + 3, text_anchor=anchor))
    parts += _axis([(x(v), _short(v)) for v in _apart([low, 0.0, high], (right - left) / 9)])
    return _figure(parts, text)


def steering(steer: Steer, random: Steer | None, text: str) -> Markup:
    """Percentage points of a class's probability gained over the length of the step (on a square-root scale), for the signal vector,
    the filter, and the middle half of random directions."""
    band = random.curves if random else {}
    values = [100 * v for series in (*steer.curves.values(), *band.values()) for v in series] + [0.0]
    low, high = (min(values), max(values)) if max(values) - min(values) >= 1e-9 else (-1.0, 1.0)
    x, y = _scale((0, math.sqrt(max(steer.alphas) or 1.0)), ACROSS), _scale((low, high), UP)

    def line(alphas: Sequence[float], gained: Sequence[float]) -> list[tuple[float, float]]:
        return [(x(math.sqrt(max(a, 0))), y(100 * v)) for a, v in zip(alphas, gained, strict=True)]

    parts = [_grid(y(v), f"{_short(v)} pp" if v else "0") for v in _apart([low, 0.0, high], (high - low) / 8)]
    if random and band:
        around = line(random.alphas, band["high"]) + line(random.alphas, band["low"])[::-1]
        parts.append(element("path", class_="band", d=_path(around) + "z"))
        parts.append(element("path", class_="line random", d=_path(line(random.alphas, band["middle"]))))
    parts += [
        element("path", class_=f"line {role}", d=_path(line(steer.alphas, one))) for role, one in steer.curves.items()
    ]
    ticks = [a for a in steer.alphas if a in (0, 2, 5, 12, 27) or a == max(steer.alphas)]
    return _figure(parts + _axis([(x(math.sqrt(a)), _short(a)) for a in ticks]), text)


def curve(name: str, points: Sequence[tuple[float, float]]) -> Markup:
    """One term of a fit's log over the steps; its largest, smallest and last value in words."""
    points = [p for p in points if math.isfinite(p[1])]
    if not points:
        return _figure([], f"{name}: no value")
    step = max(1, math.ceil(len(points) / POINTS))
    some = [*points[:-1:step], points[-1]]
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = some[0][0], some[-1][0]
    x, y = (
        _scale((first, last if last > first else first + 1), ACROSS),
        _scale((low, high if high > low else low + 1), UP),
    )
    parts = [_grid(y(v), _short(v)) for v in dict.fromkeys((low, high))]
    parts.append(element("path", class_="line signal", d=_path([(x(s), y(v)) for s, v in some])))
    text = f"{name}: from {_short(some[0][1])} to {_short(some[-1][1])}, between {_short(low)} and {_short(high)}"
    return _figure(parts + _axis([(x(s), _short(s)) for s in dict.fromkeys((first, last))]), text)


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
            gained, at, steady = in_points(steer.curves[role][best]), steer.alphas[best], steer.monotone[role]
            text = f"{title} gains at most {gained}, at α = {at:g}"
            if steer.target < 0:  # each direction has its own fall, and the median curve another
                text += f" (median; half of them rise without a fall up to α = {steady:g} or further)"
            else:
                text += " without a fall before" if steady >= at else f", with a first fall after α = {steady:g}"
            found.append(text)
    text = "; ".join(found)
    return text[:1].upper() + text[1:] + ". Lengths of the step are on a square-root scale, percentage points upwards."


def _figure(parts: Sequence[Markup], text: str) -> Markup:
    return element("svg", *parts, class_="figure", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=text)


def _scale(values: tuple[float, float], ends: tuple[float, float]) -> Callable[[float], float]:
    """From a value to its place in the figure, values between the two given ones to places between ``ends``."""
    (low, high), (start, end) = values, ends
    return lambda value: start + (end - start) * ((value - low) / (high - low) if high > low else 0.0)


def _grid(y: float, text: str) -> Markup:
    line = element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
    return line + element("text", text, class_="tick", x=LEFT - 4, y=y + 3, text_anchor="end")


def _axis(ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    return [
        element(
            "text", text, class_="tick", x=x, y=HEIGHT - 6, text_anchor="end" if x > WIDTH - RIGHT - 10 else "middle"
        )
        for x, text in ticks
    ]


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Values in order, without those too near to 0, which stays."""
    return [v for v in values if v == 0 or abs(v) >= least]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _short(value: float) -> str:
    return minus(f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-"))


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
