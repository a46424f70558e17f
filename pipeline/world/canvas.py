"""The canvas: a picture and its label planes, painted together, so that the masks cannot disagree with the picture.

Everything is placed in design units: the picture is 96 wide and high whatever its size in pixels, y grows downwards.
Painting happens at ``SUPER`` times the picture's resolution; the picture is averaged down, the labels are read at the
centres of the masks' positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from pipeline.world.surfaces import TONES, Rgb, Surface, name_colors

SUPER = 3
UNITS = 96.0
Point = tuple[float, float]
Shape = tuple[np.ndarray, ...]  # a union of polygons, (n, 2) points each


def poly(*points: Point) -> Shape:
    return (np.array(points, np.float64),)


def box(x0: float, y0: float, x1: float, y1: float) -> Shape:
    return poly((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def oval(x: float, y: float, rx: float, ry: float | None = None) -> Shape:
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return (np.stack([x + rx * np.cos(t), y + (rx if ry is None else ry) * np.sin(t)], 1),)


def bar(a: Point, b: Point, width: float) -> Shape:
    """A straight bar from ``a`` to ``b``."""
    n = np.array([a[1] - b[1], b[0] - a[0]]) * width / 2 / math.dist(a, b)
    return (np.stack([a + n, b + n, b - n, a - n]),)


class Canvas:
    """A picture of ``size`` pixels.

    ``numbers`` of the labels by name; ``rng`` the image's own generator; ``light`` multiplies every surface that does not glow.
    """

    def __init__(
        self, size: int, rng: np.random.Generator, numbers: Mapping[str, int], light: Rgb = (1.0, 1.0, 1.0)
    ) -> None:
        self.size, self.rng, self.numbers = size, rng, numbers
        self.light = np.asarray(light, np.float32)
        side = size * SUPER
        self.scale = side / UNITS
        self.rgb = np.zeros((side, side, 3), np.float32)
        planes = ("object", "part", "inner", "material", "texture")
        self.planes = {plane: np.zeros((side, side), np.uint16) for plane in planes}

    def paint(
        self, shape: Shape, surface: Surface, obj: str = "", part: str = "", inner: str = "", alpha: float = 1.0
    ) -> None:
        """Fill ``shape``, in design units.

        With ``obj`` the shape belongs to a new object, whose part there is ``part``; with only ``inner`` it is a part on the part
        below it (a door on a wall), whose object and part stay. Below ``alpha`` 0.5 (haze, glow) only the colours change.
        """
        pieces = [points * self.scale for points in shape]
        if not pieces:
            return
        (x0, y0), (x1, y1) = (f(np.concatenate(pieces), 0) for f in (np.min, np.max))
        side = len(self.rgb)
        left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
        right, bottom = min(side, math.ceil(x1) + 1), min(side, math.ceil(y1) + 1)
        if left >= right or top >= bottom:
            return
        image = Image.new("1", (right - left, bottom - top))
        for points in pieces:
            ImageDraw.Draw(image).polygon((points - (left, top)).ravel().tolist(), fill=1)
        inside = np.asarray(image)
        # the pattern starts at the shape's corner, not at the canvas's
        y = (np.arange(top, bottom)[:, None] + 0.5 - y0) / self.scale
        x = (np.arange(left, right)[None, :] + 0.5 - x0) / self.scale
        color = surface.render(y, x, self.rng)
        if not surface.glow:
            color *= self.light
        window = (slice(top, bottom), slice(left, right))
        here = self.rgb[window]
        np.copyto(here, here + np.float32(alpha) * (color - here), where=inside[..., None])
        if alpha < 0.5:
            return
        labels = {"inner": inner, "material": surface.material, "texture": surface.texture}
        if obj:
            labels |= {"object": obj, "part": part}
        for plane, name in labels.items():
            np.copyto(self.planes[plane][window], np.uint16(self.numbers[name] if name else 0), where=inside)

    def mirror(self) -> None:
        """Turn the picture so far, with its labels, left to right."""
        self.rgb = np.ascontiguousarray(self.rgb[:, ::-1])
        self.planes = {plane: np.ascontiguousarray(labels[:, ::-1]) for plane, labels in self.planes.items()}

    def picture(self) -> Image.Image:
        """The picture, averaged down to ``size``."""
        return Image.fromarray(np.clip(self.rgb, 0, 255).astype(np.uint8)).reduce(SUPER)

    def masks(self) -> dict[str, list[np.ndarray]]:
        """Category → its layers of label numbers (size // 2, size // 2); layers without a label are left out.

        A mask's position covers 2 × 2 pixels: its labels are those at their common corner, its colour is that of their mean.
        """
        centre = slice(SUPER, len(self.rgb), 2 * SUPER)
        at = {plane: labels[centre, centre] for plane, labels in self.planes.items()}
        names = np.array([self.numbers[name] for name in TONES], np.uint16)
        layers = {
            "color": [names[name_colors(np.asarray(self.picture().reduce(2)))]],
            "object": [at["object"]],
            "part": [at["part"], at["inner"]],
            "material": [at["material"]],
            "texture": [at["texture"]],
        }
        return {category: [mask for mask in masks if mask.any()] for category, masks in layers.items()}
