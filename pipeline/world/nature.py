"""Grown and given things: trees, animals, rocks, mountains, clouds, sun and moon."""

from __future__ import annotations

import numpy as np

from pipeline.world.buildings import pick
from pipeline.world.canvas import Canvas, Shape, ellipse, line, polygon, rect, union
from pipeline.world.surfaces import Rgb, Surface, mix, tone


def _foliage(rng: np.random.Generator, rgb: Rgb, period: float = 3.0) -> Surface:
    return Surface(rgb, "foliage", "blotchy", ink=mix(rgb, (12, 30, 18), 0.5), period=period, shade=0.2)


def _bark(rng: np.random.Generator) -> Surface:
    return Surface(tone(rng, "brown"), "wood", shade=0.15)


def _blob(rng: np.random.Generator, x: float, y: float, r: float, n: int = 6) -> Shape:
    """A lumpy round: one ellipse in the middle and ``n`` around it."""
    around = rng.uniform(0, 2 * np.pi) + np.arange(n) * 2 * np.pi / n
    lumps = [ellipse(x + 0.5 * r * np.cos(t), y + 0.45 * r * np.sin(t), r * rng.uniform(0.45, 0.6)) for t in around]
    return union(ellipse(x, y, r * 0.75), *lumps)


def tree(c: Canvas, x: float, y: float, s: float) -> None:
    """A broad-leaved tree: trunk and a round crown, green or in autumn colours, at times with fruit."""
    rng = c.rng
    c.paint(
        polygon((x - s * 0.07, y), (x - s * 0.04, y - s * 0.5), (x + s * 0.04, y - s * 0.5), (x + s * 0.07, y)),
        _bark(rng),
        "tree",
        "trunk",
    )
    rgb = tone(rng, pick(rng, "green", "green", "green", "green", "orange", "yellow"), int(rng.integers(2)))
    crown = _blob(rng, x, y - s * 0.66, s * 0.36)
    c.paint(crown, _foliage(rng, rgb), "tree", "crown")
    if s > 18 and rng.random() < 0.25:
        fruit = Surface(tone(rng, "red", 0), None, shade=0.2)
        spots = rng.uniform(-0.24, 0.24, (5, 2)) * s
        c.paint(union(*(ellipse(x + u, y - s * 0.66 + v, s * 0.032) for u, v in spots)), fruit, "tree", "crown")


def fir(c: Canvas, x: float, y: float, s: float, *, snowy: bool = False) -> None:
    """A conifer: short trunk and three tiers, at times with snow on them."""
    rng = c.rng
    c.paint(rect(x - s * 0.04, y - s * 0.16, x + s * 0.04, y), _bark(rng), "fir", "trunk")
    green = _foliage(rng, tone(rng, "green", int(rng.choice([2, 4]))), period=2.4)
    white = Surface((240, 244, 250), "snow", shade=0.1)
    w = s * rng.uniform(0.2, 0.27)
    for low, high, spread in ((0.12, 0.55, 1.0), (0.34, 0.78, 0.78), (0.58, 1.0, 0.55)):
        half = w * spread
        c.paint(polygon((x - half, y - s * low), (x, y - s * high), (x + half, y - s * low)), green, "fir", "crown")
        if snowy:
            mid = low + 0.52 * (high - low)
            cap = [(x - half * 0.48, y - s * mid), (x, y - s * high), (x + half * 0.48, y - s * mid)]
            c.paint(polygon(*cap, (x, y - s * (mid + 0.06))), white, "fir", "crown")


def palm(c: Canvas, x: float, y: float, s: float) -> None:
    """A palm: a bent, ringed trunk and a crown of hanging leaves."""
    rng = c.rng
    lean = s * rng.uniform(-0.22, 0.22)
    steps = np.linspace(0, 1, 7)
    curve = [(x + lean * t * t, y - s * 0.74 * t) for t in steps]
    left = [(u - s * 0.045 * (1.2 - 0.5 * t), v) for (u, v), t in zip(curve, steps, strict=True)]
    right = [(u + s * 0.045 * (1.2 - 0.5 * t), v) for (u, v), t in zip(curve, steps, strict=True)]
    bark = Surface(tone(rng, "brown", int(rng.choice([1, 3]))), "wood", "banded", period=s * 0.1, shade=0.15)
    c.paint(polygon(*left, *reversed(right)), bark, "palm", "trunk")
    top_x, top_y = curve[-1]
    green = tone(rng, "green", int(rng.choice([0, 1, 5])))
    for angle in np.linspace(-0.35, np.pi + 0.35, 8) + rng.uniform(-0.1, 0.1, 8):
        reach = s * rng.uniform(0.36, 0.44)
        mid = (top_x + 0.55 * reach * np.cos(angle), top_y - 0.55 * reach * np.sin(angle) - s * 0.06)
        tip = (top_x + reach * np.cos(angle), top_y - 0.75 * reach * np.sin(angle) + s * 0.11)
        low = (mid[0], mid[1] + s * 0.085)
        shade = mix(green, (15, 50, 25), rng.uniform(0, 0.45))
        c.paint(polygon((top_x, top_y), mid, tip, low), Surface(shade, "foliage", shade=0.15), "palm", "leaf")
    nuts = Surface((95, 62, 35), None, shade=0.1)
    c.paint(
        union(
            ellipse(top_x - s * 0.03, top_y + s * 0.03, s * 0.035),
            ellipse(top_x + s * 0.03, top_y + s * 0.03, s * 0.035),
        ),
        nuts,
        "palm",
    )


