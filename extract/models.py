"""Models and their preprocessing from torchvision, timm, or a callable of the user's own.

Checkpoints are read with ``weights_only`` or as safetensors, never unpickled. The preprocessing is that of the weights, and
a digest over the tensors identifies what was loaded, whatever file it came from.
"""

from __future__ import annotations

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from extract.checkpoint_file import reason_of
from extract.checkpoints import State, find_file, load_weights
from extract.classes import as_class_names
from extract.model_output import ModelOutput
from extract.preprocess import Preprocess, squashing
from stores.errors import EDDPError, MissingPathError, UnknownNameError, UsageError, WeightsError, nearest

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_SUFFIXES = {".pth", ".pt", ".safetensors", ".tar", ".bin", ".ckpt"}
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_AUXILIARY = {"inception_v3": ("AuxLogits",), "googlenet": ("aux1", "aux2")}  # heads used in training only
# Networks that pool take any size, so that most are tried with 224 first; the smaller ones are for those that do not
_USUAL_SIDES = (224, 256, 288, 299, 320, 384, 448, 512, 128, 96, 64, 32, 28)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a library that is collected takes its operators with it

log = logging.getLogger(__name__)


def load_torchvision() -> Any:
    """Import torchvision, also one that was built for another torch.

    Such a build fails to import for two undeclared operators, which nothing here uses: they are declared, and it is imported
    again. Import torchvision from this module for that reason. Other errors of the installation are raised.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator)
    _declared.append(library)
    return importlib.import_module("torchvision")


torchvision: Any = load_torchvision()
transforms: Any = importlib.import_module("torchvision.transforms")


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, on the CPU, without gradients for its parameters, and its preprocessing.

    Parameters
    ----------
    module : nn.Module
        Images (n, 3, h, w), or clips (n, 3, T, h, w), -> logits (n, K).
    transform : Preprocess
        PIL image of any mode -> float32 tensor (3, h, w), or clip -> (3, T, h, w); picklable.
    provenance : dict
        JSON-able: model, weights, weights_source, weights_digest, transform, transform_source, class_names; once prepared
        also output, input_mode, grey_range.
    output : ModelOutput, optional
        Where the logits are in what the module returns; None until ``extract.probe.prepare_model`` has found it.
    """

    module: nn.Module
    transform: Preprocess
    provenance: dict[str, Any]
    output: ModelOutput | None = None

    @property
    def class_names(self) -> list[str] | None:
        """The names of the K classes, where they are known."""
        return self.provenance["class_names"]


@dataclass(frozen=True)
class _Built:
    """What one zoo gives: the module, the transform, where both come from, the names of the classes."""

    module: nn.Module
    transform: Any
    weights_source: str
    transform_source: str
    class_names: list[str] | None = None
    clip: tuple[int, float] | None = None  # frames, and frames a second


def load_model(
    model: str,
    weights: str = "DEFAULT",
    *,
    seed: int = 0,
    shapes_only: bool = False,
    clip_frames: int | None = None,
    clip_rate: float | None = None,
    resize: str | None = None,
) -> LoadedModel:
    """Build a network, load its weights, and find their preprocessing.

    Parameters
    ----------
    model : str
        A torchvision classifier of images (``resnet18``) or videos (``r3d_18``), ``timm:NAME``, or ``module:callable``. The callable takes no arguments and
        returns the module, or (module, transform). Without a transform images are normalised as for ImageNet, and resized to
        the module's ``input_size`` (height, width), or else cropped to the first usual size at which it runs. It may have
        ``class_names``, and ``clip_frames`` and ``clip_rate`` if it takes clips.
    weights : str, default "DEFAULT"
        "DEFAULT", the name of other weights of the zoo, a file (.pth, .pt, .safetensors), FILE#KEY for one of several sets
        of weights in a file, or "none": random initialisation.
    seed : int, default 0
        Of every random number drawn here; the global generators are left unchanged.
    shapes_only : bool, default False
        Draw the weights of a zoo's network instead of downloading them: for its layers, not for its values.
    clip_frames, clip_rate : int, float, optional
        Of a network that takes clips: T frames a clip, and how many a second; None: what the weights or the module say.
    resize : {"squash"}, optional
        Resize images to the size of the network's input, without regard to their aspect, where the transform would crop.

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
        The user's callable fails or returns something else.
    """
    asked = {"default": "DEFAULT", "none": "DEFAULT" if shapes_only else "none"}.get(weights.lower(), weights)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the zoos', about their own arguments
        torch.manual_seed(seed)
        if model.startswith("timm:"):
            built = _from_timm(model, model.removeprefix("timm:"), asked, seed, shapes_only)
        elif ":" in model:
            built = _from_callable(model, asked, seed)
        else:
            built = _from_torchvision(model, asked, seed, shapes_only)
    module = _as_float32(built.module).eval().requires_grad_(False).cpu()
    inner = built.transform if resize is None else squashing(built.transform, model)
    frames, rate = _clip(built, model, clip_frames, clip_rate)
    transform = Preprocess(inner, frames=frames, rate=rate)
    provenance: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "weights_source": built.weights_source,
        "weights_digest": weights_digest(module),
        "transform": repr(transform),
        "transform_source": built.transform_source,
        "class_names": built.class_names,
    }
    if frames is not None:
        provenance["clip"] = {"frames": frames, "rate": rate}
    if resize is not None:
        provenance["resize"] = resize
    return LoadedModel(module, transform, provenance)


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


