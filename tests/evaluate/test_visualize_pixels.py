"""What a transform does to colours and where it crops, found from outside, against what it was built from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluate.visualize.pixels import Eyes, normalisation, to_jpeg
from stores.errors import UsageError

SIZE = (12, 16)
Transform = Callable[[Image.Image], torch.Tensor]


def plain(image: Image.Image) -> torch.Tensor:
    """To [0, 1], at the size of the tests."""
    pixels = np.asarray(image.convert("RGB").resize((SIZE[1], SIZE[0])), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def cropping(image: Image.Image) -> torch.Tensor:
    """Resize to 3/2 of the size, keep the centre, as classifiers' transforms do."""
    larger = image.convert("RGB").resize((SIZE[1] * 3 // 2, SIZE[0] * 3 // 2), Image.Resampling.BICUBIC)
    left, top = SIZE[1] // 4, SIZE[0] // 4
    return plain(larger.crop((left, top, left + SIZE[1], top + SIZE[0])))


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20)
@given(
    mean=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    std=st.lists(st.floats(0.05, 300), min_size=3, max_size=3),
    order=st.permutations([0, 1, 2]),
)
def test_mean_deviation_and_order_of_channels_are_found(mean: list[float], std: list[float], order: list[int]) -> None:
    shift, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    found = normalisation(lambda image: (plain(image)[order] - shift) / scale, SIZE)
    rgb = noise()
    wanted = (rgb[order] - shift) / scale
    torch.testing.assert_close(found(rgb[None])[0], wanted, rtol=1e-4, atol=1e-4)
    assert found.size == SIZE


def test_mixed_colours_and_padding_are_found() -> None:
    weights = torch.tensor([0.299, 0.587, 0.114])

    def grey(image: Image.Image) -> torch.Tensor:
        out = (plain(image) * weights[:, None, None]).sum(0).expand(3, *SIZE).clone() * 2 - 1
        out[:, :2] = 0.25
        return out

    rgb = noise()
    found = normalisation(grey, SIZE)(rgb[None])[0]
    assert (found[:, :2] == 0.25).all()
    torch.testing.assert_close(found[0, 2:], (2 * (rgb * weights[:, None, None]).sum(0) - 1)[2:], atol=1e-5, rtol=1e-5)


def test_the_normalisation_is_differentiable_and_moves_to_a_device() -> None:
    found = normalisation(lambda image: 3 * plain(image), SIZE).to(torch.device("cpu"))
    rgb = noise()[None].requires_grad_()
    found(rgb).sum().backward()
    torch.testing.assert_close(rgb.grad, torch.full_like(rgb, 3.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda image: plain(image) ** 2, "does more to colours than scale and shift them"),
        (lambda image: plain(image)[:, :5], r"must give \(3, 12, 16\), got \(3, 5, 16\)"),
        (lambda image: plain(image) * float("nan"), "NaN or infinite values for plain colours"),
        (lambda image: plain(image) * 0, "black and white images come out the same"),
    ],
)
def test_transforms_that_are_not_known_are_refused(transform: Transform, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Eyes(transform, SIZE)


@pytest.mark.parametrize("transform", [plain, cropping])
def test_the_network_sees_all_of_a_saved_picture_and_no_more(transform: Transform) -> None:
    """The crop takes away the frame and nothing else; of the file, what the JPEG format keeps."""
    rgb = torch.nn.functional.interpolate(noise((3, 4))[None], SIZE, mode="bilinear")[0]
    file = to_jpeg(rgb)
    seen = Eyes(transform, SIZE).see(file)
    assert (seen - rgb).abs().mean() < 0.02
    assert (seen - rgb).abs().max() < 0.1
    framed = Eyes(transform, SIZE).framed(Image.new("RGB", (SIZE[1], SIZE[0])))
    factor = 1 if transform is plain else 1.5
    assert framed.size == (SIZE[1] * factor, SIZE[0] * factor)


def test_a_crop_gives_the_pictures_own_pixels_back() -> None:
    pixels = (255 * noise().permute(1, 2, 0)).round().to(torch.uint8).numpy()
    seen = cropping(Eyes(cropping, SIZE).framed(Image.fromarray(pixels)))
    np.testing.assert_array_equal((255 * seen).round().to(torch.uint8).permute(1, 2, 0), pixels)


def test_pictures_of_another_size_are_resized_first() -> None:
    picture = Image.new("RGB", (2 * SIZE[1], 2 * SIZE[0]), (10, 200, 30))
    assert Eyes(plain, SIZE).framed(picture).size == (SIZE[1], SIZE[0])
