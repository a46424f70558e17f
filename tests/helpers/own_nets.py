"""Networks as people write them, loaded by name (``own_nets:NAME``): what they return, how they lay out positions, what they forget."""

from __future__ import annotations

import importlib
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from extract.models import transforms as T

SIZE = (32, 48)
SCALED = T.Compose([T.Resize(SIZE), T.ToTensor()])


class Net(nn.Module):
    """``features`` -> mean -> ``fc``; what it returns is up to ``wrap``."""

    def __init__(
        self, classes: int = 5, channels: int = 3, wrap: Callable[..., Any] = lambda pooled, logits: logits
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 7, 4, 4), nn.ReLU(inplace=True))
        self.fc = nn.Linear(7, classes)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.features(x).mean((2, 3))
        return self.wrap(pooled, self.fc(pooled))


def made(module: nn.Module, transform: Any = SCALED, **attributes: Any) -> tuple[nn.Module, Any]:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=generator)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module, transform


class Levels(nn.Module):
    """As many classes as there are levels of brightness: right for pictures as bright as the middle of their class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, 8)
        self.fc = nn.Linear(2, classes)
        middle = (torch.arange(classes) + 0.5) / classes
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.features.weight[0] = 1 / (3 * 64)
            self.fc.weight[:, 0], self.fc.bias[:] = 200 * middle, -100 * middle**2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def levels() -> Any:
    return Levels(12), SCALED


def dark_bright(**attributes: Any) -> Any:
    module = Levels(2)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module, SCALED


def names_list() -> Any:
    return dark_bright(class_names=("night", "day"))


def names_id2label() -> Any:
    return dark_bright(class_names={"1": "day", "0": "night"})


def names_class_to_idx() -> Any:
    return dark_bright(class_names=OrderedDict(day=1, night=0))


def names_array() -> Any:
    return dark_bright(class_names=np.array(["Night", "DAY"]))


def plain() -> Any:
    return made(Net())


def thousand() -> Any:
    """ImageNet's classes, without their names."""
    return made(Net(1000))


def pooled_first() -> Any:
    return made(Net(wrap=lambda pooled, logits: (pooled, logits)))


def pooled_first_named() -> Any:
    return made(Net(wrap=lambda pooled, logits: (pooled, logits)), class_names=list("abcde"))


def embedding_and_scores() -> Any:
    return made(Net(wrap=lambda pooled, logits: {"embedding": pooled, "scores": {"coarse": logits}}))


def maps() -> Any:
    return made(Net(wrap=lambda pooled, logits: {"out": logits[:, :, None, None].expand(-1, -1, 8, 8)}))


class Tokens(nn.Module):
    """Patches of 8 behind ``prefix`` tokens, in the order (n, P, C), or (n, C, P); the prefix sees the whole image."""

    def __init__(self, prefix: int, channels_first: bool) -> None:
        super().__init__()
        self.patch, self.mix, self.fc = nn.Conv2d(3, 12, 8, 8), nn.Identity(), nn.Linear(12, 5)
        self.prefix, self.channels_first = prefix, channels_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True).expand(-1, self.prefix, -1), x], 1)
        x = self.mix(x.transpose(1, 2) if self.channels_first else x)
        return self.fc(x.mean(2 if self.channels_first else 1))


def tokens_first() -> Any:
    return made(Tokens(0, True), T.Compose([T.Resize((64, 64)), T.ToTensor()]))


def registers_in_a_strip() -> Any:
    return made(Tokens(5, False), T.Compose([T.Resize((40, 160)), T.ToTensor()]))


class Tall(nn.Module):
    """Channels last, for one size of twice the height alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.stage, self.fc = nn.Conv2d(3, 12, 8, 8), nn.Identity(), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if tuple(x.shape[2:]) != (128, 64):
            raise ValueError(f"expects 128 x 64, got {tuple(x.shape[2:])}")
        return self.fc(self.stage(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def tall() -> Any:
    return made(Tall(), T.Compose([T.Resize((128, 64)), T.ToTensor()]))


def batch_statistics() -> Any:
    module, transform = made(Net())
    module.features.insert(1, nn.BatchNorm2d(7, track_running_stats=False))
    return module, transform


class Dropping(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.dropout(self.features(x).mean((2, 3)), training=True))


def dropping() -> Any:
    return made(Dropping())


def training_transform() -> Any:
    return made(Net(), T.Compose([T.RandomHorizontalFlip(), T.RandomResizedCrop(SIZE), T.ToTensor()]))


def channels_last_arrays() -> Any:
    return made(Net(), np.array)


def a_dictionary() -> Any:
    return made(Net(), lambda image: {"image": SCALED(image)})


def local_function() -> Any:
    return made(Net(), lambda image: SCALED(image))


class See(nn.Module):
    """The layer ``see`` gives what the network is fed."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.see, self.fc = nn.Identity(), nn.Linear(channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.see(x).mean((2, 3)))


def see() -> Any:
    return made(See())


def see_grey() -> Any:
    return made(See(1))


def see_four() -> Any:
    return made(See(4))


class Sorting(Net):
    """Puts the brightest image of a batch first, and leaves it there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[x.mean((1, 2, 3)).argsort()])


def sorting() -> Any:
    return made(Sorting())


class Deep(Net):
    """Drops its last stage one time in two, by Python's own random numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.fc((x if random.random() < 0.5 else 2 * x).mean((2, 3)))


def deep() -> Any:
    return made(Deep())


class Initialised(Net):
    """Takes its scale from the first images it ever sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale == 0:
            self.scale.data.copy_(x.mean())
        return super().forward(x / self.scale)


def initialised() -> Any:
    return made(Initialised())


def crop_of_wide_images() -> Any:
    return made(Net(), T.Compose([T.Resize(32), T.RandomCrop(32), T.ToTensor()]))


def small_mvit() -> tuple[nn.Module, Any]:
    """torchvision's MViT with three blocks, for clips of 4 frames of 32 × 32 pixels."""
    mvit: Any = importlib.import_module("torchvision.models.video.mvit")
    presets: Any = importlib.import_module("torchvision.transforms._presets")
    same, half = [1, 1, 1], [1, 2, 2]
    blocks = [
        mvit.MSBlockConfig(1, 16, 16, [3, 3, 3], [3, 3, 3], same, half),
        mvit.MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], half, same),
        mvit.MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], same, same),
    ]
    module = mvit.MViT(
        (32, 32), 4, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True,
        num_classes=7,
    )  # fmt: skip
    module, transform = made(module, presets.VideoClassification(crop_size=(32, 32), resize_size=(32, 32)))
    module.clip_frames, module.clip_rate = 4, 24.0
    return module, transform


class Flashes(nn.Module):
    """For clips of 8 frames: the mean colours at 4 steps in time, and a class that is red, by 1 % of black's distance from white."""

    clip_frames, clip_rate, input_size = 8, 24.0, (32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.colours, self.fc = nn.AvgPool3d((2, 8, 8)), nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
            self.fc.bias.copy_(torch.tensor([0, 4.18]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.colours(x).mean((2, 3, 4)))


def flashes() -> nn.Module:
    return Flashes()
