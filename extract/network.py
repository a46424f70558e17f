"""A network seen from one of its layers: the backbone up to it, the head after it; from a model, or from a store.

``Network.backbone`` gives activations as images x positions x channels, ``Network.head`` takes them from there to the
logits, differentiably. At construction both are checked against the model itself.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from extract.affine_head import PooledAffine, head_logits, pooled_affine
from extract.graph_split import Split, trace
from extract.image_io import shown
from extract.layout_probe import FoundLayout, LayoutProbe
from extract.model_output import ModelOutput
from extract.probe import check_repeatable, hooked, prepare_model, prepared, probe_images
from extract.tensor_layout import LayerLayout
from stores.errors import EDDPError, MismatchError, NonFiniteError, UsageError
from stores.store import ActivationStore

if TYPE_CHECKING:
    from extract.models import LoadedModel

_TOLERANCE = 1e-4  # of the largest logit
_DEMO = "pipeline.scene_net:scene_net"  # the network of eddp demo


class Network:
    """A loaded model cut at one layer; make it with ``Network.load`` or ``Network.from_loaded``.

    Attributes
    ----------
    module : the model, in evaluation mode, on ``device``, without gradients for its parameters.
    transform : PIL image -> float32 tensor (3, h, w); picklable.
    layer : the layer's dotted name.
    output : where in what the model returns the logits are.
    layout, found : the layer's layout; with what decided it.
    split_kind : "fx" or "replay".
    n_classes : K.
    probe, input_size : preprocessed images (n, C, h, w), or clips (n, C, T, h, w), that it was tried on, and their (h, w).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        output: ModelOutput,
        layer: str,
        found: FoundLayout,
        split: Split,
        device: torch.device,
        probe: torch.Tensor,
    ) -> None:
        self.module, self.transform, self.output, self.device = loaded.module, loaded.transform, output, device
        self.layer, self.layout, self.found, self.split_kind = layer, found.layout, found, split.kind
        self._backbone = split.backbone(layer).eval().to(device)
        self._head = LogitsOf(split.head(layer).eval().to(device), output)
        self.n_classes = self._check(probe)
        self.probe, self.input_size = probe, (probe.shape[-2], probe.shape[-1])

    @classmethod
    def load(
        cls, model: str, weights: str, layer: str, *, device: str | torch.device = "cpu", seed: int = 0
    ) -> Network:
        """Load a model (see ``load_model``) and cut it at a layer (see ``cut``)."""
        from extract.models import load_model  # torchvision takes seconds to load

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
        """Compare backbone, hook and head with the model itself; give the number of classes."""
        with capture(self.module, {self.layer: self.layout}) as taken, torch.no_grad():
            wanted = self.output(self.module(probe))
        x = self.backbone(probe)
        with torch.no_grad():
            found = self.head(x)
        if not (wanted.isfinite().all() and x.isfinite().all()):
            raise NonFiniteError(f"The model gives NaN or infinite values at {self.layer!r}: see its weights.")
        for what, a, b in (("head", found, wanted), ("backbone", x, taken[self.layer])):
            if a.shape != b.shape or not (a - b).abs().max() <= _TOLERANCE * b.abs().max():
                differs = f"Cutting the model at {self.layer!r} changes what it computes (its {what} differs)"
                raise UsageError(f"{differs}. Choose another layer: --layer ? lists them.")
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
    repeatable: bool = False,
) -> dict[str, Network]:
    """Cut a loaded model at each of some layers; the model itself is moved to ``device``.

    Parameters
    ----------
    layouts : {layer: layout as ``--layout`` takes it}, for those that are not to be found.
    repeatable : whether the model is known to give the same values for an image each time.

    Raises
    ------
    UnknownNameError, NotACutError
        A layer does not exist, or is no cut; the message names the nearest.
    UsageError
        A layer's layout, or the logits, cannot be determined, or an image's values depend on chance or on its batch.
    """
    device = torch.device(device)
    loaded, output, probe, split = traced(loaded, device, repeatable)
    names = [split.require_single(layer) for layer in layers]
    asked = {split.canonical(layer): layout for layer, layout in (layouts or {}).items()}
    layouts_of = LayoutProbe(loaded.module, names, probe)
    networks = {}
    for name in names:
        layout = layouts_of.find(name, asked.get(name))
        if isinstance(layout, str):
            raise UsageError(layout)
        networks[name] = Network(loaded, output, split.require_cut(name), layout, split, device, probe)
    return networks


def traced(
    loaded: LoadedModel, device: torch.device, repeatable: bool
) -> tuple[LoadedModel, ModelOutput, torch.Tensor, Split]:
    """Give the model prepared, where its logits are, images to probe it with, and its graph on a device."""
    if loaded.output is None:
        loaded = prepare_model(loaded)
    assert loaded.output is not None
    probe = probe_images(loaded.transform).to(device)
    if not repeatable:
        check_repeatable(loaded.module.to(device), probe)
    return loaded, loaded.output, probe, trace(loaded.module.to(device), probe, loaded.output)


