"""LaTeX tables, character by character; none is compiled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.latex import Latex, latex_cell, latex_table, write_latex
from stores.errors import StoreError

COLUMNS = {
    "directions": ["my_run", "[b] & c"],
    "s1": [12.34567, None],
    "p_paper": [0.000012, float("nan")],
    "count": [3, -2],
    "interpretable": [True, False],
}
TABLE = r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{Scores, 50\% of them}\label{tab:scores}
\begin{tabular}{lrrrl}
\toprule
directions & s1 & p\_paper & count & interpretable \\
\midrule
my\_run & 12.346 & $1.2 \times 10^{-5}$ & 3 & yes \\
{[}b] \& c & -- & -- & $-2$ & no \\
\bottomrule
\end{tabular}
\end{table}
"""


def test_a_table_character_by_character(tmp_path: Path) -> None:
    path = write_latex(tmp_path / "new" / "scores.tex", COLUMNS, caption="Scores, 50% of them", label="tab:scores")
    assert path == tmp_path / "new" / "scores.tex"
    assert path.read_text(encoding="utf-8") == TABLE


def test_without_caption_and_label_with_rules_and_alignment() -> None:
    assert latex_table({"a": [1, 2], "b": [Latex(r"\textbf{x}"), "y"]}, rules=[1], align="cr") == (
        "% \\usepackage{booktabs}\n\\begin{table}\n\\centering\n\\begin{tabular}{cr}\n\\toprule\na & b \\\\\n\\midrule\n"
        "1 & \\textbf{x} \\\\\n\\midrule\n2 & y \\\\\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )
    assert "\n\\label{tab:x}\n" in latex_table({"a": [1]}, label="tab:x")
    assert "\n\\caption{What it is}\n" in latex_table({"a": [1]}, caption="What it is")


def test_a_long_table_resumes_over_pages() -> None:
    assert r"\begin{tabular}" in latex_table({"a": range(45)})
    lines = latex_table({"a": range(46)}, caption="Long", label="tab:long").splitlines()
    assert lines[1:3] == [r"\begin{longtable}{r}", r"\caption{Long}\label{tab:long} \\"]
    assert lines[9:] == [*(rf"{i} \\" for i in range(46)), r"\end{longtable}"]
    assert r"\caption" not in latex_table({"a": range(46)})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0, "0"),
        (-0.5, "$-0.500$"),
        (-0.0, "0.000"),
        (0.01, "0.010"),
        (0.00991, "0.0099"),
        (-1.2e-7, r"$-1.2 \times 10^{-7}$"),
        (float("inf"), r"$\infty$"),
        (float("-inf"), r"$-\infty$"),
        (float("nan"), "--"),
        (None, "--"),
        (np.float32(0.25), "0.250"),
        (np.int64(-7), "$-7$"),
        (np.bool_(True), "yes"),
        ("–", "--"),
        ("a---b", "a-{}-{}-b"),
        ("C:\\x_{~^}", r"C:\textbackslash{}x\_\{\textasciitilde{}\textasciicircum{}\}"),
        ("50% & $5 #1 <a|b> `c`", r"50\% \& \$5 \#1 \textless{}a\textbar{}b\textgreater{} \textasciigrave{}c\textasciigrave{}"),
        ("* two\nlines\0", "{*} two lines "),
        ("grün 猫", "grün 猫"),
        ("caf\udce9", r"caf\textbackslash{}udce9"),
        (Latex(r"$\alpha$"), r"$\alpha$"),
        (("a", 1), "('a', 1)"),
        (np.str_("a_b"), r"a\_b"),
    ],
)  # fmt: skip
def test_cells(value: Any, wanted: str) -> None:
    assert latex_cell(value) == wanted


@pytest.mark.parametrize(
    ("cells", "letter"),
    [
        ([1, None], "r"),
        (np.array([1.5, np.nan]), "r"),
        ([None, None], "l"),
        ([], "l"),
        ([True], "l"),
        ([1, "a"], "l"),
    ],
)
def test_numbers_stand_right(cells: Any, letter: str) -> None:
    assert rf"\begin{{tabular}}{{{letter}}}" in latex_table({"a": cells})


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\\{}[]*-–_^~$&#%`<>|")))
def test_nothing_in_a_cell_is_read_as_a_command(value: str) -> None:
    cell = latex_cell(value)
    rest = re.sub(r"\\(text[a-z]+\{\}|[&%$#_{}])", "", cell)  # what we wrote
    rest = rest.replace("{[}", "").replace("{*}", "").replace("{}", "")
    assert not set(rest) & set("\\&%$#_{}~^<>|`[*\n\r")
    assert "–" in value or "--" not in cell


def test_tables_of_nothing_and_uneven_ones() -> None:
    assert "a & b \\\\\n\\midrule\n\\bottomrule" in latex_table({"a": [], "b": []})
    with pytest.raises(ValueError, match="at least one column"):
        latex_table({})
    with pytest.raises(ValueError, match=r"equally long, got \{'a': 1, 'b': 2\}"):
        latex_table({"a": [1], "b": [1, 2]})


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=r"t\.tex' could not be written"):
        write_latex(tmp_path / "out" / "t.tex", COLUMNS)
