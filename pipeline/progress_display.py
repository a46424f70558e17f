"""Progress on stderr: a live bar on a terminal, a line every 30 seconds otherwise, JSON in a log of such, nothing when asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pipeline.logging import emit, is_json, visible
from stores.progress import Progress, silent

LINE_SECONDS = 30.0
EVENT_SECONDS = 5.0


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
        sys.stderr.write(visible("  ".join(parts)) + "\n")
        sys.stderr.flush()


class Bars:
    """A live bar per stage; finished stages stay on the screen."""

    def __init__(self, rich: RichProgress) -> None:
        self.rich = rich
        self.tasks: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.rich.add_task(stage, total=total, note="")
        self.rich.update(self.tasks[stage], completed=done, total=total, note=visible(note))  # type: ignore[arg-type]


class Events:
    """An event when a stage begins, one every few seconds while it lasts, and one where it ends: for ``--log-json``.

    ``per_second`` is the mean since the stage began, from which the seconds that are left follow.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.stage = ""
        self.begun = 0.0
        self.first = self.done = 0
        self.told: dict[str, float] = {}  # when a stage was told of last
        self.left: set[str] = set()  # stages that others came after: such as take turns are not told of each time
        self.last: tuple[int, int | None, str] | None = None  # what was not told yet

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        now = time.monotonic()
        with self.lock:
            same = stage == self.stage and done >= self.done
            moved = not same or done > self.done
            if not same:  # another one, or once more the same
                self._leave(now)
                self.stage, self.begun, self.first = stage, now, done
            self.done = done
            ends = total is not None and done >= total and moved and stage not in self.left
            if ends or self._due(now):
                self._tell(done, total, note, now)
            elif moved:
                self.last = (done, total, note)

    def close(self) -> None:
        """Tell where the last stage ended."""
        with self.lock:
            self._leave(time.monotonic())

    def _due(self, now: float) -> bool:
        return now - self.told.get(self.stage, -EVENT_SECONDS) >= EVENT_SECONDS

    def _leave(self, now: float) -> None:
        if self.last is not None and (self.stage not in self.left or self._due(now)):
            self._tell(*self.last, now)
        self.left.add(self.stage)
        self.last = None

    def _tell(self, done: int, total: int | None, note: str, now: float) -> None:
        self.told[self.stage], self.last = now, None
        seconds = now - self.begun
        rate = (done - self.first) / seconds if done > self.first and seconds > 0 else None
        left = (total - done) / rate if rate and total else None
        text = f"{self.stage}: {done} of {total}" if total else self.stage
        emit(
            "progress", "info", f"{text}, {note}" if note else text, stage=self.stage, done=done, total=total,
            per_second=rate and float(f"{rate:.4g}"), seconds_left=left if left is None else round(left, 1),
        )  # fmt: skip


@contextmanager
def showing(quiet: bool) -> Iterator[Progress]:
    """Give the Progress that suits stderr for as long as the block lasts."""
    if quiet:
        yield silent
    elif is_json():
        events = Events()
        try:
            yield events
        finally:
            events.close()
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
