"""Evidence for a set of directions that needs no labels, or tests them: parts of an evaluation."""

from __future__ import annotations

from typing import Any

from evaluate.evidence_facts import evidence_facts
from evaluate.explain.fidelity import surrogate_fidelity
from pipeline.evaluation_parts import Findings, Subject


def measure_fidelity(subject: Subject, seed: int) -> Findings:
    """How well the directions' contributions rebuild the logits; nothing for heads other than pooling and an affine map."""
    found = surrogate_fidelity(
        subject.reader, subject.sets, seed=seed, device=subject.device, progress=subject.progress
    )
    return Findings({name: {"fidelity": one.summary()} for name, one in found.items()})


def evidence_lines(summary: dict[str, Any]) -> list[str]:
    """The evidence for each file, for people."""
    facts = {name: evidence_facts(entry) for name, entry in summary["directions"].items()}
    return [
        f"{name}, {title.lower()}: {text}"
        for name, found in facts.items()
        for title, text in found.items()
        if title != "Untrained network"  # which has a row in the table of scores
    ]
