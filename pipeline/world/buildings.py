"""Built things: houses, barns, towers, fences, lamps. Each stands on the line ``y`` and is about ``s`` units high."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pipeline.world.canvas import Canvas, ellipse, line, polygon, rect, union
from pipeline.world.surfaces import Rgb, Surface, mix, tone

LIT: Rgb = (255, 222, 120)


def pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def pane(c: Canvas, *, lit: bool) -> Surface:
    """The glass of a window: dark blue by day, shining when lit."""
    if lit:
        return Surface(tone(c.rng, "yellow", 1) if c.rng.random() < 0.6 else LIT, "glass", glow=True, shade=0.05)
    return Surface((70, 100, 135), "glass", to=(130, 165, 195), shade=0.1)


def _wall(rng: np.random.Generator, *, style: str) -> Surface:
    if style == "brick":
        rgb = tone(rng, pick(rng, "red", "brown", "orange"), 1)
        return Surface(rgb, "brick", "bricked", ink=mix(rgb, (235, 225, 210), 0.65), period=5.5, shade=0.06)
    if style == "wood":
        rgb = tone(rng, pick(rng, "brown", "red", "blue", "white"))
        return Surface(rgb, "wood", "striped", ink=mix(rgb, (20, 15, 15), 0.4), period=3.6, shade=0.06)
    rgb = mix(tone(rng, pick(rng, "white", "yellow", "pink", "blue", "orange", "green")), (255, 250, 240), 0.25)
    return Surface(rgb, "plaster", shade=0.08)


def house(c: Canvas, x: float, y: float, s: float, *, night: bool = False, snowy: bool = False) -> None:
    """A gabled house: wall, roof, chimney; a door and windows on the wall, at times one in the roof."""
    rng = c.rng
    w = s * rng.uniform(0.85, 1.15)
    eaves = y - s * rng.uniform(0.5, 0.58)
    top = y - s
    left, right = x - w / 2, x + w / 2
    if rng.random() < 0.7:
        cx = x + w * rng.choice([-0.27, 0.24])
        brick = Surface((140, 70, 60), "brick", "bricked", ink=(200, 180, 165), period=4, shade=0.1)
        c.paint(rect(cx - w * 0.06, top + s * 0.0, cx + w * 0.06, eaves), brick, "house", "chimney")
    wall = _wall(rng, style=pick(rng, "brick", "plaster", "plaster", "wood"))
    c.paint(rect(left + w * 0.05, eaves - s * 0.02, right - w * 0.05, y), wall, "house", "wall")
    if snowy:
        roof = Surface((240, 244, 250), "snow", "grainy", ink=(205, 215, 230), period=1.5, shade=0.1)
    else:
        rgb = tone(rng, pick(rng, "red", "brown", "grey", "orange", "purple"))
        roof = Surface(rgb, "tile", "scaly", ink=mix(rgb, (25, 15, 20), 0.5), period=4.2, shade=0.1)
    hip = w * rng.uniform(0.0, 0.28)
    c.paint(
        polygon(
            (left - w * 0.04, eaves), (x - hip, top + s * 0.06), (x + hip, top + s * 0.06), (right + w * 0.04, eaves)
        ),
        roof,
        "house",
        "roof",
    )
    if s > 22 and rng.random() < 0.5:
        c.paint(ellipse(x, (top + eaves) / 2 + s * 0.06, s * 0.075), pane(c, lit=night), inner="window")
    door_x = x + w * rng.uniform(-0.12, 0.12)
    door = Surface(tone(rng, pick(rng, "brown", "green", "red", "blue")), "wood", shade=0.1)
    c.paint(rect(door_x - w * 0.085, y - s * 0.31, door_x + w * 0.085, y), door, inner="door")
    frame = Surface(tone(rng, "white"), "wood", shade=0)
    for wx in (left + w * 0.2, right - w * 0.2):
        lit = night and bool(rng.random() < 0.8)
        c.paint(rect(wx - w * 0.1, y - s * 0.42, wx + w * 0.1, y - s * 0.19), frame, inner="window")
        c.paint(rect(wx - w * 0.077, y - s * 0.4, wx + w * 0.077, y - s * 0.21), pane(c, lit=lit), inner="window")


def barn(c: Canvas, x: float, y: float, s: float) -> None:
    """A barn: plank wall, broken roof, a large door with a cross and a loft window."""
    rng = c.rng
    w = s * rng.uniform(1.05, 1.3)
    left, right, eaves, top = x - w / 2, x + w / 2, y - s * 0.5, y - s
    rgb = tone(rng, pick(rng, "red", "red", "brown", "white"), int(rng.integers(2)))
    plank = Surface(rgb, "wood", "striped", ink=mix(rgb, (25, 10, 10), 0.42), period=3.4, shade=0.06)
    gable = [(left, eaves), (left + w * 0.16, y - s * 0.78), (x, top), (right - w * 0.16, y - s * 0.78), (right, eaves)]
    c.paint(polygon((left, y), *gable, (right, y)), plank, "barn", "wall")
    edge = Surface(tone(rng, pick(rng, "grey", "brown"), 0), "metal", shade=0.1)
    roof = [line(a, b, s * 0.09) for a, b in pairwise(gable)]
    c.paint(union(*roof), edge, "barn", "roof")
    white = Surface(tone(rng, "white"), "wood", shade=0.05)
    c.paint(rect(x - w * 0.17, y - s * 0.42, x + w * 0.17, y), white, inner="door")
    c.paint(rect(x - w * 0.14, y - s * 0.385, x + w * 0.14, y), plank, inner="door")
    cross = union(
        line((x - w * 0.14, y), (x + w * 0.14, y - s * 0.385), s * 0.035),
        line((x + w * 0.14, y), (x - w * 0.14, y - s * 0.385), s * 0.035),
    )
    c.paint(cross, white, inner="door")
    c.paint(rect(x - w * 0.075, y - s * 0.73, x + w * 0.075, y - s * 0.57), white, inner="window")
    c.paint(rect(x - w * 0.05, y - s * 0.705, x + w * 0.05, y - s * 0.595), pane(c, lit=False), inner="window")


def skyscraper(c: Canvas, x: float, y: float, w: float, h: float, *, night: bool) -> None:
    """A tower block: a wall of concrete or glass with rows of windows, lit at random at night; at times an antenna."""
    rng = c.rng
    rgb = tone(rng, pick(rng, "grey", "blue", "brown", "purple", "grey"), int(rng.integers(2)))
    if night:
        rgb = mix(rgb, (30, 34, 60), 0.45)
    if rng.random() < 0.45:
        steel = Surface(tone(rng, "grey", 1), "metal", shade=0)
        c.paint(rect(x - 0.5, y - h - rng.uniform(5, 10), x + 0.5, y - h), steel, "skyscraper", "antenna")
    c.paint(rect(x - w / 2, y - h, x + w / 2, y), Surface(rgb, "concrete", shade=0.1), "skyscraper", "wall")
    if rng.random() < 0.3:  # a glass front: one grid over the wall
        glass = mix(rgb, (120, 190, 225), 0.55)
        front = Surface(glass, "glass", "grid", ink=mix(rgb, (20, 25, 40), 0.5), period=3.4, shade=0.15)
        c.paint(rect(x - w * 0.42, y - h * 0.96, x + w * 0.42, y), front, inner="window")
        return
    columns, step = max(2, int(w / 4.2)), 4.6
    pitch = w * 0.9 / columns
    panes = [pane(c, lit=True), pane(c, lit=True), pane(c, lit=False)]
    share = rng.uniform(0.35, 0.75) if night else 0.06
    for row in range(int((h - 3) / step)):
        top = y - h + 2.4 + row * step
        for column in range(columns):
            left = x - w * 0.45 + column * pitch
            lit = rng.random() < share
            surface = panes[int(rng.integers(2))] if lit else panes[2]
            c.paint(rect(left + pitch * 0.16, top, left + pitch * 0.84, top + 2.7), surface, inner="window")


def lighthouse(c: Canvas, x: float, y: float, s: float, *, night: bool) -> None:
    """A banded tower with a door, a window, and a lantern under a small roof; a beam at night."""
    rng = c.rng
    ink = tone(rng, pick(rng, "red", "red", "blue", "black"), 0)
    w, neck = s * 0.26, y - s * 0.8
    if night:
        beam = Surface((255, 240, 170), glow=True, shade=0, grain=0)
        side = rng.choice([-1, 1])
        c.paint(
            polygon((x, y - s * 0.88), (x + side * 70, y - s * 1.1), (x + side * 70, y - s * 0.62)), beam, alpha=0.28
        )
    banded = Surface((242, 240, 234), "plaster", "banded", ink=ink, period=s * 0.32, shade=0.16)
    c.paint(
        polygon((x - w / 2, y), (x - w * 0.32, neck), (x + w * 0.32, neck), (x + w / 2, y)),
        banded,
        "lighthouse",
        "tower",
    )
    c.paint(rect(x - w * 0.1, y - s * 0.14, x + w * 0.1, y), Surface((80, 55, 40), "wood"), inner="door")
    c.paint(rect(x - w * 0.08, y - s * 0.52, x + w * 0.08, y - s * 0.42), pane(c, lit=night), inner="window")
    c.paint(
        rect(x - w * 0.46, neck - s * 0.025, x + w * 0.46, neck + s * 0.015),
        Surface((60, 62, 70), "metal"),
        "lighthouse",
    )
    lantern = Surface((255, 228, 110), "glass", glow=True, shade=0.05)
    c.paint(rect(x - w * 0.24, y - s * 0.92, x + w * 0.24, neck - s * 0.02), lantern, "lighthouse", "lantern")
    cap = polygon((x - w * 0.36, y - s * 0.915), (x, y - s * 1.03), (x + w * 0.36, y - s * 0.915))
    c.paint(cap, Surface(mix(ink, (30, 10, 10), 0.25), "metal", shade=0.1), "lighthouse", "roof")


def fence(c: Canvas, y: float, h: float, x0: float = 0, x1: float = 96) -> None:
    """A wooden fence from ``x0`` to ``x1``: two rails and posts."""
    rng = c.rng
    surface = Surface(tone(rng, pick(rng, "brown", "white", "white")), "wood", shade=0.04)
    for height in (0.42, 0.82):
        c.paint(rect(x0, y - h * height - h * 0.08, x1, y - h * height + h * 0.08), surface, "fence", "rail")
    for x in np.arange(x0 + rng.uniform(0, h), x1, h * 1.05):
        tip = polygon(
            (x - h * 0.13, y), (x - h * 0.13, y - h), (x, y - h * 1.13), (x + h * 0.13, y - h), (x + h * 0.13, y)
        )
        c.paint(tip, surface, "fence", "post")


def lamp(c: Canvas, x: float, y: float, s: float, *, night: bool, side: int = 1) -> None:
    """A street lamp: post, a bent arm, and a bulb that glows at night."""
    steel = Surface((58, 62, 70), "metal", shade=0.05)
    w, reach = max(1.1, s * 0.035), side * s * 0.2
    c.paint(rect(x - w / 2, y - s, x + w / 2, y), steel, "lamp", "post")
    c.paint(line((x - w / 2 * side, y - s), (x + reach, y - s * 1.03), w), steel, "lamp", "arm")
    bulb_x, bulb_y = x + reach, y - s * 0.99
    if night:
        for radius, alpha in ((0.3, 0.12), (0.19, 0.18)):
            halo = Surface((255, 225, 140), glow=True, shade=0, grain=0)
            c.paint(ellipse(bulb_x, bulb_y, s * radius), halo, alpha=alpha)
    bulb = Surface((255, 240, 180) if night else (235, 232, 215), "glass", glow=night, shade=0.05)
    c.paint(ellipse(bulb_x, bulb_y, s * 0.075, s * 0.055), bulb, "lamp", "bulb")
