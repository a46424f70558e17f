"""Which layer to take: the stages of a network, what a layer of each would store, and what follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from extract.affine_head import head_logits, pooled_affine
from extract.layout_probe import FoundLayout, LayoutProbe
from extract.network import LogitsOf, Network, traced
from extract.probe import run_with_hooks
from extract.tensor_layout import LayerLayout

if TYPE_CHECKING:
    from extract.models import LoadedModel

_PASSING = {"AdaptiveAvgPool2d", "Dropout", "Identity"}  # often last in a stage, and of no interest there


@dataclass(frozen=True)
class HeadCost:
    """What follows a layer: pooling and an affine map, or anything else; ``share`` of the operations of a forward pass.

    ``read``: whether the logits depend on the layer's positions, not on its class token only.
    """

    affine: bool
    share: float
    read: bool = True

    @property
    def last(self) -> bool:
        """Whether no operation is left: the layer's output is the logits, if only scaled."""
        return self.affine and not self.share

    @property
    def brief(self) -> str:
        if self.affine:
            return "pooling + affine map"
        if not self.read:
            return "reads no position"
        return f"{f'{self.share:.0%}' if self.share >= 0.01 else 'under 1%'} of a forward pass"

    def __str__(self) -> str:
        if self.affine:
            return "pooling and an affine map: contributions and influence are exact and fast"
        if not self.read:
            return "run by the model, which reads no position of it: concepts found there do not reach the logits. Choose an earlier layer"
        return f"run by the model, {self.brief}: influence takes that for every image, direction and step"


@dataclass(frozen=True)
class LayerInfo:
    """A layer: ``shape`` is its output's, for one image; ``how`` its layout was found; whether it cuts the network in two."""

    name: str
    type: str
    shape: tuple[int, ...]
    layout: LayerLayout | None
    how: str
    cut: bool

    @property
    def grid(self) -> tuple[int, int]:
        return self.layout.grid if self.layout else (1, 1)


@dataclass(frozen=True)
class NetworkStage:
    """Consecutive layers of one resolution: ``layer`` is the last, outermost one, ``others`` name the rest.

    ``begin`` says why one would begin with it; empty for most.
    """

    layer: LayerInfo
    others: tuple[str, ...]
    head: HeadCost
    begin: str = ""


def list_layers(loaded: LoadedModel) -> list[LayerInfo]:
    """List the layers that give a tensor, in the order in which they finish, and whether each is a cut."""
    loaded, _, probe, split = traced(loaded, torch.device("cpu"), repeatable=True)
    cuts, layouts, layers = set(split.cuts()), LayoutProbe(loaded.module, list(split.runs), probe), []
    for name in split.runs:
        if shape := layouts.shapes.get(name):
            kind, found = type(loaded.module.get_submodule(name)).__name__, layouts.find(name)
            if isinstance(found, FoundLayout):
                layers.append(LayerInfo(name, kind, shape[1:], found.layout, found.how, name in cuts))
            else:
                layers.append(LayerInfo(name, kind, shape[1:], None, "", False))
    return layers


def list_stages(loaded: LoadedModel, layers: Sequence[LayerInfo]) -> list[NetworkStage]:
    """Group the layers of a model (see ``list_layers``) by resolution, and choose the one or two stages to begin with.

    A layer stands for all layers inside it, unless these go through several resolutions (a Sequential of all stages). In a
    network of one resolution, such as a vision transformer, each block is a stage.
    """
    loaded, output, probe, split = traced(loaded, torch.device("cpu"), repeatable=True)
    cuts = [info for info in layers if info.cut]
    units = _outermost([info for k, info in enumerate(cuts) if _is_unit(cuts, k)])
    groups = [list(group) for _, group in groupby(units, key=lambda info: info.grid)]
    if len({group[0].grid for group in groups} - {(1, 1)}) == 1:
        groups = [[info] for info in cuts if info.type not in _PASSING and not _inside(cuts, info)]
    shares = shares_after(loaded.module, [info.name for info in cuts], probe[:1])
    stages: list[NetworkStage] = []
    affine, read = True, False  # of a later layer: what follows an earlier one can only be more
    for group in reversed(groups):
        last = next((info for info in reversed(group) if info.type not in _PASSING), group[-1])
        others = [info for info in group if info is not last] or _outermost(_inside(cuts, last))
        assert last.layout is not None
        follows = LogitsOf(split.head(last.name), output)
        affine = affine and pooled_affine(follows, last.layout) is not None
        mapped = last.grid != (1, 1)
        read = read or (mapped and _reads_positions(partial(head_logits, follows, last.layout), last.layout))
        share = 1.0 if split.kind == "replay" else shares[last.name]
        head = HeadCost(affine and not last.layout.prefix, share, read or not mapped)
        stages.insert(0, NetworkStage(last, tuple(info.name for info in others), head))
    return _recommended(stages)


