"""Cut a network in two at a layer: the backbone up to it, and the head after it.

A layer is a *cut* when everything after it sees the image only through it. The graph of the forward pass (torch.fx)
decides that exactly (``Traced``); where a model cannot be traced, the model is run with the layer's output
replaced, and whether the layer is a cut is found numerically (``Replayed``).
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from extract.probe import hooked, run_with_hooks
from stores.errors import NotACutError, UnknownNameError, UsageError, nearest

log = logging.getLogger(__name__)
_STAND_IN = "image_like"  # the image of which a head reads only the size
_SHAPE_METHODS = {"size", "dim", "numel", "nelement", "stride", "is_contiguous", "get_device", "element_size"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "layout"}
_WRITING = {"setitem", "delitem", "iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow"}
_WRITING |= {"irshift", "isub", "itruediv", "ixor"}  # of the module operator


class Split(ABC):
    """One module and the layers it can be cut at; ``kind`` is "fx" or "replay"."""

    kind: str

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.runs: dict[str, int] = {}  # dotted name -> runs a forward pass, in the order in which layers first finish

    @abstractmethod
    def is_cut(self, layer: str) -> bool:
        """Whether everything after the layer, which runs exactly once, sees the image only through it."""

    @abstractmethod
    def backbone(self, layer: str) -> nn.Module:
        """Give the module from images (n, 3, h, w) to the output of a layer that is a cut (see ``require_cut``)."""

    @abstractmethod
    def head(self, layer: str) -> nn.Module:
        """Give the module from the output of a layer that is a cut to the model's; it never writes into its input."""

    def cuts(self) -> list[str]:
        """Give the dotted names of all layers that are cuts, in the order in which they finish."""
        return [name for name, runs in self.runs.items() if runs == 1 and self.is_cut(name)]

    def canonical(self, layer: str) -> str:
        """Give the first name of the module called ``layer``. Raises UnknownNameError with the nearest names."""
        names = {name: child for name, child in self.module.named_modules(remove_duplicate=False) if name}
        if layer not in names:
            raise UnknownNameError(
                f"The model has no layer {layer!r}{nearest(layer, names)}. --layer ? lists all layers."
            )
        return next(name for name, child in names.items() if child is names[layer])

    def require_single(self, layer: str) -> str:
        """Give the canonical name of a layer that runs once.

        Raises UnknownNameError for no layer of the model, UsageError for one that never runs, NotACutError for one that runs
        several times; the message names the nearest layers that are cuts.
        """
        layer = self.canonical(layer)
        runs = self.runs.get(layer, 0)
        if runs == 0:
            raise UsageError(f"Layer {layer!r} does not run in the model's forward pass. --layer ? lists others.")
        if runs > 1:
            raise NotACutError(f"Layer {layer!r} runs {runs} times in one forward pass{self._nearest(layer)}")
        return layer

    def require_cut(self, layer: str) -> str:
        """Give the canonical name of a layer that is a cut. Raises as ``require_single``; NotACutError for others."""
        layer = self.require_single(layer)
        if not self.is_cut(layer):
            why = "a skip connection bypasses it, so the rest of the network cannot be run from it"
            raise NotACutError(f"Layer {layer!r} is not a bottleneck: {why}{self._nearest(layer)}")
        return layer

    def _nearest(self, layer: str) -> str:
        order = list(self.runs)
        at = order.index(layer)
        sides = ((reversed(order[:at]), "before it"), (order[at + 1 :], "after it"))
        near = [
            f"{name!r} {side}"
            for names, side in sides
            if (name := next((n for n in names if self.runs[n] == 1 and self.is_cut(n)), None))
        ]
        return f". The nearest layers that are cuts: {' and '.join(near)}." if near else ". --layer ? lists the cuts."


