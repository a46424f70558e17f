"""What things are made of: colours, materials, and the patterns that make a texture visible at a few pixels.

A pattern is a field in [0, 1] over positions, measured in design units (the picture is 96 units wide whatever its
size): 0 shows the surface's colour, 1 its ink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

Rgb = tuple[float, float, float]

_TONES: dict[str, tuple[Rgb, ...]] = {
    "black": ((14, 14, 18), (34, 34, 40), (10, 12, 30)),
    "blue": ((40, 80, 190), (105, 165, 230), (165, 208, 242), (24, 40, 100), (60, 125, 175), (45, 60, 120)),
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
COLOR_NAMES: tuple[str, ...] = tuple(_TONES)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in 0..255 to CIE L*a*b* under D65."""
    c = np.asarray(rgb, np.float64) / 255
    c = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = c @ np.array([[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8730]])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_TONE_LAB = np.concatenate([_lab(np.array(tones)) for tones in _TONES.values()])
_TONE_NAME = np.repeat(np.arange(len(_TONES)), [len(tones) for tones in _TONES.values()])


def name_colors(rgb: np.ndarray) -> np.ndarray:
    """The colour name of every position, as an index into ``COLOR_NAMES``: the nearest tone in L*a*b*.

    Parameters: ``rgb`` (..., 3) in 0..255. Returns integers (...).
    """
    lab = _lab(rgb)
    distance = (lab**2).sum(-1)[..., None] - 2 * lab @ _TONE_LAB.T + (_TONE_LAB**2).sum(-1)
    return _TONE_NAME[distance.argmin(-1)]


def tone(rng: np.random.Generator, name: str, index: int | None = None) -> Rgb:
    """One of the tones that bear this colour name, a little varied; ``index`` fixes which."""
    tones = _TONES[name]
    base = np.array(tones[int(rng.integers(min(3, len(tones)))) if index is None else index])
    r, g, b = np.clip(base * rng.uniform(0.94, 1.05) + rng.normal(0, 3, 3), 0, 255)
    return float(r), float(g), float(b)


def mix(a: Rgb, b: Rgb, t: float) -> Rgb:
    """The colour at ``t`` between ``a`` (0) and ``b`` (1)."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@dataclass(frozen=True)
class Surface:
    """How a shape is filled, and what the masks say of it.

    ``rgb`` the colour, ``to`` its colour at the lower edge (a gradient), ``ink`` the pattern's colour (by default a
    darker one), ``period`` the pattern's in design units, ``shade`` the strength of the light from the upper left,
    ``grain`` the noise's amplitude, ``glow``: shines by itself and is not darkened at night.
    """

    rgb: Rgb
    material: str | None = None
    texture: str | None = None
    ink: Rgb | None = None
    to: Rgb | None = None
    period: float = 5.0
    shade: float = 0.12
    grain: float = 0.012
    glow: bool = False

    def render(self, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Colours (h, w, 3) of a shape's bounding box; ``y`` (h, 1) and ``x`` (1, w) are design units from its corner."""
        h, w = y.size, x.size
        v, u = (y - y[0]) / max(float(y[-1, 0] - y[0, 0]), 1e-6), (x - x[:, :1]) / max(float(x[0, -1] - x[0, 0]), 1e-6)
        color = np.empty((h, w, 3), np.float32)
        color[:] = np.asarray(self.rgb, np.float32)
        if self.to is not None:
            color += v[..., None].astype(np.float32) * (np.subtract(self.to, self.rgb).astype(np.float32))
        if self.texture is not None:
            field = PATTERNS[self.texture](y / self.period, x / self.period, rng).astype(np.float32)[..., None]
            if self.ink is None:
                color *= 1 - 0.3 * field
            else:
                color += field * (np.asarray(self.ink, np.float32) - color)
        light = 1 + self.shade * (1 - u - v)
        if self.grain:
            light = light + self.grain * rng.standard_normal((h, w), np.float32)
        return color * light.astype(np.float32)[..., None]


def _noise(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, resample: Image.Resampling) -> np.ndarray:
    """Random values in [0, 1], one a unit cell, drawn out to the grid of ``y`` and ``x``."""
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


def _blotchy(y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(2.6 * (_noise(y, x, rng, Image.Resampling.BICUBIC) - 0.5) + 0.5, 0, 1)


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "banded": lambda y, x, rng: (y % 1 < 0.5) & (x == x),
    "blotchy": _blotchy,
    "bricked": _bricked,
    "checkered": lambda y, x, rng: (np.floor(y) + np.floor(x)) % 2,
    "dotted": _dotted,
    "grainy": lambda y, x, rng: _noise(y, x, rng, Image.Resampling.NEAREST),
    "grid": lambda y, x, rng: (y % 1 < 0.28) | (x % 1 < 0.28),
    "scaly": _scaly,
    "striped": lambda y, x, rng: (x % 1 < 0.42) & (y == y),
    "wavy": _wavy,
}
"""Texture name -> field over (y, x) in periods."""
