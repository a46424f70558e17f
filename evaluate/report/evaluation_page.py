"""The page of an evaluation: plain data in, one ``report.html`` out, to be read next to its ``pictures/`` folder."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evaluate.compare import compare
from evaluate.number_format import DASH, name, number
from evaluate.page_layout import KNOWN, category_colours, complaints, iou_scale, marks, ordered, scalars
from evaluate.report.evaluation_cards import ReportData, Section
from evaluate.web_page import render_page
from stores.io import write_atomically

SCORES = (
    "s1",
    "s2",
    "interpretable",
    "distinct",
    "coverage",
    "redundancy",
    "precision",
    "recall",
    "f1",
    "average_precision",
)


def write_report(folder: Path, data: ReportData) -> Path:
    """Write ``folder/report.html`` (complete or not at all) and return its path; pictures are expected next to it.

    Raises StoreError when the file cannot be written.
    """
    path = folder / "report.html"
    write_atomically(path, render(data).encode("utf-8", "replace"))
    return path


def render(data: ReportData) -> str:
    """The page; its bytes depend on the data alone."""
    compared = compare({"directions": {section.name: section.summary for section in data.sections}})
    groups = [[m for m in compared.measures if (m.key in SCORES) == scores] for scores in (True, False)]
    sections = [_section(i, section, data) for i, section in enumerate(data.sections, 1)]
    counted = [section["categories"] for section in sections]
    cards = [card for section in data.sections for card in section.cards]
    page = {
        "data": data,
        "measures": [group for group in groups if group],
        "rows": {row.name: row for row in compared.rows},
        "decided": compared.decided,
        "colours": category_colours({c.category for c in cards} | {n for found in counted for n, _, _ in found}),
        "refitted": any(card.found_again == card.found_again for card in cards),
        "sections": sections,
        "widest": max((sum(n for _, n, _ in found) for found in counted), default=0),
        "tallest": max((n for found in counted for _, _, n in found), default=0),
        "iou_scale": iou_scale(card.iou for card in cards),
        "truth": None if _by_section(data.ground_truth) else truth_table(data.ground_truth),
    }
    return render_page("report.html", page, script="report.js")


def _section(i: int, section: Section, data: ReportData) -> dict[str, Any]:
    """What the template needs of one section besides its data; ``i`` counts from 1 and makes the anchors."""
    own = data.ground_truth.get(section.name) if data.ground_truth and _by_section(data.ground_truth) else None
    return {
        "id": f"s{i}",
        "data": section,
        "cards": ordered(section.cards),
        "marks": marks(section.diagnosis),
        "categories": per_category(section),
        "predicts": any(tile.prediction for card in section.cards for tile in card.tiles),
        "notes": complaints(section.diagnosis),
        "scalars": scalars(section.diagnosis),
        "suspects": section.summary.get("influence", {}).get("suspects", []),
        "truth": truth_table(own or section.summary.get("ground_truth")),
    }


def _by_section(truth: Mapping[str, Any] | None) -> bool:
    """Whether a ground truth is one of several, by section, rather than one."""
    return bool(truth) and all(isinstance(v, Mapping) for v in (truth or {}).values())


def per_category(section: Section) -> list[tuple[str, int, int]]:
    """Distinct concepts and interpretable directions of each category: the summary's, else counted from the cards."""
    given = section.summary.get("per_category")
    if isinstance(given, Mapping):
        pairs = {
            str(k): (v["distinct"], v["detectors"]) if isinstance(v, Mapping) else (v, v) for k, v in given.items()
        }
        return [(k, int(distinct), int(detectors)) for k, (distinct, detectors) in pairs.items()]
    labels = [(c.category, c.label) for c in section.cards if c.interpretable and c.category]
    found = sorted({category for category, _ in labels}, key=lambda n: (KNOWN.get(n, len(KNOWN)), n))
    mine = {n: [label for category, label in labels if category == n] for n in found}
    return [(n, len(set(mine[n])), len(mine[n])) for n in found]


def truth_table(truth: Any) -> dict[str, Any] | None:
    """Single numbers (and the means of lists) as facts, lists as columns with one row a true concept."""
    if not isinstance(truth, Mapping) or not truth:
        return None
    lists = {str(k): list(v) for k, v in truth.items() if isinstance(v, list | tuple) and v}
    facts = {name(str(k)): number(v) for k, v in truth.items() if number(v) != DASH}
    for key, values in lists.items():
        numbers = [float(v) for v in values if number(v) != DASH]
        if numbers and any(isinstance(v, float) for v in values):
            facts[f"mean {name(key)}"] = number(sum(numbers) / len(numbers))
            facts[f"lowest {name(key)}"] = number(min(numbers))
    rows = [
        [DASH if cell is None else cell if isinstance(cell, str) else number(cell) for cell in row]
        for row in zip_longest(*lists.values())
    ]
    return {"facts": facts, "heads": [name(k) for k in lists], "rows": rows}
