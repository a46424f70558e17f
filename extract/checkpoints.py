"""Find the weights of a model in a checkpoint as training scripts write it, and load them.

A checkpoint may hold several sets of weights (the model's and their moving average) in nested dictionaries, and the names of
its tensors may begin with the name of what the model was wrapped in. Both are found by trying what fits the model;
``FILE#KEY`` chooses.
"""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from extract.checkpoint_file import read_checkpoint
from extract.image_io import some
from stores.errors import WeightsError

log = logging.getLogger(__name__)
_PLAIN = {"", "state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "module", "params"}
_DEPTH = 3  # of dictionaries in dictionaries
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # BatchNorm's and thop's, never read in evaluation
State = dict[str, torch.Tensor]
Build = Callable[..., nn.Module]  # build(**keywords): a network with random weights
Rename = Callable[[str], str | None]  # a tensor's name in the file -> the model's name for it, None to leave it out


def find_file(weights: str) -> tuple[Path, str] | None:
    """Resolve FILE or FILE#KEY to an absolute path and the key, "" for none; None where there is no such file."""
    file, _, key = weights.rpartition("#")
    for name, chosen in ((weights, ""), (file, key)):
        if name and (path := Path(name).expanduser()).is_file():
            return path.resolve(), chosen
    return None


def spelled(path: Path, key: str) -> str:
    """Give FILE or FILE#KEY, which ``find_file`` resolves to these."""
    return f"{path}#{key}" if key else str(path)


def load_weights(
    build: Build,
    path: Path,
    key: str = "",
    *,
    rename: Rename = str,
    keywords: Callable[[State], dict[str, Any]] = lambda _: {},
) -> tuple[nn.Module, str]:
    """Build a network and load the weights of a file that fit it.

    Parameters
    ----------
    build : callable
        Makes the network; one that takes any keywords is built with ``num_classes`` where the file has another number.
    path, key : as ``find_file`` gives them.
    rename : the model's name for a tensor's name in the file, or None to leave the tensor out.
    keywords : what else to build the network with, from the weights found.

    Returns
    -------
    The module, and the file, with #KEY where there was a choice: given as weights, it loads the same again.

    Raises WeightsError where the file is no checkpoint, nothing in it fits the model, or several sets of weights do.
    """
    module = build()
    own = _tensors(module.state_dict())
    sets = [
        WeightSet(name, prefix, own, found, rename)
        for name, found in _mappings(read_checkpoint(path))
        for prefix in _prefixes(_tensors(found), own)
    ]
    if not sets:
        raise WeightsError(f"{path} holds no tensors by name: a state dict is needed.")
    chosen, source = _choose(sets, path, key)
    if more := keywords(chosen.state):
        module = build(**more)
    differences = Differences(_tensors(module.state_dict()), chosen.state)
    if differences.classes and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values()):
        module = build(**more, num_classes=differences.classes)
        differences = Differences(_tensors(module.state_dict()), chosen.state)
    if differences.any:
        raise WeightsError(f"The weights of {source} are not this model's: {differences}.")
    _load(module, chosen, source)
    return module, source


def _load(module: nn.Module, chosen: WeightSet, source: str) -> None:
    own = module.state_dict()
    floats = [key for key in chosen.state if key in own and own[key].is_floating_point()]
    if integers := [key for key in floats if not chosen.state[key].is_floating_point()]:
        what = f"{len(integers)} tensors ({some(integers, 3)}) are not floating-point numbers"
        raise WeightsError(f"The weights of {source} cannot be used: {what}. Dequantise quantised weights first.")
    given: Any = OrderedDict(chosen.state)
    given._metadata = {**getattr(own, "_metadata", {}), **chosen.versions}
    try:
        module.load_state_dict(given, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"The weights of {source} cannot be loaded into this model: {reason[:500]}") from error


