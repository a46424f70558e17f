"""Evidence for a set of directions that needs no labels, or tests them: parts of an evaluation."""

from __future__ import annotations

from typing import Any

from evaluate.explain.fidelity import surrogate_fidelity
from evaluate.number_format import number, percent
from pipeline.evaluation_parts import Findings, Subject

_SCORES = {"iou": "IoU", "f1": "F1", "average_precision": "AP"}  # which should notice


def measure_fidelity(subject: Subject, seed: int) -> Findings:
    """How well the directions' contributions rebuild the logits; nothing for heads other than pooling and an affine map."""
    found = surrogate_fidelity(
        subject.reader, subject.sets, seed=seed, device=subject.device, progress=subject.progress
    )
    return Findings({name: {"fidelity": one.summary()} for name, one in found.items()})


def evidence_lines(summary: dict[str, Any]) -> list[str]:
    """The evidence for each file, for people."""
    lines = []
    for name, entry in summary["directions"].items():
        if "label_tests" in entry:
            tests = entry["label_tests"].values()
            cells = (f"{word} {' | '.join(percent(test[key]) for test in tests)}" for key, word in _SCORES.items())
            lines.append(f"{name}: directions whose score falls when labels are missing | added: {', '.join(cells)}")
    return lines + [
        f"{name}: logits rebuilt from its directions with a mean absolute error of {_beside(entry['fidelity']['mae'])}, an earth mover's "
        f"distance of {_beside(entry['fidelity']['emd'])}"
        for name, entry in summary["directions"].items()
        if "fidelity" in entry
    ]


def _beside(error: dict[str, float]) -> str:
    low, high, constant = (number(error[key]) for key in ("random_low", "random_high", "constant"))
    return f"{number(error['value'])} (random directions {low} to {high}, none {constant})"
