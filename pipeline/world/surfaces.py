"""What things are made of: colours, materials, and the patterns that make a texture visible at a few pixels.

A pattern is a field in [0, 1] over positions in periods: 0 shows the surface's colour, 1 its ink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

Rgb = tuple[float, float, float]
Color = str | Rgb
Field = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

TONES: dict[str, tuple[Rgb, ...]] = {
    "black": ((14, 14, 18), (34, 34, 40), (10, 12, 30)),
    "blue": ((40, 80, 190), (105, 165, 230), (60, 125, 175), (165, 208, 242), (24, 40, 100), (45, 60, 120)),
    "brown": ((112, 72, 36), (150, 106, 66), (76, 48, 28), (172, 132, 92), (120, 85, 70)),
    "grey": ((92, 92, 96), (130, 130, 132), (168, 168, 170), (66, 66, 70), (196, 196, 200)),
    "green": ((60, 140, 60), (110, 170, 80), (30, 80, 45), (150, 190, 110), (22, 60, 45), (90, 130, 50)),
    "orange": ((242, 140, 30), (225, 110, 40), (250, 178, 100), (205, 115, 60)),
    "pink": ((245, 160, 190), (230, 120, 160), (250, 200, 205)),
    "purple": ((120, 60, 150), (168, 130, 200), (80, 48, 110), (110, 90, 150), (60, 45, 90)),
    "red": ((200, 35, 35), (150, 30, 35), (225, 80, 70), (100, 25, 30)),
    "white": ((255, 255, 255), (236, 238, 242), (245, 240, 228), (218, 224, 230)),
    "yellow": ((245, 220, 60), (250, 235, 140), (222, 190, 70), (235, 212, 160), (212, 186, 130)),
}
"""Tones of each colour name; the first three are those that things are painted with."""


_TONE_RGB = np.concatenate([np.array(tones, np.float32) for tones in TONES.values()])
_TONE_NAME = np.repeat(np.arange(len(TONES)), [len(tones) for tones in TONES.values()])


def name_colors(rgb: np.ndarray) -> np.ndarray:
    """The colour name of every position (..., 3) in 0..255, as an index into ``TONES``: that of the nearest tone."""
    distance = (_TONE_RGB**2).sum(-1) - 2 * np.asarray(rgb, np.float32) @ _TONE_RGB.T
    return _TONE_NAME[distance.argmin(-1)]


@dataclass(frozen=True)
class Surface:
    """How a shape is filled, and what the masks say of it.

    Parameters
    ----------
    color : a fixed colour, or names to draw one from, separated by spaces.
    ink : the pattern's colour, likewise; None: darker than ``color``.
    to : colour at the lower edge.
    period : of the pattern, in design units; ``relative``: in units of the object's size.
    shade : strength of the light from the upper left; ``grain``: amplitude of noise; ``glow``: not darkened at night.
    """

    color: Color
    material: str = ""
    texture: str = ""
    ink: Color | None = None
    to: Rgb | None = None
    period: float = 4.0
    relative: float = 0.0
    shade: float = 0.1
    grain: float = 0.012
    glow: bool = False

    def drawn(self, rng: np.random.Generator, size: float = 1, haze: Rgb | None = None) -> Surface:
        """The surface of one object of this size, in one of its colours, mixed with that of ``haze`` where it is far away."""
        color = np.array(_tone(self.color, rng))
        if haze is not None:
            color = 0.65 * color + 0.35 * np.array(haze)
        ink = 0.55 * color + 10 if self.ink is None else _tone(self.ink, rng)
        return replace(
            self,
            color=tuple(color),
            ink=tuple(ink),
            period=max(2.0, self.relative * size) if self.relative else self.period,
        )

    def render(self, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Colours (h, w, 3) of a shape's bounding box; ``y`` (h, 1) and ``x`` (1, w) in design units from its corner."""
        h, w = y.size, x.size
        v, u = np.linspace(0, 1, h, dtype=np.float32)[:, None], np.linspace(0, 1, w, dtype=np.float32)[None, :]
        color = np.broadcast_to(np.asarray(self.color, np.float32), (h, w, 3))
        if self.to is not None:
            color = color + v[..., None] * np.subtract(self.to, self.color).astype(np.float32)
        if self.texture:
            field = PATTERNS[self.texture](y / self.period, x / self.period, rng).astype(np.float32)[..., None]
            color = color + field * (np.asarray(self.ink, np.float32) - color)
        light = 1 + self.shade * (1 - u - v) + self.grain * rng.standard_normal((h, w), np.float32)
        return color * light.astype(np.float32)[..., None]


def _tone(color: Color, rng: np.random.Generator) -> np.ndarray:
    """A colour, or one of the first three tones of one of the names, slightly varied."""
    if isinstance(color, str):
        color = TONES[rng.choice(color.split())][int(rng.integers(3))]
    return np.clip(np.multiply(color, rng.uniform(0.94, 1.05)) + rng.normal(0, 3, 3), 0, 255)


def _noise(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, resample: Image.Resampling) -> np.ndarray:
    """Random values in [0, 1], one a unit cell, resampled to the grid of ``y`` and ``x``."""
    h, w = (max(2, int(np.ceil(float(t.max() - t.min()))) + 1) for t in (y, x))
    cells = Image.fromarray(rng.random((h, w), np.float32))
    return np.asarray(cells.resize((x.size, y.size), resample))


def _bricked(y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    row = 2 * y
    return (row % 1 < 0.3) | ((x + 0.5 * (np.floor(row) % 2)) % 1 < 0.16)


def _dotted(y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u, v = (x + 0.5 * (np.floor(y) % 2)) % 1 - 0.5, y % 1 - 0.5
    return u * u + v * v < 0.09


def _scaly(y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u = (x + 0.5 * (np.floor(y) % 2)) % 1 - 0.5
    return np.clip(1.5 * (y % 1) - 1.2 * (0.25 - u * u) - 0.3, 0, 1)


def _wavy(y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    phase = rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (y + 0.32 * np.sin(2 * np.pi * x / 2.6 + phase)))


PATTERNS: dict[str, Field] = {
    "banded": lambda y, x, rng: (y % 1 < 0.5) & (x == x),
    "blotchy": lambda y, x, rng: np.clip(2.6 * _noise(y, x, rng, Image.Resampling.BICUBIC) - 0.8, 0, 1),
    "bricked": _bricked,
    "checkered": lambda y, x, rng: (np.floor(y) + np.floor(x)) % 2,
    "dotted": _dotted,
    "grainy": lambda y, x, rng: _noise(y, x, rng, Image.Resampling.NEAREST),
    "grid": lambda y, x, rng: (y % 1 < 0.28) | (x % 1 < 0.28),
    "scaly": _scaly,
    "striped": lambda y, x, rng: (x % 1 < 0.42) & (y == y),
    "wavy": _wavy,
}
"""Texture name → field over (y, x) in periods."""
