"""Tables as people use them: the same rows as CSV and as Parquet."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from stores.documents import UNREADABLE, brief
from stores.errors import StoreError
from stores.io import aside, remove_abandoned, rename, sync, sync_folder, writing

Columns = Mapping[str, Sequence[Any] | np.ndarray]
MOST_ROWS = 10**7  # of a table that is read at once
KINDS = {
    "string": pa.types.is_string,
    "integer": pa.types.is_integer,
    "number": lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
    "boolean": pa.types.is_boolean,
}


class TableError(StoreError):
    """A table is damaged, or of an older version."""


@contextmanager
def reading_table(path: Path) -> Iterator[None]:
    """Raise TableError for a file that is no table, and whatever the block raises over its contents."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is no regular file")
        yield
    except TableError:
        raise
    except (pa.ArrowException, OSError, *UNREADABLE) as error:
        raise TableError(
            f"'{path}' is damaged or was made by an older eddp ({brief(error)}). Run the command that made it again."
        ) from error


def read_table(path: Path, filters: pa.compute.Expression | None = None) -> pa.Table:
    """Read a Parquet table of unknown origin. Raises TableError."""
    with reading_table(path):
        if (rows := pa.parquet.read_metadata(path).num_rows) > MOST_ROWS:
            raise ValueError(f"it has {rows} rows")
        table = pa.parquet.read_table(path, filters=filters)
        table.validate(full=True)  # texts may be no UTF-8
        return table


def column_problem(schema: pa.Schema, kinds: Mapping[str, str]) -> str | None:
    """Which column is missing or of another kind (see ``KINDS``), or None."""
    for name, kind in kinds.items():
        if schema.names.count(name) != 1:
            return f"it has no column {name}"
        found = schema.field(name).type
        if not (KINDS[kind](found) or pa.types.is_null(found)):  # a column without any value has no kind
            return f"its column {name} must hold {kind}s, it holds {brief(found)}"
    return None


def write_table(folder: Path, name: str, columns: Columns) -> list[Path]:
    """Write ``name.csv`` and ``name.parquet`` into a folder, columns in the order given; returns their paths.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) are written as escapes, ``\\udcff``. In the CSV file a text that a
    spreadsheet would read as a formula (it begins with =, +, -, @, tab or carriage return) has a ' before it. Raises StoreError
    when the disk is full or the folder cannot be written to.
    """
    return write_parts(folder, name, [columns])


def write_parts(folder: Path, name: str, parts: Iterable[Columns]) -> list[Path]:
    """Write a table that comes in parts, at least one, all of the same columns: no more than one is in memory at a time.

    Both files get their names when all parts are on the disk; until then, and for good when that fails, what they were stays.
    """
    paths = [folder / f"{name}.csv", folder / f"{name}.parquet"]
    unfinished = [aside(path) for path in paths]
    rest = iter(parts)
    first = _table(next(rest))
    try:
        with writing(paths[0]):
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                remove_abandoned(path)
            with ExitStack() as stack:
                csv, parquet = (stack.enter_context(path.open("xb")) for path in unfinished)
                with (
                    pyarrow.csv.CSVWriter(csv, first.schema) as rows,
                    pyarrow.parquet.ParquetWriter(parquet, first.schema) as groups,
                ):
                    for table in chain([first], (_table(part) for part in rest)):
                        rows.write_table(_without_formulas(table))
                        groups.write_table(table)
                for file in (csv, parquet):
                    file.flush()
                    sync(file.fileno())
            for path, target in zip(unfinished, paths, strict=True):
                rename(path, target)
            sync_folder(folder)
    finally:
        for path in unfinished:
            with suppress(OSError):
                path.unlink()
    return paths


def rows_to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn a list of rows into columns; keys absent from a row become empty cells."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {key: [row.get(key) for row in rows] for key in keys}


def _table(columns: Columns) -> pa.Table:
    return pa.table({key: _array(values) for key, values in columns.items()})


def _without_formulas(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            safe = pyarrow.compute.replace_substring_regex(table.column(i), r"^([=+\-@\t\r])", r"'\1")
            table = table.set_column(i, field, safe)
    return table


def _array(values: Sequence[Any] | np.ndarray) -> pa.Array:
    if isinstance(values, np.ndarray) and values.dtype in (np.int64, np.float64, np.bool_):
        return pa.array(values)  # millions of rows without a Python object for each
    try:
        return pa.array(values)
    except UnicodeError:
        return pa.array([_text(value) for value in values])


def _text(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
