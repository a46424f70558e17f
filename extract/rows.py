"""Rows of CSV files with the lines they stand in, and the whole numbers in them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from extract.reading import reason, shown
from stores.errors import DatasetError


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
