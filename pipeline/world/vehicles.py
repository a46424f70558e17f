"""Things that move and what people leave about: cars, boats, cranes, containers, parasols, balls."""

from __future__ import annotations

import numpy as np

from pipeline.world.buildings import LIT, pick
from pipeline.world.canvas import Canvas, ellipse, line, polygon, rect, union
from pipeline.world.surfaces import Surface, mix, tone


def car(c: Canvas, x: float, y: float, s: float, *, night: bool = False) -> None:
    """A car in side view, ``s`` long: body, two wheels with hubs, windows, and a headlight that shines at night."""
    rng = c.rng
    side = int(rng.choice([-1, 1]))
    paint = Surface(
        tone(rng, pick(rng, "red", "blue", "yellow", "white", "green", "orange", "black", "pink", "purple")),
        "metal",
        shade=0.22,
    )

    def at(u: float, v: float) -> tuple[float, float]:
        return x + side * u * s, y - v * s

    shadow = Surface((10, 10, 16), shade=0, grain=0)
    c.paint(ellipse(x, y, s * 0.52, s * 0.04), shadow, alpha=0.35)
    cabin = [at(-0.3, 0.26), at(-0.2, 0.46), at(0.1, 0.46), at(0.27, 0.26)]
    body = [at(-0.5, 0.09), at(-0.5, 0.27), at(-0.3, 0.29), at(0.26, 0.28), at(0.47, 0.24), at(0.5, 0.09)]
    c.paint(union(polygon(*cabin), polygon(*body)), paint, "car", "body")
    glass = Surface((150, 190, 215), "glass", to=(80, 110, 140), shade=0.05)
    for pane in (
        [at(-0.24, 0.28), at(-0.17, 0.42), at(-0.05, 0.42), at(-0.05, 0.28)],
        [at(-0.01, 0.28), at(-0.01, 0.42), at(0.09, 0.42), at(0.21, 0.28)],
    ):
        c.paint(polygon(*pane), glass, inner="window")
    front = at(0.46, 0.19)
    if night:
        beam = Surface((255, 240, 180), glow=True, shade=0, grain=0)
        c.paint(polygon(front, at(0.95, 0.26), at(0.95, 0.02)), beam, alpha=0.3)
    c.paint(
        ellipse(*front, s * 0.042),
        Surface(LIT if night else (240, 238, 215), "glass", glow=night, shade=0),
        inner="headlight",
    )
    for u in (-0.28, 0.29):
        wx, wy = at(u, 0.1)
        c.paint(ellipse(wx, wy, s * 0.105), Surface((28, 28, 32), "rubber", shade=0.05), "car", "wheel")
        c.paint(ellipse(wx, wy, s * 0.05), Surface((190, 192, 196), "metal", shade=0.1), inner="hub")


def boat(c: Canvas, x: float, y: float, s: float) -> None:
    """A boat, ``s`` long: a hull with portholes, and a mast with a plain or patterned sail, or a cabin with a window."""
    rng = c.rng
    side = int(rng.choice([-1, 1]))

    def at(u: float, v: float) -> tuple[float, float]:
        return x + side * u * s, y - v * s

    rgb = tone(rng, pick(rng, "red", "white", "blue", "brown", "black", "green"), int(rng.integers(2)))
    if rng.random() < 0.62:
        c.paint(line(at(0.02, 0.1), at(0.02, 1.02), s * 0.035), Surface((110, 78, 48), "wood", shade=0), "boat", "mast")
        base, ink = (
            tone(rng, pick(rng, "white", "white", "yellow", "orange")),
            tone(rng, pick(rng, "red", "blue", "orange", "purple"), 0),
        )
        texture = [None, "banded", "striped", "checkered", "dotted"][int(rng.integers(5))]
        cloth = Surface(base, "fabric", texture, ink=ink, period=max(3.2, s * 0.17), shade=0.12)
        c.paint(polygon(at(0.06, 0.26), at(0.06, 0.98), at(0.46, 0.26)), cloth, "boat", "sail")
        c.paint(polygon(at(-0.02, 0.26), at(-0.02, 0.86), at(-0.36, 0.26)), cloth, "boat", "sail")
    else:
        c.paint(
            polygon(at(-0.26, 0.18), at(-0.26, 0.46), at(0.1, 0.46), at(0.17, 0.18)),
            Surface(tone(rng, "white"), "wood", shade=0.1),
            "boat",
            "wall",
        )
        c.paint(
            polygon(at(-0.2, 0.28), at(-0.2, 0.39), at(0.04, 0.39), at(0.08, 0.28)),
            Surface((60, 90, 125), "glass"),
            inner="window",
        )
        c.paint(
            line(at(-0.12, 0.44), at(-0.12, 0.68), s * 0.07), Surface(tone(rng, "red", 0), "metal"), "boat", "chimney"
        )
    hull = [at(-0.5, 0.22), at(0.58, 0.25), at(0.4, -0.02), at(-0.38, -0.02)]
    c.paint(polygon(*hull), Surface(rgb, "wood", shade=0.12), "boat", "hull")
    trim = Surface(mix(rgb, (255, 255, 255), 0.75), "wood", shade=0)
    c.paint(polygon(at(-0.5, 0.22), at(0.58, 0.25), at(0.55, 0.19), at(-0.48, 0.17)), trim, "boat", "hull")
    if s > 13:
        holes = union(*(ellipse(*at(u, 0.09), s * 0.035) for u in (-0.22, 0.02, 0.26)))
        c.paint(holes, Surface((235, 240, 245), "glass", shade=0), inner="porthole")


