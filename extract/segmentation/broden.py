"""The Broden format (Bau et al. 2017): images with label maps in several categories, read as distributed.

``index.csv`` names for each image its split, sizes and one cell a category: ``;``-separated items, each an integer
(that label over the complete image) or a PNG below ``images/`` with ``label = R + 256·G`` and B = 0. Label 0 is unlabelled. Several
items in a cell are several layers: a position may carry several labels. An image with an empty cell is not annotated
in that category. The columns say which categories there are: Broden's own, "Broden Action"'s ``action``, any other.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from extract.file_list import at, check_listed, csv_rows, inside, integer
from extract.image_io import shown
from extract.image_source import PathSource, register
from extract.segmentation.base import RGB, opened_map, read_labels, rgb_labels
from extract.string_array import Names
from stores.errors import DatasetError, MissingPathError, NoImagesError

FIXED = ("image", "split", "ih", "iw", "sh", "sw")
LARGEST_NUMBER = 2**31 - 1  # of a label
LARGEST_SIDE = 2**16
LARGEST_MASK = 2**27  # points; larger ones Pillow would refuse as well


@register(
    "broden",
    lambda root: (root / "index.csv").exists() or (root / "label.csv").exists(),
    maps="index.csv (Broden)",
    needs=("index.csv", "images"),
)
class BrodenSource(PathSource):
    """A Broden folder. Raises MissingPathError or DatasetError, naming file and line, when its tables are unusable."""

    kind = "broden"

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        for name in ("index.csv", "label.csv"):
            if not (root / name).is_file():
                needed = "index.csv, label.csv and images/"
                raise MissingPathError(f"'{root}' is no Broden folder: {name} is missing. It must hold {needed}.")
        self._table = root / "index.csv"
        self.listing = f"'{shown(self._table)}'"
        rows = csv_rows(root / "label.csv", ("number", "name", "category"))
        self.labels = read_labels(root / "label.csv", rows, _main_category, most=LARGEST_NUMBER)
        self.by_number = {label.number: label for label in self.labels}
        self.categories: list[str] = []
        cells: dict[str, list[str]] = {}
        splits, sizes, lines = array("i"), array("i"), array("q")
        number: dict[str, int] = {}

        def names() -> Iterator[tuple[str, int]]:
            for line, row in csv_rows(self._table, FIXED):
                if not cells:
                    cells.update({name: [] for name in row if name and name not in FIXED})
                try:
                    sizes.extend(_sizes(row))
                except ValueError as error:
                    raise DatasetError(f"{at(self._table, line)}: {error}.") from error
                inside(row["image"], self._table, line)
                splits.append(number.setdefault(row["split"], len(number)))
                lines.append(line)
                for category, kept in cells.items():
                    kept.append(row.get(category, ""))
                yield row["image"], -1

        super().__init__(root, names(), folder="images")
        if not len(self):
            raise NoImagesError(f"'{self._table}' lists no image.")
        self.categories = list(cells)
        # flat arrays: a source is pickled to every decoding process
        self._cells = {category: Names(kept) for category, kept in cells.items()}
        self._split_names, self._splits, self._lines = list(number), np.array(splits, np.int32), lines
        self._sizes = np.array(sizes, np.int32).reshape(-1, 4)  # ih, iw, sh, sw
        check_listed(root / "images", self.names, lines, self._table)

    def split(self, i: int) -> str:
        """``train`` or ``val``."""
        return self._split_names[self._splits[i]]

    def image_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image, as index.csv says."""
        return int(self._sizes[i, 0]), int(self._sizes[i, 1])

    def mask_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image's label maps."""
        return int(self._sizes[i, 2]), int(self._sizes[i, 3])

    def masks(self, i: int) -> dict[str, np.ndarray]:
        """Category -> (layers, h, w) int32 label maps, only for the categories the image is annotated in.

        Raises DatasetError naming the file for a mask that is missing, unreadable, of another size, or holds a label
        that label.csv does not list.
        """
        found: dict[str, np.ndarray] = {}
        for category, cells in self._cells.items():
            layers = [self._layer(i, item.strip()) for item in cells[i].split(";") if item.strip()]
            if layers:
                found[category] = np.stack(layers)
        return found

    def _layer(self, i: int, item: str) -> np.ndarray:
        where, size = at(self._table, self._lines[i]), self.mask_size(i)
        if item.isdecimal():
            number = int(item) if len(item) < 12 else LARGEST_NUMBER + 1
            if number and number not in self.by_number:
                raise DatasetError(f"{where}: label {item[:40]} is not in label.csv. Add it there, or fix the cell.")
            return np.full(size, number, np.int32)
        file = self.root / "images" / inside(item, self._table, self._lines[i])
        what = f"The mask '{shown(file)}' ({where})"
        with opened_map(file, what) as image:
            shape = (image.height, image.width)
            if shape != size:  # before anything of it is decoded
                raise DatasetError(f"'{shown(file)}' is {shape}, but {where} says {size} (sh, sw). Fix one of them.")
            labels = rgb_labels(np.asarray(image.convert("RGB")), what)
        unknown = [int(n) for n in np.unique(labels) if n and int(n) not in self.by_number]
        if unknown:
            fault = f"holds label {unknown[0]}, which label.csv does not list ({RGB})"
            raise DatasetError(f"{what} {fault}. Add it there, or fix the mask.")
        return labels


def _sizes(row: dict[str, str]) -> list[int]:
    sizes = [integer(row, column, 1, LARGEST_SIDE) for column in ("ih", "iw", "sh", "sw")]
    if sizes[2] * sizes[3] > LARGEST_MASK:
        raise ValueError(f"masks of {sizes[2]} × {sizes[3]} points (sh, sw) are too large")
    if not row["image"]:
        raise ValueError("the image's name is missing")
    if not row["split"]:
        raise ValueError("the split is missing: it must be train or val")
    return sizes


def _main_category(row: dict[str, str]) -> str:
    """``object(120);part(3)`` -> ``object``: the category with the largest count."""
    best, most = "", -1
    for item in row["category"].split(";"):
        name, _, count = item.strip().rstrip(")").partition("(")
        if count and not count.isdecimal():
            raise ValueError(f"'category' must read name(count);..., got '{row['category']}'")
        size = int(count) if count else 0
        if name and size > most:
            best, most = name, size
    if not best:
        raise ValueError("the category is empty")
    return best
