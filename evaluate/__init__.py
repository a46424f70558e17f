"""What directions stand for and what they do: labels, influence, explanations, corrections, pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.correct import Correction

__all__ = ["Correction"]


def __getattr__(name: str) -> Any:
    """Public names are loaded when asked for: commands start without them."""
    if name != "Correction":
        raise AttributeError(f"module 'evaluate' has no attribute {name!r}")
    from evaluate.correct import Correction

    return Correction
