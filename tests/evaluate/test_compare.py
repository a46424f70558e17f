"""Which file is the best of a column, and the table in each of its forms, character by character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.compare import (
    KEYS,
    SUPERVISED,
    compare,
    comparison_columns,
    write_comparison_latex,
)
from fit import SUPERVISED as SUPERVISED_FITTERS
from stores.tables import write_table

SUMMARY: dict[str, Any] = {
    "directions": {
        "probe|x": {"method": "probe", "s1": 9.0, "s2": 3, "interpretable": 9, "redundancy": 0.5},
        "my_eddp": {
            "method": "eddp", "directions": 12, "s1": 1.23456, "s2": 0.5, "interpretable": 4, "redundancy": 1.5, "s3": 0.3,
            "monosemanticity": None, "stability": 0.9, "per_category": {"object": {"distinct": 3, "detectors": 4}},
            "intervals": {"s1": [1.1, 1.4], "s2": [None, None], "recall": [0, 1]},
        },
        "pca": {
            "method": "pca", "s1": 0.2, "s2": 0.50004, "interpretable": 4, "redundancy": 2.5, "s3": -0.0001, "f1": float("nan"),
            "intervals": {"s1": [-0.1, 0.4]},
        },
    }
}  # fmt: skip
LATEX = r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{All fits}\label{tab:all}
\begin{tabular}{llrrrrrr}
\toprule
Directions & Method & S1 & S2 & Interpretable & Redundancy & S3 & Stability \\
\midrule
my\_eddp & eddp & \textbf{1.235} {\scriptsize [1.100, 1.400]} & \textbf{0.500} & \textbf{4} & \textbf{1.500} & 0.300 & 0.900 \\
pca & pca & 0.200 {\scriptsize [$-0.100$, 0.400]} & \textbf{0.500} & \textbf{4} & 2.500 & \textbf{\boldmath $-0.0001$} & -- \\
\midrule
\textit{probe\textbar{}x} & \textit{probe} & \textit{9.000} & \textit{3} & \textit{9} & \textit{0.500} & -- & -- \\
\bottomrule
\end{tabular}
\end{table}
"""


def entry(method: str = "eddp", **values: Any) -> dict[str, Any]:
    return {"method": method, **values}


def best_of(key: str, **values: Any) -> list[str]:
    """Names of the files that are best in a column, of files given as name=value."""
    found = compare({"directions": {name: entry(**{key: value}) for name, value in values.items()}})
    return [row.name for row in found.rows if key in row.best]


def test_in_latex(tmp_path: Path) -> None:
    path = write_comparison_latex(tmp_path / "comparison.tex", compare(SUMMARY), caption="All fits", label="tab:all")
    assert path.read_text(encoding="utf-8") == LATEX


def test_as_columns(tmp_path: Path) -> None:
    columns = comparison_columns(compare(SUMMARY))
    assert columns == {
        "directions": ["my_eddp", "pca", "probe|x"],
        "method": ["eddp", "pca", "probe"],
        "supervised": [False, False, True],
        "best": ["s1 s2 interpretable redundancy", "s2 interpretable s3", ""],
        "s1": [1.23456, 0.2, 9.0],
        "s1_low": [1.1, -0.1, None],
        "s1_high": [1.4, 0.4, None],
        "s2": [0.5, 0.50004, 3],
        "interpretable": [4, 4, 9],
        "redundancy": [1.5, 2.5, 0.5],
        "s3": [0.3, -0.0001, None],
        "stability": [0.9, None, None],
    }
    write_table(tmp_path, "comparison", columns)
    assert pyarrow.parquet.read_table(tmp_path / "comparison.parquet").to_pydict() == columns


def test_of_some_measures_less_is_better() -> None:
    assert best_of("redundancy", a=1.0, b=2.0) == ["a"]
    assert best_of("s3", a=0.5, b=0.25) == ["b"]
    assert {key for key in KEYS if best_of(key, a=1.0, b=2.0) == ["a"]} == {
        "redundancy",
        "s3",
        "polysemanticity",
        "semantic_redundancy",
    }


def test_ties_are_all_marked_as_they_read() -> None:
    assert best_of("s1", a=1.0, b=1.0, c=0.5) == ["a", "b"]
    assert best_of("s1", a=0.50041, b=0.50038, c=0.499) == ["a", "b"]  # 0.500 both
    assert best_of("redundancy", a=1.50041, b=1.50038) == ["a", "b"]


def test_without_competition_nothing_is_the_best() -> None:
    assert best_of("s1", a=1.0) == []
    assert best_of("s1", a=1.0, b=None, c=float("nan"), d=True, e="much") == []
    assert best_of("s1", a=1.0, b=0.5, c=None) == ["a"]


def test_supervised_methods_never_compete_and_come_last() -> None:
    assert SUPERVISED == SUPERVISED_FITTERS
    files = {
        "cav": entry("pattern-cav", s1=9, redundancy=0),
        "a": entry(s1=1),
        "probe": entry("probe", s1=8),
        "b": entry("pca", s1=2),
    }
    found = compare({"directions": files})
    assert [row.name for row in found.rows] == ["a", "b", "cav", "probe"]
    assert [sorted(row.best) for row in found.rows] == [[], ["s1"], [], []]
    assert found.unsupervised == 2


@given(st.lists(st.tuples(st.sampled_from(["eddp", "probe"]), st.none() | st.floats(-2, 2)), max_size=6))
def test_the_best_is_no_worse_than_any_that_competes(files: list[tuple[str, float | None]]) -> None:
    found = compare({"directions": {str(i): entry(method, s1=value) for i, (method, value) in enumerate(files)}})
    competing = [value for method, value in files if method == "eddp" and value is not None]
    best = [row.values["s1"] for row in found.rows if "s1" in row.best]
    assert bool(best) == (len(competing) > 1)
    assert not best or max(best) == max(competing)
    assert all(abs(value - max(competing)) <= 0.001 for value in best)


@pytest.mark.parametrize("files", [{}, {"a": {"method": "eddp"}}, {"a": entry("probe", s1=1)}])
def test_little_to_compare(files: dict[str, Any], tmp_path: Path) -> None:
    found = compare({"directions": files})
    assert r"\midrule" in write_comparison_latex(tmp_path / "t.tex", found).read_text()
    assert comparison_columns(found)["best"] == [""] * len(files)
