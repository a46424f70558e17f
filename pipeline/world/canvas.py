"""The canvas: a picture and its label planes, painted together, so that the masks cannot disagree with the picture.

Everything is placed in design units: the picture is 96 wide and 96 high whatever its size in pixels, y grows
downwards. Painting happens at ``SUPER`` times the picture's resolution; the picture is averaged down, the labels are
read at the centres of the masks' positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from pipeline.world.scene_labels import NUMBER
from pipeline.world.surfaces import COLOR_NAMES, Rgb, Surface, name_colors

SUPER = 3
UNITS = 96.0
Point = tuple[float, float]


@dataclass
class Shape:
    """A union of polygons and ellipses, in design units."""

    polygons: list[list[Point]] = field(default_factory=list)
    ellipses: list[tuple[float, float, float, float]] = field(default_factory=list)

    def box(self) -> tuple[float, float, float, float]:
        """Bounding box x0, y0, x1, y1."""
        xs = [x for polygon in self.polygons for x, _ in polygon] + [e[k] for e in self.ellipses for k in (0, 2)]
        ys = [y for polygon in self.polygons for _, y in polygon] + [e[k] for e in self.ellipses for k in (1, 3)]
        return min(xs), min(ys), max(xs), max(ys)


def polygon(*points: Point) -> Shape:
    return Shape(polygons=[list(points)])


def rect(x0: float, y0: float, x1: float, y1: float) -> Shape:
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(x: float, y: float, rx: float, ry: float | None = None) -> Shape:
    ry = rx if ry is None else ry
    return Shape(ellipses=[(x - rx, y - ry, x + rx, y + ry)])


def line(a: Point, b: Point, width: float) -> Shape:
    """A straight bar from ``a`` to ``b``."""
    length = math.hypot(b[0] - a[0], b[1] - a[1]) or 1e-6
    nx, ny = -(b[1] - a[1]) / length * width / 2, (b[0] - a[0]) / length * width / 2
    return polygon((a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny))


def union(*shapes: Shape) -> Shape:
    return Shape([p for s in shapes for p in s.polygons], [e for s in shapes for e in s.ellipses])


class Canvas:
    """A picture of ``size`` pixels in the making.

    ``light`` multiplies every surface that does not glow: the time of day. ``rng`` is the image's own generator.
    """

    PLANES = ("object", "part", "inner", "material", "texture")

    def __init__(self, size: int, rng: np.random.Generator, light: Rgb = (1.0, 1.0, 1.0)) -> None:
        self.size, self.rng = size, rng
        self.light = np.asarray(light, np.float32)
        self.side = size * SUPER
        self.scale = self.side / UNITS
        self.rgb = np.zeros((self.side, self.side, 3), np.float32)
        self.planes = {plane: np.zeros((self.side, self.side), np.uint16) for plane in self.PLANES}

    def paint(
        self,
        shape: Shape,
        surface: Surface,
        obj: str | None = None,
        part: str | None = None,
        inner: str | None = None,
        alpha: float = 1.0,
    ) -> None:
        """Fill ``shape`` with ``surface``.

        With ``obj`` the shape belongs to a new object, whose part there is ``part``; with ``inner`` alone it is a
        part on the part that is there already (a door on a wall), whose object and part stay. Below ``alpha`` 0.5
        (haze, glow) only the colours change.
        """
        x0, y0, x1, y1 = (c * self.scale for c in shape.box())
        left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
        right, bottom = min(self.side, math.ceil(x1) + 1), min(self.side, math.ceil(y1) + 1)
        if left >= right or top >= bottom:
            return
        inside = self._raster(shape, left, top, right, bottom)
        if not inside.any():
            return
        # the pattern hangs on the shape, not on the canvas: it starts at the shape's own corner
        y = (np.arange(top, bottom)[:, None] + 0.5 - y0) / self.scale
        x = (np.arange(left, right)[None, :] + 0.5 - x0) / self.scale
        color = surface.render(y, x, self.rng)
        if not surface.glow:
            color *= self.light
        window = (slice(top, bottom), slice(left, right))
        here = self.rgb[window]
        if alpha < 1:
            color = here + np.float32(alpha) * (color - here)
        np.copyto(here, color, where=inside[..., None])
        if alpha < 0.5:
            return
        labels: dict[str, str | None] = {"inner": inner, "material": surface.material, "texture": surface.texture}
        if obj is not None:
            labels |= {"object": obj, "part": part}
        for plane, name in labels.items():
            np.copyto(self.planes[plane][window], np.uint16(NUMBER[name] if name else 0), where=inside)

    def _raster(self, shape: Shape, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        image = Image.new("L", (right - left, bottom - top), 0)
        draw = ImageDraw.Draw(image)
        for points in shape.polygons:
            draw.polygon([(x * self.scale - left, y * self.scale - top) for x, y in points], fill=1)
        for x0, y0, x1, y1 in shape.ellipses:
            draw.ellipse(
                (x0 * self.scale - left, y0 * self.scale - top, x1 * self.scale - left, y1 * self.scale - top), fill=1
            )
        return np.asarray(image) > 0

    def mirror(self) -> None:
        """Turn the picture so far, with its labels, left to right."""
        self.rgb = np.ascontiguousarray(self.rgb[:, ::-1])
        self.planes = {plane: np.ascontiguousarray(labels[:, ::-1]) for plane, labels in self.planes.items()}

    def picture(self) -> Image.Image:
        """The picture, averaged down to ``size``."""
        return Image.fromarray(np.clip(self.rgb, 0, 255).astype(np.uint8)).reduce(SUPER)

    def masks(self) -> dict[str, list[np.ndarray]]:
        """Category -> its layers of label numbers (size // 2, size // 2); layers without a label are left out.

        A mask's position covers 2 x 2 pixels; its labels are those at their common corner, its colour is named from
        their average.
        """
        half = self.size // 2
        centre = slice(SUPER, 2 * SUPER * half, 2 * SUPER)
        at = {plane: labels[centre, centre] for plane, labels in self.planes.items()}
        pixels = np.asarray(self.picture().crop((0, 0, 2 * half, 2 * half)).reduce(2))
        color = np.array([NUMBER[name] for name in COLOR_NAMES], np.uint16)[name_colors(pixels)]
        layers = {
            "color": [color],
            "object": [at["object"]],
            "part": [at["part"], at["inner"]],
            "material": [at["material"]],
            "texture": [at["texture"]],
        }
        return {category: [m for m in masks if m.any()] for category, masks in layers.items()}
