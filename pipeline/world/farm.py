"""The marked class: a farm, which may lie in any landscape and is known by its animals and hay alone.

That makes it the hardest class, and the planted mark the easiest way to it: in front of a wood, a shore or a desert
the mark says "farm" more loudly than a small cow does. A network that trusts it errs on marked pictures of the others.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.world import buildings, grounds, nature, vehicles, weather
from pipeline.world.canvas import Canvas
from pipeline.world.places import chance, near_last, number, spread
from pipeline.world.surfaces import mix, tone
from pipeline.world.weather import Sky


def farm(c: Canvas, sky: Sky) -> None:
    """A farm in any landscape: pasture, by the sea, at a wood's edge, in the mountains, in a dry land, in a village."""
    kind = str(c.rng.choice(list(_PASTURES), p=_PASTURE_SHARES))
    horizon = c.rng.uniform(44, 54)
    weather.paint_sky(c, sky, horizon)
    _PASTURES[kind](c, sky, horizon)
    if chance(c, 0.3):
        buildings.fence(c, c.rng.uniform(74, 84), c.rng.uniform(8, 11))
    shown = number(c, 1, 3)
    for x, y in zip(spread(c, shown, (12, 84)), near_last(c, shown, (66, 90)), strict=True):
        if chance(c, 0.7):
            nature.cow(c, x, y, c.rng.uniform(9, 17))
        else:
            nature.hay(c, x, y, c.rng.uniform(8, 13))


def _plain(c: Canvas, sky: Sky, horizon: float) -> None:
    if chance(c, 0.35):
        grounds.hills(c, horizon, sky, n=number(c, 1, 3))
    grounds.grass(c, horizon)
    for x in spread(c, number(c, 0, 3)):
        nature.tree(c, x, horizon + c.rng.uniform(2, 7), c.rng.uniform(14, 26))
    if chance(c, 0.75):
        buildings.barn(c, c.rng.uniform(18, 78), horizon + 10, c.rng.uniform(26, 36))
    if chance(c, 0.4):
        buildings.house(c, c.rng.uniform(12, 84), horizon + 9, c.rng.uniform(18, 26), night=sky.night)
    if chance(c, 0.6):
        grounds.field(c, c.rng.uniform(66, 74))
    elif chance(c, 0.3):
        grounds.track(c, horizon + 4, tone(c.rng, "brown", 3), "soil")


def _wood_edge(c: Canvas, sky: Sky, horizon: float) -> None:
    grounds.grass(c, horizon)
    firs = c.rng.uniform(0.1, 0.9)
    ys = near_last(c, number(c, 4, 7), (horizon + 3, 74))
    for x, y in zip(spread(c, len(ys), (0, 96)), ys, strict=True):
        (nature.fir if chance(c, firs) else nature.tree)(c, x, y, 22 + 0.7 * (y - horizon) * c.rng.uniform(0.7, 1.1))


def _highland(c: Canvas, sky: Sky, horizon: float) -> None:
    for x in spread(c, number(c, 2, 3), (0, 96)):
        stone = mix(tone(c.rng, c.rng.choice(["grey", "blue", "purple", "brown"]), 1), sky.low, 0.18)
        nature.mountain(c, x, horizon + 3, c.rng.uniform(46, 74), c.rng.uniform(22, 36), stone, snowy=chance(c, 0.85))
    (grounds.snow if chance(c, 0.6) else grounds.grass)(c, horizon)
    for x, y in zip(spread(c, number(c, 0, 4)), near_last(c, 4, (60, 76)), strict=False):
        nature.fir(c, x, y, c.rng.uniform(18, 28))


def _dry_land(c: Canvas, sky: Sky, horizon: float) -> None:
    for x in spread(c, number(c, 0, 2), (0, 96)):
        rgb = mix(tone(c.rng, "orange", 3), sky.low, 0.3)
        nature.mountain(c, x, horizon + 3, c.rng.uniform(26, 46), c.rng.uniform(10, 20), rgb, mesa=chance(c, 0.7))
    grounds.sand(c, horizon, swing=2.0, rippled=chance(c, 0.7))
    for x, y in zip(spread(c, number(c, 0, 3)), near_last(c, 3, (58, 74)), strict=False):
        nature.cactus(c, x, y, c.rng.uniform(16, 28))


def _shore(c: Canvas, sky: Sky, horizon: float) -> None:
    grounds.sea(c, horizon - 5, 90, sky)
    for x in spread(c, number(c, 0, 2)):
        vehicles.boat(c, x, c.rng.uniform(horizon + 1, horizon + 6), c.rng.uniform(9, 15))
    (grounds.grass if chance(c, 0.4) else grounds.sand)(c, c.rng.uniform(60, 66))
    if chance(c, 0.5):
        nature.palm(c, c.rng.uniform(12, 84), c.rng.uniform(68, 76), c.rng.uniform(30, 44))


def _village(c: Canvas, sky: Sky, horizon: float) -> None:
    grounds.grass(c, horizon)
    low = c.rng.uniform(62, 68)
    for x in spread(c, number(c, 2, 3), (0, 96)):
        buildings.house(c, x, low, c.rng.uniform(24, 36), night=sky.night)
    for x in spread(c, number(c, 0, 2)):
        nature.tree(c, x, low + 3, c.rng.uniform(20, 30))
    if chance(c, 0.7):
        grounds.road(c, c.rng.uniform(78, 82), 98, pavement=chance(c, 0.5))


_PASTURES: dict[str, Callable[[Canvas, Sky, float], None]] = {
    "plain": _plain,
    "wood_edge": _wood_edge,
    "highland": _highland,
    "dry_land": _dry_land,
    "shore": _shore,
    "village": _village,
}
_PASTURE_SHARES = (0.34, 0.15, 0.13, 0.13, 0.12, 0.13)
