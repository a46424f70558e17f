"""What the world is made of, as tables: styles (what parts are made of) and things (objects made of parts).

Shapes of a thing are in units of its size, from the middle of its foot: u to the right, v up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.world.canvas import Canvas, Shape, bar, box, oval, poly
from pipeline.world.surfaces import Rgb, Surface

CLOTH = "red blue green orange pink purple yellow"
STYLES: dict[str, Surface] = {
    "asphalt": Surface((74, 74, 80), "asphalt", "grainy", period=1.2, shade=0.03),
    "bark": Surface("brown", "wood", shade=0.15),
    "brick": Surface("red brown orange", "brick", "bricked", ink=(228, 214, 200), period=5.5, shade=0.06),
    "bulb": Surface((235, 232, 215), "glass", shade=0.05),
    "checks": Surface("white", "fabric", "checkered", ink=CLOTH, relative=0.2),
    "concrete": Surface("grey blue brown purple grey", "concrete"),
    "dots": Surface("white", "fabric", "dotted", ink=CLOTH, relative=0.22),
    "facade": Surface((120, 180, 215), "glass", "grid", period=3.4, shade=0.15),
    "fir": Surface((28, 74, 46), "foliage", "blotchy", period=2.4, shade=0.2),
    "flank": Surface((20, 24, 48), shade=0),
    "foam": Surface((244, 248, 250), "water", shade=0.02),
    "fruit": Surface((200, 35, 35), shade=0.2),
    "grass": Surface((98, 158, 74), "grass", "grainy", ink=(30, 75, 25), period=1.5, shade=0.08),
    "halo": Surface((255, 230, 150), shade=0, glow=True),
    "hay": Surface("yellow", "straw", "grainy", ink=(130, 90, 25), period=1.1, shade=0.2),
    "hide": Surface("brown", "fur", shade=0.15),
    "lattice": Surface("yellow orange red blue", "metal", "checkered", period=2.4, shade=0.05),
    "leaves": Surface("green green green green orange yellow", "foliage", "blotchy", period=3, shade=0.2),
    "lit": Surface((255, 226, 130), "glass", shade=0.05, glow=True),
    "marking": Surface("white yellow", shade=0),
    "moon": Surface((240, 238, 224), shade=0.08, glow=True),
    "muzzle": Surface((238, 165, 170), "fur"),
    "paint": Surface("red blue yellow white green orange black pink purple", "metal", shade=0.2),
    "palm": Surface((70, 140, 60), "foliage", shade=0.15),
    "pane": Surface((80, 112, 148), "glass", shade=0.1),
    "plain": Surface("white white yellow orange", "fabric"),
    "plank": Surface("brown red blue white", "wood", "striped", period=3.6, shade=0.06),
    "plaster": Surface("white yellow pink blue orange green", "plaster", shade=0.08),
    "ribs": Surface("green", "foliage", "striped", relative=0.07),
    "ribbed": Surface("red blue green orange yellow purple", "metal", "striped", relative=0.16, shade=0.06),
    "rings": Surface((150, 106, 66), "wood", "banded", relative=0.1, shade=0.15),
    "ripples": Surface("yellow orange", "sand", "wavy", ink=(175, 125, 80), period=5.2, shade=0.08),
    "sand": Surface((236, 206, 150), "sand", "grainy", ink=(196, 150, 95), period=1.3, shade=0.08),
    "rows": Surface("yellow green green", "soil", "striped", ink=(110, 80, 48), period=7, shade=0.05),
    "scales": Surface("red brown grey orange purple", "tile", "scaly", period=4.2),
    "slabs": Surface((160, 160, 162), "stone", "grid", period=5, shade=0.03),
    "snow": Surface((240, 244, 251), "snow", "grainy", ink=(198, 213, 234), period=1.5, shade=0.06),
    "soil": Surface((118, 84, 52), "soil", "grainy", period=1.4, shade=0.05),
    "spotted": Surface((244, 242, 238), "fur", "blotchy", ink="black brown", relative=0.26),
    "star": Surface((236, 238, 255), shade=0, glow=True),
    "steel": Surface((90, 94, 102), "metal", shade=0.05),
    "stone": Surface("grey grey blue brown", "stone", "blotchy", shade=0.1),
    "strata": Surface((198, 118, 76), "stone", "banded", ink=(140, 75, 45), relative=0.3),
    "stripes": Surface("white", "fabric", "striped", ink=CLOTH, relative=0.24),
    "sun": Surface((255, 216, 80), shade=0, glow=True),
    "timber": Surface("brown white white", "wood", shade=0.04),
    "tower": Surface((242, 240, 234), "plaster", "banded", ink="red red blue black", relative=0.32, shade=0.16),
    "tyre": Surface((28, 28, 32), "rubber", shade=0.05),
    "water": Surface("blue", "water", "wavy", ink=(150, 190, 215), period=4.6, shade=0.04),
    "white": Surface("white", "wood", shade=0.05),
}


@dataclass(frozen=True)
class Piece:
    """A part of a thing.

    ``style``: one of some, separated by spaces. ``name`` of the part, if it has one; ``inner``: on the part below it. ``p``: how often
    it is there; ``share``: how many of its pieces are; ``night``: only then. ``alpha`` as in ``Canvas.paint``.
    """

    style: str
    shape: Shape
    name: str = ""
    inner: bool = False
    p: float = 1.0
    share: float = 1.0
    night: bool = False
    alpha: float = 1.0


def _inner(name: str, style: str, shape: Shape, **more: Any) -> Piece:
    return Piece(style, shape, name, inner=True, **more)


def _union(shapes: Iterable[Shape]) -> Shape:
    return sum(shapes, ())


def _windows(columns: int, rows: int, x0: float, y0: float, x1: float, y1: float, share: float) -> tuple[Piece, ...]:
    """Windows in a grid, of which some are lit at night."""
    w, h = (x1 - x0) / columns, (y1 - y0) / rows
    corners = [(x0 + w * i, y0 + h * j) for i in range(columns) for j in range(rows)]
    panes = _union(box(x + 0.15 * w, y + 0.2 * h, x + 0.85 * w, y + 0.8 * h) for x, y in corners)
    return _inner("window", "pane", panes), _inner("window", "lit", panes, share=share, night=True)


def _leaf(angle: float) -> Shape:
    """A palm's leaf from the top of its trunk: out, and down at the tip."""
    out, up = np.cos(angle), np.sin(angle)
    return poly((0, 0.74), (0.22 * out, 0.8 + 0.22 * up), (0.4 * out, 0.64 + 0.3 * up), (0.22 * out, 0.715 + 0.22 * up))


