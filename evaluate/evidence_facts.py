"""The evidence for a set of directions in words, the same in the terminal and on its pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluate.number_format import number, percent


def evidence_facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Of a set's entry in summary.json: fidelity, label tests, the untrained network and pairs of images, as far as they were measured."""
    facts = {}
    if tests := entry.get("label_tests"):
        cells = (
            f"{word} {percent(tests['missing'][key])} | {percent(tests['extra'][key])}"
            for key, word in (("iou", "IoU"), ("f1", "F1"), ("average_precision", "AP"))
        )
        facts["Label tests"] = f"directions whose score falls when labels are missing | added: {', '.join(cells)}"
    if untrained := entry.get("untrained"):
        scores = (
            f"{word} {number(untrained[key])}"
            for key, word in (("s1", "S1"), ("interpretable", "interpretable"), ("distinct", "distinct"))
        )
        facts["Untrained network"] = f"as many of its directions by the same method: {', '.join(scores)}"
    if rebuilt := entry.get("fidelity"):
        facts["Logits rebuilt"] = (
            f"mean absolute error {_beside(rebuilt['mae'])}, earth mover's distance {_beside(rebuilt['emd'])}"
        )
    if found := entry.get("pairs"):
        ends = (
            f"{key} {number(found[key])} ({number(found[f'{key}_low'])} to {number(found[f'{key}_high'])})"
            for key in ("precision", "recall")
        )
        facts["Pairs"] = (
            f"{found['agreeing']} of {found['named']} directions named after one of {found['attributes']} attributes move with it in pairs of images, "
            f"{found['moving']} directions move with one; {', '.join(ends)}, p {number(found['p'])}"
        )
    return facts


def _beside(error: Mapping[str, float]) -> str:
    low, high, constant = (number(error[key]) for key in ("random_low", "random_high", "constant"))
    return f"{number(error['value'])} (random directions {low} to {high}, none {constant})"
