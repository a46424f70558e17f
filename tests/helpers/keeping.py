"""A fit that is killed: progress that raises when a stage has come to a step."""

from __future__ import annotations

from stores.progress import Progress


class Killed(Exception):
    """As if the process had gone."""


def killed_at(stage: str, step: int) -> Progress:
    """Progress that raises Killed at a stage's step."""

    def progress(name: str, done: int, total: int | None = None, note: str = "") -> None:
        if name == stage and done >= step:
            raise Killed

    return progress
