"""Which of a layer's values belong to which part of an image, by what the layer does to a few drawn images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from extract.layout import LayerLayout, candidates, exact_grids, grids_of, parse_layout
from stores.errors import UsageError

_PLACES = (1 / 6, 1 / 2, 5 / 6)  # of a changed patch's centre along each side of the image
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


@dataclass(frozen=True)
class FoundLayout:
    """A layer's layout and what decided it; ``seen`` is the share of changed patches that changed the position they lie on
    most, None where there is one position; ``doubt`` is what to warn of."""

    layout: LayerLayout
    how: str
    seen: float | None = None
    doubt: str = ""


@dataclass(frozen=True)
class Share:
    """Of a layout: the share of changed patches that show where they are (``own``), and how positions are turned if more do then."""

    own: float | None
    turned: str = ""


def find_layouts(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor, *, asked: Mapping[str, str] | None = None
) -> dict[str, FoundLayout | str]:
    """Find the layouts of layers for the size of the given images (n >= 2, C, h, w).

    Evidence, strongest first: what the user asked for (``--layout``); what the layer's type or the model says of itself; which
    dimensions change with the image's size, where the model takes another; and where the layer's values change when one patch
    of the image does. The last is also held against what the others say.

    Returns
    -------
    dict of {layer: FoundLayout, or the reason why it has none}
    """
    asked = asked or {}
    size = (int(images.shape[2]), int(images.shape[3]))
    shapes, seen = _patch_responses(module, layers, images)
    other_size, other = _other_size(module, layers, images)
    found: dict[str, FoundLayout | str] = {}
    for name in layers:
        shape = shapes.get(name)
        if not shape:
            found[name] = (
                f"Layer '{name}' must give one tensor with the images as first dimension; it gives "
                f"{'none' if shape is None else 'something else'}. --layer ? lists those that do."
            )
            continue
        shares = seen[name]
        if name in asked:
            taken = parse_layout(asked[name], shape, size)
            found[name] = _judged(name, shape, shares, taken, "--layout")
            continue
        kept, how = list(shares), ""
        for evidence, source in (
            (_declared(module, name, kept), "from the layer's type"),
            (_tokens_declared(module, kept), _SAID),
            (_by_size(kept, size, other_size, other.get(name)), "from a second image size"),
        ):
            agreed = [layout for layout in kept if layout in evidence]
            if agreed and len(agreed) < len(kept):
                kept, how = agreed, source
        if len(kept) > 1:
            kept, how = _by_patches(module, kept, shares, size)
        if len(kept) != 1 or (how != _SAID and not _is_likely(kept[0], shares[kept[0]], size)):
            found[name] = _open(name, shape, kept if len(kept) > 1 else [])
        elif offset := _token_offset(module, name, kept[0], images):
            found[name] = (
                f"Layer '{name}' gives a tensor of shape {shape}, taken as {kept[0]}; but a change of one patch shows {abs(offset)} "
                f"tokens {'before' if offset < 0 else 'after'} its place. Tokens that are no positions must be in front: let the model "
                "put them there, or choose a layer without them."
            )
        else:
            found[name] = _judged(name, shape, shares, kept[0], how or "from its shape")
    return found


def _is_likely(layout: LayerLayout, share: Share, size: tuple[int, int]) -> bool:
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
    batch = images[:1].repeat(1 + len(cells), 1, 1, 1)
    for k, (r, c) in enumerate(cells, 1):
        patch = (..., slice(r * height // h, (r + 1) * height // h), slice(c * width // w, (c + 1) * width // w))
        batch[k][patch] = images[1][patch]
    offsets: set[int] = set()

    def note(_name: str, output: Any) -> None:
        x = layout.to_npc(output.float())
        moved = (x[1:] - x[:1]).norm(dim=2)  # (4, P)
        peak = (moved / (moved.mean(0) + 1e-9 * moved.max())).argmax(1).tolist()
        offsets.update(at - layout.prefix - r * w - c for at, (r, c) in zip(peak, cells, strict=True))

    _run_with_hooks(module, [name], batch, note)
    return offsets.pop() if len(offsets) == 1 else 0


def _by_patches(
    module: nn.Module, kept: list[LayerLayout], shares: Mapping[LayerLayout, Share], size: tuple[int, int]
) -> tuple[list[LayerLayout], str]:
    """The layout whose positions the changed patches changed; else the one that the model names; else the one of the image's aspect."""
    ranked = sorted(kept, key=lambda layout: -(shares[layout].own or 0))
    best, second = (shares[layout].own or 0 for layout in ranked[:2])
    if best >= _SURE and best - second >= _AHEAD:
        return ranked[:1], "by changing patches of the image"
    if len(said := _output_format(module, kept)) == 1:
        return said, "from what the model says of its output"
    alike = [layout for layout in kept if layout.grid in grids_of(size)]
    return (alike, "from the image's aspect") if len(alike) == 1 else (kept, "")


