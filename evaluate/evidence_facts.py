"""The evidence for a set of directions in words, the same in the terminal and on its pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evaluate.number_format import number, percent

POOR = 0.5  # error of the logits rebuilt, as a share of the error without directions [ours]
_MEANING = {
    "firing_monosemanticity": "monosemanticity",
    "clarity": "clarity",
    "polysemanticity": "polysemanticity",
    "semantic_redundancy": "redundancy",
}
_SCORES = {"iou": "IoU", "f1": "F1", "average_precision": "AP"}  # which should notice


def evidence_facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Of a set's entry in summary.json: fidelity, label tests, the untrained network, pairs of images and what directions fire on, as far as they were measured."""
    facts = {}
    if tests := entry.get("label_tests"):
        cells = (
            f"{what}: {', '.join(f'{word} {percent(tests[test][key])}' for key, word in _SCORES.items())}"
            for test, what in (("missing", "half of it removed"), ("extra", "as much added where it is not"))
        )
        facts["Label tests"] = f"share of directions whose score falls when their label is wrong; {'; '.join(cells)}"
    if untrained := entry.get("untrained"):
        scores = (
            f"{word} {number(untrained[key])}"
            for key, word in (("s1", "S1"), ("interpretable", "interpretable"), ("distinct", "distinct"))
        )
        facts["Untrained network"] = f"as many of its directions by the same method: {', '.join(scores)}"
    if rebuilt := entry.get("fidelity"):
        error = rebuilt["mae"]
        wrong = _weakness(error)
        facts["Logits rebuilt"] = (
            f"from the directions' contributions, class logits are off on average by {_judged(error)}"
            f"{f': {wrong}. Read explanations with care' if wrong else ''}"
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
    if found := entry.get("meaning"):
        measured = (
            f"{word} {number(entry[key])} (random directions {number(chance['random'])}, {number(chance['random_low'])} to "
            f"{number(chance['random_high'])}; {chance['beyond']} of {entry['directions']} beyond)"
            for key, word in _MEANING.items()
            if entry.get(key) is not None and (chance := found[key])
        )
        facts["Where it fires"] = (
            f"{', '.join(measured)}; {found['images']} images of each, in the embeddings of {found['encoder']}"
        )
    return facts


def fidelity_problem(entry: Mapping[str, Any]) -> str:
    """What is wrong with the logits that a set's contributions rebuild, in words; empty where nothing is, or nothing was measured."""
    if not (rebuilt := entry.get("fidelity")):
        return ""
    error = rebuilt["mae"]
    if not (wrong := _weakness(error)):
        return ""
    return f"rebuilt from these directions' contributions, class logits are off on average by {_judged(error)}: {wrong}"


def _weakness(error: Mapping[str, float]) -> str:
    """What is wrong with an error of the logits; empty where it is below all random sets and small enough."""
    if error["value"] > error["random_high"]:
        return "random directions rebuild the logits better than these"
    if error["value"] >= error["random_low"]:
        return "random directions rebuild the logits as well as these"
    if error["value"] >= POOR * error["constant"]:
        return f"better than random directions, but more than {100 * (1 - POOR):g} % would be good enough"
    return ""


def _judged(error: Mapping[str, float]) -> str:
    """An error with its place among those of random sets, and the share of the error without directions that it takes away."""
    value, low, high, constant = error["value"], error["random_low"], error["random_high"], error["constant"]
    place = "below all" if value < low else "above all" if value > high else "within those of"
    # rounded down: never both at the limit and not good enough
    share = max(0, math.floor(round(100 * (1 - value / constant), 6))) if constant > 0 else 0
    return (
        f"{number(value)}, {place} random sets ({number(low)} to {number(high)}; no directions: {number(constant)}); "
        f"{share} % of their variation is rebuilt"
    )
