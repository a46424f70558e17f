"""The command line, its commands as functions, records of runs, and the demo: the top floor, which knows all others."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import Explanation, correct, evaluate, explain, extract
    from pipeline.evaluation_result import EvaluationResult

PUBLIC = {
    **dict.fromkeys(("Explanation", "correct", "evaluate", "explain", "extract"), "pipeline.api"),
    "EvaluationResult": "pipeline.evaluation_result",
}
__all__ = ["EvaluationResult", "Explanation", "correct", "evaluate", "explain", "extract"]

# Waiting threads that spin steal the core from whoever has work: with one other busy process on a 2-core machine a
# fit was seen to take 2 to 15 times as long. Asleep they cost nothing measurable on an idle machine. This must be set
# before the first import of torch, numpy or faiss loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """Public names are loaded when asked for: commands start without them."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    if message := import_module("pipeline.name_clash").name_clash():
        raise ImportError(message)
    return getattr(import_module(PUBLIC[name]), name)
