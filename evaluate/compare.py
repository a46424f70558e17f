"""Many direction files side by side: one row a file, one column a measure, the best of each marked [ours]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.glossary import MEASURES, Measure
from evaluate.latex import Latex, latex_cell, write_latex
from evaluate.number_format import DASH, known, number

SUPERVISED = ("probe", "pattern-cav")  # methods that know the labels they are scored on
BOLD_MATH = r"\boldmath "  # \textbf alone leaves formulas as they are
KEYS = tuple(measure.key for measure in MEASURES)


@dataclass(frozen=True)
class Row:
    """One file: its numbers and their intervals by key, and in which columns it is the best."""

    name: str
    method: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    best: frozenset[str] = frozenset()

    @property
    def supervised(self) -> bool:
        """Whether the method knew the labels: such a row is there to compare with, and never the best."""
        return self.method in SUPERVISED


@dataclass(frozen=True)
class Comparison:
    """The measures that any of the files has, and the rows: unsupervised methods first, then the others."""

    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]

    @property
    def unsupervised(self) -> int:
        """How many rows compete; they are the first."""
        return sum(not row.supervised for row in self.rows)

    @property
    def decided(self) -> frozenset[str]:
        """Keys of the measures in which the competing files do not all read the same: only these have a best."""
        competing = self.rows[: self.unsupervised]
        read = {m.key: {number(row.values.get(m.key)) for row in competing} - {DASH} for m in self.measures}
        return frozenset(key for key, texts in read.items() if len(texts) > 1)


def compare(summary: Mapping[str, Any]) -> Comparison:
    """Compare the files of a ``summary.json`` by the measures of ``KEYS`` that at least one of them has.

    The best of a column is the largest, or the smallest where less is better, of all unsupervised files; files whose number
    reads the same in a table are best together. A file without competition is not marked.

    Parameters
    ----------
    summary : ``{"directions": {name: {"method": …, key: number, …, "intervals": {key: [low, high]}}}}``.
    """
    rows = []
    for name, entry in summary["directions"].items():
        values = {key: entry[key] for key in KEYS if known(entry.get(key))}
        found = entry.get("intervals") or {}
        intervals = {
            key: (found[key][0], found[key][1]) for key in values if found.get(key) and all(map(known, found[key]))
        }
        rows.append(Row(name, str(entry.get("method", "")), values, intervals))
    rows.sort(key=lambda row: row.supervised)
    measures = tuple(m for m in MEASURES if any(m.key in row.values for row in rows))
    best: list[set[str]] = [set() for _ in rows]
    for measure in measures:
        ranked = [
            (r, row.values[measure.key])
            for r, row in enumerate(rows)
            if not row.supervised and measure.key in row.values
        ]
        if len(ranked) > 1:
            top = number(max((value for _, value in ranked), key=lambda value: measure.better * value))
            for r, value in ranked:
                if number(value) == top:
                    best[r].add(measure.key)
    return Comparison(
        measures,
        tuple(Row(r.name, r.method, r.values, r.intervals, frozenset(b)) for r, b in zip(rows, best, strict=True)),
    )


def comparison_columns(comparison: Comparison) -> dict[str, list[Any]]:
    """The comparison for ``stores.tables.write_table``: every measure, ``…_low`` and ``…_high`` of those with intervals,
    and ``best``, the keys of the columns in which the file is the best, with spaces between."""
    rows = comparison.rows
    columns: dict[str, list[Any]] = {
        "directions": [row.name for row in rows],
        "method": [row.method for row in rows],
        "supervised": [row.supervised for row in rows],
        "best": [" ".join(m.key for m in comparison.measures if m.key in row.best) for row in rows],
    }
    for measure in comparison.measures:
        key = measure.key
        columns[key] = [row.values.get(key) for row in rows]
        if any(key in row.intervals for row in rows):
            for k, end in enumerate(("low", "high")):
                columns[f"{key}_{end}"] = [row.intervals[key][k] if key in row.intervals else None for row in rows]
    return columns


def write_comparison_latex(path: str | Path, comparison: Comparison, *, caption: str = "", label: str = "") -> Path:
    """Write the comparison as a LaTeX table: the best in bold, supervised methods last and in italics; returns its path."""

    def cell(text: str, best: bool, row: Row) -> Latex:
        if best:
            return Latex(rf"\textbf{{{BOLD_MATH if '$' in text else ''}{text}}}")
        return Latex(rf"\textit{{{text}}}" if row.supervised else text)

    def value(row: Row, key: str) -> Latex:
        if key not in row.values:
            return Latex(latex_cell(None))
        text = cell(latex_cell(row.values[key]), key in row.best, row)
        if key in row.intervals:
            low, high = (latex_cell(end) for end in row.intervals[key])
            return Latex(rf"{text} {{\scriptsize [{low}, {high}]}}")
        return text

    columns: dict[str, Sequence[Any]] = {
        "Directions": [cell(latex_cell(row.name), False, row) for row in comparison.rows],
        "Method": [cell(latex_cell(row.method), False, row) for row in comparison.rows],
    }
    columns |= {m.title: [value(row, m.key) for row in comparison.rows] for m in comparison.measures}
    rules = [comparison.unsupervised] if 0 < comparison.unsupervised < len(comparison.rows) else []
    return write_latex(
        path, columns, caption=caption, label=label, rules=rules, align="ll" + "r" * len(comparison.measures)
    )
