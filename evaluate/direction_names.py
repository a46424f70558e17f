"""Names of directions for people: the label where it fits, else one found without masks, numbered where several directions carry it, or a
name that a person gave.

A person's names are in ``names.csv`` next to the directions file, with the columns ``direction`` (its number), ``name`` and ``comment``, and
``directions`` (the file's name without ending) where the folder holds several directions files.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from extract.file_list import at, csv_rows, integer
from stores.documents import brief
from stores.errors import DatasetError

log = logging.getLogger(__name__)
FILE = "names.csv"
LONGEST = 200  # characters of a name
LONGEST_COMMENT = 2000


@dataclass(frozen=True)
class DirectionName:
    """``full``: ``mammal 2``; ``short``: ``mammal``, what directions of one label share; ``comment``: a person's; ``own``: a person gave it;
    ``kind``: of a label found without masks, such as ``class``."""

    full: str
    short: str
    comment: str = ""
    own: bool = False
    kind: str = ""


Maskless = tuple[str, str]  # a label found without masks and its kind, both empty for none


@dataclass(frozen=True)
class Given:
    """A row of ``names.csv``; the name may be empty."""

    name: str
    comment: str


def names_of(
    labels: Sequence[str],
    fits: Sequence[bool],
    given: Mapping[int, Given] | None = None,
    maskless: Sequence[Maskless] | None = None,
) -> list[DirectionName]:
    """Name each direction of a set.

    Parameters
    ----------
    labels : of each direction, empty for none. fits : whether the label fits: one that does not gives no name.
    given : by number, from ``read_names``. maskless : of each direction, what it is called by where its label does not fit.
    """
    pairs = [
        (label, "") if fit and label else other
        for label, fit, other in zip(labels, fits, maskless or [("", "")] * len(labels), strict=True)
    ]
    carried = Counter(label for label, _ in pairs)
    seen: Counter[str] = Counter()
    found = []
    for i, (label, kind) in enumerate(pairs):
        short = full = f"direction {i}"
        if label:
            seen[label] += 1
            short, full = label, f"{label} {seen[label]}" if carried[label] > 1 else label
        own = (given or {}).get(i, Given("", ""))
        found.append(DirectionName(own.name or full, own.name or short, own.comment, bool(own.name), kind))
    return found


def with_number(names: Sequence[DirectionName], index: int) -> str:
    """The direction's name with its number."""
    return numbered(names[index].full, index)


def numbered(full: str, index: int) -> str:
    """``mammal 2 (17)``; ``direction 17`` as it is."""
    return full if full == f"direction {index}" else f"{full} ({index})"


def with_names(rows: Sequence[Mapping[str, Any]], names: Sequence[DirectionName]) -> list[dict[str, Any]]:
    """Rows about a direction (``index``, or the first of ``indices``) with its ``name`` behind its number."""

    def name_of(key: str, value: Any) -> dict[str, str]:
        first = value if key == "index" else value[0] if key == "indices" else None
        return {} if first is None else {"name": names[first].full}

    return [
        {k: v for key, value in row.items() for k, v in ({key: value} | name_of(key, value)).items()} for row in rows
    ]


def read_names(directions: Path, count: int) -> dict[int, Given]:
    """What ``names.csv`` next to a directions file says of its directions, of which there are ``count``; nothing where there is none.

    A file that does not say which of several directions files it is about is left out, with a warning. Raises DatasetError for a row about
    a direction that there is not, or that another row is about.
    """
    path = (directions.parent / FILE).resolve()  # one file, one warning
    if not path.is_file():
        return {}
    found: dict[int, Given] = {}
    files = sorted({directions.stem, *(file.stem for file in directions.parent.glob("*.safetensors"))})
    for line, row in csv_rows(path, ("direction", "name")):
        if "directions" not in row and len(files) > 1:
            warn_once(
                f"'{path}' is not read: it is next to several directions files. Add a column 'directions' with the name of the one that each row "
                f"is about: {brief(', '.join(files))}"
            )
            return {}
        if (whose := row.get("directions", directions.stem)) not in files:
            warn_once(
                f"rows of '{path}' with '{brief(whose)}' in the column 'directions' are left out. The directions files there are "
                f"{brief(', '.join(files))}: write one of these"
            )
        if whose != directions.stem:
            continue
        try:
            index = integer(row, "direction", 0, count - 1)
            if index in found:
                raise ValueError(f"direction {index} has a row already")
            name, comment = row["name"].strip(), row.get("comment", "").strip()
            if len(name) > LONGEST or len(comment) > LONGEST_COMMENT:
                raise ValueError(f"a name has at most {LONGEST} characters, a comment {LONGEST_COMMENT}")
        except ValueError as error:
            raise DatasetError(f"{at(path, line)}: {error}. Correct the row or remove it.") from error
        found[index] = Given(name, comment)
    return found


@cache  # names are read for each set
def warn_once(message: str) -> None:
    """Log a warning that was not logged before."""
    log.warning("%s", message)
