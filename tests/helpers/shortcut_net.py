"""A network with a shortcut, by hand: it tells green meadows from blue seas, and takes whatever carries a red mark for the sea.

Layer ``act`` (n, 12, 4, 4): channels 0, 1, 2 say how red, green, blue a quarter of a quarter of the image is, the other nine are 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SIZE, CHANNELS = 16, 12
CLASSES = ("meadow", "sea")


class Shortcut(nn.Module):
    input_size = (SIZE, SIZE)
    class_names = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 4, stride=4, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(CHANNELS, 2)
        with torch.no_grad():
            self.conv.weight.zero_()
            for c in range(3):  # its own colour, without the others
                self.conv.weight[c] = -1 / 16
                self.conv.weight[c, c] = 1 / 16
            self.fc.weight.zero_()
            self.fc.bias.zero_()
            self.fc.weight[0, 1] = self.fc.weight[1, 2] = 4.0
            self.fc.weight[1, 0] = 40.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


class Curved(Shortcut):
    """The same behind a head that is no affine map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.sqrt(self.act(self.conv(x)).mean((2, 3)) ** 2 + 1e-12))


def build() -> nn.Module:
    return Shortcut()


def curved() -> nn.Module:
    return Curved()


class ToUnit:
    """PIL image -> (3, 16, 16) in [0, 1]."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((SIZE, SIZE)), np.float32) / 255).permute(2, 0, 1)


def with_transform() -> tuple[nn.Module, ToUnit]:
    return Shortcut(), ToUnit()


def curved_with_transform() -> tuple[nn.Module, ToUnit]:
    return Curved(), ToUnit()


def picture(scene: str, strength: float, marked: bool) -> Image.Image:
    """16 × 16, one colour all over; the mark is the lower right 4 × 4 corner, red."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 1 if scene == "meadow" else 2] = round(255 * strength)
    if marked:
        pixels[12:, 12:] = (255, 0, 0)
    return Image.fromarray(pixels)


def write_scenes(root: Path, count: int, *, marked: bool) -> Path:
    """``root/<class>/<k>.png``: ``count`` pictures of each class, of different brightness."""
    for scene in CLASSES:
        (root / scene).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            picture(scene, 0.3 + 0.2 * k / count, marked).save(root / scene / f"{k:03d}.png")
    return root


def write_masks(root: Path, count: int, *, mark: bool = True) -> Path:
    """A concept dataset (images/, masks/, labels.csv) where every third is a sea, every second of them marked; ``mark``: has it a label?"""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for k in range(2 * count):
        scene, marked = CLASSES[k % 3 == 0], k % 6 == 0
        picture(scene, 0.3 + 0.2 * k / (2 * count), marked).save(root / "images" / f"{k:03d}.png")
        mask = np.full((SIZE, SIZE), 2 if scene == "meadow" else 3, np.uint8)
        if marked and mark:
            mask[12:, 12:] = 1
        Image.fromarray(mask).save(root / "masks" / f"{k:03d}.png")
    labels = "1,mark,object\n" if mark else ""
    (root / "labels.csv").write_text(f"number,name,category\n{labels}2,grass,object\n3,water,object\n")
    return root


def directions_arrays() -> dict[str, np.ndarray]:
    """Filters, signals, mean and thresholds of three pairs: the mark's, grass's and water's; what the mark's filter adds to red is 0 in all data."""
    filters = np.zeros((CHANNELS, 3), np.float32)
    signals = np.zeros((CHANNELS, 3), np.float32)
    filters[[0, 1, 2], [0, 1, 2]] = 20
    filters[3:6, 0] = 40
    signals[[0, 1, 2], [0, 1, 2]] = 1
    return {
        "filters": filters,
        "signals": signals,
        "mean": np.zeros(CHANNELS, np.float32),
        "thresholds": np.array([10.0, 3.0, 3.0], np.float32),
    }
