"""From (model name, weights) to a network ready to look at: torchvision, timm, or a callable of your own.

Nothing is unpickled: checkpoints are read with ``weights_only`` or as safetensors. The preprocessing is the weights'
own, and what was loaded is told by a digest over the tensors themselves, whatever file they came from.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import logging
import math
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from extract.classes import as_class_names
from extract.model_output import ModelOutput
from extract.probe import find_input_and_output
from extract.rgb import GreyRange
from extract.vision import Preprocess, torchvision, transforms
from stores.errors import EDDPError, MissingPathError, UnknownNameError, UsageError, WeightsError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints keep the tensors
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_SUFFIXES = {".pth", ".pt", ".safetensors", ".tar", ".bin", ".ckpt"}
_AUXILIARY = {"inception_v3": ("AuxLogits",), "googlenet": ("aux1", "aux2")}  # heads used in training only
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)
State = dict[str, torch.Tensor]
Build = Callable[..., nn.Module]  # build(**keywords): a network with random weights


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, on the CPU, without gradients for its parameters, and how to feed it.

    Parameters
    ----------
    module : nn.Module
        Images (n, 3, h, w) -> logits (n, K).
    transform : Preprocess
        PIL image of any mode -> float32 tensor (3, h, w); picklable.
    provenance : dict
        JSON-able: model, weights, weights_source, weights_digest, transform, transform_source, class_names.
    """

    module: nn.Module
    transform: Preprocess
    provenance: dict[str, Any]

    @property
    def class_names(self) -> list[str] | None:
        """The names of the K classes, where the weights tell them."""
        return self.provenance["class_names"]


@dataclass(frozen=True)
class PreparedModel(LoadedModel):
    """A loaded model of which is known what it is fed and where in what it returns its ``output``, the logits, is.

    ``provenance`` also has output, input_mode and grey_range.
    """

    output: ModelOutput


@dataclass(frozen=True)
class _Built:
    """What one zoo gives: the module, the transform, where both come from, the names of the classes."""

    module: nn.Module
    transform: Any
    weights_source: str
    transform_source: str
    class_names: list[str] | None = None


def load_model(model: str, weights: str = "DEFAULT", *, seed: int = 0) -> LoadedModel:
    """Build a network, give it weights, and find the preprocessing that belongs to them.

    Parameters
    ----------
    model : str
        A torchvision classification model (``resnet18``), ``timm:NAME``, or ``module:callable``; the callable takes
        nothing and returns the module, or (module, transform). The module may name its classes in an attribute
        ``class_names``. Without a transform it must have an attribute
        ``input_size`` (height, width): images are then resized to it, scaled to [0, 1] and normalised as for ImageNet.
    weights : str, default "DEFAULT"
        "DEFAULT" (the zoo's own default), the name of other weights of the zoo, a file (.pth, .pt, .safetensors), or
        "none": random initialisation.
    seed : int, default 0
        Seeds every random number drawn here; the global generators are left as they were.

    Returns
    -------
    LoadedModel

    Raises
    ------
    UnknownNameError
        No such model or weights; the message lists the nearest names.
    MissingPathError
        The weights file does not exist.
    WeightsError
        The file is no weights file, the weights are another model's, or they cannot be downloaded.
    UsageError
        Your own callable does not give what it must.
    """
    known = {"default": "DEFAULT", "none": "none"}
    asked = known.get(weights.lower(), weights)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the zoos' own, about arguments nobody gave here
        torch.manual_seed(seed)
        if model.startswith("timm:"):
            built = _from_timm(model, model.removeprefix("timm:"), asked, seed)
        elif ":" in model:
            built = _from_callable(model, asked, seed)
        else:
            built = _from_torchvision(model, asked, seed)
    module = built.module.eval().requires_grad_(False).cpu()
    transform = Preprocess(built.transform)
    provenance = {
        "model": model,
        "weights": weights,
        "weights_source": built.weights_source,
        "weights_digest": weights_digest(module),
        "transform": repr(transform),
        "transform_source": built.transform_source,
        "class_names": built.class_names,
    }
    return LoadedModel(module, transform, provenance)