class _Recorder(fx.Tracer):
    """The tracer of torch.fx, which also notes what every module call, leaf or not, gave."""

    def __init__(self, functions: tuple[Callable[..., Any], ...], leaves: tuple[type, ...]) -> None:
        from extract.models import torchvision

        opaque: Any = (math, torchvision.ops)
        super().__init__(autowrap_modules=opaque, autowrap_functions=functions)
        self.leaves = leaves
        self.calls: list[tuple[str, fx.Node | None]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        is_tensor = isinstance(result, fx.Proxy) and not isinstance(m, nn.RNNBase | nn.MultiheadAttention)
        self.calls.append((self.path_of_module(m), result.node if is_tensor else None))
        return result


class Traced(Split):
    """The split of a module whose forward pass torch.fx can follow."""

    kind = "fx"

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        calls: list[tuple[str, fx.Node | None]],
        example: torch.Tensor | None,
    ) -> None:
        super().__init__(module)
        self.example = example
        self.nodes = list(graph.nodes)
        self.output: dict[str, fx.Node | None] = {}
        for name, node in calls:
            self.runs[name] = self.runs.get(name, 0) + 1
            self.output[name] = node
        self.image = next(node for node in self.nodes if node.op == "placeholder")
        self.dependent = {self.image}  # the nodes whose value depends on the image, not only on its size
        for node in self.nodes:
            if not self.dependent.isdisjoint(node.all_input_nodes) and (example is None or not _reads_shape(node)):
                self.dependent.add(node)

    def is_cut(self, layer: str) -> bool:
        node = self.output[layer]
        return node is not None and self._after(node) is not None

    def _after(self, cut: fx.Node) -> set[fx.Node] | None:
        """Give the nodes that depend on ``cut``; None where one of them sees the input round it, or none is output."""
        after: set[fx.Node] = {cut}
        for node in self.nodes[self.nodes.index(cut) + 1 :]:
            inputs = node.all_input_nodes
            if not after.isdisjoint(inputs):
                if any(i in self.dependent and i not in after for i in inputs):
                    return None
                after.add(node)
        return after - {cut} if self.nodes[-1] in after else None

    def backbone(self, layer: str) -> nn.Module:
        cut = self.output[layer]
        assert cut is not None
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in self.nodes[: self.nodes.index(cut) + 1]:  # all before it, for what they may write in place
            env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(env[cut])
        graph.eliminate_dead_code(_has_effect)
        return self._compile(graph, "Backbone")

    def head(self, layer: str) -> nn.Module:
        cut = self.output[layer]
        assert cut is not None
        after = self._after(cut) or set()
        needed = set(after)
        for node in reversed(self.nodes):  # whatever does not depend on the image is copied where it is needed
            if node in needed:
                needed.update(i for i in node.all_input_nodes if i is not cut)
        graph = fx.Graph()
        start = graph.placeholder("activations")
        env = {cut: graph.call_method("clone", (start,)) if any(self._writes(n) for n in after) else start}
        if self.image in needed:  # only for its size
            stand_in = graph.create_node("get_attr", _STAND_IN)
            size = graph.call_method("size", (start, 0))
            rest = [-1] * (3 if self.example is None else self.example.ndim - 1)
            env[self.image] = graph.call_method("expand", (stand_in, size, *rest))
        for node in self.nodes:
            if node in needed and node is not self.image:
                env[node] = graph.node_copy(node, env.__getitem__)
        return self._compile(graph, "Head")

    def _compile(self, graph: fx.Graph, name: str) -> nn.Module:
        """Make a module of a graph; parameters and leaves are shared with the module, not copied."""
        parts: dict[str, Any] = {}
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == _STAND_IN and self.example is not None:
                parts[node.target] = self.example[:1]
            elif node.op in ("call_module", "get_attr"):
                parts[node.target] = reduce(getattr, node.target.split("."), self.module)
        return fx.GraphModule(parts, graph, name).eval()

    def _writes(self, node: fx.Node) -> bool:
        """Whether a node may write into one of its inputs."""
        if node.op == "call_module":
            leaf = self.module.get_submodule(str(node.target))
            return any(getattr(child, "inplace", False) for child in leaf.modules())
        return _has_effect(node)


def _reads_shape(node: fx.Node) -> bool:
    """Whether a node asks its input only for its shape, type or device."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _has_effect(node: fx.Node) -> bool:
    """Whether a node may do more than return a value, as functions of unknown modules may."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return node.op in ("placeholder", "output", "call_module")
    function: Any = node.target
    home = getattr(function, "__module__", None) or "torch"
    name = getattr(function, "__name__", "")
    if home in ("_operator", "operator"):
        return name in _WRITING
    known = home.split(".")[0] in ("torch", "math", "builtins") or home.startswith("torchvision.ops")
    flagged = node.kwargs.get("inplace") is True or any(value is True for value in node.args)
    return not known or flagged or name.endswith("_") or "out" in node.kwargs


