"""``extract --layer ?``: which layers a network has, and which to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.logging import echo
from stores.errors import UnknownNameError, nearest
from stores.layout import default_chunk_images
from stores.progress import readable

if TYPE_CHECKING:
    from extract.config import ExtractConfig
    from extract.layer_choice import LayerInfo, NetworkStage

_USUAL = 1000  # images that bytes are said for, where none are given


def show_layers(config: ExtractConfig, beginnings: Sequence[str], data: str | None) -> None:
    """Print the stages of a network, or all layers whose names begin with some text.

    No weights are downloaded. Bytes are those of the images at ``data``, or of 1000.
    Raises UnknownNameError where no layer's name begins so, and the errors of ``load_model`` and ``open_source``.
    """
    from extract.datasets import open_source
    from extract.layer_choice import list_layers, list_stages
    from extract.models import load_model
    from extract.probe import prepare_model

    images = _USUAL if data is None else len(open_source(data))
    images = min(images, config.limit or images)
    loaded = load_model(
        config.model, config.weights, seed=config.seed, shapes_only=True, clip_frames=config.clip_frames,
        clip_rate=config.clip_rate, resize=config.resize,
    )  # fmt: skip
    loaded = prepare_model(loaded, output=config.output, class_names=config.class_names)
    layers = list_layers(loaded)
    named = {name.removesuffix("?") for name in config.layers}
    together = [info for info in layers if info.name in named and info.layout]
    if not any(beginnings):
        stages = list_stages(loaded, layers)
        drawn = " (weights drawn at random: none are needed here)" * (loaded.provenance["weights_source"] == "random")
        echo(f"{config.model}{drawn}, {images} images{' (give --data for yours)' * (data is None)}\n")
        echo("\n".join(_stage_lines(stages, images, config, together)))
        return
    chosen = [info for info in layers if info.name.startswith(tuple(beginnings))]
    if not chosen:
        texts = " or ".join(repr(text) for text in beginnings)
        raise UnknownNameError(
            f"No layer of {config.model} begins with {texts}{nearest(beginnings[0], [i.name for i in layers])}."
        )
    echo("\n".join(_layer_lines(chosen, images, config, together)))


def _stage_lines(
    stages: Sequence[NetworkStage], images: int, config: ExtractConfig, together: Sequence[LayerInfo]
) -> list[str]:
    shown = [stage for stage in stages if stage.layer.grid != (1, 1)] or stages
    rows = [("", "layer", "positions", "channels", "size", "what follows", "of the same resolution")]
    for stage in shown:
        others = stage.others if len(stage.others) < 4 else (f"{stage.others[0]} … {stage.others[-1]}",)
        mark, what = "*" if stage.begin else "", _stored(stage.layer, images, config, together)
        rows.append((mark, stage.layer.name, *what, stage.head.brief, ", ".join(others)))
    lines = [*_table(rows), "", *(f"* {stage.layer.name}: {stage.begin}." for stage in reversed(shown) if stage.begin)]
    later = [stage for stage in stages if stage not in shown]
    if pooled := [stage.layer.name for stage in later if not stage.head.last]:
        lines.append(f"Without positions, after the pooling: {', '.join(pooled)}.")
    if logits := [stage.layer.name for stage in later if stage.head.last]:
        lines.append(f"Output is the logits: {', '.join(logits)}.")
    return [
        *lines,
        "What follows a layer gives the logits. Pooling and an affine map: contributions and influence are exact and fast. Anything",
        "else is run by the model: influence takes that for every image, direction and step. Where it reads no position (but a",
        "class token), concepts found at positions do not reach the logits.",
        f"--layer '{shown[-1].layer.name}?' lists all layers whose names begin so.",
    ]


def _layer_lines(
    layers: Sequence[LayerInfo], images: int, config: ExtractConfig, together: Sequence[LayerInfo]
) -> list[str]:
    rows = [("layer", "type", "positions", "channels", "size", "cut", "layout")]
    for info in layers:
        layout = f"{info.layout.kind} ({info.how})" if info.layout else "not known: see --layout"
        rows.append(
            (info.name, info.type, *_stored(info, images, config, together), "yes" if info.cut else "-", layout)
        )
    return [
        *_table(rows),
        "Layers marked 'yes' cut the network in two, so that what follows can be run from them: choose one of these.",
    ]


def _stored(info: LayerInfo, images: int, config: ExtractConfig, together: Sequence[LayerInfo]) -> tuple[str, str, str]:
    """Positions, channels and size of what would be stored, ``together`` in one store: its layers share their chunks."""
    layout = info.layout
    if layout is None:
        return "", "", ""
    from extract.plan import bytes_of, layer_spec

    spec, itemsize = layer_spec(info.name, layout, config.positions), np.dtype(config.dtype).itemsize
    others = [layer_spec(i.name, i.layout, config.positions) for i in together if i.layout] if info in together else []
    size = bytes_of(spec, images, default_chunk_images([spec, *others], itemsize, images), itemsize)
    tokens = f"{layout.prefix} + " * (layout.prefix > 0)
    return f"{tokens}{layout.shown_grid}", str(layout.channels), readable(size)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
