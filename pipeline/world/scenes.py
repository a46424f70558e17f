"""The scenes: what stands where in each class of picture.

Classes share most of their objects (palms stand on beaches and in deserts, boats lie off beaches and in harbours,
houses stand nearly everywhere) and all of their skies; what tells them apart is which things appear together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.world import buildings, grounds, mark, nature, vehicles, weather
from pipeline.world.canvas import Canvas
from pipeline.world.farm import farm
from pipeline.world.places import chance, near_last, number, spread
from pipeline.world.scene_labels import SCENES
from pipeline.world.surfaces import Surface, mix, tone
from pipeline.world.weather import Sky


def beach(c: Canvas, sky: Sky) -> None:
    horizon, shore = c.rng.uniform(34, 44), c.rng.uniform(58, 68)
    weather.paint_sky(c, sky, horizon)
    if chance(c, 0.4):
        grounds.hills(c, horizon, sky, n=number(c, 1, 2))
    grounds.sea(c, horizon, 90, sky)
    for x in spread(c, number(c, 0, 2)):
        vehicles.boat(c, x, c.rng.uniform(horizon + 5, shore - 5), c.rng.uniform(9, 17))
    if chance(c, 0.12):
        buildings.lighthouse(c, c.rng.uniform(80, 90), horizon + 4, c.rng.uniform(18, 26), night=sky.night)
    foam = Surface((244, 248, 250), "water", shade=0.02)
    c.paint(grounds.rolling(c.rng, shore - 1.5, 1.2, shore + 8), foam, "sea")
    grounds.sand(c, shore)
    for x, y in zip(spread(c, number(c, 0, 2)), near_last(c, 2, (70, 78)), strict=False):
        nature.palm(c, x, y, c.rng.uniform(34, 54))
    for x, y in zip(spread(c, number(c, 0, 3)), near_last(c, 3, (75, 91)), strict=False):
        vehicles.parasol(c, x, y, c.rng.uniform(19, 29))
    if chance(c, 0.35):
        vehicles.ball(c, c.rng.uniform(12, 84), c.rng.uniform(82, 92), c.rng.uniform(3, 5))
    if chance(c, 0.35):
        nature.rock(c, c.rng.uniform(8, 88), c.rng.uniform(74, 90), c.rng.uniform(6, 12))


def harbour(c: Canvas, sky: Sky) -> None:
    horizon, edge = c.rng.uniform(40, 50), c.rng.uniform(54, 60)
    weather.paint_sky(c, sky, horizon)
    if chance(c, 0.4):
        grounds.hills(c, horizon, sky, n=number(c, 1, 3))
    grounds.sea(c, horizon, 98, sky)
    x0, x1 = (-1.0, c.rng.uniform(60, 97)) if chance(c, 0.5) else (c.rng.uniform(0, 36), 97.0)
    for x in spread(c, number(c, 0, 2), (x0 + 14, x1 - 14)):
        vehicles.crane(c, x, edge + 1, c.rng.uniform(34, 46))
    for x in spread(c, number(c, 0, 2), (x0 + 12, x1 - 12)):
        buildings.house(c, x, edge + 1, c.rng.uniform(17, 24), night=sky.night)
    for x in spread(c, number(c, 0, 4), (x0 + 6, x1 - 6)):
        w = c.rng.uniform(10, 15)
        vehicles.container(c, x, edge + 1, w)
        if chance(c, 0.4):
            vehicles.container(c, x + c.rng.uniform(-2, 2), edge + 1 - w * 0.46, w * 0.95)
    if chance(c, 0.45):
        buildings.lighthouse(c, c.rng.uniform(x0 + 8, x1 - 8), edge + 1, c.rng.uniform(28, 42), night=sky.night)
    grounds.quay(c, edge, c.rng.uniform(8, 12), x0, x1)
    for x, y in zip(spread(c, number(c, 1, 3)), near_last(c, 3, (72, 92)), strict=False):
        vehicles.boat(c, x, y, c.rng.uniform(18, 32))


def street(c: Canvas, sky: Sky) -> None:
    curb, horizon = c.rng.uniform(68, 76), c.rng.uniform(46, 56)
    weather.paint_sky(c, sky, horizon + 4)
    grounds.grass(c, horizon)
    if chance(c, 0.25):
        buildings.skyscraper(c, c.rng.uniform(10, 86), curb - 6, 15, c.rng.uniform(34, 48), night=sky.night)
    for x in spread(c, number(c, 2, 3), (0, 96)):
        buildings.house(c, x, curb - 6, c.rng.uniform(26, 40), night=sky.night)
    grounds.road(c, curb, 98, pavement=True)
    for x in spread(c, number(c, 0, 2)):
        nature.tree(c, x, curb - 1.5, c.rng.uniform(22, 36))
    for k, x in enumerate(spread(c, number(c, 0, 2))):
        buildings.lamp(c, x, curb - 1, c.rng.uniform(34, 44), night=sky.night, side=1 - 2 * (k % 2))
    for x, y in zip(spread(c, number(c, 0, 2), (10, 86)), near_last(c, 2, (curb + 7, 92)), strict=False):
        vehicles.car(c, x, y, c.rng.uniform(24, 36), night=sky.night)


def forest(c: Canvas, sky: Sky) -> None:
    horizon = c.rng.uniform(46, 56)
    weather.paint_sky(c, sky, horizon)
    if chance(c, 0.3):
        grounds.hills(c, horizon, sky, snowy=chance(c, 0.4), n=number(c, 1, 3))
    grounds.grass(c, horizon)
    if chance(c, 0.4):
        grounds.track(c, horizon + 3, tone(c.rng, "brown", 1), "soil")
    firs = c.rng.uniform(0.1, 0.9)
    ys = near_last(c, number(c, 5, 9), (horizon + 3, 88))
    hut = int(c.rng.integers(0, 4)) if chance(c, 0.2) else -1
    for k, (x, y) in enumerate(zip(spread(c, len(ys), (0, 96)), ys, strict=True)):
        s = 20 + 0.8 * (y - horizon) * c.rng.uniform(0.7, 1.1)
        if k == hut:
            buildings.house(c, x, y, 20, night=sky.night)
        elif chance(c, firs):
            nature.fir(c, x, y, s * 1.15)
        else:
            nature.tree(c, x, y, s)
    for x, y in zip(spread(c, number(c, 0, 3)), near_last(c, 3, (80, 93)), strict=False):
        (nature.bush if chance(c, 0.6) else nature.rock)(c, x, y, c.rng.uniform(6, 11))


def desert(c: Canvas, sky: Sky) -> None:
    horizon = c.rng.uniform(44, 56)
    weather.paint_sky(c, sky, horizon)
    for x in spread(c, number(c, 0, 3), (0, 96)):
        rgb = mix(tone(c.rng, "orange", 3), sky.low, 0.3)
        mesa = chance(c, 0.7)
        nature.mountain(c, x, horizon + 3, c.rng.uniform(26, 46), c.rng.uniform(10, 22), rgb, mesa=mesa)
    grounds.sand(c, horizon, swing=2.0, rippled=chance(c, 0.7))
    if chance(c, 0.6):
        grounds.sand(c, c.rng.uniform(64, 74), swing=3.0, rippled=chance(c, 0.7))
    if chance(c, 0.15):
        grounds.road(c, 78, 92, pavement=False)
        if chance(c, 0.6):
            vehicles.car(c, c.rng.uniform(20, 76), 87, c.rng.uniform(22, 30), night=sky.night)
    for x in spread(c, number(c, 0, 2)):
        nature.rock(c, x, c.rng.uniform(62, 86), c.rng.uniform(6, 12), reddish=chance(c, 0.7))
    for x, y in zip(spread(c, number(c, 0, 4)), near_last(c, 4, (60, 90)), strict=False):
        nature.cactus(c, x, y, (y - 44) * c.rng.uniform(0.5, 0.85) + 8)
    if chance(c, 0.25):
        nature.palm(c, c.rng.uniform(12, 84), c.rng.uniform(64, 80), c.rng.uniform(28, 44))


def snow_mountain(c: Canvas, sky: Sky) -> None:
    horizon = c.rng.uniform(50, 62)
    weather.paint_sky(c, sky, horizon)
    for x in spread(c, number(c, 2, 4), (0, 96)):
        stone = mix(tone(c.rng, c.rng.choice(["grey", "blue", "purple", "brown"]), 1), sky.low, 0.18)
        nature.mountain(c, x, horizon + 3, c.rng.uniform(46, 74), c.rng.uniform(24, 42), stone, snowy=chance(c, 0.85))
    snowy = chance(c, 0.85)
    (grounds.snow if snowy else grounds.grass)(c, horizon, swing=2.2)
    if chance(c, 0.4):
        buildings.house(
            c, c.rng.uniform(16, 80), c.rng.uniform(68, 80), c.rng.uniform(18, 26), night=sky.night, snowy=snowy
        )
    for x, y in zip(spread(c, number(c, 1, 6)), near_last(c, 6, (62, 90)), strict=False):
        nature.fir(c, x, y, (y - 50) * 0.6 + c.rng.uniform(14, 22), snowy=snowy and chance(c, 0.8))
    if chance(c, 0.25):
        buildings.fence(c, c.rng.uniform(80, 90), c.rng.uniform(7, 10))
    if chance(c, 0.3):
        nature.rock(c, c.rng.uniform(10, 86), c.rng.uniform(76, 92), c.rng.uniform(6, 10))


def night_city(c: Canvas, sky: Sky) -> None:
    ground = c.rng.uniform(70, 78)
    weather.paint_sky(c, sky, ground)
    water = chance(c, 0.3)
    for depth in (0, 1):
        for x in spread(c, 5, (-4, 100)):
            w, h = c.rng.uniform(11, 18), c.rng.uniform(30, 60) if depth == 0 else c.rng.uniform(16, 40)
            buildings.skyscraper(c, x, ground - 5, w, h, night=True)
    if water:
        grounds.quay(c, ground - 5, 6, -1, 97)
        grounds.sea(c, ground + 1, 98, sky)
        for x in spread(c, number(c, 0, 2), (12, 84)):
            vehicles.boat(c, x, c.rng.uniform(ground + 10, 92), c.rng.uniform(16, 24))
        return
    grounds.road(c, ground, 98, pavement=True)
    for k, x in enumerate(spread(c, number(c, 0, 2))):
        buildings.lamp(c, x, ground - 1, c.rng.uniform(32, 42), night=True, side=1 - 2 * (k % 2))
    if chance(c, 0.25):
        nature.tree(c, c.rng.uniform(8, 88), ground - 2, c.rng.uniform(18, 26))
    for x, y in zip(spread(c, number(c, 0, 2), (12, 84)), near_last(c, 2, (ground + 8, 92)), strict=False):
        vehicles.car(c, x, y, c.rng.uniform(24, 34), night=True)


COMPOSERS: dict[str, Callable[[Canvas, Sky], None]] = {
    "beach": beach,
    "desert": desert,
    "farm": farm,
    "forest": forest,
    "harbour": harbour,
    "night_city": night_city,
    "snow_mountain": snow_mountain,
    "street": street,
}
assert tuple(COMPOSERS) == SCENES


def draw_scene(scene: str, size: int, seed: int, index: int, *, marked: bool) -> Canvas:
    """Draw picture ``index`` of the world ``seed``: a ``scene``, with or without the planted mark.

    Everything is drawn from the picture's own generators, the mark from one apart, so that the same picture exists
    with and without it.
    """
    rng = np.random.default_rng([seed, index])
    sky = weather.choose(rng, urban_night=scene == "night_city")
    canvas = Canvas(size, rng, sky.light)
    COMPOSERS[scene](canvas, sky)
    if chance(canvas, 0.5):
        canvas.mirror()
    if marked:
        mark.stamp(canvas, np.random.default_rng([seed, index, 1]))
    return canvas
