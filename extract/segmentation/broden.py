"""The Broden format (Bau et al. 2017): images with label maps in several categories, read as it lies on disk.

``index.csv`` names for each image its split, sizes and one cell a category: ``;``-separated items, each an integer
(that label over the whole image) or a PNG below ``images/`` with ``label = R + 256·G`` and B = 0. Label 0 is unlabelled. Several
items in a cell are several layers: a position may carry several labels. An image with an empty cell is not annotated
in that category. Which categories there are is what the columns say: Broden's own, "Broden Action"'s ``action``, any other.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from extract.file_list import at, check_listed, csv_rows, whole
from extract.image_io import read_image, shown
from extract.image_source import digest_files, register
from extract.segmentation.base import RGB, ConceptLabel, opened_map, rgb_labels
from extract.string_array import Names
from stores.errors import DatasetError, MissingPathError, NoImagesError

__all__ = ["BrodenSource", "ConceptLabel"]

FIXED = ("image", "split", "ih", "iw", "sh", "sw")
LARGEST = 2**31 - 1  # of a label's number
LARGEST_SIDE = 2**16
LARGEST_MASK = 2**27  # points; larger ones Pillow would refuse as well


@register(
    "broden",
    lambda root: (root / "index.csv").exists() or (root / "label.csv").exists(),
    maps="index.csv (Broden)",
    needs=("index.csv", "images"),
)
class BrodenSource:
    """A Broden folder. Raises MissingPathError or DatasetError, naming file and line, when its tables are unusable.

    Names and cells are kept as flat arrays: a source is handed to every decoding process.
    """

    kind = "broden"
    class_names: list[str] | None = None

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.left_out: dict[str, int] = {}
        for name in ("index.csv", "label.csv"):
            if not (self.root / name).is_file():
                raise MissingPathError(
                    f"'{self.root}' is no Broden folder: {name} is missing. It must hold index.csv, label.csv and images/."
                )
        self._table = self.root / "index.csv"
        self.listing = f"'{shown(self._table)}'"
        self.labels = self._read_labels()
        self.by_number = {label.number: label for label in self.labels}
        self.categories: list[str] = []
        self._cells: dict[str, Names] = {}
        self._split_names: list[str] = []
        self._read_index()
        if not len(self):
            raise NoImagesError(f"'{self._table}' lists no image.")
        check_listed(self.root / "images", self._names, self._lines, self._table, "image")
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        return self._names[i]

    def path(self, i: int) -> Path:
        return self.root / "images" / self._names[i]

    def label(self, i: int) -> int:
        return -1

    def split(self, i: int) -> str:
        """``train`` or ``val``."""
        return self._split_names[self._splits[i]]

    def image(self, i: int) -> Image.Image:
        return read_image(self.path(i), self.name(i))

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = digest_files(self.root / "images", ((name, -1) for name in self._names))
        return self._digest

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
            number = int(item) if len(item) < 12 else LARGEST + 1
            if number and number not in self.by_number:
                raise DatasetError(
                    f"{where}: label {item[:40]} is not listed in label.csv. Add it there, or mend the cell."
                )
            return np.full(size, number, np.int32)
        file = self._inside(item, where)
        what = f"The mask '{shown(file)}' ({where})"
        with opened_map(file, what) as image:
            shape = (image.height, image.width)
            if shape != size:  # before anything of it is decoded
                raise DatasetError(
                    f"The mask '{shown(file)}' is {shape}, but {where} says {size} (sh, sw). Mend the one or the other."
                )
            labels = rgb_labels(np.asarray(image.convert("RGB")), what)
        unknown = [int(n) for n in np.unique(labels) if n and int(n) not in self.by_number]
        if unknown:
            raise DatasetError(
                f"{what} holds label {unknown[0]}, which label.csv does not list ({RGB}). Add it there, or fix the mask."
            )
        return labels

    def _inside(self, item: str, where: str) -> Path:
        """The file an item names, which must lie below images/: a table must not reach the rest of the disk."""
        if Path(item).is_absolute() or ".." in Path(item).parts:
            raise DatasetError(
                f"{where}: '{shown(item)}' points outside the folder images/. Name a file in it, without '..'."
            )
        return self.root / "images" / item

    def _read_labels(self) -> list[ConceptLabel]:
        path = self.root / "label.csv"
        labels = []
        lines: dict[int, int] = {}
        for line, row in csv_rows(path, ("number", "name", "category")):
            try:
                number = whole(row, "number", 0, LARGEST)
                labels.append(ConceptLabel(number, row["name"], _main_category(row["category"])))
            except ValueError as error:
                raise DatasetError(f"{at(path, line)}: {error}.") from error
            if number in lines:
                raise DatasetError(f"{at(path, line)}: number {number} is already taken by line {lines[number]}.")
            lines[number] = line
        if not labels:
            raise DatasetError(f"'{path}' lists no label.")
        return labels

    def _read_index(self) -> None:
        """Fill in names, cells, splits, sizes (ih, iw, sh, sw) and lines, image by image."""
        cells: dict[str, list[str]] = {}
        splits, sizes, self._lines = array("i"), array("i"), array("q")
        number: dict[str, int] = {}

        def names() -> Iterator[str]:
            for line, row in csv_rows(self._table, FIXED):
                if not self.categories:
                    self.categories = [name for name in row if name and name not in FIXED]
                    cells.update({category: [] for category in self.categories})
                try:
                    sizes.extend(_sizes(row))
                    if not row["image"]:
                        raise ValueError("the image's name is missing")
                    if not row["split"]:
                        raise ValueError("the split is missing: it must be train or val")
                except ValueError as error:
                    raise DatasetError(f"{at(self._table, line)}: {error}.") from error
                self._inside(row["image"], at(self._table, line))
                splits.append(number.setdefault(row["split"], len(number)))
                self._lines.append(line)
                for category, kept in cells.items():
                    kept.append(row.get(category, ""))
                yield row["image"]

        self._names = Names(names())
        self._cells = {category: Names(kept) for category, kept in cells.items()}
        self._split_names = list(number)
        self._splits = np.array(splits, np.int32)
        self._sizes = np.array(sizes, np.int32).reshape(-1, 4)


def _sizes(row: dict[str, str]) -> list[int]:
    sizes = [whole(row, column, 1, LARGEST_SIDE) for column in ("ih", "iw", "sh", "sw")]
    if sizes[2] * sizes[3] > LARGEST_MASK:
        raise ValueError(f"masks of {sizes[2]} × {sizes[3]} points (sh, sw) are too large")
    return sizes


def _main_category(text: str) -> str:
    """``object(120);part(3)`` -> ``object``: the category with the largest count."""
    best, most = "", -1
    for item in text.split(";"):
        name, _, count = item.strip().rstrip(")").partition("(")
        if count and not count.isdecimal():
            raise ValueError(f"'category' must read name(count);..., got '{text}'")
        size = int(count) if count else 0
        if name and size > most:
            best, most = name, size
    if not best:
        raise ValueError("the category is empty")
    return best
