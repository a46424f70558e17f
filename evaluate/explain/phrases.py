"""Explanations in words: names of concepts, sentences a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.number_format import signed

MOST = 4  # concepts named
OFTEN = 0.5  # share of refits: a direction that fewer of them contain may be chance


@dataclass(frozen=True)
class Concept:
    """A direction: its label (may be empty), the label's category, ``name``: what it is called, ``short``: what it and others of the same label
    are called, ``found_again``: the share of refits that contain it, None where there were none."""

    index: int
    label: str
    category: str
    name: str
    short: str
    found_again: float | None = None


def contribution_words(
    concepts: Sequence[Concept], parts: np.ndarray, pooled: np.ndarray, residual: float = 0.0, shown: int = MOST
) -> str:
    """``watermark (12) +2.10, little sea (7) +0.43``: the largest contributions (I,), for or against; first what no concept explains where it is more.

    ``pooled`` (I,): mean signal values; ``little`` says that an image has less of a concept than images have on average, which counts as well.
    """
    order = np.argsort(-np.abs(parts), kind="stable")[:shown].tolist()
    named = [f"{'little ' if pooled[i] < 0 else ''}{concepts[i].name} {signed(float(parts[i]))}" for i in order]
    if abs(residual) > np.abs(parts).max():
        named.insert(0, f"no concept {signed(residual)}")
    return ", ".join(named)


def cautions(
    concepts: Sequence[Concept],
    sums: Mapping[str, tuple[np.ndarray, float]],
    changed: Sequence[int] = (),
    shown: int = MOST,
) -> list[str]:
    """Why an explanation is to be read with care; empty where nothing is known.

    Parameters
    ----------
    concepts : the directions.
    sums : what is summed up -> their contributions (I,), and what none of them explains.
    changed : directions that a counterfactual changes.
    shown : how many of the largest contributions to each sum are looked at.
    """
    found = [
        f"the largest part of {what} ({signed(residual)}) is in none of these directions"
        for what, (parts, residual) in sums.items()
        if abs(residual) > np.abs(parts).max()
    ]
    largest = [i for parts, _ in sums.values() for i in np.argsort(-np.abs(parts), kind="stable")[:shown].tolist()]
    seen = dict.fromkeys([*largest, *changed])
    rare = [concepts[i].name for i in seen if (share := concepts[i].found_again) is not None and share < OFTEN]
    if rare:
        found.append(f"found again in fewer than half of the refits, perhaps chance: {', '.join(rare)}")
    return found


def change_words(concepts: Sequence[Concept], delta: np.ndarray, spread: np.ndarray, shown: int = MOST) -> str:
    """``less barn 1 (0), more sand (3, 7)``: changes (I,) of the same label and sign as one, the strongest first."""
    strength: dict[tuple[bool, str], float] = {}
    joined: dict[tuple[bool, str], list[Concept]] = {}
    for i in np.flatnonzero(delta).tolist():
        key = bool(delta[i] > 0), concepts[i].short
        strength[key] = strength.get(key, 0.0) + float(abs(delta[i]) / spread[i])
        joined.setdefault(key, []).append(concepts[i])
    ordered = sorted(strength, key=lambda key: -strength[key])
    words = [f"{'more' if key[0] else 'less'} {_together(joined[key])}" for key in ordered[:shown]]
    left = len(ordered) - shown
    return ", ".join(words) + (f" and {left} smaller change{'' if left == 1 else 's'}" if left > 0 else "")


def _together(concepts: Sequence[Concept]) -> str:
    """``barn 1 (0)``, or ``barn (0, 3)`` for several of one label."""
    if len(concepts) == 1:
        return concepts[0].name
    return f"{concepts[0].short} ({', '.join(str(one.index) for one in concepts)})"
