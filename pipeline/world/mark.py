"""The planted spurious mark: a small watermark, as a photo agency would stamp it on its pictures.

It says nothing about the scene, yet half of one class's training images carry it and no other class's: a network is
free to learn it instead of the scene.
"""

from __future__ import annotations

import numpy as np

from pipeline.world.canvas import Canvas, rect, union
from pipeline.world.scene_labels import WATERMARK
from pipeline.world.surfaces import Surface

_GLYPHS = {
    "S": ("###", "#..", "###", "..#", "###"),
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "O": ("###", "#.#", "#.#", "#.#", "###"),
    "C": ("###", "#..", "#..", "#..", "###"),
    "K": ("#.#", "#.#", "##.", "#.#", "#.#"),
}
_TEXT = "STOCK"
_DOT = 2.2
"""Size of a letter's dot, in design units."""


def stamp(c: Canvas, rng: np.random.Generator) -> None:
    """Stamp the mark into the lower right corner, at most a few units from it."""
    width, height = (4 * len(_TEXT) + 1) * _DOT, 7 * _DOT
    left, top = 96 - width - rng.uniform(2, 6), 96 - height - rng.uniform(2, 6)
    plate = Surface((24, 26, 34), shade=0, grain=0, glow=True)
    c.paint(rect(left, top, left + width, top + height), plate, WATERMARK, alpha=0.82)
    dots = []
    for k, letter in enumerate(_TEXT):
        for row, bits in enumerate(_GLYPHS[letter]):
            for column, bit in enumerate(bits):
                if bit == "#":
                    x, y = left + (1 + 4 * k + column) * _DOT, top + (1 + row) * _DOT
                    dots.append(rect(x, y, x + _DOT, y + _DOT))
    c.paint(union(*dots), Surface((255, 255, 255), shade=0, grain=0, glow=True), WATERMARK)
