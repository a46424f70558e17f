"""A layer's own tensor layout and the common one: images x positions x channels, channel-last, row by row, clips step by step.

Every layer's output is converted once, at the hook; ``from_npc`` is the exact inverse, so that the head can be fed from
stored activations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from stores.errors import UsageError

Kind = Literal["nchw", "nhwc", "tokens", "ncp", "vector", "ncthw", "nthwc", "ntchw"]
TIMED = ("ncthw", "nthwc", "ntchw")
Size = tuple[int, ...]  # (h, w) of an image, (T, h, w) of a clip
MAX_PREFIX = 16  # class and register tokens in front of the image's own
_OPTION = re.compile(r"(ncthw|nthwc|ntchw|nchw|nhwc|vector)|(tokens|ncp)(?:\+(\d+))?(?::(?:(\d+)x)?(\d+)x(\d+))?")


@dataclass(frozen=True)
class LayerLayout:
    """How one layer's output maps to (n, P, C), for one size of the network's input.

    Parameters
    ----------
    kind : {"nchw", "nhwc", "tokens", "ncp", "vector", "ncthw", "nthwc", "ntchw"}
        (n, C, h, w); (n, h, w, C); (n, P, C); (n, C, P); (n, C) with P = 1; of clips (n, C, T, h, w); (n, T, h, w, C);
        (n, T, C, h, w).
    grid : (int, int)
        Rows and columns of spatial positions. (1, 1) for a vector.
    channels : int
        C.
    prefix : int, default 0
        Leading positions without a place in the image (class and register tokens); only for tokens.
    time : int, default 1
        T: steps in time, each with a grid of positions; of clips only.
    """

    kind: Kind
    grid: tuple[int, int]
    channels: int
    prefix: int = 0
    time: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"'kind' must be one of {', '.join(get_args(Kind))}, got {self.kind!r}.")
        no_prefix, no_grid = self.kind not in ("tokens", "ncp"), self.kind == "vector"
        if (no_prefix and self.prefix) or (no_grid and self.grid != (1, 1)):
            raise UsageError(f"A layer laid out as {self.kind} cannot have grid {self.grid} and prefix {self.prefix}.")
        if min(*self.grid, self.channels, self.time) < 1 or self.prefix < 0:
            raise UsageError(f"'grid' and 'channels' must be positive, got {self.grid} and {self.channels}.")

    @property
    def positions(self) -> int:
        """P: all positions of one image, the prefix included."""
        return self.prefix + self.time * self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The layer's own shape for one image, without the batch dimension."""
        t, (h, w), c, p = self.time, self.grid, self.channels, self.positions
        images = {"nchw": (c, h, w), "nhwc": (h, w, c), "tokens": (p, c), "ncp": (c, p), "vector": (c,)}
        return (images | {"ncthw": (c, t, h, w), "nthwc": (t, h, w, c), "ntchw": (t, c, h, w)})[self.kind]

    @property
    def option(self) -> str:
        """The layout as ``--layout`` takes it."""
        if self.kind not in ("tokens", "ncp"):
            return self.kind
        return f"{self.kind}+{self.prefix}:" + "x".join(map(str, self._axes))

    @property
    def _axes(self) -> tuple[int, ...]:
        return (self.time, *self.grid) if self.time > 1 or self.kind in TIMED else self.grid

    @property
    def shown_grid(self) -> str:
        """The grid for people: ``7 × 7``, or ``2 × 7 × 7`` with steps in time."""
        return " × ".join(map(str, self._axes))

    def __str__(self) -> str:
        tokens = f" after {self.prefix} class or register token{'s' * (self.prefix > 1)}" if self.prefix else ""
        return f"{self.kind}, {self.shown_grid} positions{tokens}, {self.channels} channels"

    def to_npc(self, t: torch.Tensor) -> torch.Tensor:
        """Rearrange the layer's own tensor (n, *shape) as (n, P, C); a view where possible. UsageError for other shapes."""
        self._check(t, self.shape)
        if self.kind in ("nchw", "ncp", "ncthw"):
            return t.flatten(2).transpose(1, 2)  # (n, C, h, w) -> (n, C, P) -> (n, P, C)
        if self.kind == "ntchw":
            t = t.movedim(2, 4)
        return t.reshape(t.shape[0], self.positions, self.channels)

    def from_npc(self, x: torch.Tensor) -> torch.Tensor:
        """Rearrange (n, P, C) as the layer's own tensor (n, *shape), contiguous. UsageError for other shapes."""
        self._check(x, (self.positions, self.channels))
        if self.kind == "ntchw":
            return x.reshape(x.shape[0], self.time, *self.grid, self.channels).movedim(4, 2).contiguous()
        if self.kind in ("nchw", "ncp", "ncthw"):
            x = x.transpose(1, 2)  # (n, P, C) -> (n, C, P)
        return x.reshape(x.shape[0], *self.shape).contiguous()

    def _check(self, t: torch.Tensor, expected: tuple[int, ...]) -> None:
        if tuple(t.shape[1:]) != expected or t.ndim != len(expected) + 1:
            wanted = ", ".join(("n", *map(str, expected)))
            raise UsageError(
                f"The layer's tensor must be ({wanted}), got {tuple(t.shape)}; "
                "all images must reach the network in the size it was probed with."
            )


