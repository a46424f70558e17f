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


@dataclass(frozen=True)
class Spent:
    """Seconds, by the clock and of the processor."""

    wall: float
    processor: float

    def next_to(self, other: Spent) -> str:
        """Both, as a row shows them."""
        return f"{self.wall:.2f} and {other.wall:.2f} s; processor {self.processor:.2f} and {other.processor:.2f} s"


def best_in_turns(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 3) -> tuple[Spent, Spent]:
    """The least of both, run alternately after one run each to warm up: for a machine on which others work, too."""
    spent: tuple[list[Spent], list[Spent]] = ([], [])
    for turn in range(repeats + 1):
        for function, kept in zip((ours, theirs), spent, strict=True):
            wall, processor = time.perf_counter(), time.process_time()
            function()
            if turn:
                kept.append(Spent(time.perf_counter() - wall, time.process_time() - processor))
    a, b = (Spent(min(s.wall for s in kept), min(s.processor for s in kept)) for kept in spent)
    return a, b
