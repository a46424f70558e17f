"""Which of a layer's values belong to which part of an image, by what the layer does to a few drawn images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from extract.probe import run_with_hooks
from extract.tensor_layout import LayerLayout, Size, candidates, exact_grids, grids_of, parse_layout
from stores.errors import UsageError

_CENTRES = [
    (y, x) for y in (1 / 6, 1 / 2, 5 / 6) for x in (1 / 6, 1 / 2, 5 / 6)
]  # of changed patches, of height and width
_PLACES = (0, 2, 4, 6)  # of these, in clips, each in one third of the clip: a pass over a clip is long
_TIMES = (1 / 6, 1 / 2, 5 / 6, 1 / 2)  # the centres of those thirds
_SURE, _AHEAD, _LOST = 0.7, 0.25, 0.5  # shares of patches: enough to decide, by how much, and too few to believe
_SAID = "from what the model says of its tokens"
_CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.MultiheadAttention)
Box = tuple[slice, slice, slice]  # steps, rows, columns


@dataclass(frozen=True)
class FoundLayout:
    """A layer's layout and what decided it; ``seen`` is the share of changed patches that changed the position they cover
    most, None where there is one position; ``doubt`` is what to warn of."""

    layout: LayerLayout
    how: str
    seen: float | None = None
    doubt: str = ""


class Share(NamedTuple):
    """The share of changed patches that show at their position, how positions are ordered if more do in that order, and the
    share that show at their step in time."""

    own: float | None
    turned: str = ""
    in_time: float | None = None


class LayoutProbe:
    """Finds the layouts of layers for the size of the given images (n >= 2, C, h, w) or clips (n >= 2, C, T, h, w).

    Evidence, strongest first: what the user asked for (``--layout``); what the layer's type or the model says of itself; which
    dimensions change with the image's size, where the model takes another; and where the layer's values change when one patch
    of the image does, or one third of the clip. The last also checks what the others say.

    Attributes
    ----------
    shapes : {layer: shape of its output, with the images it was run on; None where it is no tensor}, of layers that ran.
    shares : {layer: {layout that it may have: Share}}
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], images: torch.Tensor) -> None:
        self.module, self.images = module, images
        self.size: Size = tuple(map(int, images.shape[2:]))
        timed = len(self.size) == 3
        self._centres = [_CENTRES[k] for k in _PLACES] if timed else _CENTRES
        times = [_around(t, self.size[0], 1 / 6) for t in _TIMES] if timed else [slice(None)] * len(_CENTRES)
        boxes: list[Box] = [
            (steps, _around(y, self.size[-2], 1 / 12), _around(x, self.size[-1], 1 / 12))
            for steps, (y, x) in zip(times, self._centres, strict=True)
        ]
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.other_shapes: dict[str, tuple[int, ...] | None] = {}
        self.shares: dict[str, dict[LayerLayout, Share]] = {}
        self._offsets: dict[Size, dict[tuple[str, LayerLayout], int]] = {}

        def note_other(name: str, output: Any) -> None:
            self.other_shapes[name] = _shape(output)

        def note(name: str, output: Any) -> None:
            shape = self.shapes[name] = _shape(output)
            if shape and len(shape) > 1 and shape[0] == 1 + len(boxes):
                found = {layout: self._share(output.float(), layout) for layout in candidates(shape, self.size)}
                self.shares[name] = found

        step = 32 if min(self.size[-2:]) >= 96 else 8
        self.other_size: Size = (*self.size[:-2], self.size[-2] - step, self.size[-1] + step)
        if self.other_size[-2] > 0:
            with suppress(UsageError):  # the model takes one size only
                run_with_hooks(module, layers, images.new_zeros(1, images.shape[1], *self.other_size), note_other)
        run_with_hooks(module, layers, _with_changes(images, boxes), note)

    def find(self, name: str, asked: str | None = None) -> FoundLayout | str:
        """Give the layout of one of the layers, or the reason why it has none; ``asked`` is what ``--layout`` says."""
        shape = self.shapes.get(name)
        if not shape or name not in self.shares:
            return (
                f"Layer '{name}' must give one tensor with the images as first dimension; it gives "
                f"{'none' if shape is None else 'something else'}. --layer ? lists those that do."
            )
        if asked:
            return self._checked(name, parse_layout(asked, self._shown(name), self.size), "--layout")
        shares = self.shares[name]
        kept, how = list(shares), ""
        for source, agrees in (
            ("from the layer's type", partial(_type_says, self.module.get_submodule(name))),
            (_SAID, partial(_model_says, self.module)),
            ("from a second image size", self._size_says(name)),
        ):
            agreed = [layout for layout in kept if agrees(layout)]
            if agreed and len(agreed) < len(kept):
                kept, how = agreed, source
        if len(kept) > 1:
            kept, how = self._by_patches(name, kept)
        if len(kept) != 1 or (how != _SAID and not self._is_likely(kept[0], shares[kept[0]])):
            return self._undecided(name, kept if len(kept) > 1 else [])
        if offset := self._token_offset(name, kept[0]):
            return (
                f"Layer '{name}' gives a tensor of shape {self._shown(name)}, read as {kept[0]}; but a change of one patch shows "
                f"{abs(offset)} tokens {'before' if offset < 0 else 'after'} its place. Tokens that are no positions must be in front: "
                "let the model put them there, or choose a layer without them."
            )
        return self._checked(name, kept[0], how or "from its shape")

    def _share(self, output: torch.Tensor, layout: LayerLayout) -> Share:
        """How well changes of the image, and of the clip in time, show where a layout has them."""
        (h, w), t = layout.grid, layout.time
        x = layout.to_npc(output)
        moved = (x[1:] - x[:1])[:, layout.prefix :].norm(dim=2).reshape(-1, t, h * w)
        in_time = _hits(moved.norm(dim=2), [int(at * t) for at in _TIMES]) if t > 1 else None
        if h * w < 4:
            return Share(None, in_time=in_time)
        moved = moved.norm(dim=1)  # (J, h * w)

        def hits(cell_of: Callable[[float, float], int]) -> float | None:
            return _hits(moved, [cell_of(y, x) for y, x in self._centres])

        straight = hits(lambda y, x: int(y * h) * w + int(x * w))
        turned = {
            "column by column": hits(lambda y, x: int(x * w) * h + int(y * h)),
            "columns and rows exchanged": hits(lambda y, x: int(x * h) * w + int(y * w)),
            "mirrored left to right": hits(lambda y, x: int(y * h) * w + w - 1 - int(x * w)),
            "mirrored top to bottom": hits(lambda y, x: (h - 1 - int(y * h)) * w + int(x * w)),
            "upside down": hits(lambda y, x: (h - 1 - int(y * h)) * w + w - 1 - int(x * w)),
        }
        best = max(turned, key=lambda name: turned[name] or 0)
        clear = straight is not None and (turned[best] or 0) >= max(_SURE, straight + _AHEAD)
        return Share(straight, best if clear else "", in_time)

    def _shown(self, name: str) -> tuple[int, ...]:
        """A layer's shape for the images that were given."""
        return (len(self.images), *(self.shapes[name] or ())[1:])

    def _size_says(self, name: str) -> Callable[[LayerLayout], bool]:
        """Whether a layer's shape for another size of the image agrees: channels and prefix are the same, the grid is not."""
        other = self.other_shapes.get(name)
        there = candidates(other, self.other_size) if other else []
        grids = {(layout.kind, layout.channels, layout.prefix, layout.time): layout.grid for layout in there}

        def agrees(layout: LayerLayout) -> bool:
            grid = grids.get((layout.kind, layout.channels, layout.prefix, layout.time))
            return grid is not None and (grid != layout.grid or len(self.shares[name]) == 1)

        return agrees

    def _by_patches(self, name: str, kept: list[LayerLayout]) -> tuple[list[LayerLayout], str]:
        """The layout whose positions the changed patches changed; else what the model says; else the image's aspect."""
        shares = self.shares[name]
        own = {layout: (shares[layout].own or 0) for layout in kept}
        by_kind = {layout.kind: layout for layout in kept}
        if "ncthw" in by_kind and (other := by_kind.get("ntchw")):  # alike but for time
            clear = (shares[other].in_time or 0) >= (shares[by_kind["ncthw"]].in_time or 0) + _AHEAD
            kept = [layout for layout in kept if layout.kind != ("ncthw" if clear else "ntchw")]
            own = {layout: own[layout] for layout in kept}
        ranked = sorted(kept, key=lambda layout: -own[layout])
        if len(ranked) == 1:
            return ranked, "by changing patches of the image"
        if own[ranked[0]] >= _SURE and own[ranked[0]] - own[ranked[1]] >= _AHEAD:
            return ranked[:1], "by changing patches of the image"
        said = getattr(self.module, "output_fmt", None)
        named = [layout for layout in kept if layout.kind == str(getattr(said, "value", said)).lower()]
        if len(named) == 1:
            return named, "from what the model says of its output"
        alike = [layout for layout in kept if layout.grid in grids_of(self.size)]
        return (alike, "from the image's aspect") if len(alike) == 1 else (kept, "")

    def _is_likely(self, layout: LayerLayout, share: Share) -> bool:
        """Whether tokens are more than a number that fits: changed patches show in place, the more so for unusual grids."""
        if layout.kind not in ("tokens", "ncp") or share.own is None:
            return True
        return share.own >= (_SURE if layout.prefix > 2 or layout.grid not in exact_grids(self.size) else _LOST)

    def _token_offset(self, name: str, layout: LayerLayout) -> int:
        """How many tokens from where it should a change of exactly one patch shows, if for four patches alike; else 0."""
        if layout.kind not in ("tokens", "ncp"):
            return 0
        if layout.grid not in self._offsets:
            self._offsets[layout.grid] = self._token_offsets(layout.grid)
        return self._offsets[layout.grid].get((name, layout), 0)

    def _token_offsets(self, grid: tuple[int, int]) -> dict[tuple[str, LayerLayout], int]:
        """The same of all layers and of their layouts with this grid, in one pass."""
        (h, w), (height, width) = grid, self.size[-2:]
        cells = {(h // 4, w // 3), (h // 3, 2 * w // 3), (2 * h // 3, w // 4), (3 * h // 4, 3 * w // 4)}
        if len(cells) < 4:
            return {}
        boxes = [
            (slice(None), slice(r * height // h, (r + 1) * height // h), slice(c * width // w, (c + 1) * width // w))
            for r, c in cells
        ]
        found: dict[tuple[str, LayerLayout], int] = {}

        def note(name: str, output: Any) -> None:
            for layout in self.shares[name]:
                if layout.grid != grid or tuple(output.shape[1:]) != layout.shape:
                    continue
                x = layout.to_npc(output.float())
                moved = (x[1:] - x[:1]).norm(dim=2)  # (4, P)
                peak = (moved / (moved.mean(0) + 1e-9 * moved.max())).argmax(1).tolist()
                offsets = {at - layout.prefix - r * w - c for at, (r, c) in zip(peak, cells, strict=True)}
                if layout.time > 1:  # the same of whatever step
                    offsets = {(offset + h * w // 2) % (h * w) - h * w // 2 for offset in offsets}
                found[name, layout] = offsets.pop() if len(offsets) == 1 else 0

        run_with_hooks(self.module, self.shares, _with_changes(self.images, boxes), note)
        return found

    def _checked(self, name: str, taken: LayerLayout, how: str) -> FoundLayout | str:
        """Compare what was decided with the changed patches."""
        share = self.shares[name].get(taken, Share(None))
        if share.own is None or share.own >= _LOST:
            return FoundLayout(taken, how, share.own)
        if share.turned:
            return (
                f"Layer '{name}' gives a tensor of shape {self._shown(name)}, read as {taken}; but its positions are {share.turned}: "
                "masks would be placed elsewhere. Turn them in a layer of the model's own, and choose that."
            )
        better = [layout for layout, other in self.shares[name].items() if (other.own or 0) >= _SURE]
        if better and how != "--layout":
            return self._undecided(name, [taken, *better])
        doubt = (
            f"layer '{name}': a changed patch of the image changes the position it covers most in {share.own:.0%} of trials; where a "
            "concept is may not be where it is shown"
        )
        return FoundLayout(taken, how, share.own, doubt)

    def _undecided(self, name: str, possible: Sequence[LayerLayout]) -> str:
        """The message for a layer whose layout cannot be determined."""
        if possible:
            others = " or others" if len(possible) > 3 else " or neither"
            fits = f"may be {' or '.join(str(layout) for layout in possible[:3])}{others}"
            ask = f"Say which by --layout, such as --layout '{name}={possible[0].option}'"
        else:
            several = (
                "(n, C, h, w), (n, h, w, C), (n, C)"
                if len(self.size) == 2
                else "(n, C, T, h, w), (n, T, h, w, C), (n, C)"
            )
            fits = f"is none of {several}, or (n, tokens, C) with a grid of patches behind 0 to 16 other tokens"
            ask = f"--layout '{name}=tokens+PREFIX:ROWSxCOLUMNS' names the grid of tokens"
            ask = ask if len(self._shown(name)) == 3 else "--layer ? lists others"
        return f"Layer '{name}' gives a tensor of shape {self._shown(name)}: it {fits}. {ask}."


def _type_says(layer: nn.Module, layout: LayerLayout) -> bool:
    """Whether the layer's type has its channels there; its very type: torchvision's LayerNorm2d has them first."""
    if type(layer) in _CHANNELS_FIRST:
        return layout.kind in ("nchw", "ncp", "ncthw")
    if type(layer) in _CHANNELS_LAST:
        return layout.kind in ("nhwc", "nthwc", "tokens")
    said = getattr(layer, "output_fmt", None)
    return isinstance(said, str) and layout.kind == said.lower()


def _model_says(module: nn.Module, layout: LayerLayout) -> bool:
    """Whether the model's class and register tokens and grid of patches, as timm and torchvision have them, are these."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    prefix = getattr(module, "num_prefix_tokens", None)
    if prefix is None and isinstance(getattr(module, "class_token", None), nn.Parameter):
        prefix = 1
    if layout.kind not in ("tokens", "ncp") or (prefix is None and grid is None):
        return False
    return (prefix is None or layout.prefix == int(prefix)) and (grid is None or layout.grid == tuple(grid))


def _shape(output: Any) -> tuple[int, ...] | None:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else None


def _around(centre: float, size: int, half: float) -> slice:
    """The pixels around a centre, both as fractions of an axis; at least one."""
    start = round((centre - half) * size)
    return slice(start, max(start + 1, round((centre + half) * size)))


def _with_changes(images: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
    """(1 + J, C, …, h, w): the first image, and copies of it with one box of the second image each."""
    batch = images[:1].repeat(1 + len(boxes), *[1] * (images.ndim - 1))
    for k, box in enumerate(boxes, 1):
        part = (slice(None), *box[3 - (images.ndim - 2) :])
        batch[k][part] = images[1][part]
    return batch


def _hits(moved: torch.Tensor, cells: Sequence[int]) -> float | None:
    """The share of changes that move the position at their cell more than any other change does. ``moved``: (J, P)."""
    distinct = [k for k, cell in enumerate(cells) if cells.index(cell) == k]
    if len(distinct) < 3:
        return None
    own = moved[distinct][:, [cells[k] for k in distinct]]  # (j, the cell of j')
    right = (own.argmax(0) == torch.arange(len(distinct), device=own.device)) & (own.amax(0) > 0)
    return float(right.float().mean())
