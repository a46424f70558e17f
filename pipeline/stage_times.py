"""Where the time of a run goes, from its progress only: seconds, steps and steps a second of every stage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock
from typing import Any


@dataclass
class Stage:
    """One stage: seconds that it took, where it stands, and steps seen done in ``span`` seconds of it."""

    name: str
    seconds: float = 0.0
    done: int = 0
    total: int | None = None
    steps: int = 0
    span: float = 0.0

    @property
    def per_second(self) -> float | None:
        """Steps a second between two looks at it; of a stage that was only seen ended, over all of it."""
        if self.steps and self.span > 0:
            return self.steps / self.span
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    def record(self) -> dict[str, Any]:
        found = {"stage": self.name, "seconds": round(self.seconds, 2), "done": self.done, "total": self.total}
        rate = self.per_second
        return {**found, "per_second": float(f"{rate:.4g}")} if rate else found


class Stages:
    """The stages of one run, in the order in which they began; called as a Progress.

    The time between two calls is that of the stage which the later one is about, for work is reported when it is done. Only
    where that one is merely announced, or the one before was not seen to do anything yet, it is that of the one before.
    """

    def __init__(self) -> None:
        self.found: dict[str, Stage] = {}
        self.current: Stage | None = None
        self.at = time.monotonic()
        self.lock = Lock()

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        now = time.monotonic()
        with self.lock:
            gap, before = now - self.at, self.current
            mine = self.found.get(stage) or self.found.setdefault(stage, Stage(stage))
            if mine is before and done >= mine.done:
                mine.seconds += gap
                mine.span += gap
                mine.steps += done - mine.done
            elif before is not None and (done == 0 or before.done == 0):
                before.seconds += gap
            elif done:
                mine.seconds += gap
            mine.done, mine.total = done, total
            self.current, self.at = mine, now

    @property
    def worked(self) -> bool:
        """Whether anything was seen done."""
        return any(stage.done for stage in self.found.values())

    def steps(self, stage: str) -> int:
        """Steps of a stage that were done while it was looked at."""
        return self.found[stage].steps if stage in self.found else 0

    def rate(self, stage: str) -> float | None:
        """Steps a second of a stage, None where it is not known."""
        return self.found[stage].per_second if stage in self.found else None

    def record(self) -> list[dict[str, Any]]:
        return [stage.record() for stage in self.found.values()]

    def reached(self) -> str:
        """Where it stands, for people: ``extraction, 512 of 1200``."""
        if self.current is None:
            return ""
        at = self.current
        return f"{at.name}, {at.done} of {at.total}" if at.total else at.name