@contextmanager
def capture(
    module: nn.Module, layouts: Mapping[str, LayerLayout], dtype: torch.dtype = torch.float32
) -> Iterator[dict[str, torch.Tensor]]:
    """Capture the activations of several layers in each forward pass of the module.

    Yields
    ------
    dict of {layer name: tensor (n, P, C)}
        Of the latest pass: contiguous copies of ``dtype`` on the module's device, which nothing after the layer can alter.

    Raises
    ------
    UsageError
        Inside the block: a layer runs twice in a pass, or gives no tensor of its layout.
    """
    taken: dict[str, torch.Tensor] = {}

    def take(name: str, output: Any) -> None:
        if name in taken:
            raise UsageError(f"Layer {name!r} runs several times in one forward pass, so it has no single output.")
        if not isinstance(output, torch.Tensor):
            raise UsageError(f"Layer {name!r} must give a tensor, got {type(output).__name__}. --layer ? lists others.")
        x = layouts[name].to_npc(output.detach())
        taken[name] = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)

    with module.register_forward_pre_hook(lambda *_: taken.clear()), hooked(module, layouts, take):
        yield taken


@dataclass(frozen=True)
class Head:
    """``__call__(x (n, P, C)) -> logits (n, K)``; ``affine`` is ``(A (K, C), c (K,))`` for pooled-affine heads."""

    function: Callable[[torch.Tensor], torch.Tensor]
    affine: tuple[torch.Tensor, torch.Tensor] | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def open_head(store: ActivationStore, layer: str, *, device: str = "cpu") -> Head:
    """Give the head after a layer, from the store itself if it is pooled-affine, else from the store's model (see ``open_model``)."""
    affine = store.affine_head(layer)
    if affine is not None:
        weight, bias = (torch.from_numpy(part).to(device) for part in affine)
        return Head(lambda x: x.float().mean(1) @ weight.T + bias, (weight, bias))
    return Head(open_network(store, layer, device=device).head, None)


def open_network(store: ActivationStore, layer: str, *, device: str = "cpu") -> Network:
    """Give the model of a store, cut at a layer. Raises MismatchError for a synthetic store, else as ``open_model``."""
    if "synthetic" in store.provenance:
        raise MismatchError(f"The store '{store.path}' is synthetic: it has a head, but no images and no backbone.")
    layouts = {layer: layout_of(store, layer).option}
    return cut(open_model(store), [layer], device, layouts=layouts, repeatable=True)[layer]


def layout_of(store: ActivationStore, layer: str) -> LayerLayout:
    """The layout that a store's layer had in its model."""
    spec = store.layer(layer)
    return LayerLayout(spec.layout, spec.grid, spec.channels, spec.prefix, spec.time)  # type: ignore[arg-type]


def open_model(store: ActivationStore) -> LoadedModel:
    """Load the model that made a store, with the same input and output.

    Raises MismatchError when it now loads with other weights, UsageError when it is not trusted (see ``check_trusted``), and
    the errors of ``load_model``.
    """
    check_trusted(store)
    from extract.models import load_model  # torchvision takes seconds to load

    made = store.provenance
    try:
        clip = made.get("clip") or {}
        loaded = load_model(
            made["model"], made["weights"], seed=int(made.get("seed", 0)), clip_frames=clip.get("frames"),
            clip_rate=clip.get("rate"), resize=made.get("resize"),
        )  # fmt: skip
    except EDDPError as error:
        raise type(error)(
            f"The model that made '{store.path}' cannot be loaded again: {error} Put back what it was loaded from, or extract again."
        ) from error
    if made.get("weights_digest") not in (None, loaded.provenance["weights_digest"]):
        now = f"The model '{made['model']}' now loads with other weights ({loaded.provenance['weights_source']})"
        then = f"than the store '{store.path}' was made with ({made.get('weights_source')})"
        raise MismatchError(f"{now} {then}. Put the old weights back, or extract again.")
    grey = made.get("grey_range")
    mode, grey_range = made.get("input_mode", "RGB"), None if grey is None else (grey[0], grey[1])
    transform = replace(loaded.transform, mode=mode, grey_range=grey_range)
    n_classes = int(store.array("images/logits").shape[1])
    output = ModelOutput(str(made.get("output", "")), n_classes, "as the store was made")
    return prepared(loaded, transform, output, loaded.class_names)


def check_trusted(store: ActivationStore) -> None:
    """Raise UsageError where a store names code as its model, and was opened without ``model=NAME``.

    Anybody can write a store. Models of torchvision, timm and the demo are loaded by their names.
    """
    name = str(store.provenance.get("model", ""))
    if ":" not in name or name.startswith("timm:") or name == store.trusted_model or _is_demo(name):
        return
    quoted = shlex.quote(shown(name))
    raise UsageError(
        f"The store '{store.path}' names {quoted} as its model, and this command has to run the model. That is code, which would be imported and run. "
        f"If you trust it, repeat the command with --model {quoted} (in Python: ActivationStore.open(path, model=…))."
    )


def _is_demo(name: str) -> bool:
    """Whether a model is the demo's, and Python would import it from where this package is installed."""
    found = importlib.util.find_spec("pipeline") if name == _DEMO else None
    return found is not None and found.origin == str(Path(__file__).parents[1] / "pipeline" / "__init__.py")
