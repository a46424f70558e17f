"""A network made ready for extraction: BatchNorm folded into convolutions, convolutions in channels-last memory; same values.

The prepared module is a copy that shares every parameter it does not change. It is compared with the untouched network on
the probe images, and is left out where it differs. What is chosen depends only on the network, not on measured time: all
shards of a store run the same module.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from extract.image_io import reason
from extract.model_output import ModelOutput
from extract.network import Network, capture
from extract.probe import run_with_hooks

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of the largest value
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class InferenceModule:
    """``module`` gives what the network gives; ``folded`` of its BatchNorm modules are part of the convolution before them.

    ``difference`` is the largest one on the probe images, at a stored layer or at the logits, as a share of the largest value.
    """

    module: nn.Module
    folded: int = 0
    channels_last: bool = False
    difference: float = 0.0

    @property
    def provenance(self) -> dict[str, Any]:
        """What is recorded with a store; the difference is not, since its last digits depend on the processor."""
        return {"folded_batch_norm": self.folded, "channels_last": self.channels_last}

    def __str__(self) -> str:
        done = [f"{self.folded} BatchNorm folded"] if self.folded else []
        done += ["channels-last"] if self.channels_last else []
        return ", ".join(done) or "the untouched network"


def prepare_inference(networks: Mapping[str, Network], *, channels_last: bool = True) -> InferenceModule:
    """Prepare the module of some networks of one model, whose layers are stored.

    A BatchNorm is folded into the convolution before it, where no stored layer sees the values in between. Weights of
    two-dimensional convolutions become channels-last, if asked. Where the result differs from the untouched network by more
    than 1e-4 of the largest value, or fails, less is done: first without channels-last, then nothing.
    """
    first = next(iter(networks.values()))
    wanted = _values(first.module, networks, first.probe, first.output)
    why = ""
    for planar in (False, True) if channels_last else (True,):
        try:
            made = _prepared(first.module, networks, first.probe, channels_last=not planar)
            if not made.folded and not made.channels_last:
                return made
            found = _values(made.module, networks, first.probe, first.output)
        except Exception as error:  # noqa: BLE001  (a module's own code may depend on memory layout, or not allow copies)
            why = why or f"{type(error).__name__}: {reason(error)}"
            continue
        difference = max(_difference(found[key], x) for key, x in wanted.items())
        if difference <= TOLERANCE:
            return InferenceModule(made.module, made.folded, made.channels_last, difference)
        why = why or f"its values differ by {difference:.1e} of the largest"
    log.warning("the network is run as it is: a faster form of it was tried and not taken (%s)", why)
    return InferenceModule(first.module)


def _prepared(
    module: nn.Module, layers: Mapping[str, Network], images: torch.Tensor, *, channels_last: bool
) -> InferenceModule:
    """A copy of a module with what can be folded folded, and its convolutions in channels-last memory if asked."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    module = copy.deepcopy(module, shared)
    pairs = _foldable(module, layers, images)
    for convolution, norm in pairs.items():
        _fold(module.get_submodule(convolution), module.get_submodule(norm))
        parent, _, name = norm.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Identity())
    two_dimensional = (
        [part for part in _plain(module).values() if type(part) is nn.Conv2d]
        if channels_last and images.ndim == 4
        else []
    )
    for part in two_dimensional:
        weight = part.weight.detach().contiguous(memory_format=torch.channels_last)
        part.weight = nn.Parameter(weight, requires_grad=False)
    return InferenceModule(module.eval(), len(pairs), bool(two_dimensional))


def _foldable(module: nn.Module, layers: Mapping[str, Network], images: torch.Tensor) -> dict[str, str]:
    """Convolution → the BatchNorm that its output goes to, of those that run once and whose output no stored layer gives."""
    parts = _plain(module)
    runs: dict[str, int] = dict.fromkeys(parts, 0)
    made: dict[int, tuple[str, torch.Tensor]] = {}  # the tensors too: a freed one's id would be used again
    pairs: dict[str, str] = {}

    def feeds(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = names[part]
        runs[name] += 1
        if type(part) in _NORMS and part.running_mean is not None and inputs and id(inputs[0]) in made:
            pairs[made[id(inputs[0])][0]] = name

    def gives(name: str, output: Any) -> None:
        if name in layers:  # seen from outside: its own values stay
            made.pop(id(output), None)
        elif type(parts[name]) in _CONVOLUTIONS:
            made[id(output)] = name, output

    names = {part: name for name, part in parts.items()}
    hooks = [part.register_forward_pre_hook(feeds) for part in parts.values()]
    try:
        run_with_hooks(module, {**parts, **layers}, images[:1], gives)
    finally:
        for hook in hooks:
            hook.remove()
    return {a: b for a, b in pairs.items() if runs[a] == runs[b] == 1}


def _plain(module: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and BatchNorm modules whose weights nothing else computes: no subclass, parametrisation or hook."""
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) in (*_CONVOLUTIONS, *_NORMS) and not (part._forward_pre_hooks or part._forward_hooks)
    }


def _fold(convolution: Any, norm: Any) -> None:
    """Make a convolution give what the BatchNorm after it gives; computed in float64."""
    tensors = convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    exact: list[Any] = [None if tensor is None else tensor.detach().double() for tensor in tensors]
    weight, bias, mean, variance, scale, shift = exact
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    convolution.weight = nn.Parameter(weight.float(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.float(), requires_grad=False)


def _values(
    module: nn.Module, networks: Mapping[str, Network], images: torch.Tensor, output: ModelOutput
) -> dict[str, torch.Tensor]:
    """Activations of the stored layers, and the logits under ""."""
    layouts = {name: network.layout for name, network in networks.items()}
    with torch.inference_mode(), capture(module, layouts) as taken:
        logits = output(module(images))
        return {**taken, "": logits}


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference as a share of the largest value; 0 where both are 0 everywhere."""
    largest = float((found - wanted).abs().max())
    return largest / float(wanted.abs().max()) if largest else 0.0