def prepare_model(
    loaded: LoadedModel,
    *,
    output: str | None = None,
    grey_range: GreyRange | None = None,
    class_names: Sequence[str] | None = None,
    folders: int | None = None,
) -> PreparedModel:
    """Decide what a loaded model is fed and which tensor it returns are its logits, by running it on drawn images.

    Parameters
    ----------
    output : where the logits are, see ``find_output``; None: found.
    grey_range : see ``Preprocess``.
    class_names : of the K classes, in place of the model's own.
    folders : how many classes the images have; decides between several outputs where no names do.

    Raises
    ------
    UsageError
        The transform draws random numbers or gives no tensor, the model takes neither RGB, grey nor four channels, its logits
        cannot be told, or there are not K class names.
    """
    names = list(class_names) if class_names is not None else loaded.class_names
    transform = replace(loaded.transform, grey_range=grey_range)
    fed = find_input_and_output(
        loaded.module, transform, asked=output, named=None if names is None else len(names), folders=folders
    )
    return _with(loaded, fed.transform, fed.output, names)


def prepared_as(loaded: LoadedModel, made: Mapping[str, Any], n_classes: int) -> PreparedModel:
    """The loaded model, fed and read as the provenance of a store says that it was."""
    grey = made.get("grey_range")
    transform = replace(
        loaded.transform, mode=made.get("input_mode", "RGB"), grey_range=None if grey is None else (grey[0], grey[1])
    )
    output = ModelOutput(str(made.get("output", "")), n_classes, "as the store was made")
    return _with(loaded, transform, output, loaded.class_names)


def _with(
    loaded: LoadedModel, transform: Preprocess, output: ModelOutput, names: Sequence[str] | None
) -> PreparedModel:
    grey = transform.grey_range
    provenance = {
        **loaded.provenance,
        "class_names": names,
        "output": output.key,
        "input_mode": transform.mode,
        "grey_range": None if grey is None else list(grey),
    }
    return PreparedModel(loaded.module, transform, provenance, output)