def _judged(
    name: str, shape: tuple[int, ...], shares: Mapping[LayerLayout, Share], taken: LayerLayout, how: str
) -> FoundLayout | str:
    """Hold what was decided against the changed patches."""
    share = shares.get(taken, Share(None))
    if share.own is None or share.own >= _LOST:
        return FoundLayout(taken, how, share.own)
    if share.turned:
        return (
            f"Layer '{name}' gives a tensor of shape {shape}, taken as {taken}; but its positions are {share.turned}: masks would be placed "
            "elsewhere. Turn them in a layer of the model's own, and choose that."
        )
    better = [layout for layout, other in shares.items() if other.own is not None and other.own >= _SURE]
    if better and how != "--layout":
        return _open(name, shape, [taken, *better])
    doubt = (
        f"layer '{name}': a changed patch of the image changes the position it covers most in {share.own:.0%} of trials; where a concept "
        "is may not be where it is shown"
    )
    return FoundLayout(taken, how, share.own, doubt)


def _open(name: str, shape: tuple[int, ...], possible: Sequence[LayerLayout]) -> str:
    """The message for a layer whose layout cannot be determined."""
    if not possible:
        fits = "is none of (n, C, h, w), (n, h, w, C), (n, C), or (n, tokens, C) with a grid of patches behind 0 to 16 other tokens"
        ask = (
            f"--layout '{name}=tokens+PREFIX:ROWSxCOLUMNS' names the grid of tokens"
            if len(shape) == 3
            else "--layer ? lists others"
        )
    else:
        fits = (
            "may be "
            + " or ".join(str(layout) for layout in possible[:3])
            + (" or others" if len(possible) > 3 else " or neither")
        )
        ask = f"Say which by --layout, such as --layout '{name}={as_asked(possible[0])}'"
    return f"Layer '{name}' gives a tensor of shape {tuple(shape)}: it {fits}. {ask}."


def as_asked(layout: LayerLayout) -> str:
    """A layout as ``--layout`` takes it."""
    if layout.kind not in ("tokens", "ncp"):
        return layout.kind
    return f"{layout.kind}+{layout.prefix}:{layout.grid[0]}x{layout.grid[1]}"


def _declared(module: nn.Module, name: str, possible: list[LayerLayout]) -> list[LayerLayout]:
    """What the layer's type says of where its channels are."""
    layer = module.get_submodule(name)
    kinds: tuple[str, ...] = ()
    if type(layer) in _CHANNELS_FIRST:
        kinds = ("nchw", "ncp")
    elif type(layer) in _CHANNELS_LAST:  # torchvision's LayerNorm2d, say, is one with its channels first
        kinds = ("nhwc", "tokens")
    elif isinstance(said := getattr(layer, "output_fmt", None), str):
        kinds = (said.lower(),)
    return [layout for layout in possible if layout.kind in kinds]


def _tokens_declared(module: nn.Module, possible: list[LayerLayout]) -> list[LayerLayout]:
    """What the model says of its class and register tokens and of its grid of patches, as timm's and torchvision's do."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    prefix = getattr(module, "num_prefix_tokens", None)
    if prefix is None and isinstance(getattr(module, "class_token", None), nn.Parameter):
        prefix = 1
    if prefix is None and grid is None:
        return []
    return [
        layout
        for layout in possible
        if layout.kind in ("tokens", "ncp")
        and (prefix is None or layout.prefix == int(prefix))
        and (grid is None or layout.grid == tuple(grid))
    ]


def _output_format(module: nn.Module, possible: list[LayerLayout]) -> list[LayerLayout]:
    said = getattr(module, "output_fmt", None)
    return [layout for layout in possible if layout.kind == str(getattr(said, "value", said)).lower()]


def _by_size(
    possible: list[LayerLayout], size: tuple[int, int], other_size: tuple[int, int], other: tuple[int, ...] | None
) -> list[LayerLayout]:
    """The layouts that a layer's shape for another size of the image leaves: channels and prefix are the same for both."""
    if other is None:
        return []
    there = candidates(other, other_size)
    same = {(layout.kind, layout.channels, layout.prefix): layout.grid for layout in there}
    kept = []
    for layout in possible:
        grid = same.get((layout.kind, layout.channels, layout.prefix))
        if grid is not None and (grid != layout.grid or len(possible) == 1):
            kept.append(layout)
    return kept


