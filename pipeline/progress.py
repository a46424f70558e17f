"""Progress on stderr: a live bar on a terminal, a line every 30 seconds otherwise, nothing when asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from stores.progress import Progress, silent

LINE_SECONDS = 30.0


class Lines:
    """One line a stage when it begins, and one every 30 seconds while it lasts: for log files of batch jobs."""

    def __init__(self) -> None:
        self.stage = ""
        self.begun = time.monotonic()
        self.shown = 0.0

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.begun = stage, now
        elif now - self.shown < LINE_SECONDS:
            return
        self.shown = now
        parts = [stage]
        if total:
            parts.append(f"{done} of {total} ({100 * done / total:.0f} %)")
            seconds = now - self.begun
            if done and seconds > 5:
                parts.append(f"about {format_seconds(seconds * (total - done) / done)} left")
        if note:
            parts.append(note)
        sys.stderr.write("  ".join(parts) + "\n")
        sys.stderr.flush()


class Bars:
    """A live bar per stage; finished stages stay on the screen."""

    def __init__(self, rich: RichProgress) -> None:
        self.rich = rich
        self.tasks: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.rich.add_task(stage, total=total, note="")
        self.rich.update(self.tasks[stage], completed=done, total=total, note=note)  # type: ignore[arg-type]


@contextmanager
def showing(quiet: bool) -> Iterator[Progress]:
    """Give the Progress that suits stderr for as long as the block lasts."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as rich:
            yield Bars(rich)
    else:
        yield Lines()


def format_seconds(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