def weights_digest(module: nn.Module) -> str:
    """Digest all tensors of a module's state: "sha256:" over names, dtypes, shapes and bytes, in sorted order.

    The counters ``num_batches_tracked`` are left out: old files lack them and evaluation never reads them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or name.endswith("num_batches_tracked"):
            continue
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _from_torchvision(name: str, weights: str, seed: int) -> _Built:
    models = torchvision.models
    names = models.list_models(module=models)
    if name not in names:
        raise UnknownNameError(
            f"There is no model {name!r}{_nearest(name, names)}. "
            f"A model is one of torchvision's {len(names)} classifiers, timm:NAME, or module:callable."
        )
    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    first = next(iter(entries.values()))
    fixed = {"init_weights": False, "aux_logits": False, "transform_input": True} if name in _AUXILIARY else {}

    def build(**keywords: Any) -> nn.Module:
        return models.get_model(name, weights=None, **fixed, **keywords)

    if weights == "none":
        return _Built(build(), first.transforms(), f"random, seed {seed}", f"torchvision {first}")
    short = weights.removeprefix(f"{type(first).__name__}.")
    if short in entries or short == "DEFAULT":
        entry = entries[short] if short in entries else models.get_model_weights(name).DEFAULT
        where = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        with _download(f"{entry} from {entry.url}", f"put the file at {where}"):
            module = models.get_model(name, weights=entry, progress=False)
        for head in _AUXILIARY.get(name, ()):
            setattr(module, head, None)
        classes = entry.meta.get("categories")
        return _Built(module, entry.transforms(), f"torchvision {entry}", f"torchvision {entry}", classes)

    path = _weights_file(weights, [*entries, "DEFAULT", "none"], name)
    entry = _entry_of(path, list(entries.values()))
    state = read_state(path)
    if name.startswith("densenet"):
        state = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
    skip = tuple(f"{head}." for head in _AUXILIARY.get(name, ()))
    state = {key: tensor for key, tensor in state.items() if not (skip and key.startswith(skip))}
    keywords: dict[str, Any] = {}
    if name.startswith("vit_") and "encoder.pos_embedding" in state and "conv_proj.weight" in state:
        tokens, patch = state["encoder.pos_embedding"].shape[1], state["conv_proj.weight"].shape[-1]
        keywords["image_size"] = math.isqrt(max(tokens - 1, 1)) * patch
        fitting = (e for e in entries.values() if e.meta.get("min_size", (224,))[0] == keywords["image_size"])
        first = next(fitting, first)
    module = load_state(build, state, path, **keywords)
    source = entry or first
    return _Built(module, source.transforms(), str(path), f"torchvision {source}", entry and entry.meta["categories"])


def _timm_name(module: Any, name: str) -> str:
    """Give architecture.tag of a timm model."""
    config = module.pretrained_cfg
    return f"timm {config.get('architecture') or name}.{config.get('tag') or ''}".rstrip(".")


def _from_timm(model: str, name: str, weights: str, seed: int) -> _Built:
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UsageError(f"{model} needs timm: pip install 'eddp[timm]'.") from error
    architecture, _, tag = name.partition(".")
    names = timm.list_models()
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if architecture not in names:
        raise UnknownNameError(f"timm has no model {architecture!r}{_nearest(architecture, names)}.")
    if tag and tag not in tags:
        raise UnknownNameError(f"timm has no weights {tag!r} for {architecture}{_nearest(tag, tags)}.")

    def build(**keywords: Any) -> nn.Module:
        return timm.create_model(name, pretrained=False, **keywords)

    if weights == "none":
        module, source = build(), f"random, seed {seed}"
    elif weights == "DEFAULT" or weights in tags:
        full = name if weights == "DEFAULT" else f"{architecture}.{weights}"
        with _download(f"timm's weights {full} from the Hugging Face hub", "fill its cache (HF_HOME) beforehand"):
            module = timm.create_model(full, pretrained=True)
        source = _timm_name(module, full)
    else:
        path = _weights_file(weights, [*tags, "DEFAULT", "none"], model)
        module, source = load_state(build, read_state(path), path), str(path)
    config = timm.data.resolve_model_data_config(module)
    transform = timm.data.create_transform(**config, is_training=False)
    classes = _timm_classes(timm, module) if weights == "DEFAULT" or weights in tags else None
    return _Built(module, transform, source, _timm_name(module, name), classes)


def _timm_classes(timm: Any, module: Any) -> list[str] | None:
    """The names of the classes of timm's own weights, where they are ImageNet's or a part of it."""
    subset = timm.data.infer_imagenet_subset(module)
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(k).split(",")[0] for k in range(module.num_classes)]


def _from_callable(model: str, weights: str, seed: int) -> _Built:
    home, _, attribute = model.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # and it stays: spawned workers unpickle the transform from there
    try:
        offered = vars(importlib.import_module(home))
    except ModuleNotFoundError as error:
        raise UnknownNameError(f"Cannot import {home!r} of {model!r} from {Path.cwd()}: {error}.") from error
    except Exception as error:
        raise UsageError(f"Importing {home!r} of {model!r} raised {error!r}.") from error
    if attribute not in offered:
        names = [key for key, value in offered.items() if callable(value)]
        raise UnknownNameError(f"Module {home!r} has no {attribute!r}{_nearest(attribute, names)}.")
    try:
        made = offered[attribute]()
    except EDDPError:
        raise
    except Exception as error:
        raise UsageError(
            f"{model} must return a network when called without arguments; it raised {error!r}."
        ) from error
    module, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{model} must return an nn.Module or (module, transform), got {type(made).__name__}.")
    source = f"as {model} made them, seed {seed}"
    if weights not in ("DEFAULT", "none"):
        path = _weights_file(weights, ["DEFAULT", "none"], model)
        module, source = load_state(lambda: module, read_state(path), path), str(path)
    classes = as_class_names(getattr(module, "class_names", None), f"class_names of {model}")
    if transform is not None:
        return _Built(module, transform, source, model, classes)
    size = getattr(module, "input_size", None)
    if isinstance(size, int):
        size = (size, size)
    if not (isinstance(size, tuple | list) and len(size) == 2):
        raise UsageError(
            f"{model} says nothing of its input: return (module, transform), "
            f"or give the module an attribute input_size = (height, width); got {size!r}."
        )
    steps = [
        transforms.Resize([int(d) for d in size]),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    return _Built(module, transforms.Compose(steps), source, f"input_size of {model}, ImageNet normalisation", classes)


def read_state(path: Path) -> State:
    """Read the tensors of a checkpoint by name; code in it is never run.

    Accepts a bare state dict, {"state_dict": ...} and the like, and names with the prefix ``module.``.

    Raises
    ------
    WeightsError
        The file is no weights file, or it holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no weights file, or holds more than tensors, which is never run: "
            "save the tensors alone, torch.save(model.state_dict(), FILE) or safetensors."
        ) from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is no weights file that can be read ({reason}).") from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    )
    if not state:
        raise WeightsError(f"{path} holds no tensors by name: a state dict is needed, got {type(content).__name__}.")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def load_state(build: Build, state: State, path: Path, **keywords: Any) -> nn.Module:
    """Build a network and load ``state`` into it; for another number of classes it is built for that number.

    Raises
    ------
    WeightsError
        Tensors are missing, unexpected, or of another shape; the message counts them and gives examples.
    """
    module = build(**keywords)
    own = module.state_dict()
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    pairs = {(own[key].shape[:1], state[key].shape[:1]) for key in reshaped if own[key].ndim and state[key].ndim}
    tails_agree = all(own[key].shape[1:] == state[key].shape[1:] for key in reshaped)
    if reshaped and tails_agree and len(pairs) == 1 and _differences(own, state)[:2] == ([], []):
        (_, (classes,)), *_ = pairs
        if "num_classes" in keywords or not _takes_classes(build):
            raise WeightsError(_complaint(path, own, state))
        return load_state(build, state, path, **keywords, num_classes=int(classes))
    if any(_differences(own, state)):
        raise WeightsError(_complaint(path, own, state))
    module.load_state_dict(state, strict=False)
    return module


