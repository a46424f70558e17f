"""Tables for a paper: any of our column tables as LaTeX with booktabs, to be read with ``\\input``."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.number_format import DASH, number
from stores.io import write_atomically

PAGE_ROWS = 45  # a longer table runs over pages
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", "`": r"\textasciigrave{}",
        "[": "{[}", "*": "{*}",  # else \\ at the end of the row before would take them for its own
    }
    | {chr(code): " " for code in range(32)}
)  # fmt: skip


class Latex(str):
    """A cell or heading that is LaTeX already, and is written as it is."""

    __slots__ = ()


def write_latex(path: str | Path, columns: Mapping[str, Sequence[Any]], **options: Any) -> Path:
    """Write a table as a .tex file (see ``latex_table``); returns its path. Raises StoreError when that cannot be done."""
    write_atomically(Path(path), latex_table(columns, **options).encode())
    return Path(path)


def latex_table(
    columns: Mapping[str, Sequence[Any]],
    *,
    caption: str = "",
    label: str = "",
    rules: Collection[int] = (),
    align: str = "",
) -> str:
    """Columns as a booktabs table.

    Parameters
    ----------
    columns : heading -> cells, as ``stores.tables.write_table`` takes them; text is escaped, ``Latex`` is not.
    caption, label : left out where empty; the caption is text, the label as ``\\ref`` takes it.
    rules : numbers of the rows that a rule goes before.
    align : one letter a column; by default numbers are on the right, the rest on the left.

    Above 45 rows it is a ``longtable``, which breaks over pages. Raises ValueError when there is no column, or when
    they are not equally long.
    """
    lengths = {key: len(cells) for key, cells in columns.items()}
    if not lengths:
        raise ValueError("A table needs at least one column, got none.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All columns must be equally long, got {lengths}.")
    align = align or "".join("r" if _is_numeric(cells) else "l" for cells in columns.values())
    head = " & ".join(latex_cell(key) for key in columns) + r" \\"
    body = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        body += [r"\midrule"] if i in rules else []
        body.append(" & ".join(latex_cell(cell) for cell in row) + r" \\")
    naming = (rf"\caption{{{latex_cell(caption)}}}" if caption else "") + (rf"\label{{{label}}}" if label else "")
    if max(lengths.values()) > PAGE_ROWS:
        lines = [
            r"% \usepackage{booktabs,longtable}",
            rf"\begin{{longtable}}{{{align}}}",
            *([naming + r" \\"] if naming else []),
            r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot",
            *body,
            r"\end{longtable}",
        ]  # fmt: skip
    else:
        lines = [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([naming] if naming else []),
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule", head, r"\midrule",
            *body,
            r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def latex_cell(value: Any) -> str:
    """One cell: text escaped, counts as they are, other numbers with three decimals or two digits, – for nothing.

    Bytes of file names that are not UTF-8 become escapes, as in the other tables; letters beyond Latin need XeLaTeX or LuaLaTeX.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Latex):
        return str(value)
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode().translate(ESCAPES)
        return re.sub("-(?=-)", "-{}", text).replace(DASH, "--")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    if value is None or isinstance(value, Real):
        return _number(number(value + 0.0 if isinstance(value, float) else value))  # no −0
    return latex_cell(str(value))


def _number(text: str) -> str:
    """A number as ``number`` writes it: ``1.2e-05`` → ``$1.2 \\times 10^{-5}$``, and a minus that is one."""
    if text == DASH:
        return "--"
    mantissa, e, exponent = text.partition("e")
    if e:
        return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
    return f"${text}$" if text.startswith("-") else text


def _is_numeric(cells: Sequence[Any]) -> bool:
    values = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, Latex | Real) and not isinstance(v, bool) for v in known)
