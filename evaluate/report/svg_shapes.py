"""Inline SVG: shapes without a style of their own, so that the style sheet gives them the page's colours, light or dark.

A figure has its description as accessible text; bars next to their number have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

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

STRETCHED = {"viewBox": "0 0 100 1", "preserveAspectRatio": "none", "aria_hidden": "true"}


def element(tag: str, *content: str, **attributes: str | float | None) -> Markup:
    """An SVG element. Attributes: ``class_`` is class, ``text_anchor`` text-anchor; numbers are coordinates, None is left out."""
    given = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else coordinate(value)
        )
        for key, value in attributes.items()
        if value is not None
    ]
    opened = Markup("<") + tag + Markup("").join(given)
    return opened + Markup(">") + Markup("").join(content) + Markup(f"</{tag}>") if content else opened + Markup("/>")


def bar(share: float, kind: str = "") -> Markup:
    """A bar filled from the left to ``share`` of its length; ``kind`` is a class of the style sheet, as everywhere here."""
    width = 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    return element("svg", element("rect", width=width, height=1), class_=f"bar {kind}", **STRETCHED)


def stack(parts: Sequence[tuple[float, str]]) -> Markup:
    """Bars one after the other: shares of the full length and their kinds."""
    starts = accumulate((share for share, _ in parts), initial=0.0)
    rects = [
        element("rect", class_=kind, x=100 * start, width=100 * share, height=1)
        for start, (share, kind) in zip(starts, parts, strict=False)
    ]
    return element("svg", *rects, class_="bar", **STRETCHED)


def diverging(value: float, scale: float, kind: str = "") -> Markup:
    """A bar from the middle: to the right for a positive value, to the left for a negative one; ``scale`` fills a half."""
    half = 50 * min(abs(value) / scale, 1.0) if scale > 0 else 0.0
    rect = element("rect", x=50 if value > 0 else 50 - half, width=half, height=1)
    middle = element("line", x1=50, x2=50, y1=0, y2=1)
    return element("svg", rect, middle, class_=f"diverging {kind}", **STRETCHED)


def interval(low: float, middle: float, high: float, scale: float) -> Markup:
    """A dot with the line of its interval on a track from 0 to ``scale``."""

    def at(value: float) -> float:
        return 4 + 192 * min(max(value / scale, 0), 1)

    parts = [element("line", class_="track", x1=4, x2=196, y1=6, y2=6)]
    if math.isfinite(low) and math.isfinite(high):
        parts.append(element("line", class_="range", x1=at(low), x2=at(high), y1=6, y2=6))
    parts.append(element("circle", cx=at(middle), cy=6, r=3.5))
    return element("svg", *parts, class_="interval", viewBox="0 0 200 12", preserveAspectRatio="xMinYMid", aria_hidden="true")  # fmt: skip


def scatter(places: Sequence[tuple[float, float]], points: Sequence[Mapping[str, str | int]], text: str) -> Markup:
    """A map of links: each point a shape of its category's number, with its name next to it where there is room, else when pointed at.

    Names of class ``first`` have room at twice the size, for a narrow window.

    ``places`` in the unit square, both axes drawn on one scale, the longer way lying down. ``points``: ``href``, ``name``, ``title``, ``colour`` (0-9 or "none"), ``shape`` (0-9), in the order of ``places``; the first ones
    get their names first.
    """
    width, height, margin = 900, 540, 46
    at = _fitted(places, width, height, margin)
    names = [str(point["name"]) for point in points]
    names = [name if len(name) <= 18 else name[:17] + "…" for name in names]
    large = _sides(at, names, width, 2, {})
    sides = _sides(at, names, width, 1, large)
    parts = []
    for k, ((x, y), point) in enumerate(zip(at, points, strict=True)):
        side = sides.get(k) or (1 if x < width * 0.8 else -1)
        shown = " shown first" if k in large else " shown" if k in sides else ""
        named = element(
            "text", names[k], x=x, y=y, dx=f"{side * 0.8}em", dy=".35em", text_anchor="end" if side < 0 else None
        )
        mark = element("path", d=_shape(int(point["shape"]), x, y))
        parts.append(
            element(
                "a", element("title", str(point["title"])), mark, named,
                href=str(point["href"]), class_=f"point c{point['colour']}{shown}",
            )
        )  # fmt: skip
    return element("svg", *parts, class_="map", viewBox=f"0 0 {width} {height}", role="group", aria_label=text)


def _sides(
    at: Sequence[tuple[float, float]], names: Sequence[str], width: int, size: float, before: Mapping[int, int]
) -> dict[int, int]:
    """On which side of its point (1: right, −1: left) a name has room, text and shapes ``size`` times as large; ``before`` are placed."""

    def box(k: int, side: int) -> tuple[float, float, float, float]:
        x, y = at[k]
        near, far = x + 9 * size * side, x + (9 + 7.1 * len(names[k])) * size * side
        return min(near, far), y - 7 * size, max(near, far), y + 7 * size

    points = [(x - 7 * size, y - 7 * size, x + 7 * size, y + 7 * size) for x, y in at]
    found, taken = dict(before), [box(k, side) for k, side in before.items()]
    for k in range(len(at)):
        for side in () if k in found else (1, -1):
            mine = box(k, side)
            others = [*taken, *points[:k], *points[k + 1 :]]
            if mine[0] > 2 and mine[2] < width - 2 and not any(_overlap(mine, other) for other in others):
                found[k] = side
                taken.append(mine)
                break
    return found


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
    return element(
        "svg", element("path", d=_shape(number, 8, 8)), class_="shape", viewBox="0 0 16 16", aria_hidden="true"
    )


def _shape(number: int, x: float, y: float) -> str:
    """A shape of about equal area around a point: disc, square, triangle, diamond, triangle downwards, cross, plus, hexagon, bow, ring."""
    if number not in CORNERS:
        return _disc(x, y, 5.5, 1) + (_disc(x, y, 2.5, -1) if number == 9 else "")
    return "M" + "L".join(f"{coordinate(x + dx)} {coordinate(y + dy)}" for dx, dy in CORNERS[number]) + "z"


def _disc(x: float, y: float, r: float, turn: int) -> str:
    sweep = int(turn < 0)
    return f"M{coordinate(x - r)} {coordinate(y)}a{r} {r} 0 1 {sweep} {2 * r} 0a{r} {r} 0 1 {sweep} {-2 * r} 0z"


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def points(places: Sequence[tuple[float, float]]) -> str:
    """Points of a line or an area."""
    return " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in places)


def coordinate(value: float) -> str:
    """A coordinate, a tenth of a unit exactly."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
