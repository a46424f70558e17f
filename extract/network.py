"""A network seen from one of its layers: the backbone up to it, the head after it.

``Network.backbone`` gives activations as images x positions x channels, ``Network.head`` takes them from there to the
logits, differentiably. At construction both are checked against the model itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from extract.heads import PooledAffine, head_logits, pooled_affine
from extract.layout import LayerLayout, infer_layout
from extract.split import Split, first_tensor, trace
from stores.errors import NonFiniteError, UsageError

if TYPE_CHECKING:
    from extract.zoo import LoadedModel

logger = logging.getLogger(__name__)
_PROBES = 2
_TOLERANCE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class LayerInfo:
    """What there is to know of a layer before choosing it; ``shape`` is its output's, for one image."""

    name: str
    type: str
    shape: tuple[int, ...]
    positions: int | None
    channels: int | None
    cut: bool


class Network:
    """A loaded model cut at one layer; make it with ``Network.load`` or ``Network.from_loaded``.

    Attributes
    ----------
    module : nn.Module
        The whole model, in evaluation mode, on ``device``, without gradients for its parameters.
    transform : callable
        PIL image -> float32 tensor (3, h, w); picklable.
    layer : str
        The layer's dotted name.
    layout : LayerLayout
    split_kind : {"fx", "replay"}
    n_classes : int
        K.
    device : torch.device
    provenance : dict
        JSON-able: the model's, and layer, layout, split, n_classes, input_size.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layer: str,
        layout: LayerLayout,
        split: Split,
        device: torch.device,
        probe: torch.Tensor,
    ) -> None:
        self.module, self.transform, self.device = loaded.module, loaded.transform, device
        self.layer, self.layout, self.split_kind = layer, layout, split.kind
        self._backbone = split.backbone(layer).eval().to(device)
        self._head = split.head(layer).eval().to(device)
        self.n_classes = self._check(probe)
        self.provenance: dict[str, Any] = {
            **loaded.provenance,
            "layer": layer,
            "layout": layout.to_dict(),
            "split": split.kind,
            "n_classes": self.n_classes,
            "input_size": list(probe.shape[2:]),
        }

    @classmethod
    def load(
        cls, model: str, weights: str, layer: str, *, device: str | torch.device = "cpu", seed: int = 0
    ) -> Network:
        """Load a model (see ``load_model``) and cut it at a layer (see ``from_loaded``)."""
        from extract.zoo import load_model  # with it comes torchvision, which takes seconds to load

        return cls.from_loaded(load_model(model, weights, seed=seed), layer, device)

    @classmethod
    def from_loaded(cls, loaded: LoadedModel, layer: str, device: str | torch.device = "cpu") -> Network:
        """Cut a loaded model at a layer; the model itself is moved to ``device``.

        Raises
        ------
        UnknownNameError, NotACutError
            The layer does not exist, or is no cut; the message says which are near.
        UsageError
            The layer's output is no tensor of images, or the model's no logits.
        """
        device = torch.device(device)
        probe = probe_images(loaded.transform).to(device)
        split = trace(loaded.module.to(device), probe)
        layer = split.require_single(layer)
        layout = layer_layouts(loaded.module, [layer], probe)[layer]
        layer = split.require_cut(layer)
        return cls(loaded, layer, layout, split, device, probe)

    def backbone(self, images: torch.Tensor) -> torch.Tensor:
        """Give the layer's activations (n, P, C), float32, of preprocessed images (n, 3, h, w); no gradients."""
        with torch.no_grad():
            return self.activations(images)

    def activations(self, images: torch.Tensor) -> torch.Tensor:
        """Give what ``backbone`` gives, differentiably with respect to the images."""
        taken = self._backbone(images.to(self.device))
        return self.layout.to_npc(taken).to(torch.float32).contiguous()

    def head(self, x_npc: torch.Tensor) -> torch.Tensor:
        """Give the logits (n, K) of activations (n, P, C), differentiably; ``x_npc`` is never written into."""
        return head_logits(self._head, self.layout, x_npc.to(self.device, torch.float32))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Give the model's own logits (n, K) of preprocessed images (n, 3, h, w); no gradients."""
        with torch.no_grad():
            return logits_of(self.module, images.to(self.device))

    @cached_property
    def pooled_affine(self) -> PooledAffine | None:
        """A (K, C) and c (K,) where the head is global average pooling and affine maps only, else None."""
        return pooled_affine(self._head, self.layout)

    def _check(self, probe: torch.Tensor) -> int:
        """Hold backbone, hook and head against the model itself; give the number of classes."""
        with capture(self.module, {self.layer: self.layout}) as taken, torch.no_grad():
            wanted = logits_of(self.module, probe)
        x = self.backbone(probe)
        with torch.no_grad():
            found = self.head(x)
        if wanted.ndim != 2 or wanted.shape[0] != probe.shape[0]:
            raise UsageError(f"The model must give logits (n, K), got {tuple(wanted.shape)} for {len(probe)} images.")
        if not (wanted.isfinite().all() and x.isfinite().all()):
            raise NonFiniteError(
                f"The model gives NaN or infinite values on plain images at {self.layer!r}; its weights are unfit."
            )
        for what, a, b in (("head", found, wanted), ("backbone", x, taken[self.layer])):
            if a.shape != b.shape or not (a - b).abs().max() <= _TOLERANCE * b.abs().max():
                raise UsageError(
                    f"Cutting the model at {self.layer!r} changes what it computes (its {what} differs from the "
                    "model); it may be random in evaluation mode. Choose another layer: --layer ? lists them."
                )
        return int(wanted.shape[1])