_RIDGE = poly((-0.9, 0), (-0.54, 0.42), (-0.3, 0.7), (0.05, 1), (0.28, 0.68), (0.6, 0.4), (0.9, 0))
_FLANK = poly((0.05, 1), (0.28, 0.68), (0.6, 0.4), (0.9, 0), (0.22, 0), (0.13, 0.5))
_PEAK = poly((0.05, 1), (0.28, 0.68), (0.2, 0.6), (0.1, 0.7), (-0.02, 0.56), (-0.12, 0.68), (-0.3, 0.7))
_TIERS = _union(poly((-w, v), (0, v + 0.44), (w, v)) for v, w in ((0.12, 0.25), (0.34, 0.2), (0.56, 0.14)))
_CAPS = _union(
    poly((-w, v), (0, v + 0.24), (w, v), (0, v + 0.07)) for v, w in ((0.33, 0.13), (0.56, 0.11), (0.78, 0.08))
)
_CROWN = _union(oval(0.18 * np.cos(t), 0.66 + 0.16 * np.sin(t), 0.19) for t in np.arange(0.3, 6.3, 1.05)) + oval(
    0, 0.66, 0.27
)
_CANOPY = poly(*((0.56 * np.cos(t), 0.66 + 0.38 * np.sin(t)) for t in np.linspace(0, np.pi, 14)))
_BEAMS = _union(bar(a, b, 0.09) for a, b in pairwise([(-0.6, 0.48), (-0.4, 0.78), (0, 1), (0.4, 0.78), (0.6, 0.48)]))
_POSTS = _union(
    poly((u - 0.13, 0), (u - 0.13, 1), (u, 1.13), (u + 0.13, 1), (u + 0.13, 0)) for u in np.arange(-12, 12.1, 1.2)
)
_ARM = box(0, 0.4, 0.28, 0.52) + box(0.22, 0.46, 0.34, 0.76) + oval(0.28, 0.76, 0.06)
_HULL = (
    Piece("plank paint paint", poly((-0.5, 0.22), (0.58, 0.25), (0.4, -0.02), (-0.38, -0.02)), "hull"),
    Piece("white", poly((-0.5, 0.22), (0.58, 0.25), (0.55, 0.19), (-0.48, 0.17)), "hull"),
    _inner("porthole", "bulb", _union(oval(u, 0.09, 0.035) for u in (-0.22, 0.02, 0.26))),
)
_FIR = (Piece("bark", box(-0.04, 0, 0.04, 0.2), "trunk"), Piece("fir", _TIERS, "crown"))

