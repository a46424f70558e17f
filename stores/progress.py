"""How long work reports where it stands; what is shown of it is the command line's business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a stage's name, the steps done and their total (None: unknown), and a short note."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """A Progress that shows nothing."""
