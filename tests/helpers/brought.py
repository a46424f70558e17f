"""Inputs as people bring them, drawn small, and what a plain loop in torch makes of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from extract.classes import image_classes
from stores.readers import LayerReader
from stores.store import ActivationStore

NETS = importlib.import_module("own_nets")


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Smooth colours, others for each seed; size (width, height)."""
    g = np.random.default_rng(seed)
    return Image.fromarray(g.integers(0, 256, (5, 5, 3), np.uint8)).resize(size)


def level(share: float, seed: int = 0) -> Image.Image:
    """Noise of a mean brightness."""
    noise = np.random.default_rng(seed).normal(0, 4, (32, 48, 1)).repeat(3, 2)
    return Image.fromarray(np.clip(np.rint(255 * share + noise - noise.mean()), 0, 255).astype(np.uint8))


def folders(root: Path, names: Iterable[str], draw: Callable[[int, int], Image.Image], count: int = 3) -> Path:
    """``count`` pictures for each class folder."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(count):
            draw(k, j).save(root / name / f"{j}.png")
    return root


def loop(model: str, layer: str, store: ActivationStore, data: Path) -> tuple[list[torch.Tensor], list]:
    """One image at a time, in plain torch: what the layer gives and what the model returns."""
    module, transform = getattr(NETS, model)()
    module.eval()
    taken: list[torch.Tensor] = []
    module.get_submodule(layer).register_forward_hook(lambda m, i, o: taken.append(o.clone()))
    with torch.no_grad():
        returned = [module(transform(Image.open(data / name).convert("RGB"))[None]) for name in store.names]
    return taken, returned


def stored(store: ActivationStore, layer: str) -> np.ndarray:
    return np.asarray(LayerReader(store, layer, prefix=True).images(list(range(store.n_images))))


def logits(store: ActivationStore) -> np.ndarray:
    return np.asarray(store.logits)


def right(store: ActivationStore) -> float:
    """Share of the images that the model puts into the class they are labelled with."""
    return float((logits(store).argmax(1) == image_classes(store)).mean())
