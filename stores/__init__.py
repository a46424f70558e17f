"""What is on disk between the stages: activations, directions, tables. Knows no network and no method."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stores.directions import Directions
    from stores.readers import LayerReader
    from stores.store import ActivationStore

PUBLIC = {
    "ActivationStore": "stores.store",
    "Directions": "stores.directions",
    "LayerReader": "stores.readers",
}
__all__ = ["ActivationStore", "Directions", "LayerReader"]


def __getattr__(name: str) -> Any:
    """Public names are loaded when asked for: commands start without them."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'stores' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
