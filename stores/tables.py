"""Tables as people use them: the same rows as CSV and as Parquet."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from stores.files import write_atomically


def write_table(folder: Path, name: str, columns: Mapping[str, Sequence[Any]]) -> list[Path]:
    """Write ``name.csv`` and ``name.parquet`` into a folder, columns in the order given; returns their paths.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) are written as escapes, ``\\udcff``.
    """
    table = pa.table({key: pa.array([_text(value) for value in values]) for key, values in columns.items()})
    written = []
    for ending, writer in ((".csv", pyarrow.csv.write_csv), (".parquet", pyarrow.parquet.write_table)):
        buffer = io.BytesIO()
        writer(table, buffer)
        write_atomically(folder / f"{name}{ending}", buffer.getvalue())
        written.append(folder / f"{name}{ending}")
    return written


def rows_to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn a list of rows into columns; keys absent from a row become empty cells."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {key: [row.get(key) for row in rows] for key in keys}


def _text(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
