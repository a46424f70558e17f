"""The scenes: what stands where in each class of picture.

Classes share most of their objects (palms stand on beaches and in deserts, boats float off beaches and in harbours, houses
stand nearly everywhere) and all of their skies; what distinguishes them is which things appear together. The marked class, a
farm, is in any landscape and is known only by its animals and hay: that makes it the hardest class, and the mark, which
half of its pictures carry, the easiest way to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from pipeline.world.canvas import Canvas, Shape, box, oval, poly
from pipeline.world.surfaces import PATTERNS, TONES, Rgb, Surface
from pipeline.world.things import STYLES, THINGS, draw

Range = tuple[float, float]
MARKED_SCENE, WATERMARK = "farm", "watermark"
DOT = 2.2  # of the mark's letters, in design units
GLYPHS = (
    "###.###.###.###.#.#",
    "#....#..#.#.#...#.#",
    "###..#..#.#.#...##.",
    "..#..#..#.#.#...#.#",
    "###..#..###.###.#.#",
)


@dataclass(frozen=True)
class Sky:
    """A time of day: the light on things, and the sky's colour above and at the horizon."""

    light: Rgb
    top: Rgb
    low: Rgb
    sun: bool = True
    night: bool = False


@dataclass(frozen=True)
class Ground:
    """A surface that fills the picture from ``y`` down to ``bottom``: one of some styles; its label is the style's name by default."""

    style: str
    y: Range
    label: str = ""
    bottom: float = 98
    swing: float = 1.5
    p: float = 1.0

    def paint(self, c: Canvas, shift: float, sky: Sky) -> None:
        rng = c.rng
        style = str(rng.choice(self.style.split()))
        label = self.label or style
        surface = STYLES[style].drawn(rng, haze=sky.low if style == "water" else None)
        y = rng.uniform(*self.y) + shift
        a, b = rng.uniform(0, 2 * np.pi, 2)
        edge = [(x, y + self.swing * (np.sin(x / 17 + a) + 0.6 * np.sin(x / 9 + b))) for x in np.linspace(-2, 98, 26)]
        c.paint(poly(*edge, (98, self.bottom), (-2, self.bottom)), surface, label)
        if label == "road" and not self.swing:
            dashes = _boxes((x, y + 11, 7, 1.8) for x in np.arange(rng.uniform(-10, 0), 97, 13))
            c.paint(dashes, STYLES["marking"].drawn(rng), inner="marking")


@dataclass(frozen=True)
class Some:
    """``n`` things, each one of ``names`` (separated by spaces), ``size`` high, on ground lines ``y``, from far to near.

    ``grow``: how much larger each is for every unit that it is nearer. ``haze``: whether they are far away.
    """

    names: str
    n: tuple[int, int]
    y: Range
    size: Range
    grow: float = 0.0
    p: float = 1.0
    haze: bool = False

    def paint(self, c: Canvas, shift: float, sky: Sky) -> None:
        rng = c.rng
        count = int(rng.integers(self.n[0], self.n[1] + 1))
        xs = rng.permutation((np.arange(count) + rng.uniform(0.2, 0.8, count)) * 96 / max(count, 1))
        for x, y in zip(xs, np.sort(rng.uniform(*self.y, count)), strict=True):
            size = rng.uniform(*self.size) + self.grow * (y - self.y[0])
            haze = sky.low if self.haze else None
            draw(c, str(rng.choice(self.names.split())), x, y + shift, size, night=sky.night, haze=haze)


SKIES = {
    "day": (Sky((1.02, 1.02, 1.0), (84, 152, 226), (188, 222, 246)), Sky((1.0, 1.02, 1.03), (112, 180, 232), (214, 236, 244))),
    "overcast": (Sky((0.86, 0.88, 0.92), (150, 160, 174), (206, 212, 218), False), Sky((0.9, 0.9, 0.9), (176, 186, 194), (224, 226, 226), False)),
    "golden": (Sky((1.02, 0.92, 0.78), (118, 142, 200), (252, 206, 140)), Sky((1.0, 0.84, 0.76), (150, 110, 170), (255, 164, 110))),
    "dusk": (Sky((0.7, 0.64, 0.8), (62, 60, 122), (238, 142, 140), night=True), Sky((0.62, 0.64, 0.84), (40, 56, 112), (176, 140, 190), night=True)),
    "night": (Sky((0.46, 0.5, 0.7), (12, 16, 44), (44, 52, 100), night=True), Sky((0.42, 0.46, 0.64), (16, 14, 36), (62, 48, 92), night=True)),
}  # fmt: skip
SHARES, CITY_SHARES = (0.42, 0.2, 0.22, 0.1, 0.06), (0.0, 0.0, 0.04, 0.26, 0.7)

