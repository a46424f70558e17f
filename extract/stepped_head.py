"""A head made fast for one purpose: to run it again and again on the same images, moved by one step after another.

The network is prepared as for an extraction (``extract.inference``), and what is affine at the head's start runs once an image and once a
step: ``logits(x + d) = rest(start(x) + start(d) − start(0))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from extract.graph_split import trace
from extract.inference import TOLERANCE, prepare_inference
from extract.network import Network

_AFFINE = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d, nn.Identity, nn.Dropout)
_ADD = "add"  # of the module operator, and of torch

Parts = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class SteppedHead:
    """A head in two: ``start(x (n, P, C))``, affine, gives tensors (n, …), of which ``rest(*tensors)`` gives logits (n, K).

    ``threads``: whether several threads may run it at once.
    """

    rest: Callable[..., torch.Tensor]
    start: Callable[[torch.Tensor], Parts] = lambda x: (x,)
    threads: bool = True

    def step(self, x: torch.Tensor, d: torch.Tensor) -> Parts:
        """What a step ``d`` (C,), the same at all positions of ``x`` (n, P, C), adds to ``start(x)``: tensors (1, …)."""
        moved = self.start(d.expand(1, x.shape[1], -1).contiguous())
        return tuple(a - b for a, b in zip(moved, self.start(torch.zeros_like(x[:1])), strict=True))


@torch.no_grad()
def stepped_head(network: Network, x: torch.Tensor) -> SteppedHead:
    """Make the head of a network fast; it is left as it is where that changes the logits of some activations ``x`` (n, P, C)."""
    plain = SteppedHead(network.head, threads=network.split_kind == "fx")
    if not plain.threads:
        return plain
    fast = prepare_inference({network.layer: network}).module
    graph = trace(fast, network.probe, network.output).head(network.layer)
    if not isinstance(graph, fx.GraphModule):
        return plain
    start, rest = _split(graph)

    def begin(x: torch.Tensor) -> Parts:
        own = network.layout.from_npc(x)
        return tuple(start(own.contiguous(memory_format=torch.channels_last) if own.ndim == 4 else own))

    made = SteppedHead(lambda *parts: network.output(rest(*parts)).flatten(1), begin)
    d = torch.linspace(-1, 1, x.shape[2], device=x.device)
    wanted = network.head(x + d)
    found = made.rest(*(a + b for a, b in zip(made.start(x), made.step(x, d), strict=True)))
    return made if (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max() else plain


def _split(graph: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split into the affine start, and the rest, which takes what the start gives."""
    nodes = list(graph.graph.nodes)
    affine: dict[fx.Node, None] = {}
    for node in nodes:
        if node.op == "placeholder" or (
            node.all_input_nodes and affine.keys() >= set(node.all_input_nodes) and _is_affine(graph, node)
        ):
            affine[node] = None
    given = [node for node in affine if any(user not in affine for user in node.users)]
    start, rest = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in affine:
        copied[node] = start.node_copy(node, copied.__getitem__)
    start.output(tuple(copied[node] for node in given))
    taken = {node: rest.placeholder(f"part_{k}") for k, node in enumerate(given)}
    for node in nodes:
        if node not in affine:
            taken[node] = rest.node_copy(node, taken.__getitem__)
    return fx.GraphModule(graph, start, "Start"), fx.GraphModule(graph, rest, "Rest")


def _is_affine(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an affine map of its inputs that treats each image for itself."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _AFFINE)
    if node.op == "call_method":
        return node.target == "clone"
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name == _ADD and len(node.all_input_nodes) == 2 and not node.kwargs
