"""``images/``, ``masks/`` and ``labels.csv``: labels, categories, splits; and masks of images that viewers turn."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from concept_folders import ENOUGH, write_image, write_map, write_masks
from PIL import Image, ImageOps

from extract.datasets import open_concepts
from extract.image_io import ORIENTATION
from extract.labels import labels_on_raster
from extract.segmentation.base import ConceptLabel, same_shape
from extract.segmentation.custom import MasksSource, hashed_split
from stores.errors import DatasetError, MissingPathError

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("bits", [8, 16, 24])
def test_depths(tmp_path: Path, bits: int) -> None:
    made = write_masks(tmp_path, bits=bits)
    source = MasksSource(tmp_path)
    for i, truth in enumerate(made.masks):
        np.testing.assert_array_equal(source.masks(i)["object"], truth["object"])
    assert source.labels[1].number == (200 if bits == 8 else 300)


def test_a_palettes_indices_are_the_labels(tmp_path: Path) -> None:
    made = write_masks(tmp_path)
    values = np.array([[0, 1], [200, 1]], np.uint8)
    write_map(tmp_path / "masks/a/image 0.png", values, palette=True)
    assert MasksSource(made.root).masks(0)["object"].tolist() == [values.tolist()]


def two_categories(root: Path) -> None:
    (root / "labels.csv").write_text("number,name,category\n1,leg,part\n2,dog,object\n3,cat,object\n")
    for k in range(2):
        write_image(root / f"images/{k}.png", k)


def test_a_folder_for_each_category(tmp_path: Path) -> None:
    two_categories(tmp_path)
    whole, leg = np.full((4, 6), 2, np.uint8), np.zeros((2, 3), np.uint8)
    leg[1] = 1
    write_map(tmp_path / "masks/object/0.png", whole)
    write_map(tmp_path / "masks/part/0.png", leg)
    write_map(tmp_path / "masks/object/1.png", whole)
    (tmp_path / "masks" / "notes.txt").write_text("by hand")
    source = MasksSource(tmp_path)
    assert source.categories == ["part", "object"]
    masks = source.masks(0)
    assert {category: layers.shape for category, layers in masks.items()} == {"part": (1, 2, 3), "object": (1, 4, 6)}
    assert (masks["part"][0] == leg).all()
    assert set(source.masks(1)) == {"object"}  # no mask: not annotated in parts
    assert (source.mask_size(0), source.mask_size(1)) == ((2, 3), (4, 6))
    found = labels_on_raster(source, 0, (4, 6), (0.0, 0.0, 1.0, 1.0))  # maps of two sizes on one raster
    assert found.numbers.tolist() == [1, 2]
    np.testing.assert_array_equal(found.maps[0].reshape(4, 6), np.repeat(np.repeat(leg > 0, 2, 0), 2, 1))
    assert found.maps[1].all()


def test_one_mask_with_labels_of_several_categories(tmp_path: Path) -> None:
    two_categories(tmp_path)
    write_map(tmp_path / "masks/0.png", np.array([[0, 1, 3]], np.uint8))
    write_map(tmp_path / "masks/1.png", np.array([[2, 2, 0]], np.uint8))
    source = MasksSource(tmp_path)
    assert {c: m.tolist() for c, m in source.masks(0).items()} == {"part": [[[0, 1, 0]]], "object": [[[0, 0, 3]]]}
    assert {c: m.tolist() for c, m in source.masks(1).items()} == {"object": [[[2, 2, 0]]]}


def test_subfolders_of_images_are_no_categories(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("number,name,category\n1,leg,part\n")
    for folder in ("part", "other"):
        write_image(tmp_path / f"images/{folder}/0.png", 0)
        write_map(tmp_path / f"masks/{folder}/0.png", np.ones((2, 2), np.uint8))
    source = MasksSource(tmp_path)
    assert [source.name(i) for i in range(2)] == ["images/other/0.png", "images/part/0.png"]
    assert source.masks(1)["part"].all()


def test_without_a_list_the_name_decides(tmp_path: Path) -> None:
    made = write_masks(tmp_path)
    (tmp_path / "split.csv").unlink()
    source = MasksSource(tmp_path)
    assert [source.split(i) for i in range(ENOUGH)] == [
        ("train", "val")[hashed_split(f"a/image {k}")] for k in range(ENOUGH)
    ]
    assert "a split.csv next to it would override it" in source.listing
    assert len(source) == len(made.names)


def test_three_of_ten_names_are_for_val() -> None:
    found = [hashed_split(f"a/{k}") for k in range(3000)]
    assert 0.27 < np.mean(found) < 0.33
    first = int.from_bytes(hashlib.sha256("grün/1".encode()).digest()[:8], "big")
    assert hashed_split("grün/1") == int(first % 10 < 3)  # for good: a scored dataset must not move


def test_lists_a_split(tmp_path: Path) -> None:
    made = write_masks(tmp_path)
    (tmp_path / "split.csv").unlink()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("a/image 5.jpg\na/image 0\n\n")
    (tmp_path / "splits/val.txt").write_text("a/image 2\r\n")
    (tmp_path / "splits/test.txt").write_text("a/image 1\n")
    source = MasksSource(tmp_path)
    assert [source.name(i) for i in range(len(source))] == [made.names[k] for k in (0, 1, 2, 5)]
    assert [source.split(i) for i in range(len(source))] == ["train", "test", "val", "train"]
    np.testing.assert_array_equal(source.masks(3)["object"], made.masks[5]["object"])
    assert source.listing == f"'{tmp_path / 'splits'}'"


def test_names_with_dots(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("number,name\n7,sky\n")
    for name in ("a.b", "a.b.c"):
        write_image(tmp_path / f"images/{name}.jpg", 0)
        write_map(tmp_path / f"masks/{name}.png", np.full((2, 2), 7, np.uint8))
    (tmp_path / "split.csv").write_text("image,split\na.b,train\na.b.c.jpg,val\n")
    source = MasksSource(tmp_path)
    assert [(source.name(i), source.split(i)) for i in range(2)] == [
        ("images/a.b.c.jpg", "val"),
        ("images/a.b.jpg", "train"),
    ]
    assert source.labels == [ConceptLabel(7, "sky", "object")]


def test_a_missing_folder_or_mask(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(MissingPathError, match="lacks masks/: it must hold images/, masks/ and labels.csv"):
        MasksSource(tmp_path)
    write_masks(tmp_path)
    write_image(tmp_path / "images/a/bare.jpg", 0)
    (tmp_path / "split.csv").write_text("image,split\na/bare,val\n")
    with pytest.raises(DatasetError, match=r"line 2: the image 'a/bare' has no mask 'a/bare\.png' in '.*masks'"):
        MasksSource(tmp_path)


@pytest.mark.parametrize(
    ("colour", "labels", "wanted"),
    [
        ((0, 0, 255), "255,thing", r"has the colour \(0, 0, 255\): RGB is read as label = R \+ 256·G, and B must be 0"),
        ((128, 0, 128), "128,person", r"has the colour \(128, 0, 128\): .* Write it again with label numbers"),
        ((0, 0, 255, 255), "255,thing", r"has the colour \(0, 0, 255\)"),
        ((128, 128, 0), "128,person", r"value 32896 \(RGB is read as label = R \+ 256·G: write label numbers"),
    ],
)
def test_colours_are_not_read_as_labels(tmp_path: Path, colour: tuple[int, ...], labels: str, wanted: str) -> None:
    (tmp_path / "labels.csv").write_text(f"number,name\n{labels}\n")
    values = np.zeros((20, 24, len(colour)), np.uint8)
    values[5:9] = colour
    write_image(tmp_path / "images/1.jpg", 1)
    write_map(tmp_path / "masks/1.png", values)
    with pytest.raises(DatasetError, match=wanted) as caught:
        MasksSource(tmp_path).masks(0)
    assert "'" + str(tmp_path / "masks/1.png") in str(caught.value)


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
    np.testing.assert_array_equal(source.masks(0)["object"][0], seen)
    assert source.image(0).size == (seen.shape[1], seen.shape[0])
    assert not caplog.records


def test_a_mask_of_the_pixels_as_stored_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = stored(tmp_path, 6)
    write_map(tmp_path / "masks/x.png", labels)
    np.testing.assert_array_equal(MasksSource(tmp_path).masks(0)["object"][0], labels)
    assert not caplog.records
    write_map(tmp_path / "square/masks/x.png", stored(tmp_path / "square", 8, (8, 8)))
    MasksSource(tmp_path / "square").masks(0)
    assert "the mask's shape does not show" in caplog.text


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
