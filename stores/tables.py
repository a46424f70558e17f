"""Tables as people use them: the same rows as CSV and as Parquet."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from stores.errors import StoreError
from stores.files import rename, sync, sync_folder, write_bytes

Columns = Mapping[str, Sequence[Any] | np.ndarray]


def write_table(folder: Path, name: str, columns: Columns) -> list[Path]:
    """Write ``name.csv`` and ``name.parquet`` into a folder, columns in the order given; returns their paths.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) are written as escapes, ``\\udcff``. Raises StoreError
    when the disk is full or the folder cannot be written to.
    """
    return write_parts(folder, name, [columns])


def write_parts(folder: Path, name: str, parts: Iterable[Columns]) -> list[Path]:
    """Write a table that comes in parts, at least one, of the same columns: one part is in memory at a time.

    Both files get their names at the end, when all parts are on the disk.
    """
    paths = [folder / f"{name}.csv", folder / f"{name}.parquet"]
    each = iter(parts)
    first = _table(next(each))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _new(paths[0]) as csv, _new(paths[1]) as parquet:
            with ExitStack() as stack:
                writers = (
                    stack.enter_context(pyarrow.csv.CSVWriter(csv, first.schema)),
                    stack.enter_context(pyarrow.parquet.ParquetWriter(parquet, first.schema)),
                )
                for table in (first, *()) if parts is None else _chain(first, each):
                    for writer in writers:
                        writer.write_table(table)
        sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"'{paths[0]}' could not be written: {error.strerror or error}. Free some space or fix the folder, then run "
            "the same command again."
        ) from error
    return paths
