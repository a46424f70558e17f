"""Networks of a few weights, loaded by name as anyone's own: ``tiny_net:build`` and its odd sisters."""

from __future__ import annotations

import time

import numpy as np
import torch
from PIL import Image
from torch import nn

SIZE = 16


class Net(nn.Module):
    """Two stages, global average pooling, five classes; the ReLU after ``first`` is in place."""

    input_size = (SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.act(self.first(x))).mean((2, 3)))


class Tokens(nn.Module):
    """A 4 × 4 grid of tokens behind a class token, from which alone the head reads."""

    input_size = (SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.start = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(x.shape[0], -1, -1), tokens], dim=1)
        return self.fc(self.block(tokens)[:, 0])


class Residual(nn.Module):
    """A stem and an inverted residual block as MobileNetV2 has them, with statistics of batches that matter; four classes."""

    input_size = (SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        steps: list[nn.Module] = []
        for convolution in (nn.Conv2d(6, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 6, 1)):
            norm = nn.BatchNorm2d(convolution.out_channels)
            for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.1, 2), (norm.weight, 0.5, 3)):
                nn.init.uniform_(values, low, high)  # type: ignore[arg-type]
            steps += [convolution, norm, nn.ReLU6(inplace=True)]
        self.block = nn.Sequential(*steps[:-1])
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(torch.relu(x + self.block(x)).mean((2, 3)))


class Scaled:
    """A transform without a ``repr`` of its own: to [0, 1], at the network's size."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((SIZE, SIZE)), np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)


class Unresized(Scaled):
    """Forgets to resize: every image gives a tensor of its own size."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


class Picky(Scaled):
    """Cannot take small images."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if min(image.size) < 8:
            raise RuntimeError("too small for me")
        return super().__call__(image)


def build() -> nn.Module:
    return Net()


def tokens() -> nn.Module:
    return Tokens()


def residual() -> nn.Module:
    return Residual()


def own_transform() -> tuple[nn.Module, Scaled]:
    return Net(), Scaled()


def unresized() -> tuple[nn.Module, Scaled]:
    return Net(), Unresized()


def picky() -> tuple[nn.Module, Scaled]:
    return Net(), Picky()


def bright_is_huge() -> tuple[nn.Module, Scaled]:
    """``first`` is 27 · 10⁴ times the brightness: a white image leaves float16, a black one is all zeros."""
    net = Net()
    with torch.no_grad():
        net.first.weight.fill_(1e4)
        net.first.bias.zero_()
    return net, Scaled()


class Slow(Scaled):
    """Takes its time over every image."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        time.sleep(0.03)
        return super().__call__(image)


def slow() -> tuple[nn.Module, Scaled]:
    return Net(), Slow()
