"""A network seen from one of its layers: the backbone up to it, the head after it.

``Network.backbone`` gives activations as images x positions x channels, ``Network.head`` takes them from there to the
logits, differentiably. At construction both are checked against the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from extract.heads import PooledAffine, head_logits, pooled_affine
from extract.layout import LayerLayout
from extract.layout_probe import FoundLayout, find_layouts, output_shapes
from extract.model_output import ModelOutput
from extract.probe import check_repeatable, probe_images
from extract.split import Split, trace
from stores.errors import NonFiniteError, UsageError

if TYPE_CHECKING:
    from extract.zoo import LoadedModel, PreparedModel

_TOLERANCE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class LayerInfo:
    """What there is to know of a layer before choosing it; ``shape`` is its output's, for one image; ``how`` its layout was found."""

    name: str
    type: str
    shape: tuple[int, ...]
    layout: LayerLayout | None
    how: str
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
    output : ModelOutput
        Where in what the model returns the logits are.
    layout : LayerLayout
    found : FoundLayout
        The same, and what decided it.
    split_kind : {"fx", "replay"}
    n_classes : int
        K.
    device : torch.device
    provenance : dict
        JSON-able: the model's, and layer, layout, split, n_classes, input_size.
    """

    def __init__(
        self,
        loaded: PreparedModel,
        layer: str,
        found: FoundLayout,
        split: Split,
        device: torch.device,
        probe: torch.Tensor,
    ) -> None:
        self.module, self.transform, self.output, self.device = loaded.module, loaded.transform, loaded.output, device
        self.layer, self.layout, self.found, self.split_kind = layer, found.layout, found, split.kind
        self._backbone = split.backbone(layer).eval().to(device)
        self._head = LogitsOf(split.head(layer).eval().to(device), loaded.output)
        self.n_classes = self._check(probe)
        self.provenance: dict[str, Any] = {
            **loaded.provenance,
            "layer": layer,
            "layout": self.layout.to_dict(),
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
        """Cut a loaded model at a layer (see ``cut``); the model itself is moved to ``device``."""
        return next(iter(cut(loaded, [layer], device).values()))

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
            return self.output(self.module(images.to(self.device)))

    @cached_property
    def pooled_affine(self) -> PooledAffine | None:
        """A (K, C) and c (K,) where the head is global average pooling and affine maps only, else None."""
        return pooled_affine(self._head, self.layout)

    def _check(self, probe: torch.Tensor) -> int:
        """Hold backbone, hook and head against the model itself; give the number of classes."""
        with capture(self.module, {self.layer: self.layout}) as taken, torch.no_grad():
            wanted = self.output(self.module(probe))
        x = self.backbone(probe)
        with torch.no_grad():
            found = self.head(x)
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


class LogitsOf(nn.Module):
    """A module that gives the logits (n, K) of what another one returns."""

    def __init__(self, module: nn.Module, output: ModelOutput) -> None:
        super().__init__()
        self.module, self.output = module, output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.module(x))


def cut(
    loaded: LoadedModel,
    layers: Sequence[str],
    device: str | torch.device = "cpu",
    *,
    layouts: Mapping[str, str] | None = None,
    known: bool = False,
) -> dict[str, Network]:
    """Cut a loaded model at each of some layers; the model itself is moved to ``device``.

    Parameters
    ----------
    layouts : {layer: layout as ``--layout`` takes it}, for those that are not to be found.
    known : whether an earlier run has found that the model gives the same values for an image each time.

    Raises
    ------
    UnknownNameError, NotACutError
        A layer does not exist, or is no cut; the message says which are near.
    UsageError
        A layer's output is no tensor of images, or its layout cannot be determined; the model gives no logits, or an image's values
        depend on chance or on the other images of a batch.
    """
    from extract.zoo import PreparedModel, prepare_model

    device = torch.device(device)
    loaded = loaded if isinstance(loaded, PreparedModel) else prepare_model(loaded)
    probe = probe_images(loaded.transform).to(device)
    if not known:
        check_repeatable(loaded.module.to(device), probe)
    split = trace(loaded.module.to(device), probe, loaded.output)
    names = [split.require_single(layer) for layer in layers]
    asked = {split.canonical(layer): layout for layer, layout in (layouts or {}).items()}
    found = find_layouts(loaded.module, names, probe, asked=asked)
    networks = {}
    for name in names:
        layout = found[name]
        if isinstance(layout, str):
            raise UsageError(layout)
        networks[name] = Network(loaded, split.require_cut(name), layout, split, device, probe)
    return networks


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


def list_layers(loaded: LoadedModel) -> list[LayerInfo]:
    """List the layers that give a tensor, in the order in which they finish, and whether each is a cut."""
    from extract.zoo import PreparedModel, prepare_model

    loaded = loaded if isinstance(loaded, PreparedModel) else prepare_model(loaded)
    probe = probe_images(loaded.transform).to(next(loaded.module.parameters(), torch.empty(0)).device)
    split = trace(loaded.module, probe, loaded.output)
    cuts = set(split.cuts())
    shapes = output_shapes(loaded.module, list(split.runs), probe)
    layouts = find_layouts(loaded.module, list(split.runs), probe)
    return [
        LayerInfo(
            name,
            type(loaded.module.get_submodule(name)).__name__,
            shape[1:],
            found.layout if isinstance(found := layouts[name], FoundLayout) else None,
            found.how if isinstance(found, FoundLayout) else "",
            name in cuts and isinstance(found, FoundLayout),
        )
        for name in split.runs
        if (shape := shapes.get(name))
    ]


def _tensor(name: str, output: Any) -> torch.Tensor:
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"Layer {name!r} must give a tensor, got {type(output).__name__}. --layer ? lists those that do."
        )
    return output
