"""Which images are to label or learn on (train) and which to score on (val), where a folder may or may not say so.

Label maps of one's own: ``images/``, ``masks/`` and ``labels.csv``.

A mask has its image's path and name, and ends in ``.png`` or ``.PNG``: ``images/a/1.jpg`` has ``masks/a/1.png``. Its pixels are label
numbers: one channel of 8 or 16 bits, a palette's indices, or Broden's RGB (``label = R + 256·G``); 0 is unlabelled.

``labels.csv``: ``number,name`` and, if there are several, ``category`` (else all are of the category ``object``). With
several categories there is either one mask an image, in which each label is of its own category, or a folder for each:
``masks/part/a/1.png``. The latter is taken to be meant when all that ``masks/`` holds are folders called like categories.

``split.csv`` (``image,split``) or ``splits/train.txt`` and ``splits/val.txt`` (a name a line) say which images there are
and what for; without them all images with a mask are taken, three of ten for val, by a hash of their names
(``extract.segmentation.custom.hashed_split``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from extract.file_list import at, csv_rows, inside, lines_of, peek, whole
from extract.folder_listing import Listing, is_folder
from extract.image_io import shown
from extract.image_source import register
from extract.segmentation.base import (
    SPLITS,
    VALUES,
    ConceptLabel,
    MapSource,
    holds,
    images_below,
    no_images,
    paired,
    png,
    stem,
    stems_below,
)
from stores.errors import DatasetError, MissingPathError

VAL_OF_TEN = 3


class Listed(NamedTuple):
    """An image as a list names it, relative to the images' folder, with or without its ending."""

    name: str
    split: int
    file: Path
    line: int


def listed_splits(root: Path) -> Iterator[Listed] | None:
    """What ``split.csv`` (image, split) says, or else ``splits/train.txt``, ``val.txt``, ``test.txt``; None without any.

    Raises DatasetError, naming file and line, for an unknown split and for a name that leads elsewhere.
    """
    table = root / "split.csv"
    if table.is_file():
        return _of_table(table)
    files = [(k, root / "splits" / f"{split}.txt") for k, split in enumerate(SPLITS)]
    there = [(k, file) for k, file in files if file.is_file()]
    return _of_files(there) if there else None