def _from_torchvision(name: str, weights: str, seed: int, shapes_only: bool) -> _Built:
    models = torchvision.models
    videos = models.list_models(module=models.video)
    names = [*models.list_models(module=models), *videos]
    if name not in names:
        kinds = f"A model is one of torchvision's {len(names)} classifiers of images or videos, timm:NAME, or module:callable"
        raise UnknownNameError(f"There is no model {name!r}{nearest(name, names)}. {kinds}.")
    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    first = next(iter(entries.values()))
    auxiliary = _AUXILIARY.get(name, ())
    fixed = {"init_weights": False, "aux_logits": False, "transform_input": True} if auxiliary else {}

    clip = _published_clip(first) if name in videos else None

    def build(**keywords: Any) -> nn.Module:
        return models.get_model(name, weights=None, **fixed, **keywords)

    if weights == "none":
        return _Built(build(), first.transforms(), f"random, seed {seed}", f"torchvision {first}", clip=clip)
    short = weights.removeprefix(f"{type(first).__name__}.")
    if short in entries or short == "DEFAULT":
        entry = entries[short] if short in entries else models.get_model_weights(name).DEFAULT
        if shapes_only:
            sized = {"image_size": entry.meta["min_size"][0]} if name.startswith("vit_") else {}
            classes = entry.meta.get("categories")
            return _Built(_drawn(build(**sized)), entry.transforms(), "random", f"torchvision {entry}", classes, clip)
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        with _download(f"{entry} from {entry.url}", f"put the file at {file}"):
            module = models.get_model(name, weights=entry, progress=False)
        for head in auxiliary:
            setattr(module, head, None)
        classes = entry.meta.get("categories")
        return _Built(module, entry.transforms(), f"torchvision {entry}", f"torchvision {entry}", classes, clip)

    path, key = _weights_file(weights, [*entries, "DEFAULT", "none"], name)
    entry = _entry_of(path, list(entries.values()))

    def rename(tensor: str) -> str | None:
        if tensor.startswith(tuple(f"{head}." for head in auxiliary)):
            return None
        return _OLD_DENSENET.sub(r"\1\2", tensor) if name.startswith("densenet") else tensor

    def image_size(state: State) -> dict[str, Any]:
        """The size that a vision transformer's position embedding is for."""
        if not name.startswith("vit_") or state["encoder.pos_embedding"].ndim != 3:
            return {}
        tokens, patch = state["encoder.pos_embedding"].shape[1], state["conv_proj.weight"].shape[-1]
        size = math.isqrt(max(tokens - 1, 1)) * patch
        return {"image_size": size} if size != 224 else {}

    module, source = load_weights(build, path, key, rename=rename, keywords=image_size)
    size = getattr(module, "image_size", None)
    fitting = (e for e in entries.values() if size and e.meta.get("min_size", (224,))[0] == size)
    preset = entry or next(fitting, first)
    classes = entry and entry.meta["categories"]
    return _Built(module, preset.transforms(), source, f"torchvision {preset}", classes, clip)


def _published_clip(weights: Any) -> tuple[int, float] | None:
    """Frames a clip, and frames a second, that torchvision's documentation of some weights states."""
    said = weights.meta.get("_docs", "")
    frames, rate = re.search(r"clip_len=(\d+)", said), re.search(r"frame_rate=([\d.]*\d)", said)
    return (int(frames[1]), float(rate[1])) if frames and rate else None


