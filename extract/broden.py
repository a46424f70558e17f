"""The Broden format (Bau et al. 2017): images with label maps in several categories, read as it lies on disk.

``index.csv`` names for each image its split, sizes and one cell a category: ``;``-separated items, each an integer
(that label over the whole image) or a PNG below ``images/`` with ``label = R + 256·G``. Label 0 is unlabelled. Several
items in a cell are several layers: a position may carry several labels. An image with an empty cell is not annotated
in that category.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from extract.images import digest_files, read_image
from stores.errors import DatasetError, MissingPathError, NoImagesError

FIXED = ("image", "split", "ih", "iw", "sh", "sw")


@dataclass(frozen=True)
class ConceptLabel:
    """One label: its number in the masks, its name and its (most frequent) category."""

    number: int
    name: str
    category: str


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    split: str
    size: tuple[int, int]
    mask_size: tuple[int, int]
    cells: dict[str, str]


class BrodenSource:
    """A Broden folder. Raises MissingPathError or DatasetError, naming file and line, when its tables are unusable."""

    kind = "broden"
    class_names: list[str] | None = None

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        for name in ("index.csv", "label.csv"):
            if not (self.root / name).is_file():
                raise MissingPathError(
                    f"'{self.root}' is no Broden folder: {name} is missing. It must hold index.csv, label.csv and images/."
                )
        self.labels = self._read_labels()
        self.categories, self.rows = self._read_index()
        if not self.rows:
            raise NoImagesError(f"'{self.root / 'index.csv'}' lists no image.")
        self.by_number = {label.number: label for label in self.labels}
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        return self.rows[i].image

    def path(self, i: int) -> Path:
        return self.root / "images" / self.rows[i].image

    def label(self, i: int) -> int:
        return -1

    def split(self, i: int) -> str:
        """``train`` or ``val``."""
        return self.rows[i].split

    def image(self, i: int) -> Image.Image:
        return read_image(self.path(i), self.name(i))

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = digest_files(self.root / "images", [(row.image, -1) for row in self.rows])
        return self._digest

    def image_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image, as index.csv says."""
        return self.rows[i].size

    def mask_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image's label maps."""
        return self.rows[i].mask_size

    def masks(self, i: int) -> dict[str, np.ndarray]:
        """Category -> (layers, h, w) int32 label maps, only for the categories the image is annotated in.

        Raises DatasetError naming the file for a mask that is missing, unreadable, of another size, or holds a label
        that label.csv does not list.
        """
        row = self.rows[i]
        found: dict[str, np.ndarray] = {}
        for category, cell in row.cells.items():
            layers = [self._layer(row, item.strip()) for item in cell.split(";") if item.strip()]
            if layers:
                found[category] = np.stack(layers)
        return found

    def _layer(self, row: _Row, item: str) -> np.ndarray:
        where = f"'{self.root / 'index.csv'}', line {row.line}"
        if item.isdecimal():
            if int(item) and int(item) not in self.by_number:
                raise DatasetError(f"{where}: label {item} is not listed in label.csv.")
            return np.full(row.mask_size, int(item), np.int32)
        file = self._inside(item, where)
        try:
            with Image.open(file) as image:
                rgb = np.asarray(image.convert("RGB"), np.int32)
        except Exception as error:  # decoders of damaged files raise whatever they like
            reason = str(getattr(error, "strerror", None) or error).rstrip(".")
            raise DatasetError(f"The mask '{file}' ({where}) cannot be read: {reason}.") from error
        labels = rgb[..., 0] + 256 * rgb[..., 1]
        if labels.shape != row.mask_size:
            raise DatasetError(f"The mask '{file}' is {labels.shape}, but {where} says {row.mask_size} (sh, sw).")
        unknown = [int(n) for n in np.unique(labels) if n and int(n) not in self.by_number]
        if unknown:
            raise DatasetError(f"The mask '{file}' ({where}) holds label {unknown[0]}, which label.csv does not list.")
        return labels

    def _inside(self, item: str, where: str) -> Path:
        """The file an item names, which must lie below images/: a table must not reach the rest of the disk."""
        if Path(item).is_absolute() or ".." in Path(item).parts:
            raise DatasetError(f"{where}: '{item}' points outside the folder images/.")
        return self.root / "images" / item

    def _read_labels(self) -> list[ConceptLabel]:
        path = self.root / "label.csv"
        labels = []
        lines: dict[int, int] = {}
        for line, row in _table(path, ("number", "name", "category")):
            try:
                number = _whole(row, "number")
                labels.append(ConceptLabel(number, row["name"], _main_category(row["category"])))
            except ValueError as error:
                raise DatasetError(f"'{path}', line {line}: {error}.") from error
            if number in lines:
                raise DatasetError(f"'{path}', line {line}: number {number} is already taken by line {lines[number]}.")
            lines[number] = line
        if not labels:
            raise DatasetError(f"'{path}' lists no label.")
        return labels

    def _read_index(self) -> tuple[list[str], list[_Row]]:
        path = self.root / "index.csv"
        table = _table(path, FIXED)
        rows: list[_Row] = []
        categories: list[str] = []
        for line, row in table:
            if not categories:
                categories = [name for name in row if name and name not in FIXED]
            try:
                size, mask = (_whole(row, "ih"), _whole(row, "iw")), (_whole(row, "sh"), _whole(row, "sw"))
                if min(*size, *mask) < 1:
                    raise ValueError("the sizes ih, iw, sh and sw must be at least 1")
                if not row["image"]:
                    raise ValueError("the image's name is missing")
            except ValueError as error:
                raise DatasetError(f"'{path}', line {line}: {error}.") from error
            self._inside(row["image"], f"'{path}', line {line}")
            cells = {c: row[c] for c in categories if row.get(c)}
            rows.append(_Row(line, row["image"], row["split"], size, mask, cells))
        return categories, rows


def _table(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with their line numbers. Raises DatasetError when columns are missing or it is no CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or [])]
            if missing:
                raise DatasetError(
                    f"'{path}' lacks the column {', '.join(missing)}; its first line must name the columns."
                )
            return [(reader.line_num, {k: (v or "") for k, v in row.items() if isinstance(k, str)}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"'{path}' cannot be read: {error}.") from error


def _whole(row: dict[str, str], column: str) -> int:
    try:
        return int(row[column])
    except ValueError as error:
        raise ValueError(f"'{column}' must be a whole number, got '{row[column]}'") from error


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