class Differences:
    """Names of tensors that are missing, unexpected, or of another shape; ``classes`` where only their number differs."""

    def __init__(self, own: State, state: State) -> None:
        reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
        self.total = len(own)
        self.missing = [key for key in own if key not in state and not key.endswith(_COUNTERS)]
        self.unexpected = [key for key in state if key not in own and not key.endswith(_COUNTERS)]
        self.reshaped = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in reshaped]
        self.named = not self.missing and not self.unexpected
        self.classes: int | None = None
        rows = {(*own[key].shape[:1], *state[key].shape[:1]) for key in reshaped}
        tails = all(own[key].ndim and own[key].shape[1:] == state[key].shape[1:] for key in reshaped)
        if self.named and tails and len(rows) == 1:
            self.classes = int(next(iter(rows))[-1])

    @property
    def any(self) -> bool:
        return not self.named or bool(self.reshaped)

    def __str__(self) -> str:
        kinds = ((self.missing, "missing"), (self.unexpected, "unexpected"), (self.reshaped, "of another shape"))
        found = [f"{len(keys)} {what} ({some(keys, 3)})" for keys, what in kinds if keys]
        return f"of {self.total} tensors {'; '.join(found)}"


class WeightSet:
    """The tensors of one dictionary of a checkpoint whose names begin with one prefix, by the names of the model."""

    def __init__(self, key: str, prefix: str, own: State, content: Mapping[str, Any], rename: Rename) -> None:
        self.key, self.label = key, ".".join(part for part in (key, prefix.rstrip(".")) if part)
        self.state, self.left_out = State(), list[str]()
        for name, tensor in _tensors(content).items():
            if not name.startswith(prefix):
                self.left_out += [name] * (name != "n_averaged")  # the counter of torch's AveragedModel
            elif (known := rename(name.removeprefix(prefix))) is not None and (known in own or known != "n_averaged"):
                self.state[known] = tensor
        versions = getattr(content, "_metadata", None)  # of the modules' states
        self.versions = {
            f"{name}.".removeprefix(prefix).removesuffix("."): version
            for name, version in (versions.items() if isinstance(versions, Mapping) else ())
            if f"{name}.".startswith(prefix)
        }
        self.differences = Differences(own, self.state)


def _choose(sets: list[WeightSet], path: Path, key: str) -> tuple[WeightSet, str]:
    """Give the set of weights that fits the model, or is asked for by ``key``, and how to ask for it again."""
    asked = [s for s in sets if f"{s.label}.".startswith(f"{key}.")] if key else sets
    if not asked:
        keys = ", ".join(sorted({s.key for s in sets if s.key})) or "none, its tensors are not in a dictionary of it"
        raise WeightsError(f"{path} has no weights at {key!r}; the keys of its weights are: {keys}.")
    fitting = [s for s in asked if s.differences.named]
    if not fitting:
        near = min(asked, key=lambda s: len(s.differences.missing) + len(s.differences.unexpected))
        raise WeightsError(f"The weights of {spelled(path, near.label)} are not this model's: {near.differences}.")
    fitting = [s for s in fitting if not s.differences.any or s.differences.classes] or fitting
    best = [s for s in fitting if key in (s.key, s.label)] if key else []
    plain = [s for s in fitting if _PLAIN.issuperset(s.key.split("."))]
    chosen = next((some[0] for some in (fitting, best, plain) if len(some) == 1), None)
    spellings = [spelled(path, s.label) for s in fitting]
    if chosen is None:
        raise WeightsError(
            f"{path} holds {len(fitting)} sets of weights that fit this model; choose one: --weights {' or '.join(spellings)}."
        )
    source = spelled(path, chosen.label)
    if len(fitting) > 1:
        others = " or ".join(other for other in spellings if other != source)
        log.warning("took the weights '%s'; others in the file fit, too: --weights %s", source, others)
    if chosen.left_out:
        log.warning("'%s': left out %d tensors (%s)", source, len(chosen.left_out), some(chosen.left_out, 3))
    return chosen, source if key or len(fitting) > 1 else str(path)


def _mappings(content: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the dotted key and content of every dictionary that holds tensors."""
    if not isinstance(content, Mapping):
        return
    if _tensors(content):
        yield key, content
    for name, value in content.items():
        if depth < _DEPTH and isinstance(name, str):
            yield from _mappings(value, f"{key}.{name}" if key else name, depth + 1)


def _tensors(content: Mapping[str, Any]) -> State:
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def _prefixes(state: State, own: State) -> list[str]:
    """Give what precedes the first and the last of the model's names in the file: "", or ending in "."."""
    ends = [name for name in own if not name.endswith(_COUNTERS)]
    found = {name.removesuffix(end) for end in {*ends[:1], *ends[-1:]} for name in state if name.endswith(f".{end}")}
    return sorted({"", *found})
