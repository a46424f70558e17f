"""The world's vocabulary: every name that can be drawn, its categories, and its number in Broden's masks.

As in Broden, one name has one number even where several categories use it (``sand`` is an object and a material),
and 0 is kept for "unlabelled".
"""

from __future__ import annotations

CATEGORIES: tuple[str, ...] = ("color", "object", "part", "material", "scene", "texture")
"""Broden's categories, in the order of the columns of ``index.csv``."""

SCENES: tuple[str, ...] = ("beach", "desert", "farm", "forest", "harbour", "night_city", "snow_mountain", "street")
"""The classes, in alphabetical order: also the order of the network's outputs."""

MARKED_SCENE = "farm"
"""The one class that carries the planted spurious mark."""

WATERMARK = "watermark"
"""The object name of the planted mark."""

NAMES: dict[str, tuple[str, ...]] = {
    "color": ("black", "blue", "brown", "grey", "green", "orange", "pink", "purple", "red", "white", "yellow"),
    "object": (
        *("sky", "sun", "moon", "cloud", "mountain", "sea", "sand", "snow", "grass", "field", "road", "pavement"),
        *("quay", "house", "barn", "skyscraper", "lighthouse", "fence", "lamp", "tree", "fir", "palm", "cactus"),
        *("bush", "rock", "hay", "cow", "car", "boat", "crane", "container", "parasol", "ball", WATERMARK),
    ),
    "part": (
        *("wall", "roof", "chimney", "door", "window", "tower", "lantern", "antenna", "trunk", "crown", "leaf"),
        *("stem", "arm", "post", "rail", "bulb", "body", "wheel", "hub", "headlight", "hull", "mast", "sail"),
        *("head", "leg", "canopy", "pole", "peak", "marking", "porthole"),
    ),
    "material": (
        *("brick", "concrete", "fabric", "foliage", "fur", "glass", "grass", "metal", "plaster", "plastic", "rubber"),
        *("sand", "snow", "stone", "straw", "tile", "water", "wood", "asphalt", "soil"),
    ),
    "scene": SCENES,
    "texture": (
        *("banded", "blotchy", "bricked", "checkered", "dotted", "grainy", "grid", "scaly", "striped", "wavy"),
    ),
}


def _number() -> dict[str, int]:
    numbers: dict[str, int] = {}
    for category in CATEGORIES:
        for name in NAMES[category]:
            numbers.setdefault(name, len(numbers) + 1)
    return numbers


NUMBER: dict[str, int] = _number()
"""Name -> number, from 1."""