def _clip(built: _Built, model: str, frames: int | None, rate: float | None) -> tuple[int, float] | tuple[None, None]:
    """Frames a clip, and frames a second: what was asked for, else what is known of the network; None of one that takes images."""
    if (frames or rate) and built.clip is None and (":" not in model or model.startswith("timm:")):
        raise UsageError(f"{model} takes images, not clips: --frames N takes N frames of each video.")
    known = built.clip or (getattr(built.module, "clip_frames", None), getattr(built.module, "clip_rate", None))
    frames, rate = frames or known[0], rate or known[1]
    if frames is None and rate is None:
        return None, None
    if frames is None or rate is None:
        missing = "--clip-frames" if frames is None else "--clip-rate"
        raise UsageError(
            f"{model} takes clips: give {missing}, or the module an attribute {missing[2:].replace('-', '_')}."
        )
    return int(frames), float(rate)


def _from_timm(model: str, name: str, weights: str, seed: int, shapes_only: bool) -> _Built:
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UsageError(f"{model} needs timm: pip install 'eddp[timm]'.") from error
    architecture, _, tag = name.partition(".")
    names = timm.list_models()
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if architecture not in names:
        raise UnknownNameError(f"timm has no model {architecture!r}{nearest(architecture, names)}.")
    if tag and tag not in tags:
        raise UnknownNameError(f"timm has no weights {tag!r} for {architecture}{nearest(tag, tags)}.")

    def build(**keywords: Any) -> nn.Module:
        return timm.create_model(name, pretrained=False, **keywords)

    def title(module: Any, name: str) -> str:
        config = module.pretrained_cfg
        return f"timm {config.get('architecture') or name}.{config.get('tag') or ''}".rstrip(".")

    classes = None
    if weights == "none":
        module, source = build(), f"random, seed {seed}"
    elif weights == "DEFAULT" or weights in tags:
        full = name if weights == "DEFAULT" else f"{architecture}.{weights}"
        with _download(f"timm's weights {full} from the Hugging Face hub", "fill its cache (HF_HOME) beforehand"):
            module = timm.create_model(full, pretrained=not shapes_only)
        if shapes_only:
            _drawn(module)
        source = "random" if shapes_only else title(module, full)
        if (subset := timm.data.infer_imagenet_subset(module)) is not None:
            info = timm.data.ImageNetInfo(subset)
            classes = [info.index_to_description(k).split(",")[0] for k in range(module.num_classes)]
    else:
        module, source = load_weights(build, *_weights_file(weights, [*tags, "DEFAULT", "none"], model))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    return _Built(module, transform, source, title(module, name), classes)


def _from_callable(model: str, weights: str, seed: int) -> _Built:
    made = call_named(model, "a network")
    module, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{model} must return an nn.Module or (module, transform), got {type(made).__name__}.")
    module = _unwrapped(module)
    source, transform_source = f"as {model} made them, seed {seed}", model
    if weights not in ("DEFAULT", "none"):
        module, source = load_weights(lambda: module, *_weights_file(weights, ["DEFAULT", "none"], model))
    classes = as_class_names(getattr(module, "class_names", None), f"class_names of {model}")
    if transform is None:
        transform, transform_source = _usual_transform(module, model)
    return _Built(module, transform, source, transform_source, classes)


def call_named(name: str, what: str) -> Any:
    """What ``module:callable`` returns; modules of the working directory are found. Raises UsageError where it returns nothing: ``what`` it should."""
    home, _, attribute = name.partition(":")
    if home != "pipeline.scene_net" and str(Path.cwd()) not in sys.path:  # the demo's is installed
        sys.path.append(str(Path.cwd()))  # for good: spawned workers unpickle the transform from there
    try:
        offered = vars(importlib.import_module(home))
    except ModuleNotFoundError as error:
        raise UnknownNameError(f"Cannot import {home!r} of {name!r} from {Path.cwd()}: {error}.") from error
    except Exception as error:
        raise UsageError(f"Importing {home!r} of {name!r} raised {error!r}.") from error
    if attribute not in offered:
        names = [key for key, value in offered.items() if callable(value)]
        file = offered.get("__file__")  # of another module of that name, perhaps
        raise UnknownNameError(f"Module {home!r} ({file}) has no {attribute!r}{nearest(attribute, names)}.")
    try:
        return offered[attribute]()
    except EDDPError:
        raise
    except Exception as error:
        raise UsageError(f"{name} must return {what} if called without arguments; it raised {error!r}.") from error