THINGS: dict[str, tuple[Piece, ...]] = {
    "barn": (
        Piece("plank", poly((-0.58, 0), (-0.58, 0.5), (-0.4, 0.78), (0, 1), (0.4, 0.78), (0.58, 0.5), (0.58, 0)), "wall"),
        Piece("steel", _BEAMS, "roof"),
        _inner("door", "white", box(-0.2, 0, 0.2, 0.42)),
        _inner("door", "plank", box(-0.16, 0, 0.16, 0.38)),
        _inner("door", "white", bar((-0.16, 0), (0.16, 0.38), 0.035) + bar((0.16, 0), (-0.16, 0.38), 0.035)),
        *_windows(1, 1, -0.1, 0.54, 0.1, 0.76, 0),
    ),
    "cactus": (
        Piece("ribs", _ARM, "arm"), Piece("ribs", tuple(points * np.array([-1, 0.85]) for points in _ARM), "arm", p=0.7),
        Piece("ribs", box(-0.1, 0, 0.1, 0.92) + oval(0, 0.92, 0.1), "stem"), Piece("muzzle", oval(0, 1.02, 0.05), p=0.35),
    ),
    "car": (
        Piece("flank", oval(0, 0, 0.52, 0.04), alpha=0.35),
        Piece("paint", poly((-0.3, 0.26), (-0.2, 0.46), (0.1, 0.46), (0.27, 0.26))
             + poly((-0.5, 0.09), (-0.5, 0.27), (-0.3, 0.29), (0.26, 0.28), (0.47, 0.24), (0.5, 0.09)), "body"),
        _inner("window", "pane", poly((-0.24, 0.28), (-0.17, 0.42), (-0.05, 0.42), (-0.05, 0.28))
               + poly((-0.01, 0.28), (-0.01, 0.42), (0.09, 0.42), (0.21, 0.28))),
        Piece("halo", poly((0.46, 0.19), (0.95, 0.26), (0.95, 0.02)), night=True, alpha=0.3),
        _inner("headlight", "bulb", oval(0.46, 0.19, 0.045)), _inner("headlight", "lit", oval(0.46, 0.19, 0.045), night=True),
        Piece("tyre", oval(-0.28, 0.1, 0.105) + oval(0.29, 0.1, 0.105), "wheel"),
        _inner("hub", "bulb", oval(-0.28, 0.1, 0.05) + oval(0.29, 0.1, 0.05)),
    ),
    "cloud": (Piece("foam", oval(-0.5, 0, 0.3) + oval(-0.15, 0.2, 0.4) + oval(0.25, 0.12, 0.36) + oval(0.6, 0, 0.24)
                   + box(-0.55, -0.26, 0.65, 0), alpha=0.88),),
    "cow": (
        Piece("hide", _union(box(u - 0.055, 0, u + 0.055, 0.45) for u in (-0.42, -0.24, 0.24, 0.42)), "leg"),
        Piece("spotted spotted hide", oval(0, 0.6, 0.58, 0.3), "body"),
        Piece("timber", bar((0.58, 0.9), (0.48, 1.08), 0.05) + bar((0.74, 0.9), (0.84, 1.08), 0.05), "head"),
        Piece("hide", oval(0.66, 0.82, 0.18, 0.2), "head"), Piece("muzzle", oval(0.73, 0.7, 0.13, 0.09), "head"),
    ),
    "crane": (
        Piece("lattice", box(-0.05, 0, 0.05, 0.86), "mast"),
        Piece("lattice", poly((-0.22, 0.84), (-0.22, 0.92), (0.62, 0.94), (0.62, 0.9), (0, 0.84)), "arm"),
        Piece("concrete", box(-0.27, 0.76, -0.17, 0.88)), Piece("steel", box(0.445, 0.5, 0.455, 0.9)),
        Piece("ribbed", box(0.36, 0.42, 0.54, 0.51)),
    ),
    "fence": (Piece("timber", box(-12, 0.36, 12, 0.5) + box(-12, 0.76, 12, 0.9), "rail"), Piece("timber", _POSTS, "post")),
    "fir": _FIR,
    "hay": (Piece("hay", oval(0, 0.5, 0.55, 0.5)),),
    "house": (
        Piece("brick", box(0.2, 0.5, 0.33, 1), "chimney", p=0.7),
        Piece("brick plaster plaster plank", box(-0.46, 0, 0.46, 0.56), "wall"),
        Piece("scales", poly((-0.55, 0.54), (-0.14, 0.96), (0.14, 0.96), (0.55, 0.54)), "roof"),
        _inner("window", "pane", oval(0, 0.74, 0.08), p=0.5),
        _inner("door", "white", box(-0.11, 0, 0.11, 0.33)), _inner("door", "plank bark", box(-0.09, 0, 0.09, 0.31)),
        _inner("window", "white", box(-0.39, 0.17, -0.19, 0.43) + box(0.19, 0.17, 0.39, 0.43)),
        *_windows(1, 1, -0.4, 0.13, -0.18, 0.47, 0.8), *_windows(1, 1, 0.18, 0.13, 0.4, 0.47, 0.8),
    ),
    "lamp": (
        Piece("steel", box(-0.02, 0, 0.02, 1), "post"), Piece("steel", bar((-0.02, 1), (0.2, 1.03), 0.035), "arm"),
        Piece("halo", oval(0.2, 0.99, 0.3), night=True, alpha=0.12), Piece("halo", oval(0.2, 0.99, 0.19), night=True, alpha=0.18),
        Piece("bulb", oval(0.2, 0.99, 0.075, 0.055), "bulb"), Piece("lit", oval(0.2, 0.99, 0.075, 0.055), "bulb", night=True),
    ),
    "lighthouse": (
        Piece("halo", poly((0, 0.88), (2.4, 1.1), (2.4, 0.62)), night=True, alpha=0.28),
        Piece("tower", poly((-0.13, 0), (-0.083, 0.8), (0.083, 0.8), (0.13, 0)), "tower"),
        _inner("door", "bark", box(-0.03, 0, 0.03, 0.14)), *_windows(1, 1, -0.04, 0.4, 0.04, 0.55, 1),
        Piece("steel", box(-0.12, 0.79, 0.12, 0.83)), Piece("lit", box(-0.065, 0.82, 0.065, 0.92), "lantern"),
        Piece("scales", poly((-0.1, 0.915), (0, 1.03), (0.1, 0.915)), "roof"),
    ),
    "mesa_mountain": (Piece("strata", poly((-1.2, 0), (-0.8, 0.85), (-0.6, 1), (0.65, 1), (0.85, 0.8), (1.2, 0))),),
    "moon": (Piece("halo", oval(0, 0, 1.7), alpha=0.14), Piece("moon", oval(0, 0, 1))),
    "motor_boat": (
        Piece("white", poly((-0.26, 0.18), (-0.26, 0.46), (0.1, 0.46), (0.17, 0.18)), "wall"),
        _inner("window", "pane", box(-0.2, 0.28, 0.05, 0.39)), Piece("paint", box(-0.16, 0.44, -0.09, 0.68), "chimney"), *_HULL,
    ),
    "mountain": (Piece("stone", _RIDGE), Piece("flank", _FLANK, alpha=0.22)),
    "palm": (
        Piece("rings", poly((-0.05, 0), (0.06, 0.4), (-0.03, 0.75), (0.03, 0.75), (0.12, 0.4), (0.06, 0)), "trunk"),
        Piece("palm", _union(map(_leaf, np.linspace(-0.35, 3.5, 8))), "leaf"),
        Piece("fruit", oval(-0.03, 0.71, 0.035) + oval(0.03, 0.71, 0.035)),
    ),
    "parasol": (Piece("steel", box(-0.025, 0, 0.025, 0.8), "pole"), Piece("stripes stripes dots checks", _CANOPY, "canopy")),
    "rock": (Piece("stone", poly((-0.7, 0), (-0.55, 0.4), (-0.15, 0.62), (0.3, 0.5), (0.65, 0.2), (0.72, 0))),),
    "sailing_boat": (
        Piece("bark", bar((0.02, 0.1), (0.02, 1.02), 0.035), "mast"), *_HULL,
        Piece("plain stripes checks dots", poly((0.06, 0.26), (0.06, 0.98), (0.46, 0.26))
             + poly((-0.02, 0.26), (-0.02, 0.86), (-0.36, 0.26)), "sail"),
    ),
    "skyscraper": (
        Piece("steel", box(-0.01, 1, 0.01, 1.15), "antenna", p=0.45), Piece("concrete", box(-0.18, 0, 0.18, 1), "wall"),
        *_windows(3, 8, -0.165, 0.06, 0.165, 0.97, 0.5), _inner("window", "facade", box(-0.15, 0.04, 0.15, 0.96), p=0.25),
    ),
    "snowy_fir": (*_FIR, Piece("snow", _CAPS, "crown")),
    "snowy_mountain": (Piece("stone", _RIDGE), Piece("flank", _FLANK, alpha=0.22), Piece("snow", _PEAK, "peak")),
    "sun": (Piece("sun", oval(0, 0, 2.1), alpha=0.14), Piece("sun", oval(0, 0, 1.5), alpha=0.2), Piece("sun", oval(0, 0, 1))),
    "tree": (
        Piece("bark", poly((-0.07, 0), (-0.04, 0.5), (0.04, 0.5), (0.07, 0)), "trunk"), Piece("leaves", _CROWN, "crown"),
        Piece("fruit", _union(oval(u, v, 0.032) for u, v in ((-0.2, 0.7), (0.1, 0.85), (0.2, 0.6), (0, 0.55))), "crown", p=0.2),
    ),
}  # fmt: skip
"""Name → parts, in the order in which they are painted. The last word of a name is the label of the object."""


def draw(
    c: Canvas, name: str, x: float, y: float, size: float, *, night: bool = False, haze: Rgb | None = None
) -> None:
    """Draw a thing with its foot at (x, y), so many design units high, facing left or right; parts of one style look alike."""
    rng = c.rng
    scale = np.array([size * rng.uniform(0.85, 1.15) * rng.choice([-1, 1]), -size])
    surfaces: dict[str, Surface] = {}
    for part in THINGS[name]:
        if rng.random() >= part.p or (part.night and not night):
            continue
        style = rng.choice(part.style.split())
        surface = surfaces.setdefault(style, STYLES[style].drawn(rng, size, haze))
        labels = {"inner": part.name} if part.inner else {"obj": name.rpartition("_")[2], "part": part.name}
        shape = tuple(points * scale + (x, y) for points in part.shape if rng.random() < part.share)
        c.paint(shape, surface, **labels, alpha=part.alpha)
