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
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from extract.file_list import at, csv_rows, inside, lines_of, peek
from extract.folder_listing import is_folder
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
            columns = "number, name and, if there are several, category"
            raise MissingPathError(
                f"'{shown(root)}' lacks labels.csv, the labels of masks/, with the columns {columns}."
            )
        # 0 is unlabelled, and may be called "background" or whatever
        labels = read_labels(table, csv_rows(table, ("number", "name")), _category, skip=0)
        self._folders = _folders(root / "masks", list(dict.fromkeys(label.category for label in labels)))
        stems = {folder: stems_below(root / "masks" / folder) for folder in self._folders}
        images, left_out = images_below(root / "images")
        names, splits, listing = _images(root, stems, images)
        super().__init__(
            root,
            (f"images/{name}" for name in names),
            splits,
            labels,
            {0: 0, **{label.number: label.number for label in labels}},
            unknown=f"which '{shown(table)}' does not list: add it there, or fix the mask",
            listing=listing,
            left_out=left_out,
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


def _images(root: Path, stems: dict[str, set[str]], images: dict[str, str]) -> tuple[list[str], list[int], str]:
    """Names relative to ``images/``, in order, their splits, and which files list them."""
    masked = set().union(*stems.values())
    table, files = root / "split.csv", {split: root / "splits" / f"{split}.txt" for split in SPLITS}
    if table.is_file():
        rows = csv_rows(table, ("image", "split"))
        listed = _listed(root, ((row["image"], row["split"], table, line) for line, row in rows), images, masked)
    elif any(file.is_file() for file in files.values()):
        table = root / "splits"
        there = ((split, file) for split, file in files.items() if file.is_file())
        lines = ((name, split, file, line) for split, file in there for line, name in lines_of(file))
        listed = _listed(root, lines, images, masked)
    else:
        table = root / "images"
        listed = {stem(name): hashed_split(stem(name)) for name in paired(images, masked, root)}
    if not listed:
        raise no_masks(root, "images/NAME.jpg (or .png ...) with masks/NAME.png, or masks/CATEGORY/NAME.png")
    keys = sorted(listed, key=images.__getitem__)
    hashed = " (split by a hash of the names; a split.csv next to it would override it)" * (table.name == "images")
    return [images[key] for key in keys], [listed[key] for key in keys], f"'{shown(table)}'{hashed}"


def _listed(
    root: Path, entries: Iterable[tuple[str, str, Path, int]], images: dict[str, str], masked: set[str]
) -> dict[str, int]:
    """Stem -> split of the images that entries (name, split, file, line) list; each must be there, once, with a mask.

    A name is relative to ``images/``, with or without its ending, and may not lead elsewhere. Raises DatasetError.
    """
    splits: dict[str, int] = {}
    lines: dict[str, str] = {}
    for given, split, file, line in entries:
        where, name = at(file, line), inside(given, file, line)
        if split not in SPLITS:
            raise DatasetError(f"{where}: the split must be one of {', '.join(SPLITS)}, got '{shown(split)}'.")
        key = name if name in images else stem(name)
        if images.get(key) not in (name, f"{name}{Path(images.get(key, '')).suffix}"):
            fault = f"there is no image '{shown(root / 'images' / name)}'. Put it there"
        elif key in splits:
            fault = f"'{shown(name)}' is already in {lines[key]}. An image is of one split: leave it there"
        elif key not in masked:
            fault = (
                f"the image '{shown(name)}' has no mask '{shown(key)}.png' in '{shown(root / 'masks')}'. Put it there"
            )
        else:
            splits[key], lines[key] = SPLITS.index(split), where
            continue
        raise DatasetError(f"{where}: {fault}, or take the line out.")
    return splits


def hashed_split(name: str) -> int:
    """The split of an image that no list names: its name's SHA-256 puts three of ten into val, the others into train.

    ``name`` is relative to the images' folder, without its ending. More images, or another format, move none of the others.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return SPLITS.index("val" if int.from_bytes(digest[:8], "big") % 10 < VAL_OF_TEN else "train")