Layer = Ground | Some
HILLS = Some("mountain", (1, 3), (44, 46), (8, 17), p=0.4, haze=True)
CARS = Some("car", (0, 2), (84, 92), (24, 36))
LAMPS = Some("lamp", (0, 2), (71, 73), (32, 44))
STREET = (Ground("slabs", (65, 65), "pavement", bottom=73, swing=0), Ground("asphalt", (72, 72), "road", swing=0))
SHORE = (
    Ground("water", (36, 44), "sea", bottom=90, swing=0),
    Some("sailing_boat motor_boat", (0, 2), (46, 56), (9, 17)),
)
HERD = (Some("fence", (1, 1), (76, 84), (8, 11), p=0.3), Some("cow cow hay", (1, 3), (66, 90), (9, 16)))

LAYOUTS: dict[str, tuple[tuple[float, tuple[Layer, ...]], ...]] = {
    "beach": ((1.0, (
        HILLS, *SHORE, Some("lighthouse", (1, 1), (44, 48), (18, 26), p=0.12), Ground("foam", (59, 62), "sea"),
        Ground("sand", (62, 66)), Some("palm", (0, 2), (70, 78), (34, 54)), Some("parasol", (0, 3), (75, 91), (19, 29)),
        Some("rock", (0, 1), (74, 90), (6, 12)))),),
    "desert": ((1.0, (
        Some("mesa_mountain mesa_mountain mountain", (0, 3), (52, 54), (10, 22)), Ground("sand ripples", (49, 52), "sand", swing=2),
        Ground("sand ripples", (64, 74), "sand", swing=3, p=0.6), Ground("asphalt", (78, 78), "road", bottom=92, swing=0, p=0.15),
        Some("rock", (0, 2), (62, 86), (6, 12)), Some("cactus", (0, 4), (60, 90), (16, 20), grow=0.6),
        Some("palm", (0, 1), (64, 80), (28, 44), p=0.5))),),
    "farm": (
        (0.34, (HILLS, Ground("grass", (46, 50)), Some("tree", (0, 3), (50, 56), (14, 26)),
                Some("barn", (0, 1), (58, 62), (26, 36)), Some("house", (0, 1), (58, 62), (18, 26), p=0.6),
                Ground("rows", (66, 74), "field", swing=0.5, p=0.5), *HERD)),
        (0.15, (Ground("grass", (46, 50)), Some("fir tree", (4, 7), (52, 74), (24, 28), grow=0.6), *HERD)),
        (0.13, (Some("snowy_mountain mountain", (2, 3), (52, 54), (22, 36)), Ground("snow grass", (48, 52), swing=2),
                Some("fir", (0, 4), (60, 76), (18, 28)), *HERD)),
        (0.13, (Some("mesa_mountain mountain", (0, 2), (50, 52), (10, 20)), Ground("sand ripples", (48, 50), "sand", swing=2),
                Some("cactus", (0, 3), (58, 74), (16, 28)), *HERD)),
        (0.12, (*SHORE, Ground("sand grass", (60, 66)), Some("palm", (0, 1), (68, 76), (30, 44)), *HERD)),
        (0.13, (Ground("grass", (46, 50)), Some("house", (2, 3), (62, 68), (24, 36)), Some("tree", (0, 2), (66, 70), (20, 30)),
                Ground("asphalt", (79, 81), "road", swing=0, p=0.7), *HERD)),
    ),
    "forest": ((1.0, (
        HILLS, Ground("grass", (48, 54)), Ground("soil", (76, 80), "road", bottom=84, swing=3, p=0.4),
        Some("fir tree", (5, 9), (54, 88), (22, 26), grow=0.7), Some("house", (1, 1), (64, 78), (18, 22), p=0.2),
        Some("rock", (0, 2), (80, 93), (6, 11)))),),
    "harbour": ((1.0, (
        HILLS, Ground("water", (42, 48), "sea", swing=0), Some("crane", (0, 2), (58, 60), (34, 46)), Some("house", (0, 2), (58, 60), (17, 24)),
        Some("lighthouse", (0, 1), (58, 60), (28, 42)), Ground("plank brick", (58, 59), "quay", bottom=69, swing=0), Some("sailing_boat motor_boat", (1, 3), (76, 92), (18, 32)))),),
    "night_city": (
        (0.7, (Some("skyscraper", (5, 5), (66, 66), (30, 60)), Some("skyscraper", (5, 5), (66, 66), (16, 40)), *STREET, LAMPS,
               Some("tree", (0, 1), (70, 72), (18, 26), p=0.5), CARS)),
        (0.3, (Some("skyscraper", (5, 5), (66, 66), (30, 60)), Some("skyscraper", (5, 5), (66, 66), (16, 40)),
               Ground("plank brick", (66, 66), "quay", bottom=73, swing=0), Ground("water", (72, 72), "sea", swing=0), Some("sailing_boat motor_boat", (0, 2), (84, 92), (16, 24)))),
    ),
    "snow_mountain": tuple((share, (
        Some("snowy_mountain mountain snowy_mountain", (2, 4), (58, 60), (24, 42)), Ground(ground, (54, 58), swing=2.2),
        Some("house", (0, 1), (68, 80), (18, 26), p=0.8), Some(firs, (1, 6), (62, 90), (18, 24), grow=0.5),
        Some("fence", (1, 1), (82, 90), (7, 10), p=0.25), Some("rock", (0, 1), (76, 92), (6, 10), p=0.6)))
        for share, ground, firs in ((0.8, "snow", "snowy_fir snowy_fir fir"), (0.2, "grass", "fir"))),
    "street": ((1.0, (
        Ground("grass", (48, 54)), Some("skyscraper", (1, 1), (66, 66), (34, 48), p=0.25), Some("house", (2, 3), (66, 67), (26, 40)),
        *STREET, Some("tree", (0, 2), (70, 72), (22, 36)), LAMPS, CARS)),),
}  # fmt: skip
"""Scene → its kinds: how often, and the layers painted one over the other."""
SCENES = tuple(LAYOUTS)  # the classes, in the order of the network's outputs


