"""What pages have in common: the order of directions, colours of categories, the scale of bars, complaints of a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from evaluate.number_format import known
from evaluate.report.report_data import Direction, Mark

KNOWN = {"object": 0, "part": 1, "material": 2, "scene": 3, "texture": 4, "color": 5, "action": 6}
COLOURS = 10  # number of colours of categories in the style sheet; 0-6 are those of Broden
LISTED = 24  # directions named in a complaint before "and n more"


def ordered(directions: Iterable[Direction]) -> list[Direction]:
    """Interpretable directions first, then by IoU from high to low, then by index."""
    return sorted(
        directions, key=lambda d: (not d.interpretable, -d.iou if math.isfinite(d.iou) else math.inf, d.index)
    )


def category_colours(categories: Collection[str], colours: int = COLOURS) -> dict[str, int]:
    """A colour's number for each category: fixed ones for Broden's, the remaining in turn for others."""
    others = sorted(set(categories) - set(KNOWN) - {""})
    known = {name: number for name, number in KNOWN.items() if name in categories}
    free = [i for i in range(colours) if i not in known.values()]
    return known | {name: free[i % len(free)] for i, name in enumerate(others)}


def iou_scale(values: Iterable[float]) -> float:
    """The right end of every IoU bar: the largest IoU, rounded up to a tenth."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return min(max(math.ceil(largest * 10 - 1e-9), 1) / 10, 1.0)


def complaints(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a diagnosis complains of: a text, and the groups of directions it is about (at most LISTED)."""
    found = []
    for key, noun, one, many in (
        ("dead", "direction", "hardly ever fires", "hardly ever fire"),
        ("duplicates", "pair", "is almost the same filter", "are almost the same filter"),
        ("overfull", "direction", "fires at most positions", "fire at most positions"),
    ):
        groups: Sequence[Any] = diagnosis.get(key) or ()
        groups = [[int(i) for i in group] if isinstance(group, list | tuple) else [int(group)] for group in groups]
        if count := len(groups):
            text = f"{count} {noun} {one}" if count == 1 else f"{count} {noun}s {many}"
            found.append({"text": text, "groups": groups[:LISTED], "more": max(count - LISTED, 0)})
    return found


def marks(diagnosis: Mapping[str, Any], twins: Sequence[Sequence[int]] = ()) -> dict[int, list[Mark]]:
    """What a diagnosis says of single directions; of duplicates, and of ``twins``, whose signal vectors are nearly parallel, it is said of both."""
    found: dict[int, list[Mark]] = {}
    for key in ("dead", "overfull"):
        for index in diagnosis.get(key) or ():
            found.setdefault(int(index), []).append(Mark(key))
    for text, pairs in (("duplicate of", diagnosis.get("duplicates") or ()), ("signal vector like", twins)):
        for pair in pairs:
            a, b = int(pair[0]), int(pair[1])
            found.setdefault(a, []).append(Mark(text, b))
            found.setdefault(b, []).append(Mark(text, a))
    return found


def scalars(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """The single numbers of a diagnosis."""

    return {key: value for key, value in diagnosis.items() if known(value)}
