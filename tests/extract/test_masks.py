"""``images/``, ``masks/`` and ``labels.csv``: labels, categories, splits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from concept_folders import ENOUGH, write_image, write_map, write_masks

from extract.labels import labels_on_raster
from extract.segmentation.base import ConceptLabel
from extract.segmentation.custom import MasksSource, hashed_split
from stores.errors import DatasetError, MissingPathError


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
    assert "a split.csv beside it would say otherwise" in source.listing
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


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ("a/image 0,training", "the split must be one of train, val, test, got 'training'"),
        ("a/image 0,", "the split must be one of train, val, test, got ''"),
        ("a/nothing,val", "there is no image '{root}/images/a/nothing'. Put it there, or take the line out."),
        ("a/image 0.jpg.jpg,val", "there is no image"),
        ("a/image 0.png,val", "there is no image"),
        ("../secret.jpg,val", "'../secret.jpg' points outside the folder of the images"),
        ("/etc/passwd,val", "'/etc/passwd' points outside the folder of the images"),
        ("a/image 1,val", "'a/image 1' is already in '{root}/split.csv', line 2. An image is of one split"),
        ("a/bare,val", "the image 'a/bare' has no mask 'a/bare.png' in '{root}/masks'"),
    ],
)
def test_a_bad_line_of_the_split(tmp_path: Path, row: str, wanted: str) -> None:
    write_masks(tmp_path)
    write_image(tmp_path / "images/a/bare.jpg", 0)
    (tmp_path / "split.csv").write_text(f"image,split\na/image 1.jpg,train\n{row}\n")
    with pytest.raises(DatasetError) as caught:
        MasksSource(tmp_path)
    assert f"'{tmp_path}/split.csv', line 3: {wanted.format(root=tmp_path)}" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("one,sky", "line 2: 'number' must be a whole number, got 'one'"),
        ("1.5,sky", "line 2: 'number' must be a whole number, got '1.5'"),
        ("-1,sky", "line 2: 'number' must be at least 0, got -1"),
        ("65536,sky", "line 2: 'number' must be at most 65535"),
        ("1,sky\n2,sea\n1,sun", "line 4: number 1 is already taken by line 2"),
        ("1,", "line 2: the name is missing"),
        ("0,background", "lists no label"),
    ],
)
def test_a_bad_line_of_the_labels(tmp_path: Path, rows: str, wanted: str) -> None:
    write_masks(tmp_path)
    (tmp_path / "labels.csv").write_text(f"number,name\n{rows}\n")
    with pytest.raises(DatasetError) as caught:
        MasksSource(tmp_path)
    assert f"labels.csv', {wanted}" in str(caught.value).replace("' lists", "', lists")


def test_an_empty_category_and_missing_columns(tmp_path: Path) -> None:
    write_masks(tmp_path)
    (tmp_path / "labels.csv").write_text("number,name,category\n1,sky,\n")
    with pytest.raises(DatasetError, match=r"labels\.csv', line 2: the category is missing"):
        MasksSource(tmp_path)
    (tmp_path / "labels.csv").write_text("id,name\n1,sky\n")
    with pytest.raises(DatasetError, match=r"labels\.csv' lacks the column number"):
        MasksSource(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(MissingPathError, match="lacks masks/: it must hold images/, masks/ and labels.csv"):
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
