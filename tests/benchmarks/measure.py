"""How things are timed here: taking turns, so that a busy moment hits both sides, and by the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TextIO

HEAD = "| what | against | ratio | better | measured |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """One line of the table; ``better`` says which way is good: "higher" or "lower"."""

    what: str
    against: str
    ratio: float
    better: str
    measured: str


def write(rows: Iterable[Row], out: TextIO) -> None:
    """Lines of a Markdown table, each as soon as it is there."""
    for row in rows:
        out.write(f"| {row.what} | {row.against} | {row.ratio:.2f} | {row.better} | {row.measured} |\n")
        out.flush()


def in_turns(
    ours: Callable[..., object],
    theirs: Callable[..., object],
    repeats: int = 5,
    prepare: Callable[[], Any] | None = None,
) -> tuple[float, float]:
    """Median seconds of both, run alternately after one run each to warm up.

    What ``prepare`` gives, each time before the clock is started, is handed to the function.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for function, kept in zip((ours, theirs), times, strict=True):
            given = () if prepare is None else (prepare(),)
            start = time.perf_counter()
            function(*given)
            if turn:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
