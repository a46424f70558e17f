"""Text files that list images: finding them beside the images, reading them line by line, checking them with the disk.

Seeing that what a table lists is on disk, by names alone.

Rows of CSV files with the lines they stand in, and the whole numbers in them.
"""

from __future__ import annotations

import csv
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from extract.folder_listing import names_in
from extract.image_io import ENDINGS, reason, shown
from extract.string_array import Names
from stores.errors import DatasetError

log = logging.getLogger(__name__)

LONGEST = 65536  # bytes of a line; what is longer is no list


def nearby(root: Path, levels: int) -> list[Path]:
    """A folder and its parents, nearest first: of the path as given, then of what it is a link to."""
    found: list[Path] = []
    for path in (Path(os.path.normpath(root.absolute())), Path(os.path.realpath(root))):
        found += [folder for folder in (path, *path.parents[:levels]) if folder not in found]
    return found


def find_near(root: Path, names: Iterable[str], levels: int) -> Path | None:
    """The first of some files that is in a folder or its parents; what is nearest wins."""
    names = tuple(names)
    for folder in nearby(root, levels):
        for name in names:
            try:
                if (folder / name).is_file():
                    return folder / name
            except PermissionError:  # a folder above need not be one that may be entered
                continue
    return None


def peek(folder: Path, most: int = 2000) -> list[os.DirEntry[str]]:
    """The first entries of a folder, enough to tell what it is; none where it cannot be listed."""
    try:
        with os.scandir(folder) as listed:
            return [entry for _, entry in zip(range(most), listed, strict=False)]
    except OSError:
        return []


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers: UTF-8 with or without a mark, any line ends.

    Bytes that are not UTF-8 are kept as the names of files keep them. Raises DatasetError for what is no text.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST):
                number += 1
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if b"\0" in raw or len(raw) == LONGEST:
                    raise DatasetError(f"{at(path, number)} is no line of text. The file must be a list in UTF-8.")
                text = raw.decode("utf-8", "surrogateescape").strip("\r\n\t ")
                if text:
                    yield number, text
    except OSError as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error


def at(path: Path | str, line: int) -> str:
    """Where in a file, for a sentence."""
    return f"'{shown(path)}', line {line}"


def inside(name: str, path: Path, line: int) -> str:
    """A path from a list, which must stay in the folder it is relative to. Raises DatasetError."""
    if name.startswith("/") or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DatasetError(f"{at(path, line)}: '{shown(name)}' points outside the folder of the images.")
    plain = os.path.normpath(name).replace(os.sep, "/")
    if plain == ".":
        raise DatasetError(f"{at(path, line)}: '{shown(name)}' names no image.")
    return plain


def check_present(root: Path, names: Names, lines: array, path: Path) -> None:
    """See that every image a list names is on disk, once; each folder is listed once, no file is looked at.

    ``lines`` are the line numbers of ``names`` (relative to ``root``) in the list ``path``. Raises DatasetError naming the
    first image that is missing and how many are; images that no line names are left out, and logged.
    """
    folders: dict[str, int] = {}
    of = np.fromiter((folders.setdefault(n.rpartition("/")[0], len(folders)) for n in names), np.int64, len(names))
    missing: list[int] = []
    extra = 0
    rows = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=len(folders)))[:-1])
    for folder, members in zip(folders, rows, strict=False):
        there = names_in(root / folder)
        seen: dict[str, int] = {}
        for i in members.tolist():
            name = names[i].rpartition("/")[2]
            if name in seen:
                raise DatasetError(f"{at(path, lines[i])}: '{shown(names[i])}' is already in line {lines[seen[name]]}.")
            seen[name] = i
            if name not in there:
                missing.append(i)
        extra += sum(name.lower().endswith(ENDINGS) for name in there.difference(seen) if not name.startswith("."))
    if missing:
        first = min(missing)
        raise DatasetError(
            f"{at(path, lines[first])}: there is no image '{shown(root / names[first])}' (missing: {len(missing)} of "
            f"{len(names)} listed). Unpack them all, or give folder:DIR to take those that are there."
        )
    if extra:
        log.warning("'%s' does not name all images beside it; left out: %d", shown(path), extra)


def check_listed(root: Path, names: Names, lines: array | Sequence[int], table: Path, what: str) -> None:
    """See that every file that a table names is below ``root``, and named once; each folder is listed once.

    ``lines`` are the lines of ``names`` in ``table``, ``what`` they are: image, mask. Raises DatasetError naming the first
    line at fault and, of missing files, how many there are.
    """
    folders: dict[str, int] = {}
    of = np.fromiter((folders.setdefault(n.rpartition("/")[0], len(folders)) for n in names), np.int64, len(names))
    rows = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=len(folders)))[:-1])
    missing: list[int] = []
    for folder, members in zip(folders, rows, strict=False):
        there = names_in(root / folder)
        seen: dict[str, int] = {}
        for i in members.tolist():
            name = names[i].rpartition("/")[2]
            if name in seen:
                raise DatasetError(
                    f"{at(table, lines[i])}: the {what} '{shown(names[i])}' is already in line {lines[seen[name]]}. Take one "
                    "of the lines out."
                )
            seen[name] = i
            if name not in there:
                missing.append(i)
    if missing:
        first = min(missing)
        raise DatasetError(
            f"{at(table, lines[first])}: there is no {what} '{shown(root / names[first])}' (missing: {len(missing)} of "
            f"{len(names)} listed). Unpack them all, or take the lines out."
        )


def csv_rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file, one at a time, each with its line's number; cells that a row lacks are empty.

    Raises DatasetError when columns are missing or it is no CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or [])]
            if missing:
                raise DatasetError(
                    f"'{shown(path)}' lacks the column {', '.join(missing)}; its first line must name the columns."
                )
            for row in reader:
                yield reader.line_num, {k: (v or "") for k, v in row.items() if isinstance(k, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"'{shown(path)}' cannot be read: {reason(error)}. It must be a CSV file in UTF-8."
        ) from error


def whole(row: dict[str, str], column: str, least: int, most: int) -> int:
    """The whole number in a cell. Raises ValueError with the words of a sentence."""
    text = row[column]
    try:
        number = int(text)
    except ValueError as error:
        raise ValueError(f"'{column}' must be a whole number, got '{shown(text[:40])}'") from error
    if number < least:
        raise ValueError(f"'{column}' must be at least {least}, got {number}")
    if number > most:
        raise ValueError(f"'{column}' must be at most {most}")
    return number