class _Reached(BaseException):
    """The layer has run: the rest of the forward pass is not needed."""


class Replay(nn.Module):
    """Run a model: until a layer has given its output, or on a fixed image with that output replaced."""

    image: torch.Tensor | None

    def __init__(self, model: nn.Module, layer: str, image: torch.Tensor | None = None) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.register_buffer("image", image)

    def forward(self, x: torch.Tensor) -> Any:
        taken: list[Any] = []

        def take(_layer: str, output: Any) -> None:
            taken.append(output)
            raise _Reached

        if self.image is not None:
            with hooked(self.model, [self.layer], lambda *_: x.clone()):
                return self.model(self.image.expand(len(x), *[-1] * (self.image.ndim - 1)))
        with hooked(self.model, [self.layer], take), suppress(_Reached):
            self.model(x)
        return taken[0]


class Replayed(Split):
    """The split of a module whose forward pass only running it can show. ``example``: images (n >= 2, 3, h, w)."""

    kind = "replay"

    def __init__(self, module: nn.Module, example: torch.Tensor, output: Callable[[Any], torch.Tensor]) -> None:
        super().__init__(module)
        self.example, self.logits = example, output
        self._known: dict[str, bool] = {}

        def count(name: str, _output: Any) -> None:
            self.runs[name] = self.runs.get(name, 0) + 1

        layers = [name for name, _ in module.named_modules() if name]
        self.expected = output(run_with_hooks(module, layers, example, count))

    def is_cut(self, layer: str) -> bool:
        if layer not in self._known:
            self._known[layer] = self._replays(layer)
        return self._known[layer]

    def _replays(self, layer: str) -> bool:
        """Whether the layer's output, put into the run on another image, gives the model's own output."""
        with torch.no_grad():
            backbone, head = self.backbone(layer), self.head(layer)
            taken = backbone(self.example)
            if not isinstance(taken, torch.Tensor) or taken.shape[0] != self.example.shape[0]:
                return False
            replayed = self.logits(head(taken.flip(0)))
        wanted = self.expected.flip(0)
        spread = (wanted - self.expected).abs().max()  # what one image differs from another: must all pass the layer
        return bool((replayed - wanted).abs().max() <= 1e-3 * spread + 1e-6 * wanted.abs().max())

    def backbone(self, layer: str) -> nn.Module:
        return Replay(self.module, layer)

    def head(self, layer: str) -> nn.Module:
        return Replay(self.module, layer, self.example[:1])


def trace(
    module: nn.Module,
    example: torch.Tensor | None = None,
    output: Callable[[Any], torch.Tensor] = lambda logits: logits,
) -> Split:
    """Follow the forward pass of a module in evaluation mode: with torch.fx, or by running it.

    ``example`` (n >= 2, 3, h, w) are different images, or clips (n >= 2, 3, T, h, w), without which UsageError is raised where torch.fx cannot follow the
    module; ``output`` gives the logits (n, K) of what the module returns.
    """
    options = list(inspect.signature(module.forward).parameters.values())[1:]
    fixed = {option.name: option.default for option in options if option.default is not option.empty}
    reason = ""
    for symbolic_buffers in (False, True):  # values may decide branches, symbols can be sliced by the image's size
        tracer = _Recorder(*_opaque_parts())
        tracer.proxy_buffer_attributes = symbolic_buffers
        try:
            return Traced(module, tracer.trace(module, concrete_args=fixed or None), tracer.calls, example)
        except Exception as error:  # noqa: BLE001 - whatever the model's own code does with a symbol
            reason = str(error).partition("\n")[0]
    log.info("torch.fx cannot follow %s (%s)", type(module).__name__, reason)
    if example is None:
        raise UsageError(f"torch.fx cannot follow {type(module).__name__}: {reason}")
    return Replayed(module, example, output)


def _opaque_parts() -> tuple[tuple[Callable[..., Any], ...], tuple[type, ...]]:
    """Give the functions and module types that the zoos in use ask to be taken as one node."""
    if "timm" not in sys.modules:
        return (), ()
    from timm.models import _features_fx as fx_parts

    return tuple(fx_parts.get_notrace_functions()), tuple(fx_parts.get_notrace_modules())
