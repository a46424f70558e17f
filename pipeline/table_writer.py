"""The tables of one evaluation: CSV and Parquet of each, LaTeX of those that fit on paper, and what every column means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluate.compare import compare, comparison_columns, write_comparison_latex
from evaluate.dictionary import SUMMARY, TABLES, summary_keys, write_dictionary
from evaluate.latex import write_latex
from stores.tables import Columns, write_parts, write_table

PRINTED = 500  # rows up to which a table is also written in LaTeX


class Tables:
    """Writes tables into a folder, and at the end their data dictionary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, list[str]] = {}

    def write(self, name: str, columns: Columns) -> None:
        """Write one table given by its columns."""
        self.write_parts(name, [columns])

    def write_parts(self, name: str, parts: Iterable[Columns]) -> None:
        """Write one table that comes in parts, too long for memory."""
        printed: dict[str, list[Any]] = {}
        count = 0

        def seen() -> Iterator[Columns]:
            nonlocal count
            for columns in parts:
                count += len(next(iter(columns.values()), ()))
                for key, values in columns.items():
                    printed.setdefault(key, []).extend(values if count <= PRINTED else ())
                yield columns

        write_parts(self.folder, name, seen())
        self._written[name] = list(printed)
        if count <= PRINTED:
            write_latex(self.folder / f"{name}.tex", printed, caption=TABLES[name].rows, label=f"tab:{name}")

    def write_comparison(self, summary: Mapping[str, Any]) -> None:
        """Write the comparison of all files: the best in bold, supervised methods apart."""
        found = compare(summary)
        columns = comparison_columns(found)
        write_table(self.folder, "comparison", columns)
        write_comparison_latex(
            self.folder / "comparison.tex", found, caption=TABLES["comparison"].rows, label="tab:comparison"
        )
        self._written["comparison"] = list(columns)

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Write ``dictionary.json`` and ``dictionary.csv`` of what was written, and of an evaluation's summary."""
        keys = {} if summary is None else {SUMMARY: summary_keys(summary)}
        write_dictionary(self.folder, self._written | keys)
