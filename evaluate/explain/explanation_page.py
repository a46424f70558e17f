"""The page of explanations: plain data in, one ``index.html`` out, to be read next to the pictures in its folder.

It runs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluate.explain.heat_maps import Step, bars
from evaluate.report.svg_shapes import bar
from evaluate.web_page import render_page


@dataclass(frozen=True)
class Map:
    """One concept's heat map: its name, what it adds, the share of the image where its detector fires, and a file."""

    name: str
    value: float
    fires: float
    file: str


@dataclass(frozen=True)
class Shown:
    """One image of the page: no more than is shown, for pages of many are held in memory.

    ``predicted``, ``explained``, ``classes``, ``counterfactual``: parts of ``describe``'s document; ``sums``: titles and their steps; the rest are file names.
    Without a ``cam`` the head does not read this layer's positions, and there are neither sums nor maps.
    """

    name: str
    sentence: str
    predicted: dict[str, Any]
    explained: dict[str, Any]
    classes: Sequence[dict[str, Any]]
    counterfactual: dict[str, Any] | None
    sums: Sequence[tuple[str, Sequence[Step]]]
    maps: Sequence[Map]
    seen: str
    cam: str | None
    sheet: str
    json: str


@dataclass(frozen=True)
class PageData:
    """The whole page. ``facts`` are shown as a list, ``notes`` at the end, term by term."""

    title: str
    facts: dict[str, str]
    shown: Sequence[Shown]
    notes: dict[str, str] = field(default_factory=dict)


def render(data: PageData) -> str:
    """The page; its bytes depend on the data alone."""
    return render_page("explain.html", {"data": data, "bar": bar}, styles="explain.css", waterfall=waterfall)


def waterfall(steps: Sequence[Step]) -> dict[str, Any]:
    """Rows of a sum as the page draws them: left end and width in % of the track, and where 0 lies."""
    spans = bars(steps)
    low, high = min(0.0, *(min(s) for s in spans)), max(0.0, *(max(s) for s in spans))
    width = (high - low) or 1.0
    return {
        "zero": f"{100 * -low / width:.2f}",
        "rows": [
            {
                "name": step.name,
                "value": step.value,
                "kind": step.kind,
                "left": f"{100 * (min(span) - low) / width:.2f}",
                "width": f"{100 * abs(span[1] - span[0]) / width:.2f}",
            }
            for step, span in zip(steps, spans, strict=True)
        ],
    }
