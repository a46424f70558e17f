"""Label maps of one's own: ``images/``, ``masks/`` and ``labels.csv``.

A mask has its image's path and name, and ends in ``.png`` or ``.PNG``: ``images/a/1.jpg`` has ``masks/a/1.png``. Its pixels are label
numbers: one channel of 8 or 16 bits, a palette's indices, or Broden's RGB (``label = R + 256·G``); 0 is unlabelled.

``labels.csv``: ``number,name`` and, if there are several, ``category`` (else all are of the category ``object``). With
several categories there is either one mask an image, in which each label is of its own category, or a folder for each:
``masks/part/a/1.png``. The latter is assumed when all that ``masks/`` holds are folders named like categories.

``split.csv`` (``image,split``) or ``splits/train.txt`` and ``splits/val.txt`` (a name a line) say which images there are
and what for; without them all images with a mask are read, three of ten for val, by a hash of their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from extract.file_list import at, csv_rows, inside, lines_of, peek
from extract.folder_listing import Listing, is_folder
from extract.image_io import shown
from extract.image_source import register
from extract.segmentation.base import (
    SPLITS,
    VALUES,
    MapSource,
    holds,
    images_below,
    no_masks,
    paired,
    png,
    read_labels,
    stem,
    stems_below,
)
from stores.errors import DatasetError, MissingPathError

CATEGORY = "object"
VAL_OF_TEN = 3


@register("masks", holds("images", "masks"), maps="images with masks (label maps of one's own)", needs=("labels.csv",))
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
        # 0 is unlabelled, and may be called "background" or whatever
        labels = read_labels(table, csv_rows(table, ("number", "name")), _category, skip=0)
        self._folders = _folders(root / "masks", list(dict.fromkeys(label.category for label in labels)))
        stems = {folder: stems_below(root / "masks" / folder) for folder in self._folders}
        found = Listing()
        names, splits, listing = _images(root, stems, found)
        super().__init__(
            root,
            (f"images/{name}" for name in names),
            splits,
            labels,
            {0: 0, **{label.number: label.number for label in labels}},
            unknown=f"which '{shown(table)}' does not list: add it there, or fix the mask",
            listing=listing,
            left_out=found.left_out,
        )
        # (N, folders)
        self._has = np.array([[stem(name) in there for there in stems.values()] for name in names], bool)
        self._category_of = np.full(VALUES, -1, np.int16)  # by number
        for label in labels:
            self._category_of[label.number] = self.categories.index(label.category)

    def map_files(self, i: int) -> dict[str, Path]:
        name = stem(self.name(i).removeprefix("images/"))
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


def _category(row: dict[str, str]) -> str:
    for column in ("name", "category"):
        if not row.get(column, CATEGORY):
            raise ValueError(f"the {column} is missing")
    return row.get("category", CATEGORY)


def _folders(masks: Path, categories: list[str]) -> list[str]:
    """The categories that have a folder of their own, or the one folder of all masks, ``""``."""
    found = {entry.name for entry in peek(masks) if entry.name.lower().endswith(".png") or is_folder(entry)}
    found = {name for name in found if not name.startswith(".")}
    return [category for category in categories if category in found] if found and found <= set(categories) else [""]


def _images(root: Path, stems: dict[str, set[str]], found: Listing) -> tuple[list[str], list[int], str]:
    """Names relative to ``images/``, in order, their splits, and which files list them."""
    images = images_below(root / "images", found)
    masked = set().union(*stems.values())
    entries = listed_splits(root)
    if entries is None:
        names = paired(images, masked, root)
        splits = [hashed_split(stem(name)) for name in names]
        listing = f"'{shown(root / 'images')}' (split by a hash of the names; a split.csv next to it would override it)"
    else:
        listed = _by_key(root, entries, images, masked)
        keys = sorted(listed, key=images.__getitem__)
        names, splits = [images[key] for key in keys], [listed[key].split for key in keys]
        table = root / "split.csv"
        listing = f"'{shown(table if table.is_file() else root / 'splits')}'"
    if not names:
        raise no_masks(root, "images/NAME.jpg (or .png ...) with masks/NAME.png, or masks/CATEGORY/NAME.png")
    return names, splits, listing


class Listed(NamedTuple):
    """An image as a list names it, relative to the images' folder, with or without its ending."""

    name: str
    split: int
    where: str


def _by_key(root: Path, entries: Iterator[Listed], images: dict[str, str], masked: set[str]) -> dict[str, Listed]:
    """The entries by their images' stems. Every image must be there, once, and have a mask."""
    found: dict[str, Listed] = {}
    for entry in entries:
        key = entry.name if entry.name in images else stem(entry.name)
        if images.get(key) not in (entry.name, f"{entry.name}{Path(images.get(key, '')).suffix}"):
            raise DatasetError(
                f"{entry.where}: there is no image '{shown(root / 'images' / entry.name)}'. Put it there, or take the line out."
            )
        if key in found:
            raise DatasetError(
                f"{entry.where}: '{shown(entry.name)}' is already in {found[key].where}. An image is of one split: take one of "
                "the lines out."
            )
        if key not in masked:
            raise DatasetError(
                f"{entry.where}: the image '{shown(entry.name)}' has no mask '{shown(key)}.png' in '{shown(root / 'masks')}'. "
                "Put it there, or take the line out."
            )
        found[key] = entry
    return found


def listed_splits(root: Path) -> Iterator[Listed] | None:
    """What ``split.csv`` (image, split) says, or else ``splits/train.txt``, ``val.txt``, ``test.txt``; None without any.

    Raises DatasetError, naming file and line, for an unknown split and for a name that leads elsewhere.
    """
    table = root / "split.csv"
    files = {split: root / "splits" / f"{split}.txt" for split in SPLITS}
    if table.is_file():
        return _of_table(table)
    if not any(file.is_file() for file in files.values()):
        return None
    return (
        Listed(inside(name, file, line), SPLITS.index(split), at(file, line))
        for split, file in files.items()
        if file.is_file()
        for line, name in lines_of(file)
    )


def _of_table(table: Path) -> Iterator[Listed]:
    for line, row in csv_rows(table, ("image", "split")):
        if row["split"] not in SPLITS:
            raise DatasetError(
                f"{at(table, line)}: the split must be one of {', '.join(SPLITS)}, got '{shown(row['split'])}'."
            )
        yield Listed(inside(row["image"], table, line), SPLITS.index(row["split"]), at(table, line))


def hashed_split(name: str) -> int:
    """The split of an image that no list names: its name's SHA-256 puts three of ten into val, the others into train.

    ``name`` is relative to the images' folder, without its ending. More images, or another format, move none of the others.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return SPLITS.index("val" if int.from_bytes(digest[:8], "big") % 10 < VAL_OF_TEN else "train")
