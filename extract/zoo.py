"""From (model name, weights) to a network ready to look at: torchvision, timm, or a callable of your own.

Nothing is unpickled: checkpoints are read with ``weights_only`` or as safetensors. The preprocessing is the weights'
own, and what was loaded is told by a digest over the tensors themselves, whatever file they came from.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from extract.checkpoint_file import reason_of, weights_in_folder
from extract.checkpoints import State, find_file, load_weights
from extract.classes import as_class_names
from extract.image_io import GreyRange
from extract.model_output import ModelOutput
from extract.probe import find_input_and_output
from extract.vision import Preprocess, torchvision, transforms
from stores.errors import EDDPError, MissingPathError, UnknownNameError, UsageError, WeightsError

_PACKAGES = {"evaluate", "extract", "fit", "pipeline", "stores"}
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_SUFFIXES = {".pth", ".pt", ".safetensors", ".tar", ".bin", ".ckpt"}
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_AUXILIARY = {"inception_v3": ("AuxLogits",), "googlenet": ("aux1", "aux2")}  # heads used in training only
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)

logger = logging.getLogger(__name__)


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
        "DEFAULT" (the zoo's own default), the name of other weights of the zoo, a file (.pth, .pt, .safetensors), one of
        several sets of weights in a file, FILE#KEY, or "none": random initialisation.
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
    module = _prepared(built.module).eval().requires_grad_(False).cpu()
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
        cannot be determined, or there are not K class names.
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

    path, key = _weights_file(weights, [*entries, "DEFAULT", "none"], name)
    entry = _entry_of(path, list(entries.values()))
    heads = tuple(f"{head}." for head in _AUXILIARY.get(name, ()))

    def rename(tensor: str) -> str | None:
        if heads and tensor.startswith(heads):
            return None
        return _OLD_DENSENET.sub(r"\1\2", tensor) if name.startswith("densenet") else tensor

    def image_size(state: State) -> dict[str, Any]:
        if not name.startswith("vit_") or state["encoder.pos_embedding"].ndim != 3:
            return {}
        tokens, patch = state["encoder.pos_embedding"].shape[1], state["conv_proj.weight"].shape[-1]
        size = math.isqrt(max(tokens - 1, 1)) * patch
        return {"image_size": size} if size != 224 else {}

    module, loaded = load_weights(build, path, key, rename=rename, keywords=image_size)
    size = getattr(module, "image_size", None)  # a vision transformer's
    fitting = (e for e in entries.values() if size and e.meta.get("min_size", (224,))[0] == size)
    source = entry or next(fitting, first)
    return _Built(module, source.transforms(), loaded, f"torchvision {source}", entry and entry.meta["categories"])


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
        module, source = load_weights(build, *_weights_file(weights, [*tags, "DEFAULT", "none"], model))
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
    if home != "pipeline.scene_net" and str(Path.cwd()) not in sys.path:  # the demo's is installed
        sys.path.append(str(Path.cwd()))  # and it stays: spawned workers unpickle the transform from there
    try:
        offered = vars(importlib.import_module(home))
    except ModuleNotFoundError as error:
        raise UnknownNameError(
            f"Cannot import {home!r} of {model!r} from {Path.cwd()}: {error}.{_other_file(home)}"
        ) from error
    except Exception as error:
        raise UsageError(f"Importing {home!r} of {model!r} raised {error!r}.") from error
    if attribute not in offered:
        names = [key for key, value in offered.items() if callable(value)]
        near = "" if (other := _other_file(home)) else _nearest(attribute, names)
        raise UnknownNameError(f"Module {home!r} has no {attribute!r}{near}.{other}")
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
    module = _unwrapped(module)
    source = f"as {model} made them, seed {seed}"
    if weights not in ("DEFAULT", "none"):
        module, source = load_weights(lambda: module, *_weights_file(weights, ["DEFAULT", "none"], model))
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


def _other_file(home: str) -> str:
    """Say which file was imported instead of one of the same name in the current folder; "" where none was."""
    top = home.partition(".")[0]
    here = [path for path in (Path.cwd() / f"{top}.py", Path.cwd() / top) if path.exists()]
    imported = getattr(sys.modules.get(top), "__file__", None) or "a built-in module"
    if top not in sys.modules or not here or {Path(imported), Path(imported).parent} & set(here):
        return ""
    owner = "eddp" if top in _PACKAGES else "an installed package"
    owner = "Python's standard library" if top in {*sys.stdlib_module_names, "test"} else owner
    return (
        f" The name {top!r} belongs to {owner}: Python imported {imported}, which comes before {here[0]} in its search path. "
        f"Rename {here[0].name}, and give the new name."
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    """Take modules out of what torch.compile and training on several GPUs wrap around them: hooks may not run inside."""
    while isinstance(module, _WRAPPERS) or "_orig_mod" in module._modules:  # torch.compile's
        inner: Any = module._modules.get("_orig_mod") or module.module
        for name in {"class_names", "input_size"} & vars(module).keys():
            setattr(inner, name, getattr(module, name))
        module = inner
    module._compiled_call_impl = None  # of module.compile()
    for name, child in module._modules.items():
        if child is not None and (own := _unwrapped(child)) is not child:
            setattr(module, name, own)
    return module


def _prepared(module: nn.Module) -> nn.Module:
    """Give a module whose layers can be looked into, in float32.

    Raises UsageError for one that has TorchScript or quantised modules in it.
    """
    for name, part in module.named_modules():
        kind = f"{type(part).__module__}.{type(part).__name__}"
        where = f"The model's module {name!r} is" if name else "The model is"
        if isinstance(part, torch.jit.ScriptModule):
            raise UsageError(
                f"{where} TorchScript ({kind}), whose layers cannot be looked into. Give the Python module that it was made "
                "from, by --model module:callable; its weights are torch.jit.load(FILE).state_dict()."
            )
        if kind.startswith("torch.ao.nn.") and ".quantized." in kind:
            raise UsageError(
                f"{where} quantised ({kind}): such a network has no gradients, which fitting and evaluating directions need. "
                "Give the floating-point model that it was made from."
            )
    others = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if others:
        logger.warning("the model's parameters are %s; it is run in float32", " and ".join(sorted(map(str, others))))
    return module.float() if others else module


def _weights_file(weights: str, names: list[str], model: str) -> tuple[Path, str]:
    """Give the file that ``weights`` names and the key in it, as ``load_weights`` takes them."""
    found = find_file(weights)
    if found is not None:
        return found
    path = Path(weights.rpartition("#")[0] or weights).expanduser()
    if path.is_dir():
        raise weights_in_folder(path)
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
    """Turn whatever a download raises into one sentence; torch reads its own cache with ``weights_only`` meanwhile."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"  # torchvision lets torch.hub unpickle what is in its cache
    chatty = logging.getLogger("huggingface_hub")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"Cannot download {what} ({reason_of(error)}): {remedy}, or pass --weights FILE, or --weights none for random weights."
        ) from error
    finally:
        chatty.setLevel(level)
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return f"; the nearest are {', '.join(near)}" if near else ""