def _takes_classes(build: Build) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values())


def _differences(own: State, state: State) -> tuple[list[str], list[str], list[str]]:
    """Give the names that are missing, unexpected, and of another shape."""
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own and not key.endswith("num_batches_tracked")]
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    return missing, unexpected, reshaped


def _complaint(path: Path, own: State, state: State) -> str:
    parts = []
    for what, keys in zip(("missing", "unexpected", "of another shape"), _differences(own, state), strict=True):
        if keys:
            parts.append(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    return f"The weights of {path} are not this model's: of {len(own)} tensors {'; '.join(parts)}."


def _weights_file(weights: str, names: list[str], model: str) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path.resolve()
    if path.exists():
        raise MissingPathError(f"The weights {path} are a folder, not a file.")
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise MissingPathError(f"There is no weights file {path.absolute()}.")
    raise UnknownNameError(
        f"{model} has no weights {weights!r}, and no such file exists; known are {', '.join(names)}."
    )


def _entry_of(path: Path, entries: list[Any]) -> Any | None:
    """Find the published weights a file is, by the digest in their address."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for entry in entries:
        match = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
        if match and digest.startswith(match[1]):
            return entry
    return None


@contextmanager
def _download(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a download raises into one sentence."""
    chatty = logging.getLogger("huggingface_hub")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"Cannot download {what} ({reason}): {remedy}, or pass --weights FILE, or --weights none for random weights."
        ) from error
    finally:
        chatty.setLevel(level)


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return f"; the nearest are {', '.join(near)}" if near else ""