def crane(c: Canvas, x: float, y: float, s: float) -> None:
    """A harbour crane: a lattice mast, a long arm, a cabin and a cable with its load."""
    rng = c.rng
    side = int(rng.choice([-1, 1]))
    rgb = tone(rng, pick(rng, "yellow", "orange", "red", "blue"), 0)
    lattice = Surface(rgb, "metal", "checkered", ink=mix(rgb, (40, 30, 30), 0.6), period=2.4, shade=0.05)
    w = s * 0.05
    c.paint(rect(x - w, y - s * 0.86, x + w, y), lattice, "crane", "mast")
    c.paint(
        polygon(
            (x - side * s * 0.22, y - s * 0.84),
            (x - side * s * 0.22, y - s * 0.92),
            (x + side * s * 0.62, y - s * 0.94),
            (x + side * s * 0.62, y - s * 0.9),
            (x, y - s * 0.84),
        ),
        lattice,
        "crane",
        "arm",
    )
    c.paint(line((x, y - s * 0.9), (x, y - s * 1.05), w), Surface(rgb, "metal"), "crane", "mast")
    c.paint(
        rect(x - side * s * 0.22 - w, y - s * 0.88, x - side * s * 0.22 + w, y - s * 0.76),
        Surface((95, 95, 100), "concrete"),
        "crane",
    )
    hook = x + side * s * rng.uniform(0.35, 0.55)
    low = y - s * rng.uniform(0.45, 0.65)
    c.paint(rect(hook - 0.35, low, hook + 0.35, y - s * 0.9), Surface((45, 45, 50), "metal", shade=0), "crane")
    container(c, hook, low + s * 0.12, s * 0.16)


def container(c: Canvas, x: float, y: float, w: float) -> None:
    """A shipping container with ribbed sides."""
    rng = c.rng
    rgb = tone(rng, pick(rng, "red", "blue", "green", "orange", "yellow", "purple"), int(rng.integers(2)))
    ribbed = Surface(rgb, "metal", "striped", ink=mix(rgb, (15, 15, 20), 0.38), period=max(2.0, w * 0.16), shade=0.06)
    c.paint(rect(x - w / 2, y - w * 0.46, x + w / 2, y), ribbed, "container")


def parasol(c: Canvas, x: float, y: float, s: float) -> None:
    """A parasol: a pole and a canopy with wedges, dots or checks."""
    rng = c.rng
    c.paint(
        rect(x - s * 0.025, y - s * 0.8, x + s * 0.025, y),
        Surface((225, 222, 214), "metal", shade=0),
        "parasol",
        "pole",
    )
    ink = tone(rng, pick(rng, "red", "blue", "green", "orange", "pink", "purple", "yellow"), 0)
    texture = pick(rng, "striped", "striped", "dotted", "checkered")
    period = s * (0.3 if texture == "striped" else 0.22)
    cloth = Surface((248, 246, 240), "fabric", texture, ink=ink, period=period, shade=0.14)
    arc = [(x - np.cos(t) * s * 0.56, y - s * 0.66 - np.sin(t) * s * 0.38) for t in np.linspace(0, np.pi, 14)]
    c.paint(polygon(*arc), cloth, "parasol", "canopy")


def ball(c: Canvas, x: float, y: float, r: float) -> None:
    """A beach ball."""
    rng = c.rng
    ink = tone(rng, pick(rng, "red", "blue", "orange", "pink"), 0)
    c.paint(
        ellipse(x, y - r, r), Surface((250, 248, 240), "plastic", "striped", ink=ink, period=r * 0.8, shade=0.2), "ball"
    )
