"""Masks of images that viewers turn, and masks of another shape than their image."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from concept_folders import write_map
from PIL import Image, ImageOps

from extract.datasets import open_concepts
from extract.image_io import ORIENTATION, orientation_of, quiet_pillow
from extract.labels import labels_on_raster
from extract.segmentation.base import same_shape
from extract.segmentation.custom import MasksSource
from stores.errors import DatasetError

WHOLE = (0.0, 0.0, 1.0, 1.0)


def stored(root: Path, orientation: int, size: tuple[int, int] = (6, 9), ending: str = "png") -> np.ndarray:
    """An image, (h, w), that is to be turned, with random labels; the labels where its pixels are stored."""
    g = np.random.default_rng(orientation)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (root / "images").mkdir(parents=True)
    image = Image.fromarray(g.integers(0, 256, (*size, 3), np.uint8))
    image.save(root / f"images/x.{ending}", exif=exif)
    (root / "labels.csv").write_text("number,name\n1,a\n2,b\n")
    return g.choice([1, 2], size).astype(np.uint8)


def as_seen(labels: np.ndarray, orientation: int) -> np.ndarray:
    """What somebody draws who sees the turned picture."""
    image = Image.fromarray(labels)
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_mask_of_the_turned_picture_is_turned_back(
    tmp_path: Path, orientation: int, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels = stored(tmp_path, orientation, ending=ending)
    write_map(tmp_path / "masks/x.png", as_seen(labels, orientation) if orientation >= 5 else labels)
    source = MasksSource(tmp_path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(source.masks(0)["object"][0], labels)
        source.masks(0)
    assert source.mask_size(0) == source.image_size(0) == (6, 9)
    found = labels_on_raster(source, 0, (6, 9), WHOLE)
    np.testing.assert_array_equal(found.maps[0].reshape(6, 9), labels == 1)
    assert len(caplog.records) == (orientation in (2, 3, 4))  # which its shape does not tell
    if caplog.records:
        assert f"'images/x.{ending}' has EXIF orientation {orientation}" in caplog.text


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_is_read_turned(tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture) -> None:
    seen = as_seen(stored(tmp_path, orientation, ending="tif"), orientation)
    write_map(tmp_path / "masks/x.png", seen)
    source = MasksSource(tmp_path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(source.masks(0)["object"][0], seen)
    assert source.image(0).size == (seen.shape[1], seen.shape[0])
    assert not caplog.records


def test_a_mask_of_the_pixels_as_stored_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = stored(tmp_path, 6)
    write_map(tmp_path / "masks/x.png", labels)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(MasksSource(tmp_path).masks(0)["object"][0], labels)
    assert not caplog.records


def test_a_square_does_not_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_map(tmp_path / "masks/x.png", stored(tmp_path, 8, (8, 8)))
    with caplog.at_level(logging.WARNING):
        MasksSource(tmp_path).masks(0)
    assert "the mask's shape does not tell" in caplog.text


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shape", [(96, 64), (64, 64), (20, 96)])
def test_another_shape_is_refused(tmp_path: Path, orientation: int, shape: tuple[int, int]) -> None:
    stored(tmp_path, orientation, (64, 96))
    write_map(tmp_path / "masks/x.png", np.ones(shape, np.uint8))
    source = open_concepts(tmp_path)
    if shape == (96, 64) and orientation == 6:
        assert source.masks(0)["object"].shape == (1, 64, 96)
        assert source.mask_size(0) == (64, 96)
        return
    wanted = rf"^The mask '.*masks/x\.png' has {shape[1]} × {shape[0]} pixels, but its image 'images/x\.png' 96 × 64"
    with pytest.raises(DatasetError, match=wanted):
        source.masks(0)
    with pytest.raises(DatasetError, match=wanted):
        source.mask_size(0)


def test_shapes_up_to_rounding() -> None:
    for scale in (2, 3, 4, 7, 8, 16):
        for size in ((375, 500), (1333, 800), (224, 224), (97, 640)):
            for rounded in (np.floor, np.ceil, np.rint):
                h, w = (max(int(rounded(side / scale)), 1) for side in size)
                assert same_shape((h, w), size)
                assert same_shape(size, (h, w))
    assert not same_shape((374, 480), (375, 500))
    assert not same_shape((500, 375), (375, 500))


def test_an_image_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_map(tmp_path / "masks/x.png", stored(tmp_path, 6))
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    source = MasksSource(tmp_path)
    source.mask_size(0), source.image_size(0)
    source.masks(0), source.masks(0)
    assert sum(path.endswith("images/x.png") for path in opened) == 1


def test_broken_metadata_says_nothing(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\x00\x01\0\0\x12\x01\x03\0\x01"
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg", exif=exif)
    quiet_pillow()
    with Image.open(tmp_path / "a.jpg") as image:
        assert orientation_of(image) == 1


def test_capital_endings_and_colours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = stored(tmp_path, 1)
    rgb = np.stack([labels, 0 * labels, 0 * labels], -1)
    write_map(tmp_path / "masks/x.png", rgb)
    (tmp_path / "masks/x.png").rename(tmp_path / "masks/x.PNG")
    source = MasksSource(tmp_path)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(source.masks(0)["object"][0], labels)
        source.masks(0)
    (message,) = caplog.messages
    assert message.startswith(f"'{tmp_path}/masks/x.PNG' is RGB")
    assert "label = R + 256·G" in message
