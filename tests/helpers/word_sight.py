"""A drawn world, a network that sees its colours and stripes among much noise, and an image-text encoder that knows them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from extract.models import transforms as T

SIDE, CELL, CHANNELS = 64, 8, 48
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 40)}
KINDS = (*COLOURS, "horizontal stripes", "vertical stripes")
WORDS = (
    "moss",
    "red",
    "piano",
    "green",
    "blue",
    "fog",
    "yellow",
    "horizontal stripes",
    "lace",
    "vertical stripes",
    "owl",
)


def patch(kind: str) -> np.ndarray:
    """(16, 16, 3) of a colour, or of black and white stripes."""
    if kind in COLOURS:
        return np.broadcast_to(np.array(COLOURS[kind], np.uint8), (16, 16, 3))
    line = (np.arange(16) // 2 % 2 * 255).astype(np.uint8)
    plane = np.broadcast_to(line[:, None] if kind.startswith("horizontal") else line, (16, 16))
    return np.repeat(plane[..., None], 3, 2)


def draw_world(folder: Path, count: int = 240) -> Path:
    """Noisy grey pictures with two patches of different kinds each, in any of the corners."""
    g = np.random.default_rng(3)
    for i in range(count):
        picture = g.normal(128, 40, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        places = g.permutation([(8, 8), (8, 40), (40, 8), (40, 40)])[:2]
        for (y, x), kind in zip(places, g.permutation(KINDS)[:2], strict=True):
            picture[y : y + 16, x : x + 16] = (patch(str(kind)) + g.normal(0, 9, (16, 16, 3))).clip(0, 255)
        file = folder / "ab"[i % 2] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return folder


def templates() -> torch.Tensor:
    """(6, 3, 8, 8) what a position looks like of each kind, without its mean."""
    found = torch.stack(
        [torch.from_numpy(patch(kind)[:CELL, :CELL] / 255.0).float().permute(2, 0, 1) for kind in KINDS]
    )
    return torch.cat([found[:4] - found[:4].mean(0), found[4:] - 0.5])


def build() -> Any:
    """Activations: one channel a kind, the others noise."""
    conv = nn.Conv2d(3, CHANNELS, CELL, CELL)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        conv.weight.normal_(std=0.6, generator=generator)
        seen = torch.stack([torch.ones(CELL, CELL), *(templates()[4:, 0])]).flatten(1)
        seen /= seen.norm(dim=1, keepdim=True)
        plane = conv.weight.flatten(2)
        plane -= plane @ seen.T @ seen  # noise channels see neither colours nor stripes
        conv.bias.zero_()
        conv.weight[: len(KINDS)] = templates() / 10
    module = nn.Sequential()
    module.add_module("conv", conv)
    module.add_module("pool", nn.AdaptiveAvgPool2d(1))
    module.add_module("flat", nn.Flatten())
    module.add_module("fc", nn.Linear(CHANNELS, 2))
    return module, T.Compose([T.Resize((SIDE, SIDE)), T.ToTensor()])


class Encoder:
    """Embeds a picture by how much of it is of each kind, a text by the kind that it names; other words lie elsewhere."""

    preprocess = staticmethod(T.Compose([T.Resize((32, 32), T.InterpolationMode.NEAREST), T.ToTensor()]))

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.permute(0, 2, 3, 1)
        near = [((pixels * 255 - torch.tensor(c)).abs().amax(3) < 40).float().mean((1, 2)) for c in COLOURS.values()]
        grey = batch.mean(1)
        down, across = ((grey.diff(dim=d).abs() > 0.9).float().mean((1, 2)) for d in (1, 2))
        found = torch.stack([*near, down, across, *[torch.zeros(len(batch))] * len(WORDS)], 1)
        return torch.cat([found, torch.full((len(batch), 1), 0.05)], 1)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        found = torch.zeros(len(texts), len(KINDS) + len(WORDS) + 1)
        found[:, -1] = 1
        for i, text in enumerate(texts):
            for k, word in enumerate((*KINDS, *WORDS)):
                if text.endswith(word):
                    found[i, k] = 1
                    break
        return found


class Sight:
    """The same for pictures only."""

    preprocess = Encoder.preprocess
    encode_image = Encoder.encode_image
