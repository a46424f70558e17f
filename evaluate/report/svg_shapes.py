"""Inline SVG: shapes without a style of their own, so that the style sheet gives them the page's colours, light or dark.

A figure has its description as accessible text; bars next to their number have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

CORNERS: dict[int, list[tuple[float, float]]] = {
    1: [(-5, -5), (5, -5), (5, 5), (-5, 5)],
    2: [(0, -6.5), (6, 4.5), (-6, 4.5)],
    3: [(0, -7), (6, 0), (0, 7), (-6, 0)],
    4: [(0, 6.5), (6, -4.5), (-6, -4.5)],
    5: [(-6, -3.5), (-3.5, -6), (0, -2.5), (3.5, -6), (6, -3.5), (2.5, 0), (6, 3.5), (3.5, 6), (0, 2.5), (-3.5, 6), (-6, 3.5), (-2.5, 0)],
    6: [(-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2)],
    7: [(-3, -5.5), (3, -5.5), (6, 0), (3, 5.5), (-3, 5.5), (-6, 0)],
    8: [(-6, -5), (0, -1.5), (6, -5), (6, 5), (0, 1.5), (-6, 5)],
}  # fmt: skip

STRETCHED = 'viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"'


def bar(share: float, kind: str = "") -> Markup:
    """A bar filled from the left to ``share`` of its length; ``kind`` is a class of the style sheet, as everywhere here."""
    width = 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    rect = f'<rect width="{coordinate(width)}" height="1"/>'
    return Markup(f'<svg class="bar {kind}" {STRETCHED}>{rect}</svg>')


def stack(parts: Sequence[tuple[float, str]]) -> Markup:
    """Bars one after the other: shares of the whole length and their kinds."""
    at, rects = 0.0, []
    for share, kind in parts:
        rects.append(
            Markup('<rect class="{}" x="{}" width="{}" height="1"/>').format(
                kind, coordinate(100 * at), coordinate(100 * share)
            )
        )
        at += share
    return _svg(f'class="bar" {STRETCHED}', rects)


def diverging(value: float, scale: float, kind: str = "") -> Markup:
    """A bar from the middle: to the right for a positive value, to the left for a negative one; ``scale`` fills a half."""
    half = 50 * min(abs(value) / scale, 1.0) if scale > 0 else 0.0
    rect = f'<rect x="{coordinate(50 if value > 0 else 50 - half)}" width="{coordinate(half)}" height="1"/>'
    return Markup(f'<svg class="diverging {kind}" {STRETCHED}>{rect}<line x1="50" x2="50" y1="0" y2="1"/></svg>')


def interval(low: float, middle: float, high: float, scale: float) -> Markup:
    """A dot with the line of its interval on a track from 0 to ``scale``."""

    def at(value: float) -> str:
        return coordinate(4 + 192 * min(max(value / scale, 0), 1))

    parts = [Markup('<line class="track" x1="4" x2="196" y1="6" y2="6"/>')]
    if math.isfinite(low) and math.isfinite(high):
        parts.append(Markup('<line class="range" x1="{}" x2="{}" y1="6" y2="6"/>').format(at(low), at(high)))
    parts.append(Markup('<circle cx="{}" cy="6" r="3.5"/>').format(at(middle)))
    return _svg('class="interval" viewBox="0 0 200 12" preserveAspectRatio="xMinYMid" aria-hidden="true"', parts)


def scatter(places: Sequence[tuple[float, float]], points: Sequence[Mapping[str, str | int]], text: str) -> Markup:
    """A map of links: each point a shape of its category's number, with its name next to it where there is room, else when pointed at.

    ``places`` in the unit square, both axes drawn on one scale, the longer way lying down. ``points``: ``href``, ``name``, ``title``, ``colour`` (0-9 or "none"), ``shape`` (0-9), in the order of ``places``; the first ones
    get their names first.
    """
    width, height, margin = 900, 540, 46
    at = _fitted(places, width, height, margin)
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    parts = []
    for k, ((x, y), point) in enumerate(zip(at, points, strict=True)):
        name = str(point["name"])
        short = name if len(name) <= 18 else name[:17] + "…"
        length, shown, side = 7.1 * len(short), "", 1
        for side in (1, -1):
            left = x + 9 if side > 0 else x - 9 - length
            box = (left, y - 7, left + length, y + 7)
            if (
                left > 2
                and left + length < width - 2
                and not any(_overlap(box, other) for j, other in enumerate(taken) if j != k)
            ):
                taken.append(box)
                shown = " shown"
                break
        else:
            side = 1 if x < width * 0.8 else -1
        parts.append(
            Markup(
                '<a href="{}" class="point c{}{}"><title>{}</title><path d="{}"/><text x="{}" y="{}"{}>{}</text></a>'
            ).format(
                point["href"],
                point["colour"],
                shown,
                point["title"],
                _shape(int(point["shape"]), x, y),
                coordinate(x + 9 * side),
                coordinate(y + 4),
                Markup(' text-anchor="end"') if side < 0 else "",
                short,
            )
        )
    return Markup('<svg class="map" viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>').format(
        width, height, text, Markup("").join(parts)
    )


def _fitted(places: Sequence[tuple[float, float]], width: int, height: int, margin: int) -> list[tuple[float, float]]:
    """Places in a drawing: turned by a right angle where they are higher than wide, then as large as fits, and centred."""
    low, high = [min(axis) for axis in zip(*places, strict=True)], [max(axis) for axis in zip(*places, strict=True)]
    if high[1] - low[1] > high[0] - low[0]:
        places = [(y, 1 - x) for x, y in places]
        low, high = [low[1], 1 - high[0]], [high[1], 1 - low[0]]
    across, up = high[0] - low[0], high[1] - low[1]
    scale = min(
        (size - 2 * margin) / span if span > 1e-9 else math.inf for size, span in ((width, across), (height, up))
    )
    scale = scale if math.isfinite(scale) else 1.0
    middle = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
    return [(width / 2 + scale * (x - middle[0]), height / 2 - scale * (y - middle[1])) for x, y in places]


def shape(number: int) -> Markup:
    """The shape of a category, for a legend."""
    return Markup('<svg class="shape" viewBox="0 0 16 16" aria-hidden="true"><path d="{}"/></svg>').format(
        _shape(number, 8, 8)
    )


def _shape(number: int, x: float, y: float) -> str:
    """A shape of about equal area around a point: disc, square, triangle, diamond, triangle downwards, cross, plus, hexagon, bow, ring."""
    if number in (0, 9):
        r = 5.5
        disc = f"M{coordinate(x - r)} {coordinate(y)}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
        return (
            disc
            if number == 0
            else disc + f"M{coordinate(x - 2.5)} {coordinate(y)}a2.5 2.5 0 1 1 5 0a2.5 2.5 0 1 1 -5 0z"
        )
    return "M" + "L".join(f"{coordinate(x + dx)} {coordinate(y + dy)}" for dx, dy in CORNERS[number]) + "z"


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _svg(attributes: str, parts: Sequence[Markup]) -> Markup:
    return Markup(f"<svg {attributes}>") + Markup("").join(parts) + Markup("</svg>")


def coordinate(value: float) -> str:
    """A coordinate, a tenth of a unit exactly."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