def _other_size(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor
) -> tuple[tuple[int, int], dict[str, tuple[int, ...]]]:
    """Another size (h, w) and the layers' shapes for it; no shapes where the model does not take it."""
    height, width = images.shape[2:]
    step = 32 if min(height, width) >= 96 else 8
    size = (height - step, width + step)
    if min(size) < 1:
        return size, {}
    try:
        shapes = output_shapes(module, layers, images.new_zeros(1, images.shape[1], *size))
    except UsageError:
        return size, {}
    return size, {name: shape for name, shape in shapes.items() if shape is not None}


def _patch_responses(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor
) -> tuple[dict[str, tuple[int, ...] | None], dict[str, dict[LayerLayout, Share]]]:
    """Change one patch of an image at a time: each layer's shape, and for each layout it may have the share of patches that change
    the position they lie on more than any other patch does.

    Of a layout that is right nearly all do; of a wrong one about as many as by chance, 1 in 9. A shape is (2, ...), empty where
    the images are not its first dimension, None where the layer gives no tensor.
    """
    height, width = images.shape[2:]
    places = [(y, x) for y in _PLACES for x in _PLACES]
    batch = images[:1].repeat(1 + len(places), 1, 1, 1)
    for k, (y, x) in enumerate(places, 1):
        top, left = round((y - 1 / 12) * height), round((x - 1 / 12) * width)
        bottom, right = max(top + 1, round((y + 1 / 12) * height)), max(left + 1, round((x + 1 / 12) * width))
        batch[k, :, top:bottom, left:right] = images[1, :, top:bottom, left:right]
    shapes: dict[str, tuple[int, ...] | None] = {}
    shares: dict[str, dict[LayerLayout, Share]] = {}

    def note(name: str, output: Any) -> None:
        shapes[name] = None if not isinstance(output, torch.Tensor) else ()
        if isinstance(output, torch.Tensor) and output.ndim > 1 and len(output) == len(batch):
            shapes[name] = shape = (2, *output.shape[1:])
            possible = candidates(shape, (int(height), int(width)))
            shares[name] = {layout: _share(output.float(), layout, places) for layout in possible}

    _run_with_hooks(module, layers, batch, note)
    return shapes, shares


def _share(output: torch.Tensor, layout: LayerLayout, places: Sequence[tuple[float, float]]) -> Share:
    h, w = layout.grid
    if tuple(output.shape[1:]) != layout.shape or h * w < 4:
        return Share(None)
    change = layout.to_npc(output)
    moved = (change[1:] - change[:1])[:, layout.prefix :].norm(dim=2)  # (J, P)

    def hits(cell_of: Callable[[float, float], int]) -> float | None:
        """The share of patches that change the position at their cell more than any other patch does."""
        cells = [cell_of(y, x) for y, x in places]
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


def output_shapes(module: nn.Module, names: Sequence[str], images: torch.Tensor) -> dict[str, tuple[int, ...] | None]:
    """Run a module once: the shape of each layer's output that ran, None where it is no tensor."""
    shapes: dict[str, tuple[int, ...] | None] = {}

    def note(name: str, output: Any) -> None:
        shapes[name] = tuple(output.shape) if isinstance(output, torch.Tensor) else None

    _run_with_hooks(module, names, images, note)
    return shapes


def _run_with_hooks(
    module: nn.Module, names: Sequence[str], images: torch.Tensor, note: Callable[[str, Any], None]
) -> None:
    """Run a module once and note what each of some layers gives."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: note(name, output)

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with torch.no_grad():
            module(images)
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"The model fails on preprocessed images of shape {tuple(images.shape[1:])}: {type(error).__name__}: {said}."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
