"""What a store knows of a layer: its name and how its positions lie on the image."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from stores.errors import UsageError


@dataclass(frozen=True)
class LayerSpec:
    """Shape of one layer's activations, (N, P, C) channel-last.

    Parameters
    ----------
    name : dotted module name, such as ``features.18``.
    grid : (height, width) of the positions on the image.
    channels : C.
    prefix : positions before the grid that belong to no place (class token, registers).
    stored_positions : positions kept per image when they are sampled, None for all of them.
    layout : the layer's own tensor layout, for the network that made it.
    """

    name: str
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    stored_positions: int | None = None
    layout: str = "nchw"

    @property
    def grid_positions(self) -> int:
        """Positions that lie on the image."""
        return self.grid[0] * self.grid[1]

    @property
    def all_positions(self) -> int:
        """Positions of the layer, those of the prefix included."""
        return self.prefix + self.grid_positions

    @property
    def positions(self) -> int:
        """P: positions stored per image."""
        return self.all_positions if self.stored_positions is None else self.stored_positions

    @property
    def sampled(self) -> bool:
        return self.stored_positions is not None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerSpec:
        return cls(**{**values, "grid": (int(values["grid"][0]), int(values["grid"][1]))})


def check_name(name: Any) -> None:
    """Raise UsageError unless a layer can be called so: its name is the name of one folder within the store's ``layers``."""
    if not isinstance(name, str) or name in ("", ".", "..", "zarr.json") or any(c in name for c in "/\\\0"):
        raise UsageError(f"A layer's name must be a dotted module name without slashes, got {str(name)[:60]!r}.")
    try:
        long = len(os.fsencode(name)) > 255
    except UnicodeEncodeError:
        raise UsageError(f"A layer's name must be text that a file can be called by, got {name[:60]!r}.") from None
    if long:
        raise UsageError(f"A layer's name must have at most 255 bytes, got {name[:60]!r}...")
