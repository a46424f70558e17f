import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from extract.crop_geometry import visible_box
from extract.models import Preprocess, torchvision, transforms
from stores.errors import UsageError

SIZES = [(224, 224), (375, 500), (500, 375), (40, 30), (301, 1000)]


def resized(height: int, width: int, short: int) -> tuple[int, int]:
    """The size torchvision's Resize(short) gives."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def crop_box(height: int, width: int, short: int, crop: int) -> list[float]:
    h, w = resized(height, width, short)
    top, left = round((h - crop) / 2), round((w - crop) / 2)
    return [left / w, top / h, (left + crop) / w, (top + crop) / h]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("short", "crop"), [(256, 224), (342, 299), (232, 224)])
def test_preset_of_torchvision(size: tuple[int, int], short: int, crop: int) -> None:
    preset = torchvision.transforms._presets.ImageClassification(crop_size=crop, resize_size=short)
    box = visible_box(Preprocess(preset), size)
    np.testing.assert_allclose(box, crop_box(*size, short, crop), atol=0.005)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["NEAREST", "BILINEAR", "BICUBIC", "LANCZOS"])
def test_squeezing_into_a_square_shows_everything(size: tuple[int, int], mode: str) -> None:
    resize = transforms.Resize((64, 64), getattr(transforms.InterpolationMode, mode))
    normalise = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    transform = transforms.Compose([resize, transforms.ToTensor(), normalise])
    np.testing.assert_allclose(visible_box(transform, size), (0, 0, 1, 1), atol=0.02 if min(size) < 64 else 0.005)


def test_off_centre_crop_is_exact() -> None:
    def corner(image: Image.Image) -> torch.Tensor:
        return transforms.functional.to_tensor(image.crop((10, 40, 60, 60)))

    np.testing.assert_allclose(visible_box(corner, (80, 100)), (0.1, 0.5, 0.6, 0.75), atol=0.003)


def test_padding_reaches_beyond_the_image() -> None:
    padded = transforms.Compose([transforms.Pad((20, 0, 0, 10), fill=128), transforms.ToTensor()])
    np.testing.assert_allclose(visible_box(padded, (100, 200)), (-0.1, 0, 1, 1.1), atol=0.003)
    crop = transforms.Compose([transforms.CenterCrop(300), transforms.ToTensor()])
    np.testing.assert_allclose(visible_box(crop, (100, 200)), (-0.25, -1, 1.25, 2), atol=0.01)


def test_negated_and_grey_intensities_do_not_matter() -> None:
    steps = [transforms.Grayscale(3), ImageOps.invert, transforms.CenterCrop(50), transforms.ToTensor()]
    np.testing.assert_allclose(visible_box(transforms.Compose(steps), (100, 100)), (0.25, 0.25, 0.75, 0.75), atol=0.003)


def _numpy_noise(image: Image.Image) -> torch.Tensor:
    return transforms.functional.to_tensor(image) * float(np.random.rand() > 2)


def _python_noise(image: Image.Image) -> torch.Tensor:
    random.random()
    return transforms.functional.to_tensor(image)


class _Private:
    """Draws from a generator of its own."""

    generator = np.random.default_rng(0)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return transforms.functional.to_tensor(image) * (1 + self.generator.random())


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (transforms.Compose([transforms.RandomCrop(30), transforms.ToTensor()]), "random"),
        (transforms.Compose([transforms.RandomHorizontalFlip(0.01), transforms.ToTensor()]), "random"),
        (_numpy_noise, "random"),
        (_python_noise, "random"),
        (_Private(), "random"),
        (transforms.Compose([ImageOps.mirror, transforms.ToTensor()]), "mirrored"),
        (transforms.Compose([ImageOps.flip, transforms.ToTensor()]), "mirrored"),
        (lambda image: transforms.functional.to_tensor(image.rotate(90)), "bent or turned"),
        (lambda image: transforms.functional.to_tensor(image) ** 3, "bent or turned"),
        (lambda image: torch.zeros(3, 8, 8), "the same"),
        (lambda image: transforms.functional.to_tensor(image)[0], "shape"),
    ],
)
def test_what_has_no_box_is_refused(transform, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        visible_box(transform, (60, 80))


def test_global_generators_are_left_as_they_are() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.raises(UsageError):
        visible_box(transforms.Compose([transforms.RandomCrop(30), transforms.ToTensor()]), (60, 80))
    with pytest.raises(UsageError):
        visible_box(_numpy_noise, (60, 80))
    with pytest.raises(UsageError):
        visible_box(_python_noise, (60, 80))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_one_pixel_has_no_ramp() -> None:
    with pytest.raises(UsageError, match="at least 2 x 2"):
        visible_box(transforms.ToTensor(), (1, 50))
