"""The head f+ of a store's layer: what turns its activations into the model's logits, opened from the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stores.activations import ActivationStore
from stores.errors import EDDPError, MismatchError


@dataclass(frozen=True)
class Head:
    """``__call__(x (n, P, C)) -> logits (n, K)``; ``affine`` is ``(A (K, C), c (K,))`` for pooled-affine heads."""

    function: Callable[[torch.Tensor], torch.Tensor]
    affine: tuple[torch.Tensor, torch.Tensor] | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def open_head(store: ActivationStore, layer: str, *, device: str = "cpu") -> Head:
    """The head after a layer, from the store itself if it is pooled-affine, from the model that made it otherwise.

    Raises MismatchError when the model now loads with other weights than the store was made with, and the model's own
    errors (weights file moved, module not importable) with what to do.
    """
    kept = store.affine_head(layer)
    if kept is not None:
        weight, bias = (torch.from_numpy(part).to(device) for part in kept)
        return Head(lambda x: x.float().mean(1) @ weight.T + bias, (weight, bias))
    network = open_network(store, layer, device=device)
    return Head(network.head, None)


def open_network(store: ActivationStore, layer: str, *, device: str = "cpu") -> Any:
    """The whole network of a store, split at a layer; its weights must be the ones the store was made with."""
    from extract.network import Network

    made = store.provenance
    if "synthetic" in made:
        raise MismatchError(f"The store '{store.path}' is synthetic: it has a head, but no images and no backbone.")
    try:
        network = Network.load(made["model"], made["weights"], layer, device=device, seed=int(made.get("seed", 0)))
    except EDDPError as error:
        raise type(error)(f"The model that made '{store.path}' cannot be loaded again: {error}") from error
    if network.provenance["weights_digest"] != made["weights_digest"]:
        raise MismatchError(
            f"The model '{made['model']}' now loads with other weights ({network.provenance['weights_source']}) than the "
            f"store '{store.path}' was made with ({made['weights_source']}). Put the old weights back, or extract again."
        )
    return network
