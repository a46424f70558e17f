"""Networks whose most exciting picture is known: linear in the log-odds of RGB, or in the colours themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from evaluate.visualize.pixels import Normalisation

SIZE = (12, 10)


def untouched(size: tuple[int, int] = SIZE) -> Normalisation:
    """A network's input that is RGB itself."""
    gain = torch.eye(3)[:, :, None, None].expand(3, 3, *size).clone()
    return Normalisation(gain, torch.zeros(3, *size))


class Sight:
    """As much of ``extract.network.Network`` as drawing needs; the activations are a function of the images."""

    layer = "eye"
    device = torch.device("cpu")

    def __init__(self, function: Any, channels: int, *, prefix: int = 0, size: tuple[int, int] = SIZE) -> None:
        self.function = function
        self.layout = SimpleNamespace(prefix=prefix, channels=channels)
        self.input_size = tuple(size)
        self.seen: list[int] = []

    def activations(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        return self.function(images)


class Templates(nn.Module):
    """Activations (n, 1, C) that are correlations of the pictures' log-odds with templates (C, 3, h, w)."""

    def __init__(self, templates: torch.Tensor) -> None:
        super().__init__()
        self.templates = nn.Parameter(templates)  # a network's parameters ask for gradients, as freshly built ones do

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("crhw,nrhw->nc", self.templates, torch.logit(images))[:, None]


def colours(images: torch.Tensor) -> torch.Tensor:
    """Activations (n, h·w, 3): each pixel is a position, its colour the activation."""
    return images.flatten(2).transpose(1, 2)
