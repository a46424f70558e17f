"""Which of a layer's values belong to which part of an image: found by what the layer does, whatever it looks like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from extract.layout_probe import FoundLayout, LayoutProbe
from extract.tensor_layout import LayerLayout


class Patches(nn.Module):
    """Patches of 8 pixels, six channels, behind some tokens of no place, turned round as ``arrange`` does; one size only."""

    def __init__(self, arrange: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int], prefix: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layer = nn.Conv2d(3, 6, 8, 8), nn.Identity()
        self.arrange, self.size, self.prefix = arrange, size, prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert tuple(x.shape[2:]) == self.size
        x = self.conv(x).permute(0, 2, 3, 1)  # (n, h, w, C)
        if self.prefix:
            pooled = x.mean((1, 2))[:, None].expand(-1, self.prefix, -1)
            x = torch.cat([pooled, x.flatten(1, 2)], 1)
        return self.layer(self.arrange(x)).flatten(1).sum(1, keepdim=True)


def found(module: nn.Module, size: tuple[int, int], asked: str | None = None) -> FoundLayout | str:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    return LayoutProbe(module, ["layer"], images).find("layer", asked)


def as_is(x: torch.Tensor) -> torch.Tensor:
    return x


def channels_first(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-1, 1)


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (40, 160), (48, 48)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("arrange", [as_is, channels_first])
def test_every_arrangement_is_found(size: tuple[int, int], prefix: int, arrange: Callable) -> None:
    grid = (size[0] // 8, size[1] // 8)
    kind = {
        (False, as_is): "nhwc",
        (False, channels_first): "nchw",
        (True, as_is): "tokens",
        (True, channels_first): "ncp",
    }
    module = Patches(arrange, size, prefix)
    answer = found(module, size)
    assert isinstance(answer, FoundLayout), answer
    assert answer.layout == LayerLayout(kind[prefix > 0, arrange], grid, 6, prefix)
    assert answer.seen == 1.0
    assert not answer.doubt
    images = torch.randn(2, 3, *size)
    taken = []
    handle = module.layer.register_forward_hook(lambda m, i, o: taken.append(o))
    module(images)
    handle.remove()
    plain = module.conv(images).flatten(2).transpose(1, 2)
    assert torch.equal(answer.layout.to_npc(taken[0])[:, prefix:], plain)


def test_positions_that_are_nowhere_are_refused_until_the_user_says_what_they_are() -> None:
    module = Patches(lambda x: x.flatten(1, 2)[:, :45], (64, 64))  # no grid has 45 places
    answer = found(module, (64, 64))
    assert isinstance(answer, str)
    assert "shape (2, 45, 6)" in answer
    assert "may be tokens, 6 × 6 positions after 9" in answer  # by their number; but no patch moves what it would
    assert "Say which by --layout" in answer
    asked = found(module, (64, 64), asked="tokens+0:5x9")
    assert isinstance(asked, FoundLayout)
    assert asked.layout.option == "tokens+0:5x9"


def test_two_grids_that_fit_alike_are_distinguished_or_refused() -> None:
    answer = found(Patches(as_is, (32, 32), 4), (32, 32))  # 4 × 4 behind 4, or 2 × 2 behind 16
    assert isinstance(answer, FoundLayout)
    assert (answer.layout.prefix, answer.how) == (4, "by changing patches of the image")
    nowhere = found(Patches(lambda x: x.mean(1, keepdim=True).expand(-1, 20, -1), (32, 32), 4), (32, 32))
    assert isinstance(nowhere, str)
    assert "may be tokens, 4 × 4 positions after 4" in nowhere
    assert "--layout 'layer=tokens+4:4x4'" in nowhere


@pytest.mark.parametrize("size", [(64, 64), (112, 112)])
def test_tokens_of_no_place_at_the_end_are_refused(size: tuple[int, int]) -> None:
    answer = found(Patches(lambda x: x.flip(1), size, 1), size)  # also turned upside down
    assert isinstance(answer, str)
    last = Patches(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1), size, 1)
    answer = found(last, size)
    assert isinstance(answer, str)
    assert "Tokens that are no positions must be in front" in answer or "Say which by --layout" in answer


@pytest.mark.parametrize(
    ("arrange", "how"),
    [
        (lambda x: x.transpose(1, 2).flatten(1, 2), "column by column"),
        (lambda x: x.transpose(1, 2), "column by column"),
        (lambda x: x.flip(2), "mirrored left to right"),
        (lambda x: x.flip(1).flatten(1, 2), "mirrored top to bottom"),
    ],
)
def test_positions_in_another_order_are_refused(arrange: Callable, how: str) -> None:
    module = Patches(arrange, (64, 64))
    answer = found(module, (64, 64))
    assert isinstance(answer, str)
    assert how in answer or "may be" in answer


def test_a_layer_norm_of_channels_first_is_no_layer_norm() -> None:
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    module = Patches(channels_first, (64, 64))
    module.layer = LayerNorm2d(6)
    answer = found(module, (64, 64))
    assert isinstance(answer, FoundLayout)
    assert answer.layout == LayerLayout("nchw", (8, 8), 6)


def test_what_the_model_says_is_held_against_what_it_does() -> None:
    module = Patches(as_is, (32, 32), 1)
    module.num_prefix_tokens = 13  # it has one
    answer = found(module, (32, 32))
    assert isinstance(answer, str)
    assert "4 × 4 positions after 1" in answer


def test_other_sizes_decide_where_the_model_takes_them() -> None:
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("layer", nn.Sequential(nn.Conv2d(3, 8, 8, 8)))
    answer = found(module, (64, 64))
    assert isinstance(answer, FoundLayout)
    assert (answer.layout.kind, answer.how) == ("nchw", "from a second image size")


@pytest.mark.parametrize(
    "arrange", [lambda x: x.flatten(1, 2).transpose(0, 1), lambda x: (x, x), lambda x: x.flatten(0, 1)]
)
def test_what_is_no_tensor_of_images_is_refused(arrange: Callable) -> None:
    class Odd(Patches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layer(self.arrange(self.conv(x).permute(0, 2, 3, 1)))
            return x.flatten(1)

    answer = found(Odd(arrange, (64, 64)), (64, 64))
    assert isinstance(answer, str)
    assert "must give one tensor with the images as first dimension" in answer


class Cubes(nn.Module):
    """Blocks of 2 frames and 8 × 8 pixels, six channels, behind some tokens of no place, turned round as ``arrange`` does."""

    def __init__(self, arrange: Callable[[torch.Tensor], torch.Tensor], prefix: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layer = nn.Conv3d(3, 6, (2, 8, 8), (2, 8, 8)), nn.Identity()
        self.arrange, self.prefix = arrange, prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).movedim(1, -1)  # (n, T, h, w, C)
        if self.prefix:
            pooled = x.mean((1, 2, 3))[:, None].expand(-1, self.prefix, -1)
            x = torch.cat([pooled, x.flatten(1, 3)], 1)
        return self.layer(self.arrange(x)).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("size", [(16, 64, 64), (8, 48, 64)])
@pytest.mark.parametrize(
    ("arrange", "prefix", "kind"),
    [
        (channels_first, 0, "ncthw"),
        (as_is, 0, "nthwc"),
        (lambda x: x.movedim(-1, 2), 0, "ntchw"),
        (as_is, 1, "tokens"),
        (channels_first, 2, "ncp"),
    ],
)
def test_arrangements_of_clips_are_found(size: tuple[int, int, int], arrange: Callable, prefix: int, kind: str) -> None:
    clips = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    answer = LayoutProbe(Cubes(arrange, prefix), ["layer"], clips).find("layer")
    assert isinstance(answer, FoundLayout), answer
    assert answer.layout == LayerLayout(kind, (size[1] // 8, size[2] // 8), 6, prefix, size[0] // 2)  # type: ignore[arg-type]