def hashed_split(name: str) -> int:
    """The split of an image that no list names: its name's SHA-256 puts three of ten into val, the others into train.

    ``name`` is relative to the images' folder, without its ending. More images, or another format, move none of the others.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return SPLITS.index("val" if int.from_bytes(digest[:8], "big") % 10 < VAL_OF_TEN else "train")


def _of_table(table: Path) -> Iterator[Listed]:
    for line, row in csv_rows(table, ("image", "split")):
        if row["split"] not in SPLITS:
            raise DatasetError(
                f"{at(table, line)}: the split must be one of {', '.join(SPLITS)}, got '{shown(row['split'])}'."
            )
        yield Listed(inside(row["image"], table, line), SPLITS.index(row["split"]), table, line)


def _of_files(files: list[tuple[int, Path]]) -> Iterator[Listed]:
    for split, file in files:
        for line, name in lines_of(file):
            yield Listed(inside(name, file, line), split, file, line)


CATEGORY = "object"


@register(
    "masks",
    holds("images", "masks"),
    maps="images with masks (label maps of one's own)",
    needs=("labels.csv",),
)
class MasksSource(MapSource):
    """Such a folder. Raises MissingPathError, NoImagesError, and DatasetError naming file and line."""

    kind = "masks"
    colour = True

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        table = root / "labels.csv"
        for name in ("images", "masks"):
            if not (root / name).is_dir():
                raise MissingPathError(f"'{shown(root)}' lacks {name}/: it must hold images/, masks/ and labels.csv.")
        if not table.is_file():
            raise MissingPathError(
                f"'{shown(root)}' lacks labels.csv: it must name the labels in masks/, with the columns number, name and, if "
                "there are several, category."
            )
        labels = _read_labels(table)
        categories = list(dict.fromkeys(label.category for label in labels))
        self._folders = _folders(root / "masks", categories)
        stems = {folder: stems_below(root / "masks" / folder) for folder in self._folders}
        found = Listing()
        names, splits, listing = _images(root, stems, found)
        super().__init__(
            root,
            (f"images/{name}" for name in names),
            splits,
            labels,
            {0: 0, **{label.number: label.number for label in labels}},
            unknown=f"which '{shown(table)}' does not list: add it there, or mend the mask",
            listing=listing,
            left_out=found.left_out,
        )
        self._has = np.array(
            [[stem(name) in found for found in stems.values()] for name in names], bool
        )  # (N, folders)
        column = {category: k for k, category in enumerate(self.categories)}
        self._category_of = np.full(VALUES, -1, np.int16)  # by number
        for label in labels:
            self._category_of[label.number] = column[label.category]

    def map_files(self, i: int) -> dict[str, Path]:
        name = stem(self.names[i].removeprefix("images/"))
        return {
            folder or self.categories[0]: png(self.root / "masks" / folder, name)
            for folder, has in zip(self._folders, self._has[i], strict=True)
            if has
        }

    def masks(self, i: int) -> dict[str, np.ndarray]:
        if self._folders != [""] or len(self.categories) == 1:
            return super().masks(i)
        (path,) = self.map_files(i).values()
        labels = self.numbers(i, path)
        of = self._category_of[labels]
        parts = {category: np.where(of == k, labels, 0) for k, category in enumerate(self.categories)}
        return {category: part[None] for category, part in parts.items() if part.any()}


def _read_labels(table: Path) -> list[ConceptLabel]:
    labels: dict[int, ConceptLabel] = {}
    lines: dict[int, int] = {}
    for line, row in csv_rows(table, ("number", "name")):
        try:
            number = whole(row, "number", 0, VALUES - 1)
            if not row["name"]:
                raise ValueError("the name is missing")
            if "category" in row and not row["category"]:
                raise ValueError("the category is missing")
            if number in lines:
                raise ValueError(f"number {number} is already taken by line {lines[number]}")
        except ValueError as error:
            raise DatasetError(f"{at(table, line)}: {error}.") from error
        lines[number] = line
        if number:  # 0 is unlabelled, and may be called "background" or whatever
            labels[number] = ConceptLabel(number, row["name"], row.get("category", CATEGORY))
    if not labels:
        raise DatasetError(f"'{shown(table)}' lists no label. Write one a line: number,name")
    return list(labels.values())


def _folders(masks: Path, categories: list[str]) -> list[str]:
    """The categories that have a folder of their own, or the one folder of all masks, ``""``."""
    found = {entry.name for entry in peek(masks) if entry.name.lower().endswith(".png") or is_folder(entry)}
    found = {name for name in found if not name.startswith(".")}
    return [category for category in categories if category in found] if found and found <= set(categories) else [""]


def _images(root: Path, stems: dict[str, set[str]], found: Listing) -> tuple[list[str], list[int], str]:
    """Names relative to ``images/``, their splits, and where these stand."""
    images = images_below(root / "images", found)
    masked = set().union(*stems.values())
    listed = listed_splits(root)
    if listed is None:
        names = paired(images, masked, root)
        splits = [hashed_split(stem(name)) for name in names]
        listing = (
            f"'{shown(root / 'images')}' (split by a hash of the names; a split.csv beside it would say otherwise)"
        )
    else:
        names, splits, listing = _as_listed(root, listed, images, masked)
    if not names:
        raise no_images(root, "images/NAME.jpg (or .png ...) with masks/NAME.png, or masks/CATEGORY/NAME.png")
    return names, splits, listing


def _as_listed(
    root: Path, listed: Iterator[Listed], images: dict[str, str], masked: set[str]
) -> tuple[list[str], list[int], str]:
    """The images that lists name, in the order of their names. Every one of them must be there, once, and have a mask."""
    found: dict[str, Listed] = {}
    said = ""
    for entry in listed:
        said = f"'{shown(entry.file if entry.file.name == 'split.csv' else entry.file.parent)}'"
        key = entry.name if entry.name in images else stem(entry.name)
        if images.get(key) not in (entry.name, f"{entry.name}{Path(images.get(key, '')).suffix}"):
            raise DatasetError(
                f"{at(entry.file, entry.line)}: there is no image '{shown(root / 'images' / entry.name)}'. Put it there, or "
                "take the line out."
            )
        if key in found:
            raise DatasetError(
                f"{at(entry.file, entry.line)}: '{shown(entry.name)}' is already in "
                f"{at(found[key].file, found[key].line)}. An image is of one split: take one of the lines out."
            )
        if key not in masked:
            raise DatasetError(
                f"{at(entry.file, entry.line)}: the image '{shown(entry.name)}' has no mask '{shown(key)}.png' in "
                f"'{shown(root / 'masks')}'. Put it there, or take the line out."
            )
        found[key] = entry
    keys = sorted(found, key=images.__getitem__)
    return [images[key] for key in keys], [found[key].split for key in keys], said
