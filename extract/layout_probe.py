"""Which of a layer's values belong to which part of an image, by what the layer does to a few drawn images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from extract.probe import run_with_hooks
from extract.tensor_layout import LayerLayout, candidates, exact_grids, grids_of, parse_layout
from stores.errors import UsageError

_CENTRES = [
    (y, x) for y in (1 / 6, 1 / 2, 5 / 6) for x in (1 / 6, 1 / 2, 5 / 6)
]  # of changed patches, of height and width
_SURE, _AHEAD, _LOST = 0.7, 0.25, 0.5  # shares of patches: enough to decide, by how much, and too few to believe
_SAID = "from what the model says of its tokens"
_CHANNELS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.MultiheadAttention)
Size = tuple[int, int]


@dataclass(frozen=True)
class FoundLayout:
    """A layer's layout and what decided it; ``seen`` is the share of changed patches that changed the position they cover
    most, None where there is one position; ``doubt`` is what to warn of."""

    layout: LayerLayout
    how: str
    seen: float | None = None
    doubt: str = ""


class Share(NamedTuple):
    """The share of changed patches that show at their position, and how positions are ordered if more do in that order."""

    own: float | None
    turned: str = ""


def find_layouts(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor, *, asked: Mapping[str, str] | None = None
) -> dict[str, FoundLayout | str]:
    """Find the layouts of layers for the size of the given images (n >= 2, C, h, w).

    Evidence, strongest first: what the user asked for (``--layout``); what the layer's type or the model says of itself; which
    dimensions change with the image's size, where the model takes another; and where the layer's values change when one patch
    of the image does. The last also checks what the others say.

    Returns
    -------
    dict of {layer: FoundLayout, or the reason why it has none}
    """
    size = (int(images.shape[2]), int(images.shape[3]))
    shapes, shares = _patch_responses(module, layers, images)
    other_size, other = _other_size(module, layers, images)
    found: dict[str, FoundLayout | str] = {}
    for name in layers:
        shape = shapes.get(name)
        if not shape:
            found[name] = (
                f"Layer '{name}' must give one tensor with the images as first dimension; it gives "
                f"{'none' if shape is None else 'something else'}. --layer ? lists those that do."
            )
        elif asked and name in asked:
            found[name] = _checked(name, shape, shares[name], parse_layout(asked[name], shape, size), "--layout")
        else:
            evidence: dict[str, Callable[[LayerLayout], bool]] = {
                "from the layer's type": partial(_type_says, module.get_submodule(name)),
                _SAID: partial(_model_says, module),
                "from a second image size": _by_size(list(shares[name]), other_size, other.get(name)),
            }
            found[name] = _decide(module, name, shape, shares[name], evidence, images)
    return found


def _decide(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    shares: Mapping[LayerLayout, Share],
    evidence: Mapping[str, Callable[[LayerLayout], bool]],
    images: torch.Tensor,
) -> FoundLayout | str:
    """Find the one layout that all evidence leaves."""
    size = (int(images.shape[2]), int(images.shape[3]))
    kept, how = list(shares), ""
    for source, agrees in evidence.items():
        agreed = [layout for layout in kept if agrees(layout)]
        if agreed and len(agreed) < len(kept):
            kept, how = agreed, source
    if len(kept) > 1:
        kept, how = _by_patches(module, kept, shares, size)
    if len(kept) != 1 or (how != _SAID and not _is_likely(kept[0], shares[kept[0]], size)):
        return _undecided(name, shape, kept if len(kept) > 1 else [])
    if offset := _token_offset(module, name, kept[0], images):
        return (
            f"Layer '{name}' gives a tensor of shape {shape}, read as {kept[0]}; but a change of one patch shows {abs(offset)} "
            f"tokens {'before' if offset < 0 else 'after'} its place. Tokens that are no positions must be in front: let the model "
            "put them there, or choose a layer without them."
        )
    return _checked(name, shape, shares, kept[0], how or "from its shape")


def _type_says(layer: nn.Module, layout: LayerLayout) -> bool:
    """Whether the layer's type has its channels there; its very type: torchvision's LayerNorm2d has them first."""
    if type(layer) in _CHANNELS_FIRST:
        return layout.kind in ("nchw", "ncp")
    if type(layer) in _CHANNELS_LAST:
        return layout.kind in ("nhwc", "tokens")
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


def _by_size(
    possible: Sequence[LayerLayout], other_size: Size, other: tuple[int, ...] | None
) -> Callable[[LayerLayout], bool]:
    """Whether a layer's shape for another size of the image agrees: channels and prefix are the same, the grid is not."""
    there = candidates(other, other_size) if other else []
    grids = {(layout.kind, layout.channels, layout.prefix): layout.grid for layout in there}

    def agrees(layout: LayerLayout) -> bool:
        grid = grids.get((layout.kind, layout.channels, layout.prefix))
        return grid is not None and (grid != layout.grid or len(possible) == 1)

    return agrees