def _usual_transform(module: nn.Module, model: str) -> tuple[Any, str]:
    """ImageNet's transform for the size that a network says it takes; else for the first usual one at which it runs."""
    normalise = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    size: Any = getattr(module, "input_size", None)
    size = (size, size) if isinstance(size, int) else size
    give = "return (module, transform), or give the module an attribute input_size = (height, width)"
    if isinstance(size, tuple | list) and len(size) == 2:
        if getattr(module, "clip_frames", None):
            preset: Any = importlib.import_module("torchvision.transforms._presets")
            sizes = {"crop_size": tuple(map(int, size)), "resize_size": tuple(map(int, size))}
            given = preset.VideoClassification(**sizes, mean=_MEAN, std=_STD)
            return given, f"input_size of {model}, ImageNet normalisation"
        whole = transforms.Resize([int(d) for d in size])
        return transforms.Compose([whole, *normalise]), f"input_size of {model}, ImageNet normalisation"
    if getattr(module, "clip_frames", None):
        raise UsageError(f"{model} takes clips and says nothing of their size: {give}; got {size!r}.")
    side = next((side for side in _USUAL_SIDES if size is None and _runs_at(module, side)), None)
    if side is None:
        raise UsageError(f"{model} says nothing of its input: {give}; got {size!r}.")
    larger = round(side / 0.875)
    log.warning(
        "%s comes without a transform: images are resized to %d, cropped to %d × %d and normalised as for ImageNet. If it was trained "
        "on other inputs, %s", model, larger, side, side, give,
    )  # fmt: skip
    steps = [transforms.Resize(larger), transforms.CenterCrop(side), *normalise]
    return transforms.Compose(steps), f"usual for ImageNet at {side} × {side}, at which {model} runs"


def _runs_at(module: nn.Module, side: int) -> bool:
    """Whether a network takes a colour image of this size."""
    try:
        with torch.no_grad():
            _as_float32(module).eval()(torch.zeros(1, 3, side, side))
    except Exception:  # noqa: BLE001  (the network's own code may raise anything)
        return False
    return True


def _drawn(module: nn.Module) -> nn.Module:
    """Draw the weights that a network begins its training with as zeros: a head of zeros shows nothing of what it does."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
    return module


def _unwrapped(module: nn.Module) -> nn.Module:
    """Remove the wrappers of torch.compile and of training on several GPUs: hooks may not run inside them."""
    while isinstance(module, _WRAPPERS) or "_orig_mod" in module._modules:  # torch.compile's
        inner: Any = module._modules.get("_orig_mod") or module.module
        for name in {"class_names", "input_size", "clip_frames", "clip_rate"} & vars(module).keys():
            setattr(inner, name, getattr(module, name))
        module = inner
    module._compiled_call_impl = None  # of module.compile()
    for name, child in module._modules.items():
        if child is not None and (own := _unwrapped(child)) is not child:
            setattr(module, name, own)
    return module


def _as_float32(module: nn.Module) -> nn.Module:
    """Give the module in float32. Raises UsageError for one with TorchScript modules, which take no hooks."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            which = f"The model's module {name!r}" if name else "The model"
            then = "Give the Python module that it was made from; its weights are torch.jit.load(FILE).state_dict()"
            raise UsageError(f"{which} is TorchScript, whose layers cannot be looked into. {then}.")
    others = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if others:
        log.warning("the model's parameters are %s; it is run in float32", " and ".join(sorted(map(str, others))))
    return module.float() if others else module


def _weights_file(weights: str, names: list[str], model: str) -> tuple[Path, str]:
    """Give the file that ``weights`` names and the key in it, as ``load_weights`` takes them."""
    found = find_file(weights)
    if found is not None:
        return found
    path = Path(weights.rpartition("#")[0] or weights).expanduser()
    if path.is_dir():
        raise MissingPathError(f"The weights {path} are a folder, not a file: give the file in it that holds them.")
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise MissingPathError(f"There is no weights file {path.absolute()}.")
    raise UnknownNameError(
        f"{model} has no weights {weights!r}, nor is there such a file; known are {', '.join(names)}."
    )


def _entry_of(path: Path, entries: list[Any]) -> Any | None:
    """Find the published weights that a file holds, by the digest in their address."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for entry in entries:
        match = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
        if match and digest.startswith(match[1]):
            return entry
    return None


@contextmanager
def _download(what: str, remedy: str) -> Iterator[None]:
    """Raise WeightsError for any error of a download; have torch.hub read its cache with ``weights_only`` meanwhile."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"Cannot download {what} ({reason_of(error)}): {remedy}, or pass --weights FILE, or --weights none for random weights."
        ) from error
    finally:
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before
