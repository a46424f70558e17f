"""Time of day and sky: the light every scene stands in, drawn independently of which scene it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.world import nature
from pipeline.world.canvas import Canvas, ellipse, rect, union
from pipeline.world.surfaces import Rgb, Surface, mix


@dataclass(frozen=True)
class Sky:
    """A time of day: the light on things, the sky above and at the horizon, its clouds and its sun."""

    light: Rgb
    top: Rgb
    low: Rgb
    cloud: Rgb
    sun: Rgb | None = None
    night: bool = False


SKIES: dict[str, tuple[Sky, ...]] = {
    "day": (
        Sky((1.02, 1.02, 1.0), (84, 152, 226), (188, 222, 246), (252, 253, 255), (255, 226, 90)),
        Sky((1.0, 1.02, 1.03), (112, 180, 232), (214, 236, 244), (250, 252, 254), (255, 232, 110)),
    ),
    "overcast": (
        Sky((0.86, 0.88, 0.92), (150, 160, 174), (206, 212, 218), (226, 230, 234)),
        Sky((0.9, 0.9, 0.9), (176, 186, 194), (224, 226, 226), (200, 206, 212)),
    ),
    "golden": (
        Sky((1.02, 0.92, 0.78), (118, 142, 200), (252, 206, 140), (255, 226, 190), (255, 206, 84)),
        Sky((1.0, 0.84, 0.76), (150, 110, 170), (255, 164, 110), (255, 190, 170), (250, 130, 62)),
    ),
    "dusk": (
        Sky((0.7, 0.64, 0.8), (62, 60, 122), (238, 142, 140), (190, 130, 165), (244, 112, 70), night=True),
        Sky((0.62, 0.64, 0.84), (40, 56, 112), (176, 140, 190), (120, 112, 160), night=True),
    ),
    "night": (
        Sky((0.46, 0.5, 0.7), (12, 16, 44), (44, 52, 100), (52, 58, 96), night=True),
        Sky((0.42, 0.46, 0.64), (16, 14, 36), (62, 48, 92), (60, 54, 88), night=True),
    ),
}


def choose(rng: np.random.Generator, *, urban_night: bool) -> Sky:
    """A time of day: mostly day, or mostly night for a city at night."""
    shares = (0.0, 0.0, 0.04, 0.26, 0.7) if urban_night else (0.42, 0.2, 0.22, 0.1, 0.06)
    kind = str(rng.choice(list(SKIES), p=shares))
    return SKIES[kind][int(rng.integers(2))]


def paint_sky(c: Canvas, sky: Sky, horizon: float) -> None:
    """The sky down to ``horizon``, with stars, a moon or a sun, and clouds as the time of day has them."""
    rng = c.rng
    jitter = rng.normal(0, 7, 3)
    top, low = ((float(a), float(b), float(d)) for a, b, d in (np.add(sky.top, jitter), np.add(sky.low, jitter)))
    c.paint(rect(-1, -1, 97, horizon + 8), Surface(top, to=low, shade=0, grain=0.006, glow=True), "sky")
    dark = sum(sky.top) < 160
    if dark:
        spots = [ellipse(u * 96, v * horizon * 0.8, 0.32 + 0.25 * r) for u, v, r in rng.random((22, 3))]
        c.paint(union(*spots), Surface((236, 238, 255), shade=0, grain=0, glow=True), alpha=0.45)
        if rng.random() < 0.6:
            nature.moon(c, rng.uniform(10, 86), rng.uniform(8, max(9.0, horizon * 0.45)), rng.uniform(4, 6.5))
    elif sky.sun is not None and rng.random() < 0.65:
        low_sun = sky.light[2] < 0.85
        y = horizon - rng.uniform(0, 9) if low_sun else rng.uniform(9, max(10.0, horizon * 0.45))
        nature.sun(c, rng.uniform(10, 86), y, rng.uniform(5, 8), sky.sun)
    for _ in range(int(rng.integers(0, 3 if dark else 4))):
        shade = mix(sky.cloud, sky.low, rng.uniform(0, 0.25))
        nature.cloud(c, rng.uniform(2, 94), rng.uniform(6, max(8.0, horizon * 0.75)), rng.uniform(8, 17), shade)
