"""The page of a report: plain data in, one ``report.html`` out, to be read beside its ``pictures/`` folder.

The page asks nothing of the network. Labels and file names are data to it: they are escaped, and its content policy
allows no script but its own, known by its hash. The bytes depend on the data alone.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from evaluate.compare import compare
from evaluate.number_format import DASH, again, name, number, points, short, url
from evaluate.report.data import Card, ReportData, Section
from stores.io import write_atomically

KNOWN = {"object": 0, "part": 1, "material": 2, "scene": 3, "texture": 4, "color": 5, "action": 6}
COLOURS = 10  # how many colours of categories the style sheet has; 0-6 are those of Broden
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
LISTED = 24  # directions named in a note before "and n more"


def write_report(folder: Path, data: ReportData) -> Path:
    """Write ``folder/report.html`` (whole or not at all) and return its path; pictures are expected to lie beside it.

    Raises StoreError when the file cannot be written.
    """
    path = folder / "report.html"
    write_atomically(path, render(data).encode("utf-8", "replace"))
    return path


def render(data: ReportData) -> str:
    """The page as a text."""
    style, script = Markup(_resource("report.css")), Markup(_resource("report.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, short=short, name=name, url=url, points=points, again=again)
    colours = category_colours(data)
    compared = compare({"directions": {section.name: section.summary for section in data.sections}})
    groups = [[m for m in compared.measures if (m.key in SCORES) == scores] for scores in (True, False)]
    return environment.from_string(_resource("report.html")).render(
        data=data,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        measures=[group for group in groups if group],
        rows={row.name: row for row in compared.rows},
        decided=compared.decided,
        colours=colours,
        refitted=any(card.found_again == card.found_again for s in data.sections for card in s.cards),
        sections=[_section(i, section, data) for i, section in enumerate(data.sections, 1)],
        widest=max((sum(n for _, n, _ in per_category(s)) for s in data.sections), default=0),
        tallest=max((n for s in data.sections for _, _, n in per_category(s)), default=0),
        iou_scale=iou_scale(data),
        truth=None if _nested(data.ground_truth) else truth_table(data.ground_truth),
    )


def _resource(file: str) -> str:
    return importlib.resources.files("evaluate.report").joinpath(file).read_text(encoding="utf-8")


# categories


def category_colours(data: ReportData) -> dict[str, int]:
    """A colour's number for each category of the report: fixed ones for Broden's, the remaining in turn for others."""
    found = {c.category for s in data.sections for c in s.cards} | {
        n for s in data.sections for n, _, _ in per_category(s)
    }
    others = sorted(found - set(KNOWN) - {""})
    free = [i for i in range(COLOURS) if i not in {KNOWN[n] for n in found & set(KNOWN)}]
    return {n: KNOWN[n] for n in KNOWN if n in found} | {n: free[i % len(free)] for i, n in enumerate(others)}


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


def iou_scale(data: ReportData) -> float:
    """The right end of every IoU bar: the largest IoU of the report, rounded up to a tenth."""
    largest = max((c.iou for s in data.sections for c in s.cards if math.isfinite(c.iou)), default=0.0)
    return min(max(math.ceil(largest * 10 - 1e-9), 1) / 10, 1.0)


# sections


def _section(i: int, section: Section, data: ReportData) -> dict[str, Any]:
    """What the template needs to know of one section beside its data; ``i`` counts from 1 and makes the anchors."""
    nested = data.ground_truth.get(section.name) if data.ground_truth and _nested(data.ground_truth) else None
    marks: dict[int, list[str]] = {}
    for key, word in (("dead", "dead"), ("overfull", "overfull")):
        for index in _indices(section.diagnosis.get(key)):
            marks.setdefault(index, []).append(word)
    for a, b in _pairs(section.diagnosis.get("duplicates")):
        marks.setdefault(b, []).append(f"like {a}")
    return {
        "id": f"s{i}",
        "data": section,
        "cards": ordered(section.cards),
        "marks": marks,
        "categories": per_category(section),
        "predicts": any(tile.prediction for card in section.cards for tile in card.tiles),
        "notes": notes(section.diagnosis),
        "scalars": {k: v for k, v in section.diagnosis.items() if number(v) != DASH},
        "suspects": section.summary.get("influence", {}).get("suspects", []),
        "truth": truth_table(nested or section.summary.get("ground_truth")),
    }


def ordered(cards: Sequence[Card]) -> list[Card]:
    """Interpretable directions first, then by IoU from high to low, then by index."""
    return sorted(cards, key=lambda c: (not c.interpretable, -c.iou if math.isfinite(c.iou) else math.inf, c.index))


def notes(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a diagnosis complains of: a sentence, and the groups of directions it is about (at most LISTED)."""
    dead, overfull = _indices(diagnosis.get("dead")), _indices(diagnosis.get("overfull"))
    pairs = _pairs(diagnosis.get("duplicates"))
    out = [
        _note(len(dead), "hardly ever fires", "hardly ever fire", "direction", [(i,) for i in dead]),
        _note(len(pairs), "is almost the same filter", "are almost the same filter", "pair", pairs),
        _note(
            len(overfull), "fires at most positions", "fire at most positions", "direction", [(i,) for i in overfull]
        ),
    ]
    return [note for note in out if note]


def _note(count: int, one: str, many: str, noun: str, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    if not count:
        return {}
    text = f"{count} {noun}{'' if count == 1 else 's'} {one if count == 1 else many}"
    return {"text": text, "groups": groups[:LISTED], "more": max(count - LISTED, 0)}


def _indices(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list | tuple) else []


def _pairs(value: Any) -> list[tuple[int, int]]:
    return [(int(v[0]), int(v[1])) for v in value] if isinstance(value, list | tuple) else []


# the truth, where it is known


def _nested(truth: Mapping[str, Any] | None) -> bool:
    """Whether a ground truth is one of several, by section, rather than one."""
    return bool(truth) and all(isinstance(v, Mapping) for v in (truth or {}).values())


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