def cactus(c: Canvas, x: float, y: float, s: float) -> None:
    """A candelabra cactus: a ribbed stem and one or two arms, at times in flower."""
    rng = c.rng
    rgb = tone(rng, "green", int(rng.choice([0, 2, 5])))
    w = s * rng.uniform(0.17, 0.21)
    ribbed = Surface(rgb, "foliage", "striped", ink=mix(rgb, (12, 40, 25), 0.5), period=max(2.2, w / 3), shade=0.1)
    sides = [(-1, 0.34), (1, 0.46)] if rng.random() < 0.7 else [(int(rng.choice([-1, 1])), 0.42)]
    for side, height in sides:
        elbow, arm = x + side * s * 0.28, w * 0.62
        bend = rect(min(x, elbow), y - s * height - arm / 2, max(x, elbow), y - s * height + arm / 2)
        rise = rect(elbow - arm / 2, y - s * (height + 0.3), elbow + arm / 2, y - s * height + arm * 0.3)
        tips = union(ellipse(elbow, y - s * (height + 0.3), arm / 2), ellipse(elbow, y - s * height, arm / 2))
        c.paint(union(bend, rise, tips), ribbed, "cactus", "arm")
    stem = union(rect(x - w / 2, y - s * 0.92, x + w / 2, y), ellipse(x, y - s * 0.92, w / 2))
    c.paint(stem, ribbed, "cactus", "stem")
    if rng.random() < 0.35:
        c.paint(ellipse(x, y - s * 1.02, w * 0.3), Surface(tone(rng, "pink", 1), None), "cactus")


def bush(c: Canvas, x: float, y: float, s: float) -> None:
    rng = c.rng
    shape = union(
        ellipse(x - s * 0.45, y - s * 0.3, s * 0.4),
        ellipse(x + s * 0.4, y - s * 0.32, s * 0.42),
        ellipse(x, y - s * 0.45, s * 0.5),
    )
    c.paint(shape, _foliage(rng, tone(rng, "green"), period=2.4), "bush")


def rock(c: Canvas, x: float, y: float, s: float, *, reddish: bool = False) -> None:
    rng = c.rng
    rgb = tone(rng, "orange", 3) if reddish else tone(rng, "grey", int(rng.integers(3)))
    points = [
        (x + s * u, y - s * v) for u, v in ((-0.7, 0), (-0.55, 0.4), (-0.15, 0.62), (0.3, 0.5), (0.65, 0.2), (0.72, 0))
    ]
    surface = Surface(rgb, "stone", "blotchy", ink=mix(rgb, (25, 22, 30), 0.4), period=2.6, shade=0.25)
    c.paint(polygon(*[(u + rng.uniform(-0.06, 0.06) * s, v) for u, v in points]), surface, "rock")


def hay(c: Canvas, x: float, y: float, s: float) -> None:
    rgb = tone(c.rng, "yellow", 2)
    surface = Surface(rgb, "straw", "grainy", ink=mix(rgb, (120, 80, 20), 0.75), period=1.1, shade=0.2)
    c.paint(ellipse(x, y - s * 0.5, s * 0.55, s * 0.5), surface, "hay")


def cow(c: Canvas, x: float, y: float, s: float) -> None:
    """A cow, spotted or plain, facing left or right."""
    rng = c.rng
    side = int(rng.choice([-1, 1]))
    legs = Surface(tone(rng, pick(rng, "grey", "brown"), 0), "fur", shade=0.05)
    c.paint(
        union(
            *(rect(x + s * u - s * 0.055, y - s * 0.45, x + s * u + s * 0.055, y) for u in (-0.42, -0.24, 0.24, 0.42))
        ),
        legs,
        "cow",
        "leg",
    )
    if rng.random() < 0.7:
        hide = Surface(
            (244, 242, 238), "fur", "blotchy", ink=tone(rng, pick(rng, "black", "brown"), 0), period=s * 0.26, shade=0.1
        )
    else:
        hide = Surface(tone(rng, "brown", int(rng.integers(2))), "fur", shade=0.15)
    c.paint(ellipse(x, y - s * 0.6, s * 0.58, s * 0.3), hide, "cow", "body")
    head_x, head_y = x + side * s * 0.66, y - s * 0.82
    horns = Surface((225, 215, 190), None, shade=0)
    c.paint(
        union(
            *(
                line((head_x + d * s * 0.1, head_y - s * 0.1), (head_x + d * s * 0.19, head_y - s * 0.27), s * 0.05)
                for d in (-1, 1)
            )
        ),
        horns,
        "cow",
        "head",
    )
    c.paint(ellipse(head_x, head_y, s * 0.18, s * 0.2), Surface(hide.rgb, "fur", shade=0.1), "cow", "head")
    c.paint(
        ellipse(head_x + side * s * 0.08, head_y + s * 0.12, s * 0.13, s * 0.09),
        Surface((238, 165, 170), "fur"),
        "cow",
        "head",
    )
    c.paint(ellipse(head_x, head_y - s * 0.05, s * 0.035), Surface((20, 18, 18), None, shade=0), "cow", "head")


