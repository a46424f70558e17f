"""How numbers, names and links look in tables, on pages and in sentences."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import Any
from urllib.parse import quote

from stores.documents import MOST_NUMBER

DASH = "–"
NAMES = {word.lower(): word for word in ("IoU", "RMSE", "F1", "S1", "S2", "S3", "AP", "SDC", "SCDP")}


def known(value: Any) -> bool:
    """Whether there is a number to show: neither NaN nor beyond all bounds."""
    return isinstance(value, Real) and not isinstance(value, bool) and -MOST_NUMBER <= value <= MOST_NUMBER  # type: ignore[operator]


def number(value: Any) -> str:
    """A number for a table: counts as they are, the rest with three decimals, large ones in four digits, small ones in two; a dash for none."""
    if not known(value):
        return DASH
    if isinstance(value, Integral):
        return str(int(value))
    value = float(value)
    if abs(value) >= 100:
        return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"


def short(value: float) -> str:
    """A number in three digits."""
    return minus(f"{value:#.3g}".rstrip(".")) if math.isfinite(value) else DASH


def signed(value: float) -> str:
    """``+2.10``, ``−0.43``, ``+12.3``: two decimals, one above ten, more only for very small numbers."""
    size = abs(value)
    text = f"{size:.1f}" if size >= 9.995 else f"{size:.2f}" if size >= 0.005 or size == 0 else f"{size:.0e}"
    return ("+" if value >= 0 else "−") + text


def probability(p: float) -> str:
    """``0.93``; ``> 0.99`` and ``< 0.01`` at the ends."""
    return "> 0.99" if p > 0.995 else "< 0.01" if p < 0.005 else f"{p:.2f}"


def percent(share: float | None, decimals: int | None = None) -> str:
    """A share in per cent: with two digits, more only near 100, or with fixed decimals; a dash for none."""
    if share is None or not math.isfinite(share):
        return DASH
    value = 100 * share
    if decimals is not None:
        return f"{value:.{decimals}f} %"
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %" if value >= 0.01 else "below 0.01 %"


def points(change: float) -> str:
    """A change of probability in percentage points, with its sign: two digits, at most two decimals."""
    value = 100 * change
    text = f"{value:+.1f}" if abs(value) >= 0.995 else f"{value:+.2f}"
    return minus(text if float(text) else "±0") + " pp"


def again(share: float, refits: int) -> str:
    """How often a direction is found again: ``7 of 8`` refits, or a share where their number is unknown."""
    return f"{share * refits:.0f} of {refits}" if refits else number(share)


def name(key: str) -> str:
    """A key as a heading: ``average_precision`` → ``average precision``, ``iou`` → ``IoU``."""
    return " ".join(NAMES.get(word.lower(), word) for word in key.replace("_", " ").split())


def anchor(text: str) -> str:
    """A text as the name of a place on a page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def minus(text: str) -> str:
    """A number's text with a typographic minus."""
    return text.replace("-", "−")


def url(file: str) -> str:
    """A file name as a relative link that cannot leave the report's folder."""
    return quote(file.encode("utf-8", "surrogateescape"), safe="/").lstrip("/")
