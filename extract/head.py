"""The head f+ of a store's layer: what turns its activations into the model's logits, opened from the store."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from extract.image_io import shown
from extract.layout import LayerLayout
from stores.errors import EDDPError, MismatchError, UsageError
from stores.store import ActivationStore

if TYPE_CHECKING:
    from extract.network import Network
    from extract.zoo import PreparedModel

_DEMO = "pipeline.scene_net:scene_net"  # the network of eddp demo


@dataclass(frozen=True)
class Head:
    """``__call__(x (n, P, C)) -> logits (n, K)``; ``affine`` is ``(A (K, C), c (K,))`` for pooled-affine heads."""

    function: Callable[[torch.Tensor], torch.Tensor]
    affine: tuple[torch.Tensor, torch.Tensor] | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def open_head(store: ActivationStore, layer: str, *, device: str = "cpu") -> Head:
    """The head after a layer, from the store itself if it is pooled-affine, from the model that made it otherwise.

    Raises MismatchError when the model now loads with other weights than the store was made with, UsageError when it
    is not trusted (see ``check_trusted``), and the model's own errors (weights file moved, module not importable).
    """
    kept = store.affine_head(layer)
    if kept is not None:
        weight, bias = (torch.from_numpy(part).to(device) for part in kept)
        return Head(lambda x: x.float().mean(1) @ weight.T + bias, (weight, bias))
    network = open_network(store, layer, device=device)
    return Head(network.head, None)


def open_model(store: ActivationStore) -> PreparedModel:
    """The model that made a store, fed and read as it was then.

    Raises MismatchError when it now loads with other weights, UsageError when it is not trusted (see ``check_trusted``), and the
    model's own errors with what to do.
    """
    check_trusted(store)
    from extract.zoo import load_model, prepared_as  # with it comes torchvision, which takes seconds to load

    made = store.provenance
    try:
        loaded = load_model(made["model"], made["weights"], seed=int(made.get("seed", 0)))
    except EDDPError as error:
        raise type(error)(f"The model that made '{store.path}' cannot be loaded again: {error}") from error
    if made.get("weights_digest") not in (None, loaded.provenance["weights_digest"]):
        raise MismatchError(
            f"The model '{made['model']}' now loads with other weights ({loaded.provenance['weights_source']}) than the "
            f"store '{store.path}' was made with ({made.get('weights_source')}). Put the old weights back, or extract again."
        )
    return prepared_as(loaded, made, int(store.array("images/logits").shape[1]))


def check_trusted(store: ActivationStore) -> None:
    """Raise UsageError where a store names code as its model, and was opened without ``model=NAME``.

    Anybody can write a store. Models of torchvision, timm and the demo are loaded by their names alone.
    """
    name = str(store.provenance.get("model", ""))
    if ":" not in name or name.startswith("timm:") or name == store.trusted_model or _is_demo(name):
        return
    quoted = shlex.quote(shown(name))
    raise UsageError(
        f"The store '{store.path}' names {quoted} as its model. That is code, which would be imported and run. "
        f"If you trust it, repeat the command with --model {quoted} (in Python: ActivationStore.open(path, model=…))."
    )


def _is_demo(name: str) -> bool:
    """Whether a model is the demo's, and Python would import it from where this package is installed."""
    found = importlib.util.find_spec("pipeline") if name == _DEMO else None
    return found is not None and found.origin == str(Path(__file__).parents[1] / "pipeline" / "__init__.py")


def open_network(store: ActivationStore, layer: str, *, device: str = "cpu") -> Network:
    """The whole network of a store, split at a layer; its weights must be the ones the store was made with."""
    from extract.layout_probe import as_asked
    from extract.network import cut

    if "synthetic" in store.provenance:
        raise MismatchError(f"The store '{store.path}' is synthetic: it has a head, but no images and no backbone.")
    spec = store.layer(layer)
    layout = LayerLayout(spec.layout, spec.grid, spec.channels, spec.prefix)  # type: ignore[arg-type]
    return cut(open_model(store), [layer], device, layouts={layer: as_asked(layout)}, known=True)[layer]
