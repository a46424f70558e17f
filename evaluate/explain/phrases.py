"""Explanations in words: names of concepts, sentences a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.number_format import signed

MOST = 4  # concepts named


@dataclass(frozen=True)
class Concept:
    """A direction: its label (may be empty), the label's category, ``name``: what it is called, ``short``: what it and others of the same label are called."""

    index: int
    label: str
    category: str
    name: str
    short: str


def contribution_words(
    concepts: Sequence[Concept], parts: np.ndarray, pooled: np.ndarray, residual: float = 0.0, shown: int = MOST
) -> str:
    """``watermark (12) +2.10, little sea (7) +0.43``: the largest contributions (I,), for or against; what no concept explains where it is more.

    ``pooled`` (I,): mean signal values; ``little`` says that an image has less of a concept than images have on average, which counts as well.
    """
    order = np.argsort(-np.abs(parts), kind="stable")[:shown].tolist()
    named = [f"{'little ' if pooled[i] < 0 else ''}{concepts[i].name} {signed(float(parts[i]))}" for i in order]
    if abs(residual) > np.abs(parts).max():
        named.append(f"and by no concept {signed(residual)}")
    return ", ".join(named)


def change_words(concepts: Sequence[Concept], delta: np.ndarray, spread: np.ndarray, shown: int = MOST) -> str:
    """``less barn, more sand``: changes (I,) of the same label and sign as one, the strongest first."""
    strength: dict[tuple[bool, str], float] = {}
    for i in np.flatnonzero(delta).tolist():
        key = bool(delta[i] > 0), concepts[i].short
        strength[key] = strength.get(key, 0.0) + float(abs(delta[i]) / spread[i])
    ordered = sorted(strength, key=lambda key: -strength[key])
    words = [f"{'more' if more else 'less'} {label}" for more, label in ordered[:shown]]
    left = len(ordered) - shown
    return ", ".join(words) + (f" and {left} smaller change{'' if left == 1 else 's'}" if left > 0 else "")
