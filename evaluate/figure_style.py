"""The look of matplotlib figures, and their bytes: the same figure gives the same PNG."""

from __future__ import annotations

import io
import warnings

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT = "#22262b", "#d9dce1"


def bare_axes(axes: Axes, *more: str) -> None:
    """Small ticks, and no frame at the top and the right (and at more sides)."""
    axes.tick_params(axis="both" if not more else "x", labelsize=7, colors=INK, length=2)
    axes.spines[["top", "right", *more]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script the font lacks
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
