"""Find the weights of a model in a checkpoint as training scripts write it, and load them.

A checkpoint may hold several sets of weights (the model's and their moving average) in nested dictionaries, and the names of
its tensors may begin with the name of what the model was wrapped in. Both are found by trying what fits the model;
``FILE#KEY`` chooses.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from extract.checkpoint_file import read_checkpoint
from stores.errors import WeightsError

logger = logging.getLogger(__name__)
_PLAIN = {"", "state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "module", "params"}
_DEPTH = 3  # of dictionaries in dictionaries
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # BatchNorm's and thop's, never read in evaluation
# what compilation, FSDP and activation checkpointing insert into names, wherever the wrapped module is
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.")
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
    """Build a network and load those weights of a file that fit it.

    Parameters
    ----------
    build : callable
        Makes the network; one that takes any keywords is built with ``num_classes`` where the file has another number.
    path, key : as ``find_file`` gives them.
    rename : callable, optional
        Gives the model's name for a tensor's name in the file, or None to leave the tensor out.
    keywords : callable, optional
        Gives what else to build the network with, from the weights found.

    Returns
    -------
    module : nn.Module
    source : str
        The file, with #KEY where there was a choice; given as weights, it loads the same again.

    Raises
    ------
    WeightsError
        The file is no checkpoint, nothing in it fits the model, or several sets of weights do.
    """
    module = build()
    own = _tensors(module.state_dict())
    content = read_checkpoint(path)
    sets = [
        WeightSet(name, prefix, own, found, rename)
        for name, found in _mappings(content)
        for prefix in _prefixes(_unwrapped(found), _unwrapped(own))
    ]
    if not sets:
        raise WeightsError(f"{path} holds no tensors by name: a state dict is needed.")
    chosen, source = _choose(sets, path, key)
    more = keywords(chosen.state)
    return _load_state(build, build(**more) if more else module, chosen, source, more), source


class WeightSet:
    """The tensors of one dictionary of a checkpoint whose names begin with one prefix, by the names of the model."""

    def __init__(self, key: str, prefix: str, own: State, content: Mapping[str, Any], rename: Rename) -> None:
        self.key, self.label = key, ".".join(part for part in (key, prefix.rstrip(".")) if part)
        self.own, self.state, self.left_out = own, State(), list[str]()
        own_name = {_plain(name): name for name in own}
        for name, tensor in _unwrapped(content).items():
            if not name.startswith(prefix):
                self.left_out += [name] * (name != "n_averaged")  # the counter of torch's AveragedModel
            elif (known := rename(name.removeprefix(prefix))) is not None and (known in own or known != "n_averaged"):
                self.state[own_name.get(known, known)] = tensor
        metadata = getattr(content, "_metadata", None)
        self.versions = {
            name.removeprefix(prefix).removesuffix("."): version
            for found, version in (metadata if isinstance(metadata, Mapping) else {}).items()
            if (name := _plain(f"{found}.")).startswith(prefix)
        }
        self.differences = _differences(own, self.state)

    @property
    def fits(self) -> bool:
        """Whether its names are the model's."""
        return not self.differences[0] and not self.differences[1]


def _load_state(
    build: Build, module: nn.Module, chosen: WeightSet, source: str, keywords: Mapping[str, Any]
) -> nn.Module:
    """Load tensors into a module; for another number of classes ``build`` makes another one, with ``num_classes``."""
    own, state = _tensors(module.state_dict()), chosen.state
    classes = _other_classes(own, state)
    if classes is not None and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values()):
        module = build(**keywords, num_classes=classes)
        own = _tensors(module.state_dict())
    differences = _differences(own, state)
    if any(differences):
        raise WeightsError(_complaint(source, own, differences))
    integers = [
        key for key, t in state.items() if key in own and own[key].is_floating_point() and not t.is_floating_point()
    ]
    if integers:
        raise WeightsError(
            f"The weights of {source} are not usable: {_some(integers, 'tensors')} are not floating-point numbers. Quantised "
            "weights must be dequantised first."
        )
    given: Any = OrderedDict(state)
    given._metadata = {**getattr(module.state_dict(), "_metadata", {}), **chosen.versions}
    try:
        module.load_state_dict(given, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"The weights of {source} cannot be loaded into this model: {reason[:500]}") from error
    return module


