"""Which images are to label or learn on (train) and which to score on (val), where a folder may or may not say so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from extract.lists import at, inside, lines_of
from extract.mapped import SPLITS
from extract.reading import shown
from extract.rows import csv_rows
from stores.errors import DatasetError

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