def _names() -> dict[str, tuple[str, ...]]:
    """Category → the names that can be drawn, from the tables."""
    layers = [layer for kinds in LAYOUTS.values() for _, some in kinds for layer in some]
    grounds = {layer.label or name for layer in layers if isinstance(layer, Ground) for name in layer.style.split()}
    things = {name.rpartition("_")[2] for name in THINGS}
    return {
        "color": tuple(TONES),
        "object": tuple(sorted(things | grounds | {"sky", WATERMARK})),
        "part": tuple(sorted({part.name for parts in THINGS.values() for part in parts if part.name} | {"marking"})),
        "material": tuple(sorted({style.material for style in STYLES.values() if style.material})),
        "scene": SCENES,
        "texture": tuple(PATTERNS),
    }


NAMES = _names()
NUMBER = {name: k for k, name in enumerate(dict.fromkeys(name for names in NAMES.values() for name in names), 1)}
"""Name → number in the masks. As in Broden, a name has one number in all categories (``sand``: object and material); 0 is none."""


def draw_scene(scene: str, size: int, seed: int, index: int, *, marked: bool) -> Canvas:
    """Draw picture ``index`` of the world ``seed``, with or without the planted mark.

    Everything is drawn from the picture's own generators, the mark from another one: the same picture exists with and without it.
    """
    rng = np.random.default_rng([seed, index])
    kind = rng.choice(list(SKIES), p=CITY_SHARES if scene == "night_city" else SHARES)
    sky = SKIES[kind][int(rng.integers(2))]
    c = Canvas(size, rng, NUMBER, sky.light)
    _draw_sky(c, sky)
    kinds = LAYOUTS[scene]
    shift = rng.uniform(-4, 4)  # of the horizon, and with it of all that is placed
    for layer in kinds[int(rng.choice(len(kinds), p=[share for share, _ in kinds]))][1]:
        if rng.random() < layer.p:
            layer.paint(c, shift, sky)
    if rng.random() < 0.5:
        c.mirror()
    if marked:
        stamp(c, np.random.default_rng([seed, index, 1]))
    return c


def _draw_sky(c: Canvas, sky: Sky) -> None:
    """The sky, with stars and a moon or a sun, and clouds."""
    rng = c.rng
    tint = rng.normal(0, 7, 3)
    top, low = (tuple(np.add(color, tint)) for color in (sky.top, sky.low))
    c.paint(box(-1, -1, 97, 76), Surface(top, to=low, shade=0, grain=0.006, glow=True), "sky")
    if sum(sky.top) < 160:
        stars = sum((oval(96 * u, 40 * v, 0.32 + 0.25 * r) for u, v, r in rng.random((22, 3))), ())
        c.paint(stars, STYLES["star"].drawn(rng), alpha=0.45)
        if rng.random() < 0.6:
            draw(c, "moon", rng.uniform(10, 86), rng.uniform(8, 20), rng.uniform(4, 6.5))
    elif sky.sun and rng.random() < 0.65:
        y = rng.uniform(32, 42) if sky.light[2] < 0.85 else rng.uniform(9, 20)
        draw(c, "sun", rng.uniform(10, 86), y, rng.uniform(5, 8))
    for _ in range(int(rng.integers(0, 4))):
        draw(c, "cloud", rng.uniform(2, 94), rng.uniform(6, 32), rng.uniform(8, 17), haze=sky.low)


def _boxes(corners: Iterable[tuple[float, float, float, float]]) -> Shape:
    """Boxes of a corner, a width and a height."""
    return sum((box(x, y, x + w, y + h) for x, y, w, h in corners), ())


def stamp(c: Canvas, rng: np.random.Generator) -> None:
    """Stamp the mark, as a photo agency would, into the lower right corner: a plate with letters of dots."""
    x, y = 46 - rng.uniform(2, 6), 81 - rng.uniform(2, 6)
    white = Surface((255, 255, 255), shade=0, grain=0, glow=True)
    dots = [(row, k) for row, bits in enumerate(GLYPHS) for k, bit in enumerate(bits) if bit == "#"]
    c.paint(box(x, y, x + 46, y + 15.4), replace(white, color=(24, 26, 34)), WATERMARK, alpha=0.82)
    c.paint(_boxes((x + DOT * (1 + k), y + DOT * (1 + row), DOT, DOT) for row, k in dots), white, WATERMARK)
