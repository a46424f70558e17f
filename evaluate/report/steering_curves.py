"""The picture of steering: what happens to a class's probability as its images are pushed further and further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from evaluate.figure_style import FAINT, INK, bare_axes, png
from stores.io import write_atomically

COLOURS = {"signal": "#0072b2", "filter": "#d55e00", "random": "#8a9099"}
TITLES = {"signal": "signal vectors", "filter": "filters", "random": "random directions"}


def steering_picture(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw the probability gained over the length of the step, a panel a role, and write a PNG atomically.

    ``curves``: role -> (α (A,), probability (A, J)). The line is the median direction, the band holds the middle half, thin lines are the ten
    that gain most.
    """
    figure = Figure(figsize=(3.3 * len(curves), 2.3), dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for panel, (role, (alphas, probability)) in zip(panels, curves.items(), strict=True):
        gained = 100 * (probability - probability[:1])
        colour = COLOURS.get(role, INK)
        low, middle, high = np.quantile(gained, [0.25, 0.5, 0.75], axis=1)
        best = np.argsort(-gained.max(0), kind="stable")[:10]
        panel.plot(alphas, gained[:, best], color=colour, lw=0.5, alpha=0.5)
        panel.fill_between(alphas, low, high, color=colour, alpha=0.2, lw=0)
        panel.plot(alphas, middle, color=colour, lw=1.8)
        panel.axhline(0, color=FAINT, lw=0.8)
        panel.set_title(TITLES.get(role, role), loc="left", fontsize=9, color=INK)
        panel.set_xlabel("length of the step α", fontsize=8, color=INK)
        bare_axes(panel)
    panels[0].set_ylabel("probability gained, pp", fontsize=8, color=INK)
    write_atomically(path, png(figure))