def logits_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Run a model: the logits (n, K), whatever it wraps them in."""
    logits = first_tensor(module(images))
    if logits.ndim == 4 and logits.shape[2:].numel() > 1:
        raise UsageError(
            f"The model must give logits (n, K), got a map {tuple(logits.shape)}, as segmentation networks do. "
            "Wrap it in a module that gives one logit per class, such as the mean: maps.mean((2, 3))."
        )
    return logits.flatten(1) if logits.ndim > 2 and logits.shape[2:].numel() == 1 else logits


def probe_images(transform: Callable[[Image.Image], torch.Tensor], n: int = _PROBES) -> torch.Tensor:
    """Make a few preprocessed pseudo-images (n, 3, h, w), always the same: smooth colours under fine noise."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((320, 320))
        fine = generator.integers(-32, 33, (320, 320, 3))
        images.append(Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)))
    inputs = [transform(image) for image in images]
    if inputs[0].ndim != 3 or any(x.shape != inputs[0].shape for x in inputs):
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs)
        raise UsageError(f"The transform must give tensors (3, h, w) of one size, got {shapes}.")
    return torch.stack(inputs)


@contextmanager
def capture(
    module: nn.Module, layouts: Mapping[str, LayerLayout], dtype: torch.dtype = torch.float32
) -> Iterator[dict[str, torch.Tensor]]:
    """Take the activations of several layers out of each forward pass of the whole module.

    Parameters
    ----------
    module : nn.Module
    layouts : {layer name: LayerLayout}
    dtype : torch.dtype, default float32
        Of the copies.

    Yields
    ------
    dict of {layer name: tensor (n, P, C)}
        Of the latest pass: contiguous copies on the module's device, which nothing after the layer can alter.

    Raises
    ------
    UsageError
        Inside the block: a layer runs twice in a pass, or gives no tensor of its layout.
    """
    taken: dict[str, torch.Tensor] = {}

    def hook(name: str, layout: LayerLayout) -> Callable[..., None]:
        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name in taken:
                raise UsageError(f"Layer {name!r} runs several times in one forward pass, so it has no single output.")
            x = layout.to_npc(_tensor(name, output).detach())
            taken[name] = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)

        return take

    handles = []
    try:
        handles.append(module.register_forward_pre_hook(lambda *_: taken.clear()))
        for name, layout in layouts.items():
            handles.append(module.get_submodule(name).register_forward_hook(hook(name, layout)))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def output_shapes(module: nn.Module, names: list[str], images: torch.Tensor) -> dict[str, tuple[int, ...] | None]:
    """Run a module once: the shape of each layer's output that ran, None where it is no tensor."""
    shapes: dict[str, tuple[int, ...] | None] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes[name] = tuple(output.shape) if isinstance(output, torch.Tensor) else None

        return note

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with torch.no_grad():
            module(images)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"The model fails on preprocessed images of shape {tuple(images.shape[1:])}: {type(error).__name__}: {reason}."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def layer_layouts(module: nn.Module, layers: list[str], images: torch.Tensor) -> dict[str, LayerLayout]:
    """Find the layouts of layers for the size of the given images (n >= 2, 3, h, w).

    Raises
    ------
    UsageError
        A layer gives no tensor, none with the images as first dimension, or one of no known layout.
    """
    shapes, other, size = _two_sizes(module, layers, images)
    layouts = {}
    for name in layers:
        shape = shapes.get(name)
        if shape is None or not shape or shape[0] != len(images):
            raise UsageError(
                f"Layer {name!r} must give one tensor with the images as first dimension; "
                f"for {len(images)} images it gives {shape or 'none'}. --layer ? lists those that do."
            )
        layouts[name] = infer_layout(shape, size, other.get(name))
    return layouts


def list_layers(loaded: LoadedModel) -> list[LayerInfo]:
    """List the layers that give a tensor, in the order in which they finish, and whether each is a cut."""
    probe = probe_images(loaded.transform).to(next(loaded.module.parameters(), torch.empty(0)).device)
    split = trace(loaded.module, probe)
    with torch.no_grad():
        logits_of(loaded.module, probe)  # refuses a model that no layer can be chosen of
    cuts = set(split.cuts())
    shapes, other, size = _two_sizes(loaded.module, list(split.runs), probe)
    infos = []
    for name in split.runs:
        shape = shapes.get(name)
        if not shape:
            continue
        layout = None
        if shape[0] == len(probe) and 2 <= len(shape) <= 4:
            layout = infer_layout(shape, size, other.get(name))
        infos.append(
            LayerInfo(
                name,
                type(loaded.module.get_submodule(name)).__name__,
                shape[1:],
                layout.positions if layout else None,
                layout.channels if layout else None,
                name in cuts and layout is not None,
            )
        )
    return infos


def _two_sizes(
    module: nn.Module, layers: list[str], images: torch.Tensor
) -> tuple[dict[str, tuple[int, ...] | None], dict[str, tuple[int, ...]], tuple[int, int]]:
    """Give the layers' shapes for the images, for another size the model accepts, if any, and the size (h, w)."""
    height, width = images.shape[2:]
    shapes = output_shapes(module, layers, images)
    other: dict[str, tuple[int, ...]] = {}
    step = 32 if min(height, width) >= 96 else 8
    try:
        second = output_shapes(module, layers, images.new_zeros(1, images.shape[1], height - step, width + step))
        other = {name: shape for name, shape in second.items() if shape is not None}
    except UsageError:
        logger.debug("the model takes images of %d x %d only", height, width)
    return shapes, other, (height, width)


def _tensor(name: str, output: Any) -> torch.Tensor:
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"Layer {name!r} must give a tensor, got {type(output).__name__}. --layer ? lists those that do."
        )
    return output