def _by_patches(
    module: nn.Module, kept: list[LayerLayout], shares: Mapping[LayerLayout, Share], size: Size
) -> tuple[list[LayerLayout], str]:
    """The layout whose positions the changed patches changed; else the one that the model names; else the one of the image's aspect."""
    ranked = sorted(kept, key=lambda layout: -(shares[layout].own or 0))
    best, second = (shares[layout].own or 0 for layout in ranked[:2])
    if best >= _SURE and best - second >= _AHEAD:
        return ranked[:1], "by changing patches of the image"
    said = getattr(module, "output_fmt", None)
    named = [layout for layout in kept if layout.kind == str(getattr(said, "value", said)).lower()]
    if len(named) == 1:
        return named, "from what the model says of its output"
    alike = [layout for layout in kept if layout.grid in grids_of(size)]
    return (alike, "from the image's aspect") if len(alike) == 1 else (kept, "")


def _is_likely(layout: LayerLayout, share: Share, size: Size) -> bool:
    """Whether tokens are more than a number that fits: changed patches show in their places, the more so for unusual grids."""
    if layout.kind not in ("tokens", "ncp") or share.own is None:
        return True
    return share.own >= (_SURE if layout.prefix > 2 or layout.grid not in exact_grids(size) else _LOST)


def _token_offset(module: nn.Module, name: str, layout: LayerLayout, images: torch.Tensor) -> int:
    """How many tokens from where it should a change of exactly one patch shows, if for four patches alike; else 0."""
    (h, w), (height, width) = layout.grid, images.shape[2:]
    cells = {(h // 4, w // 3), (h // 3, 2 * w // 3), (2 * h // 3, w // 4), (3 * h // 4, 3 * w // 4)}
    if layout.kind not in ("tokens", "ncp") or len(cells) < 4:
        return 0
    boxes = [(r * height // h, (r + 1) * height // h, c * width // w, (c + 1) * width // w) for r, c in cells]
    offsets: set[int] = set()

    def note(_name: str, output: Any) -> None:
        x = layout.to_npc(output.float())
        moved = (x[1:] - x[:1]).norm(dim=2)  # (4, P)
        peak = (moved / (moved.mean(0) + 1e-9 * moved.max())).argmax(1).tolist()
        offsets.update(at - layout.prefix - r * w - c for at, (r, c) in zip(peak, cells, strict=True))

    run_with_hooks(module, [name], _with_changed_patches(images, boxes), note)
    return offsets.pop() if len(offsets) == 1 else 0


def _checked(
    name: str, shape: tuple[int, ...], shares: Mapping[LayerLayout, Share], taken: LayerLayout, how: str
) -> FoundLayout | str:
    """Compare what was decided with the changed patches."""
    share = shares.get(taken, Share(None))
    if share.own is None or share.own >= _LOST:
        return FoundLayout(taken, how, share.own)
    if share.turned:
        return (
            f"Layer '{name}' gives a tensor of shape {shape}, read as {taken}; but its positions are {share.turned}: masks would be placed "
            "elsewhere. Turn them in a layer of the model's own, and choose that."
        )
    better = [layout for layout, other in shares.items() if other.own is not None and other.own >= _SURE]
    if better and how != "--layout":
        return _undecided(name, shape, [taken, *better])
    doubt = (
        f"layer '{name}': a changed patch of the image changes the position it covers most in {share.own:.0%} of trials; where a concept "
        "is may not be where it is shown"
    )
    return FoundLayout(taken, how, share.own, doubt)


def _undecided(name: str, shape: tuple[int, ...], possible: Sequence[LayerLayout]) -> str:
    """The message for a layer whose layout cannot be determined."""
    if possible:
        others = " or others" if len(possible) > 3 else " or neither"
        fits = f"may be {' or '.join(str(layout) for layout in possible[:3])}{others}"
        ask = f"Say which by --layout, such as --layout '{name}={possible[0].option}'"
    else:
        fits = "is none of (n, C, h, w), (n, h, w, C), (n, C), or (n, tokens, C) with a grid of patches behind 0 to 16 other tokens"
        ask = f"--layout '{name}=tokens+PREFIX:ROWSxCOLUMNS' names the grid of tokens"
        ask = ask if len(shape) == 3 else "--layer ? lists others"
    return f"Layer '{name}' gives a tensor of shape {tuple(shape)}: it {fits}. {ask}."


def _other_size(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor
) -> tuple[Size, dict[str, tuple[int, ...] | None]]:
    """Another size (h, w) and the layers' shapes for it; no shapes where the model does not take it."""
    height, width = images.shape[2:]
    step = 32 if min(height, width) >= 96 else 8
    size = (height - step, width + step)
    try:
        return size, output_shapes(module, layers, images.new_zeros(1, images.shape[1], *size)) if size[0] > 0 else {}
    except UsageError:
        return size, {}


def output_shapes(module: nn.Module, names: Sequence[str], images: torch.Tensor) -> dict[str, tuple[int, ...] | None]:
    """Run a module once: the shape of each layer's output that ran, None where it is no tensor."""
    shapes: dict[str, tuple[int, ...] | None] = {}

    def note(name: str, output: Any) -> None:
        shapes[name] = tuple(output.shape) if isinstance(output, torch.Tensor) else None

    run_with_hooks(module, names, images, note)
    return shapes


def _with_changed_patches(images: torch.Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
    """(1 + J, C, h, w): the first image, and copies of it with one box (top, bottom, left, right) of the second image each."""
    batch = images[:1].repeat(1 + len(boxes), 1, 1, 1)
    for k, (top, bottom, left, right) in enumerate(boxes, 1):
        batch[k, :, top:bottom, left:right] = images[1, :, top:bottom, left:right]
    return batch


def _patch_responses(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor
) -> tuple[dict[str, tuple[int, ...] | None], dict[str, dict[LayerLayout, Share]]]:
    """Change one patch of an image at a time: each layer's shape, and for each layout it may have the share of patches that change
    the position they cover more than any other patch does.

    Of the right layout nearly all do; of a wrong one about as many as by chance, 1 in 9. A shape is (2, ...), empty where
    the images are not its first dimension, None where the layer gives no tensor.
    """
    height, width = images.shape[2:]
    boxes = []
    for y, x in _CENTRES:
        top, left = round((y - 1 / 12) * height), round((x - 1 / 12) * width)
        bottom, right = max(top + 1, round((y + 1 / 12) * height)), max(left + 1, round((x + 1 / 12) * width))
        boxes.append((top, bottom, left, right))
    shapes: dict[str, tuple[int, ...] | None] = {}
    shares: dict[str, dict[LayerLayout, Share]] = {}

    def note(name: str, output: Any) -> None:
        shapes[name] = None if not isinstance(output, torch.Tensor) else ()
        if isinstance(output, torch.Tensor) and output.ndim > 1 and len(output) == 1 + len(boxes):
            shapes[name] = shape = (2, *output.shape[1:])
            possible = candidates(shape, (int(height), int(width)))
            shares[name] = {layout: _share(output.float(), layout) for layout in possible}

    run_with_hooks(module, layers, _with_changed_patches(images, boxes), note)
    return shapes, shares


def _share(output: torch.Tensor, layout: LayerLayout) -> Share:
    h, w = layout.grid
    if h * w < 4:
        return Share(None)
    x = layout.to_npc(output)
    moved = (x[1:] - x[:1])[:, layout.prefix :].norm(dim=2)  # (J, P)

    def hits(cell_of: Callable[[float, float], int]) -> float | None:
        """The share of patches that change the position at their cell more than any other patch does."""
        cells = [cell_of(y, x) for y, x in _CENTRES]
        distinct = [k for k, cell in enumerate(cells) if cells.index(cell) == k]
        if len(distinct) < 3:
            return None
        own = moved[distinct][:, [cells[k] for k in distinct]]  # (j, the cell of j')
        right = (own.argmax(0) == torch.arange(len(distinct), device=own.device)) & (own.amax(0) > 0)
        return float(right.float().mean())

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
    return Share(straight, best if clear else "")