def candidates(shape: Sequence[int], image_size: Size) -> list[LayerLayout]:
    """Give every layout that a layer's output of this shape, (n, ...), may have, the most common first.

    Of four dimensions either the first or the last of an image holds the channels. Of three, either; and the positions are
    0 to 16 class or register tokens and a grid of square patches of an image of ``image_size`` (h, w), or of each step of a clip
    (T, h, w). Of five, time and channels are the first two, in either order, or time is the first and channels are the last; there are no more steps than frames.
    """
    dims = tuple(int(d) for d in shape[1:])
    if len(dims) == 1:
        return [LayerLayout("vector", (1, 1), dims[0])]
    if len(dims) == 2:
        found = [
            LayerLayout("tokens", grid, dims[1], prefix, t) for prefix, grid, t in token_grids(dims[0], image_size)
        ]
        return found + [
            LayerLayout("ncp", grid, dims[0], prefix, t) for prefix, grid, t in token_grids(dims[1], image_size)
        ]
    if len(dims) == 3:
        return [LayerLayout("nchw", (dims[1], dims[2]), dims[0]), LayerLayout("nhwc", (dims[0], dims[1]), dims[2])]
    if len(dims) == 4 and len(image_size) == 3:
        a, b, c, d = dims
        found = [
            LayerLayout("ncthw", (c, d), a, time=b),
            LayerLayout("nthwc", (b, c), d, time=a),
            LayerLayout("ntchw", (c, d), b, time=a),
        ]
        return [layout for layout in found if layout.time <= image_size[0]]
    return []


def token_grids(positions: int, image_size: Size) -> list[tuple[int, tuple[int, int], int]]:
    """Give every prefix, (rows, columns) and number of steps in time of a sequence of tokens of square patches, the smallest prefix first.

    Where patches that fill the image exactly give a grid, no others are considered.
    """
    frames = image_size[0] if len(image_size) == 3 else 1
    exact = {frames // s for s in range(1, frames + 1) if frames % s == 0}
    for steps, grids in (
        (exact, exact_grids(image_size)),
        (exact | {-(-frames // s) for s in range(1, frames + 1)}, grids_of(image_size)),
    ):
        found = ((positions - t * h * w, (h, w), t) for t in steps for h, w in grids)
        if some := sorted(entry for entry in found if 0 <= entry[0] <= MAX_PREFIX):
            return some
    return []


def exact_grids(image_size: Size) -> set[tuple[int, int]]:
    """Give every (rows, columns) of square patches that fill an image (…, h, w)."""
    height, width = image_size[-2:]
    return {(height // s, width // s) for s in range(1, min(height, width) + 1) if height % s == width % s == 0}


def grids_of(image_size: Size) -> set[tuple[int, int]]:
    """Give every (rows, columns) of square patches of an image (…, h, w), the rest of the image cut off or padded."""
    height, width = image_size[-2:]
    sides = range(1, max(height, width) + 1)
    cut = {(height // s, width // s) for s in sides if s <= min(height, width)}
    return cut | {(-(-height // s), -(-width // s)) for s in sides}


def parse_layout(text: str, shape: Sequence[int], image_size: Size) -> LayerLayout:
    """Read a layout as the user writes it: ``nchw``, ``nhwc``, ``vector``, ``ncthw``, ``tokens+5:5x20``, ``ncp:8x8``.

    tokens and ncp take the number of class and register tokens and the grid of the others (of clips with the steps in time,
    ``tokens+1:8x7x7``); what is left out is found from
    the shape (n, ...) of the layer's output and the image's size. Raises UsageError for anything else.
    """
    match = _OPTION.fullmatch(text)
    if not match:
        raise UsageError(
            "--layout must be nchw, nhwc, vector, ncthw, nthwc, ntchw, or tokens or ncp with +PREFIX and :ROWSxCOLUMNS "
            f"(tokens+5:5x20; of clips tokens+1:8x7x7), got '{text}'."
        )
    kind, prefix, t, h, w = match[1] or match[2], match[3], int(match[4] or 1), match[5], match[6]
    possible = [layout for layout in candidates(shape, image_size) if layout.kind == kind]
    if h is not None and len(shape) == 3:
        grid, channels = (int(h), int(w)), int(shape[2 if kind == "tokens" else 1])
        count = int(shape[1 if kind == "tokens" else 2])
        tokens = int(prefix) if prefix else max(0, count - t * grid[0] * grid[1])
        given = LayerLayout(kind, grid, channels, tokens, t)  # type: ignore[arg-type]
        possible = [given] if given.positions == count else []
    elif prefix is not None:
        possible = [layout for layout in possible if layout.prefix == int(prefix)]
    if not possible:
        raise UsageError(
            f"--layout {text}: a layer that gives {tuple(shape)} for {'clips' if len(image_size) == 3 else 'images'} of "
            f"{' × '.join(map(str, image_size))} cannot have it."
        )
    return possible[0]
