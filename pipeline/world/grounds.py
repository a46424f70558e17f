"""What lies under a scene: sea, sand, grass, ploughed field, snow, road, quay. Each fills from a line down."""

from __future__ import annotations

import numpy as np

from pipeline.world import nature
from pipeline.world.buildings import pick
from pipeline.world.canvas import Canvas, Shape, polygon, rect
from pipeline.world.surfaces import Surface, mix, tone
from pipeline.world.weather import Sky


def rolling(rng: np.random.Generator, y: float, swing: float, bottom: float = 98) -> Shape:
    """Everything below a gently rolling line about ``y``."""
    a, b = rng.uniform(0, 2 * np.pi, 2)
    xs = np.linspace(-2, 98, 26)
    line = [(x, y + swing * (np.sin(x / 17 + a) + 0.6 * np.sin(x / 9 + b))) for x in xs]
    return polygon(*line, (98, bottom), (-2, bottom))


def sea(c: Canvas, y: float, bottom: float, sky: Sky) -> None:
    rng = c.rng
    rgb = mix(tone(rng, "blue", int(rng.choice([0, 4, 4]))), (35, 140, 150), rng.uniform(0, 0.5))
    far = mix(rgb, sky.low, 0.4)
    ink = mix(rgb, (235, 245, 250), 0.42)
    c.paint(rect(-1, y, 97, bottom), Surface(far, "water", "wavy", ink=ink, to=rgb, period=4.6, shade=0.04), "sea")


def sand(c: Canvas, y: float, *, swing: float = 1.2, rippled: bool = False) -> None:
    rng = c.rng
    rgb = mix(tone(rng, "yellow", 3), tone(rng, "orange", 2), rng.uniform(0, 0.5))
    texture = "wavy" if rippled else "grainy"
    ink = mix(rgb, (150, 95, 50), 0.32 if rippled else 0.36)
    surface = Surface(rgb, "sand", texture, ink=ink, period=5.2 if rippled else 1.3, shade=0.08)
    c.paint(rolling(rng, y, swing), surface, "sand")


def grass(c: Canvas, y: float, *, swing: float = 1.5) -> None:
    rng = c.rng
    rgb = tone(rng, "green", int(rng.choice([0, 1, 1, 5])))
    surface = Surface(rgb, "grass", "grainy", ink=mix(rgb, (20, 60, 20), 0.42), period=1.5, shade=0.08)
    c.paint(rolling(rng, y, swing), surface, "grass")


def field(c: Canvas, y: float) -> None:
    """A field in rows that run to a vanishing point on the line ``y``."""
    rng = c.rng
    base = tone(rng, pick(rng, "yellow", "green", "green"), int(rng.integers(1, 3)))
    soil = Surface(mix(base, (96, 66, 38), 0.8), "soil", "striped", period=200, shade=0.05)
    c.paint(rect(-1, y, 97, 98), soil, "field")
    crop = Surface(base, "foliage", "striped", period=200, ink=base, shade=0.05, grain=0.04)
    vanish = rng.uniform(15, 81)
    for k in range(-13, 14):
        low = vanish + k * 11
        c.paint(
            polygon((vanish + k * 1.7 - 0.45, y), (vanish + k * 1.7 + 0.45, y), (low + 3.4, 98), (low - 3.4, 98)),
            crop,
            "field",
        )


def snow(c: Canvas, y: float, *, swing: float = 2.0) -> None:
    rgb = mix((244, 247, 252), (210, 224, 244), c.rng.uniform(0, 0.6))
    surface = Surface(rgb, "snow", "grainy", ink=mix(rgb, (150, 175, 215), 0.42), period=1.5, shade=0.06)
    c.paint(rolling(c.rng, y, swing), surface, "snow")


def road(c: Canvas, y: float, bottom: float, *, pavement: bool) -> None:
    """A road across the picture with a dashed marking, and pavement slabs above it."""
    rng = c.rng
    if pavement:
        rgb = tone(rng, "grey", 2)
        slabs = Surface(rgb, "stone", "grid", ink=mix(rgb, (60, 60, 65), 0.4), period=5.0, shade=0.03)
        c.paint(rect(-1, y - 7, 97, y), slabs, "pavement")
    rgb = mix(tone(rng, "grey", int(rng.choice([0, 3]))), (50, 50, 56), 0.4)
    asphalt = Surface(rgb, "asphalt", "grainy", ink=mix(rgb, (20, 20, 24), 0.45), period=1.2, shade=0.03)
    c.paint(rect(-1, y, 97, bottom), asphalt, "road")
    paint = Surface((236, 234, 222) if rng.random() < 0.6 else (240, 205, 80), None, shade=0)
    middle = (y + min(bottom, 96)) / 2
    for x in np.arange(rng.uniform(-10, 0), 97, 13):
        c.paint(rect(x, middle - 0.9, x + 7, middle + 0.9), paint, inner="marking")


def track(c: Canvas, y: float, rgb: tuple[float, float, float], material: str) -> None:
    """A road that winds to the horizon ``y``."""
    rng = c.rng
    far, near = rng.uniform(30, 66), rng.uniform(25, 70)
    edge = [
        (far + (near - far) * t + 9 * np.sin(3 * t), y + (98 - y) * t, 1.2 + 15 * t * t) for t in np.linspace(0, 1, 9)
    ]
    shape = polygon(*[(x - w, v) for x, v, w in edge], *[(x + w, v) for x, v, w in reversed(edge)])
    c.paint(shape, Surface(rgb, material, "grainy", ink=mix(rgb, (50, 35, 25), 0.4), period=1.4, shade=0.05), "road")


def quay(c: Canvas, y: float, h: float, x0: float, x1: float) -> None:
    """A quay of stone blocks or planks with its top at ``y``."""
    rng = c.rng
    if rng.random() < 0.5:
        rgb = tone(rng, "brown", int(rng.choice([1, 3])))
        side = Surface(rgb, "wood", "striped", ink=mix(rgb, (30, 18, 10), 0.5), period=3.4, shade=0.05)
    else:
        rgb = tone(rng, "grey", 1)
        side = Surface(rgb, "stone", "bricked", ink=mix(rgb, (40, 42, 48), 0.5), period=7, shade=0.05)
    c.paint(rect(x0, y, x1, y + h), side, "quay")
    c.paint(rect(x0, y, x1, y + 1.8), Surface(mix(rgb, (240, 235, 225), 0.4), side.material, shade=0), "quay")


def hills(c: Canvas, y: float, sky: Sky, *, snowy: bool = False, n: int = 3) -> None:
    """Distant mountains on the line ``y``, blended into the sky."""
    rng = c.rng
    for x in rng.permutation(np.linspace(5, 91, n)) + rng.uniform(-12, 12, n):
        stone = mix(tone(rng, pick(rng, "grey", "blue", "green", "purple"), 1), sky.low, 0.45)
        nature.mountain(c, x, y + 1, rng.uniform(38, 64), rng.uniform(8, 17), stone, snowy=snowy)
