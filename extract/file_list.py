"""Text files and tables that list images or videos: found near the images, read line by line, compared with the disk."""

from __future__ import annotations

import csv
import logging
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from extract.folder_listing import names_in
from extract.image_io import ENDINGS, reason, shown
from extract.string_array import Names
from extract.video import VIDEO_ENDINGS
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
    """The first of some files that is in a folder or its parents, the nearest folder first."""
    names = tuple(names)
    files = (folder / name for folder in nearby(root, levels) for name in names)
    return next((file for file in files if os.path.isfile(file)), None)  # noqa: PTH113  (a folder above may be closed)


def peek(folder: Path, most: int = 2000) -> list[os.DirEntry[str]]:
    """The first entries of a folder, enough to recognise it; none where it cannot be listed."""
    try:
        with os.scandir(folder) as listed:
            return [entry for _, entry in zip(range(most), listed, strict=False)]
    except OSError:
        return []


def at(path: Path | str, line: int) -> str:
    """Where in a file, for a message."""
    return f"'{shown(path)}', line {line}"


def not_listed(root: Path, table: Path | str, names: Sequence[str]) -> DatasetError:
    """The error for class folders that a table of the dataset does not list."""
    found = f"'{shown(root)}' (--data) holds {len(names)} class folders, such as '{shown(names[0])}'"
    then = f"Give folder:{shown(root)} to number the classes by its own folders"
    return DatasetError(f"{found}, that '{shown(table)}' does not list. {then}.")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers: UTF-8 with or without a mark, any line ends.

    Bytes that are not UTF-8 are decoded as the names of files are. Raises DatasetError for what is no text.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST):
                number += 1
                if b"\0" in raw or len(raw) == LONGEST:
                    raise DatasetError(f"{at(path, number)} is no line of text. The file must be a list in UTF-8.")
                text = raw.decode("utf-8", "surrogateescape").strip("\r\n\t ")
                text = text.removeprefix("\ufeff") if number == 1 else text
                if text:
                    yield number, text
    except OSError as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error


def read_pairs(path: Path, pattern: str, form: str, *, header: str = "") -> dict[str, tuple[str, int]]:
    """Key -> (value, line) of a list with one of each a line: the first two groups of ``pattern``.

    Raises DatasetError for a line that does not match and for a key that is there twice; ``form`` says what a line must be.
    """
    found: dict[str, tuple[str, int]] = {}
    for line, text in lines_of(path):
        match = re.fullmatch(pattern, text)
        if match and match[1] not in found:
            found[match[1]] = (match[2] or "").strip(), line
        elif text != header:
            raise DatasetError(f"{at(path, line)} must read {form}, each once, got '{shown(text)[:80]}'.")
    return found


def csv_rows(path: Path, needed: tuple[str, ...], *, tabs: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file, or of one with tabs, one at a time, each with its line's number.

    Raises DatasetError when columns are missing, a row has fewer cells than columns, or it is no CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(
                file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
            )
            if missing := [name for name in needed if name not in (reader.fieldnames or [])]:
                names = ", ".join(missing)
                raise DatasetError(f"'{shown(path)}' lacks the column {names}; its first line must name the columns.")
            for row in reader:
                if None in row.values():
                    raise DatasetError(f"{at(path, reader.line_num)} has fewer cells than the first. Unpack it again.")
                yield reader.line_num, {k: v for k, v in row.items() if isinstance(k, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"'{shown(path)}' cannot be read as CSV in UTF-8: {reason(error)}.") from error


def integer(row: dict[str, str], column: str, least: int, most: int) -> int:
    """The integer in a cell. Raises ValueError with the words of a message."""
    try:
        number = int(row[column])
    except ValueError as error:
        raise ValueError(f"'{column}' must be an integer, got '{shown(row[column][:40])}'") from error
    if not least <= number <= most:
        raise ValueError(f"'{column}' must be from {least} to {most}, got {row[column][:40]}")
    return number


def inside(name: str, path: Path | str, line: int) -> str:
    """A path from a list, which must stay in the folder it is relative to. Raises DatasetError."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DatasetError(f"{at(path, line)}: '{shown(name)}' points outside the folder of the images.")
    plain = os.path.normpath(name).replace(os.sep, "/")
    if plain == ".":
        raise DatasetError(f"{at(path, line)}: '{shown(name)}' names no image.")
    return plain


def check_listed(
    root: Path,
    names: Names,
    lines: array[int] | Sequence[int],
    table: Path,
    what: str = "image",
    *,
    all_of: bool = False,
) -> None:
    """Check that every file that a table names is below ``root``, and named once; each folder is listed once.

    ``lines`` are the lines of ``names`` in ``table``, ``what`` they name: "image", "video", ... With ``all_of``, others next to
    them that no line names are logged.
    Raises DatasetError naming the first line at fault and, of missing files, how many there are.
    """
    endings = VIDEO_ENDINGS if what == "video" else ENDINGS
    folders: dict[str, int] = {}
    of = np.fromiter((folders.setdefault(n.rpartition("/")[0], len(folders)) for n in names), np.int64, len(names))
    rows = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=len(folders)))[:-1])
    missing: list[int] = []
    extra = 0
    for folder, members in zip(folders, rows, strict=False):
        there = names_in(root / folder)
        seen: dict[str, int] = {}
        for i in members.tolist():
            name = names[i].rpartition("/")[2]
            if name in seen:
                twice = f"'{shown(names[i])}' is already in line {lines[seen[name]]}"
                raise DatasetError(f"{at(table, lines[i])}: the {what} {twice}. Take one of the lines out.")
            seen[name] = i
            if name not in there:
                missing.append(i)
        extra += sum(name.lower().endswith(endings) for name in there.difference(seen) if not name.startswith("."))
    if missing:
        first = min(missing)
        gap = f"there is no {what} '{shown(root / names[first])}' (missing: {len(missing)} of {len(names)} listed)"
        then = "Unpack them all, or take the lines out; folder:DIR takes those that are there"
        raise DatasetError(f"{at(table, lines[first])}: {gap}. {then}.")
    if extra and all_of:
        log.warning("'%s' does not name all %ss next to those listed; left out: %d", shown(table), what, extra)
