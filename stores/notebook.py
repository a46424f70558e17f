"""HTML that notebooks show of a store, of directions and of an evaluation: their ``_repr_html_``."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

PICTURES = {".png": "image/png", ".webp": "image/webp"}


def html_table(rows: Iterable[Sequence[str | float | None]], head: Sequence[str] = ()) -> str:
    """A table; cells are text or numbers, or HTML that ``picture`` made. None is an empty cell."""
    heads = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    lines = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{heads}<tbody>{lines}</tbody></table>"


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def picture(file: Path, height: int) -> Markup:
    """A picture within the page, so that a notebook can be moved; nothing where there is no such file."""
    if not file.is_file():
        return Markup()
    data = base64.b64encode(file.read_bytes()).decode()
    return Markup(f'<img style="height:{height}px" src="data:{PICTURES[file.suffix]};base64,{data}">')


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return escape(f"{value:.3g}" if isinstance(value, float) else str(value))
