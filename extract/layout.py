"""A layer's own tensor layout and ours: images x positions x channels, channel-last, row by row.

Every layer's output is converted once, at the hook, by the layer's ``LayerLayout``; ``from_npc`` is the exact inverse,
so that the head can be fed from stored activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from stores.errors import UsageError

Kind = Literal["nchw", "nhwc", "tokens", "vector"]
MAX_PREFIX = 16  # class and register tokens in front of the image's own


@dataclass(frozen=True)
class LayerLayout:
    """How one layer's output maps to (n, P, C), for one size of the network's input.

    Parameters
    ----------
    kind : {"nchw", "nhwc", "tokens", "vector"}
        (n, C, h, w); (n, h, w, C); (n, P, C); (n, C) with P = 1.
    grid : (int, int)
        Rows and columns of spatial positions. (1, 1) for a vector.
    channels : int
        C.
    prefix : int, default 0
        Leading positions that lie nowhere in the image (class and register tokens); only for tokens.
    """

    kind: Kind
    grid: tuple[int, int]
    channels: int
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"'kind' must be one of {', '.join(get_args(Kind))}, got {self.kind!r}.")
        if self.prefix and self.kind != "tokens":
            raise UsageError(f"'prefix' must be 0 for a layer laid out as {self.kind}, got {self.prefix}.")
        if self.kind == "vector" and self.grid != (1, 1):
            raise UsageError(f"'grid' must be (1, 1) for a vector, got {self.grid}.")
        if min(*self.grid, self.channels) < 1 or self.prefix < 0:
            raise UsageError(f"'grid' and 'channels' must be positive, got {self.grid} and {self.channels}.")

    @property
    def positions(self) -> int:
        """P: all positions of one image, the prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The layer's own shape for one image, without the batch dimension."""
        (h, w), c = self.grid, self.channels
        return {"nchw": (c, h, w), "nhwc": (h, w, c), "tokens": (self.positions, c), "vector": (c,)}[self.kind]

    def to_npc(self, t: torch.Tensor) -> torch.Tensor:
        """Rearrange the layer's own tensor (n, *shape) as (n, P, C); a view where possible, any dtype.

        Raises
        ------
        UsageError
            The tensor has another shape, say because the image has another size.
        """
        self._check(t, self.shape)
        if self.kind == "nchw":
            return t.flatten(2).transpose(1, 2)  # (n, C, h, w) -> (n, C, P) -> (n, P, C)
        return t.reshape(t.shape[0], self.positions, self.channels)

    def from_npc(self, x: torch.Tensor) -> torch.Tensor:
        """Rearrange (n, P, C) as the layer's own tensor (n, *shape), contiguous: the exact inverse of ``to_npc``.

        Raises
        ------
        UsageError
            The array has another shape.
        """
        self._check(x, (self.positions, self.channels))
        if self.kind == "nchw":
            x = x.transpose(1, 2)  # (n, P, C) -> (n, C, P)
        return x.reshape(x.shape[0], *self.shape).contiguous()

    def to_dict(self) -> dict[str, Any]:
        """Give the layout as a JSON-able dictionary."""
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerLayout:
        """Read what ``to_dict`` wrote."""
        h, w = data["grid"]
        return cls(data["kind"], (int(h), int(w)), int(data["channels"]), int(data["prefix"]))

    def _check(self, t: torch.Tensor, expected: tuple[int, ...]) -> None:
        if tuple(t.shape[1:]) != expected or t.ndim != len(expected) + 1:
            wanted = ", ".join(("n", *map(str, expected)))
            raise UsageError(
                f"The layer's tensor must be ({wanted}), got {tuple(t.shape)}; "
                "all images must reach the network in the size it was probed with."
            )


def token_grid(positions: int, image_size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Guess (prefix, grid) of a sequence of tokens from its length.

    The smallest prefix of 0..16 that leaves a grid with the aspect of the image (h, w): 197 tokens of a square image
    are 1 + 14 x 14. A sequence that fits no grid is one row of positions: (0, (1, positions)).
    """
    height, width = image_size
    for prefix in range(min(MAX_PREFIX + 1, positions)):
        spatial = positions - prefix
        h = max(1, round(math.sqrt(spatial * height / width)))
        if spatial % h == 0 and abs(h * width - (spatial // h) * height) < max(height, width):
            if height == width and h * h != spatial:
                continue
            return prefix, (h, spatial // h)
    return 0, (1, positions)


def infer_layout(
    shape: Sequence[int], image_size: tuple[int, int], other_shape: Sequence[int] | None = None
) -> LayerLayout:
    """Find the layout of a layer from the shape of its output, (n, ...).

    Parameters
    ----------
    shape : sequence of int
        The output's shape for images of ``image_size`` (h, w).
    other_shape : sequence of int, optional
        Its shape for images of another height and width: what changes is spatial. Without it, or where it does not
        tell, two equal neighbouring dimensions are taken for height and width, channels first before channels last.

    Raises
    ------
    UsageError
        The output has no dimension of channels, or more than two of space.
    """
    dims = tuple(int(d) for d in shape)
    if len(dims) == 2:
        return LayerLayout("vector", (1, 1), dims[1])
    if len(dims) == 3:
        prefix, grid = token_grid(dims[1], image_size)
        return LayerLayout("tokens", grid, dims[2], prefix)
    if len(dims) != 4:
        raise UsageError(
            f"The layer gives a tensor of shape {dims}; "
            "a layer must give (n, C, h, w), (n, h, w, C), (n, tokens, C) or (n, C)."
        )
    first = LayerLayout("nchw", (dims[2], dims[3]), dims[1])
    last = LayerLayout("nhwc", (dims[1], dims[2]), dims[3])
    if other_shape is not None and len(other_shape) == 4:
        changed = {i for i in (1, 2, 3) if other_shape[i] != dims[i]}
        if 3 in changed and 1 not in changed:
            return first
        if 1 in changed and 3 not in changed:
            return last
    return last if dims[1] == dims[2] != dims[3] else first
