"""How long work reports where it stands; what is shown of it is the command line's business. And sizes in words."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a stage's name, the steps done and their total (None: unknown), and a short note."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """A Progress that shows nothing."""


def readable(size: float) -> str:
    """``1536`` -> ``1.5 kB``: powers of 1000, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
