"""Encoders of pictures, and of texts into the same space: those of open_clip, or the user's own code.

An encoder of the user's is ``module:callable``; what it returns has ``preprocess`` (PIL image -> tensor), ``encode_image`` (tensor (n, …) ->
(n, D)) and, where words are asked for, ``encode_text`` (list of n strings -> (n, D)).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from extract.models import call_named, weights_digest
from stores.errors import EDDPError, MissingPathError, UnknownNameError, UsageError, WeightsError, nearest

OPEN_CLIP = "open_clip:"
PARTS = ("preprocess", "encode_image")


@dataclass(frozen=True)
class ImageTextEncoder:
    """``digest`` changes with the weights and with the code that is named; ``inner`` has the functions."""

    name: str
    digest: str
    inner: Any

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(n, D) float32 embeddings of unit norm."""
        return self._embedded("encode_image", lambda: torch.stack([self.inner.preprocess(one) for one in pictures]))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 embeddings of unit norm; 0 stays 0."""
        return self._embedded("encode_text", lambda: list(texts))

    def _embedded(self, part: str, given: Callable[[], Any]) -> np.ndarray:
        try:
            with torch.inference_mode():
                made = given()
                found = torch.as_tensor(getattr(self.inner, part)(made)).detach().float().cpu().numpy()
        except EDDPError:
            raise
        except Exception as error:
            raise UsageError(f"{part} of the encoder {self.name} raised {error!r}.") from error
        if found.shape != (len(made), *found.shape[1:2]) or not np.isfinite(found).all():
            raise UsageError(
                f"{part} of the encoder {self.name} must return ({len(made)}, D) finite numbers for {len(made)} inputs, got the shape {found.shape}."
            )
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def open_encoder(name: str, device: str = "cpu", texts: bool = True) -> ImageTextEncoder:
    """Open ``open_clip:NAME:CHECKPOINT`` (a file or a pretrained tag) or ``module:callable``, whose code is run; ``texts``: it must encode them.

    Raises UsageError for any other name, WeightsError for a checkpoint that does not fit, UnknownNameError for one there is not.
    """
    if name.startswith(OPEN_CLIP):
        inner = _open_clip(name, device)
        return ImageTextEncoder(name, weights_digest(inner.module), inner)
    if ":" not in name:
        raise UsageError(f"An encoder is open_clip:NAME:CHECKPOINT or module:callable, got {name!r} (--encoder).")
    parts = (*PARTS, "encode_text") if texts else PARTS
    what = f"an object with {', '.join(parts[:-1])} and {parts[-1]}"
    inner = call_named(name, what)
    if missing := [part for part in parts if not callable(getattr(inner, part, None))]:
        raise UsageError(f"{name} must return {what}; {type(inner).__name__} has no {missing[0]}.")
    return ImageTextEncoder(name, _own_digest(name, inner), inner)


def _own_digest(name: str, inner: Any) -> str:
    """Of the file that the encoder's code is in, and of the weights that it holds, as modules, tensors or arrays."""
    digest = hashlib.sha256(name.encode())
    file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    if file is not None and Path(file).is_file():
        digest.update(Path(file).read_bytes())
    for module in (inner, *getattr(inner, "__dict__", {}).values()):
        if isinstance(module, nn.Module):
            digest.update(weights_digest(module).encode())
        elif isinstance(module, torch.Tensor):
            digest.update(module.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(module, np.ndarray):
            digest.update(module.tobytes())
    return f"sha256:{digest.hexdigest()}"


class _OpenClip:
    """A model of open_clip with the three functions."""

    def __init__(self, module: Any, preprocess: Any, tokenizer: Any, device: str) -> None:
        self.module, self.preprocess, self.tokenizer, self.device = module, preprocess, tokenizer, device

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        return self.module.encode_image(batch.to(self.device))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return self.module.encode_text(self.tokenizer(texts).to(self.device))


def _open_clip(name: str, device: str) -> _OpenClip:
    try:
        open_clip = importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs open_clip: pip install 'eddp[clip]'.") from error
    architecture, _, checkpoint = name.removeprefix(OPEN_CLIP).partition(":")
    if architecture not in (known := open_clip.list_models()):
        raise UnknownNameError(f"open_clip has no model {architecture!r}{nearest(architecture, known)}.")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not Path(checkpoint).expanduser().is_file() and checkpoint not in tags:
        raise MissingPathError(
            f"The encoder {name} is open_clip:NAME:CHECKPOINT, and its checkpoint {checkpoint!r} is no file, nor weights that open_clip has of "
            f"{architecture}{': ' + ', '.join(tags) if tags else ''}."
        )
    given = checkpoint if checkpoint in tags else str(Path(checkpoint).expanduser())
    try:
        module, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=given, device=device)
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:
        raise WeightsError(
            f"open_clip cannot load {name} ({error}). Give a checkpoint of {architecture}, or download it where there is a network."
        ) from error
    return _OpenClip(module.eval().requires_grad_(False), preprocess, tokenizer, device)
