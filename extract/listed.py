"""Seeing that what a table lists is on disk, by names alone."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from extract.items import Names
from extract.listing import names_in
from extract.lists import at
from extract.reading import shown
from stores.errors import DatasetError


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
