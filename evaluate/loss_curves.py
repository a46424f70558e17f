"""The picture of a fit: every loss term and constraint over the steps, one small panel a term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluate.figure_style import FAINT, INK, bare_axes, png
from stores.errors import UsageError
from stores.io import write_atomically

COLUMNS = 3
PANEL = (3.3, 1.9)  # inches
LINE = "#0072b2"
FEW = 3  # up to so many points are drawn as dots: a line of one point cannot be seen


def loss_picture(
    rows: Sequence[Mapping[str, float | None]],
    path: Path,
    over: str = "step",
    *,
    limits: Mapping[str, float] | None = None,
    chosen: float | None = None,
    caption: str = "",
) -> None:
    """Draw each column of a fit's log over its ``step``, or another column, and write a PNG atomically.

    ``rows``: one mapping a step; ``step`` is optional (else the row's number), a name may be missing in some rows.
    ``limits``: of some columns, drawn as dotted lines; ``chosen``: of ``over``, drawn as a dashed one, its values written into the panels (else the last); ``caption`` above all.
    Values that are None or not finite are left out. Raises UsageError when there is nothing to draw.
    """
    limits = limits or {}
    names = list(dict.fromkeys(name for row in rows for name in row if name != over))
    if not names:
        raise UsageError(f"'rows' must hold at least one row with a value other than '{over}'.")
    columns = min(COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        points = [
            (float(row.get(over) or i), float(value))
            for i, row in enumerate(rows)
            if (value := row.get(name)) is not None and math.isfinite(value)
        ]
        _draw(panel, name, points, chosen)
        if name in limits:
            panel.axhline(limits[name], color=INK, lw=0.9, ls=":")
        if chosen is not None:
            panel.axvline(chosen, color=INK, lw=0.9, ls="--")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel in panels[max(len(names) - columns, 0) : len(names)]:  # the lowest of each column
        panel.set_xlabel(over, fontsize=8, color=INK)
    if caption:
        figure.suptitle(caption, fontsize=8, color=INK)
    write_atomically(path, png(figure))


def _draw(panel: Axes, name: str, points: Sequence[tuple[float, float]], chosen: float | None) -> None:
    """One term: a line over the steps, in the corner its value at the chosen one, or its last."""
    few = len(points) <= FEW
    panel.plot([x for x, _ in points], [y for _, y in points], color=LINE, lw=1.4, marker="o" if few else "", ms=4)
    panel.set_title(name.replace("_", " "), loc="left", fontsize=9, color=INK, parse_math=False)
    if written := points[-1:] if chosen is None else [point for point in points if point[0] == chosen]:
        panel.set_title(f"{written[0][1]:.4g}", loc="right", fontsize=8, color=LINE)
    if len({x for x, _ in points}) == 1:
        panel.set_xticks([points[0][0]])
    panel.grid(visible=True, color=FAINT, lw=0.5)
    panel.set_axisbelow(True)
    bare_axes(panel)