def head_costs(networks: Iterable[Network]) -> dict[str, HeadCost]:
    """What follows the layer of each of some networks that are one model."""
    every = {network.layer: network for network in networks}
    first = next(iter(every.values()))
    shares = shares_after(first.module, every, first.probe[:1])
    return {
        name: HeadCost(
            network.pooled_affine is not None and not network.layout.prefix,
            1.0 if network.split_kind == "replay" else shares[name],
            _reads_positions(network.head, network.layout),
        )
        for name, network in every.items()
    }


def shares_after(module: nn.Module, layers: Iterable[str], image: torch.Tensor) -> dict[str, float]:
    """The share of a forward pass that is left once each of some layers has run, by the number of operations."""
    from torch.utils.flop_counter import FlopCounterMode

    done: dict[str, int] = {}

    def note(name: str, _output: Any) -> None:
        done[name] = counter.get_total_flops()

    with FlopCounterMode(display=False) as counter:
        run_with_hooks(module, layers, image, note)
    total = max(1, counter.get_total_flops())
    return {name: 1 - count / total for name, count in done.items()}


def _reads_positions(head: Callable[[torch.Tensor], torch.Tensor], layout: LayerLayout) -> bool:
    """Whether other values at all positions but the class and register tokens change the logits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, layout.positions, layout.channels, generator=generator)
    y = torch.randn(x.shape, generator=generator)
    y[:, : layout.prefix] = x[:, : layout.prefix]
    with torch.no_grad():
        return not torch.equal(head(x), head(y))


def _recommended(stages: Sequence[NetworkStage]) -> list[NetworkStage]:
    """The stages, the one or two to begin with marked: the last with positions, and an earlier one."""
    found = list(stages)
    mapped = [k for k, stage in enumerate(found) if stage.layer.grid != (1, 1) and stage.head.read]
    if not mapped:
        return found
    last = mapped[-1]
    found[last] = replace(
        found[last], begin="the last layer whose positions are read: its concepts are nearest to the classes"
    )
    (h, w), grids = found[last].layer.grid, {found[k].layer.grid for k in mapped}
    if len(grids) > 1:
        rows, columns = found[mapped[-2]].layer.grid
        why = f"one stage earlier: simpler concepts, {rows * columns / (h * w):.2g} times as many positions"
        found[mapped[-2]] = replace(found[mapped[-2]], begin=why)
    elif len(mapped) > 3:
        middle = mapped[3 * len(mapped) // 4 - 1]
        found[middle] = replace(found[middle], begin="at three quarters of the depth: simpler concepts")
    return found


def _inside(layers: Sequence[LayerInfo], outer: LayerInfo) -> list[LayerInfo]:
    return [info for info in layers if info.name.startswith(f"{outer.name}.")]


def _outermost(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Those that are inside no other."""
    nested = {inner.name for outer in layers for inner in _inside(layers, outer)}
    return [info for info in layers if info.name not in nested]


def _is_unit(cuts: Sequence[LayerInfo], k: int) -> bool:
    """Whether the layers inside a cut have its resolution, or that of what it is given."""
    inside = _inside(cuts, cuts[k])
    before = k - len(inside) - 1  # what is inside finishes just before
    grids = {cuts[k].grid, *([cuts[before].grid] if before >= 0 else [])}
    return {info.grid for info in inside} <= grids
