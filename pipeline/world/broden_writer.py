"""Broden's format on disk: one picture's files and row, and the tables that are computed from all rows.

``label = R + 256 * G`` in every mask; several masks of a category in one cell are separated by ``;``. Frequencies and
coverages are Broden's own: the number of images that carry a label, and the sum over images of the share of positions
that carry it (1 where a label is the whole image's), added up over the layers of a category and, in ``label.csv``,
over categories.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.world.scene_labels import CATEGORIES, NAMES, NUMBER

INDEX_COLUMNS = ("image", "split", "ih", "iw", "sh", "sw", *CATEGORIES)
LABEL_COLUMNS = ("number", "name", "category", "frequency", "coverage", "syns")
CATEGORY_COLUMNS = ("name", "first", "last", "count", "frequency")
CODE_COLUMNS = ("code", "number", "name", "frequency", "coverage", "syns")


@dataclass(frozen=True)
class Row:
    """A row of ``index.csv``, and the share of positions of every label: (category, number) -> share."""

    image: str
    split: str
    height: int
    width: int
    mask_height: int
    mask_width: int
    cells: dict[str, str]
    shares: dict[tuple[str, int], float]

    def values(self) -> list[object]:
        sizes = [self.height, self.width, self.mask_height, self.mask_width]
        return [self.image, self.split, *sizes, *(self.cells.get(category, "") for category in CATEGORIES)]


def save_jpeg(picture: Image.Image, path: Path) -> None:
    """Save without colour subsampling: at this size it would blur thin coloured things."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=93, subsampling=0)


def save_mask(labels_hw: np.ndarray, path: Path) -> None:
    """Save label numbers as a PNG with ``label = R + 256 * G``."""
    rgb = np.zeros((*labels_hw.shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = labels_hw % 256, labels_hw // 256
    Image.fromarray(rgb).save(path)


def write_picture(
    root: Path, stem: str, split: str, picture: Image.Image, masks: dict[str, list[np.ndarray]], scene: str
) -> Row:
    """Write ``images/<stem>.jpg`` and its masks ``images/<stem>_<category>[_<layer>].png`` below ``root``.

    Parameters: ``masks`` category -> layers of label numbers (h, w); a category without layers gets an empty cell.
    Returns the picture's row.
    """
    save_jpeg(picture, root / "images" / f"{stem}.jpg")
    cells = {"scene": str(NUMBER[scene])}
    shares: dict[tuple[str, int], float] = {("scene", NUMBER[scene]): 1.0}
    height, width = masks["color"][0].shape
    for category, layers in masks.items():
        names = []
        for k, labels_hw in enumerate(layers, 1):
            name = f"{stem}_{category}_{k}.png" if len(layers) > 1 else f"{stem}_{category}.png"
            save_mask(labels_hw, root / "images" / name)
            names.append(name)
            for number, count in enumerate(np.bincount(labels_hw.ravel())):
                if number and count:
                    key = (category, number)
                    shares[key] = shares.get(key, 0.0) + float(count) / labels_hw.size
        cells[category] = ";".join(names)
    return Row(f"{stem}.jpg", split, picture.height, picture.width, height, width, cells, shares)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_tables(root: Path, rows: Sequence[Row]) -> dict[str, int]:
    """Write ``index.csv``, ``label.csv``, ``category.csv`` and ``c_<category>.csv``; returns name -> frequency."""
    frequency: dict[tuple[str, int], int] = {(c, NUMBER[n]): 0 for c in CATEGORIES for n in NAMES[c]}
    coverage = dict.fromkeys(frequency, 0.0)
    for row in rows:
        for key, share in row.shares.items():
            frequency[key] += 1
            coverage[key] += share
    _write(root / "index.csv", INDEX_COLUMNS, (row.values() for row in rows))
    labels, totals = [], {}
    for name, number in NUMBER.items():
        keys = sorted((k for k in frequency if k[1] == number), key=lambda k: -frequency[k])
        totals[name] = sum(frequency[k] for k in keys)
        categories = ";".join(f"{category}({frequency[category, number]})" for category, _ in keys)
        covered = f"{sum(coverage[k] for k in keys):.6f}"
        labels.append((number, name, categories, totals[name], covered, ""))
    _write(root / "label.csv", LABEL_COLUMNS, labels)
    ranges: list[tuple[str, int, int, int, int]] = []
    for category in CATEGORIES:
        numbers = [NUMBER[name] for name in NAMES[category]]
        total = sum(frequency[category, number] for number in numbers)
        ranges.append((category, min(numbers), max(numbers), len(numbers), total))
        by_frequency = sorted(
            NAMES[category], key=lambda n: (-frequency[category, NUMBER[n]], -coverage[category, NUMBER[n]], NUMBER[n])
        )
        keyed = [(name, (category, NUMBER[name])) for name in by_frequency]
        codes = [
            (k, key[1], name, frequency[key], f"{coverage[key]:.6f}", "") for k, (name, key) in enumerate(keyed, 1)
        ]
        _write(root / f"c_{category}.csv", CODE_COLUMNS, codes)
    _write(root / "category.csv", CATEGORY_COLUMNS, sorted(ranges, key=itemgetter(1)))
    return totals