def mountain(
    c: Canvas, x: float, y: float, w: float, h: float, rgb: Rgb, *, snowy: bool = False, mesa: bool = False
) -> None:
    """A mountain: a ridge with a shaded flank, and a snowy peak or a flat top."""
    rng = c.rng
    stone = Surface(rgb, "stone", "blotchy", ink=mix(rgb, (30, 32, 50), 0.35), period=5, shade=0.1)
    if mesa:
        top = [
            (x - w * 0.5, y),
            (x - w * 0.3, y - h * 0.85),
            (x - w * 0.22, y - h),
            (x + w * 0.24, y - h),
            (x + w * 0.33, y - h * 0.8),
            (x + w * 0.5, y),
        ]
        layered = Surface(rgb, "stone", "banded", ink=mix(rgb, (90, 35, 25), 0.4), period=h / 3.2, shade=0.1)
        c.paint(polygon(*top), layered, "mountain")
        return
    peak = (x + w * rng.uniform(-0.08, 0.08), y - h)
    left = [
        (x - w * 0.5, y),
        (x - w * 0.3, y - h * rng.uniform(0.38, 0.46)),
        (x - w * 0.17, y - h * rng.uniform(0.66, 0.74)),
    ]
    right = [
        (x + w * 0.16, y - h * rng.uniform(0.64, 0.74)),
        (x + w * 0.32, y - h * rng.uniform(0.36, 0.45)),
        (x + w * 0.5, y),
    ]
    c.paint(polygon(*left, peak, *right), stone, "mountain")
    flank = Surface((20, 24, 48), shade=0, grain=0)
    c.paint(
        polygon(peak, right[0], right[1], right[2], (x + w * 0.12, y), (peak[0] + w * 0.05, y - h * 0.5)),
        flank,
        alpha=0.22,
    )
    if snowy:
        teeth = [(peak[0] + w * u, y - h * v) for u, v in ((0.1, 0.6), (0.04, 0.7), (-0.02, 0.56), (-0.08, 0.68))]
        snow = Surface((246, 249, 255), "snow", shade=0.1)
        c.paint(polygon(peak, right[0], *teeth, left[2]), snow, "mountain", "peak")
        c.paint(polygon(peak, right[0], teeth[0], teeth[1]), flank, alpha=0.16)


def cloud(c: Canvas, x: float, y: float, s: float, rgb: Rgb) -> None:
    rng = c.rng
    lumps = [
        ellipse(x + s * u, y - s * v * rng.uniform(0.8, 1.2), s * r)
        for u, v, r in ((-0.5, 0, 0.3), (-0.15, 0.2, 0.4), (0.25, 0.12, 0.36), (0.6, 0, 0.24))
    ]
    base = rect(x - s * 0.55, y, x + s * 0.65, y + s * 0.26)
    c.paint(union(*lumps, base), Surface(rgb, shade=0.06, grain=0, glow=True), "cloud", alpha=0.88)


def sun(c: Canvas, x: float, y: float, r: float, rgb: Rgb) -> None:
    for k, alpha in ((2.1, 0.14), (1.5, 0.2)):
        c.paint(ellipse(x, y, r * k), Surface(rgb, shade=0, grain=0, glow=True), alpha=alpha)
    c.paint(ellipse(x, y, r), Surface(rgb, shade=0, grain=0, glow=True), "sun")


def moon(c: Canvas, x: float, y: float, r: float) -> None:
    c.paint(ellipse(x, y, r * 1.7), Surface((220, 225, 245), shade=0, grain=0, glow=True), alpha=0.14)
    c.paint(ellipse(x, y, r), Surface((244, 242, 226), shade=0.08, grain=0, glow=True), "moon")
    craters = union(ellipse(x - r * 0.3, y - r * 0.2, r * 0.22), ellipse(x + r * 0.28, y + r * 0.3, r * 0.16))
    c.paint(craters, Surface((214, 212, 200), shade=0, grain=0, glow=True), "moon")