def _choose(sets: list[WeightSet], path: Path, key: str) -> tuple[WeightSet, str]:
    """Give the set of weights that fits the model, or is asked for by ``key``, and how to ask for it again."""
    key = _plain(f"{key}.").rstrip(".")
    asked = [s for s in sets if f"{s.label}.".startswith(f"{key}.")] if key else sets
    if not asked:
        keys = ", ".join(sorted({s.key for s in sets if s.key})) or "none, its tensors are not in a dictionary of it"
        raise WeightsError(f"{path} has no weights at {key!r}; the keys of its weights are: {keys}.")
    fitting = [s for s in asked if s.fits]
    if not fitting:
        nearest = min(asked, key=lambda s: len(s.differences[0]) + len(s.differences[1]))
        raise WeightsError(_complaint(spelled(path, nearest.label), nearest.own, nearest.differences))
    fitting = [s for s in fitting if not s.differences[2] or _other_classes(s.own, s.state)] or fitting
    best = [s for s in fitting if key in (s.key, s.label)] if key else []
    plain = [s for s in fitting if _PLAIN.issuperset(s.key.split("."))]
    chosen = next((some[0] for some in (fitting, best, plain) if len(some) == 1), None)
    spellings = [spelled(path, s.label) for s in fitting]
    if chosen is None:
        raise WeightsError(
            f"{path} holds {len(fitting)} sets of weights that fit this model; choose one: --weights {' or '.join(spellings)}."
        )
    if len(fitting) > 1:
        taken = spelled(path, chosen.label)
        others = " or ".join(other for other in spellings if other != taken)
        logger.warning("took the weights '%s'; others in the file fit, too: --weights %s", taken, others)
    if chosen.left_out:
        logger.warning("'%s': %s", spelled(path, chosen.label), f"left out {_some(chosen.left_out, 'tensors')}")
    return chosen, spelled(path, chosen.label if key or len(fitting) > 1 else "")


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


def _plain(name: str) -> str:
    """Give a tensor's name without the names of wrappers."""
    return _WRAPPERS.sub("", name)


def _unwrapped(content: Mapping[str, Any]) -> State:
    """Give the tensors by their names without wrappers; unchanged where two would have the same name."""
    tensors = _tensors(content)
    plain = {_plain(name): tensor for name, tensor in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _prefixes(state: State, own: State) -> list[str]:
    """Give what stands in the file before the first and the last of the model's names: "", or ending in "."."""
    ends = [name for name in own if not name.endswith(_COUNTERS)]
    found = {name.removesuffix(end) for end in {*ends[:1], *ends[-1:]} for name in state if name.endswith(f".{end}")}
    return sorted({"", *found})


def _other_classes(own: State, state: State) -> int | None:
    """Give the number of classes of ``state``, where it is all that tells it from the model's own tensors."""
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    pairs = {(own[key].shape[:1], state[key].shape[:1]) for key in reshaped if own[key].ndim and state[key].ndim}
    same_tails = all(own[key].shape[1:] == state[key].shape[1:] for key in reshaped)
    if len(pairs) != 1 or not same_tails or _differences(own, state)[:2] != ([], []):
        return None
    ((_, (classes,)),) = pairs
    return int(classes)


def _differences(own: State, state: State) -> tuple[list[str], list[str], list[str]]:
    """Give the names that are missing, unexpected, and of another shape."""
    missing = [key for key in own if key not in state and not key.endswith(_COUNTERS)]
    unexpected = [key for key in state if key not in own and not key.endswith(_COUNTERS)]
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    return missing, unexpected, reshaped


def _complaint(source: str, own: State, differences: tuple[list[str], ...]) -> str:
    kinds = zip(differences, ("missing", "unexpected", "of another shape"), strict=True)
    parts = [_some(keys, what) for keys, what in kinds if keys]
    return f"The weights of {source} are not this model's: of {len(own)} tensors {'; '.join(parts)}."


def _some(names: list[str], what: str) -> str:
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
