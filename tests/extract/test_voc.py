"""Pascal VOC: what its lists name, and what they may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from concept_folders import write_map, write_voc

from extract.segmentation.voc_ade_coco import VOC_CLASSES, VocSource
from stores.errors import DatasetError, NoImagesError

LIST = "ImageSets/Segmentation/val.txt"


def test_background_and_void_are_unlabelled_and_a_number_is_its_index(tmp_path: Path) -> None:
    made = write_voc(tmp_path)
    values = np.arange(21, dtype=np.uint8).reshape(3, 7)
    write_map(tmp_path / "SegmentationClass/2007_000000.png", np.vstack([values, values * 0 + 255]), palette=True)
    source = VocSource(made.root)
    found = source.masks(0)["object"][0]
    np.testing.assert_array_equal(found[:3], values)
    assert not found[3:].any()
    assert len(VOC_CLASSES) == 21
    assert [label.number for label in source.labels] == list(range(1, 21))
    assert (source.labels[0].name, source.labels[19].name) == ("aeroplane", "tvmonitor")


def test_a_map_that_was_stripped_of_its_palette(tmp_path: Path) -> None:
    made = write_voc(tmp_path)
    write_map(tmp_path / "SegmentationClass/2007_000000.png", made.masks[0]["object"][0].astype(np.uint8))
    np.testing.assert_array_equal(VocSource(tmp_path).masks(0)["object"], made.masks[0]["object"])


def test_a_value_that_is_no_class(tmp_path: Path) -> None:
    write_voc(tmp_path)
    write_map(tmp_path / "SegmentationClass/2007_000000.png", np.full((2, 2), 21, np.uint8))
    with pytest.raises(DatasetError, match=r"value 21, which is no class of Pascal VOC \(0 to 20, and 255 for void\)"):
        VocSource(tmp_path).masks(0)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("2007_123456", "there is no image '{root}/JPEGImages/2007_123456.jpg' (missing: 1 of 3 listed)"),
        ("2007_999999", "there is no mask '{root}/SegmentationClass/2007_999999.png' (missing: 1 of 3 listed)"),
        ("2007_000004", "the image 'JPEGImages/2007_000004.jpg' is already in line 1. Take one of the lines out."),
        ("../../secret", "'../../secret' points outside the folder of the images"),
        ("/etc/passwd", "'/etc/passwd' points outside the folder of the images"),
    ],
)
def test_a_bad_line(tmp_path: Path, line: str, wanted: str) -> None:
    write_voc(tmp_path)
    with (tmp_path / LIST).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DatasetError) as caught:
        VocSource(tmp_path)
    assert f"'{tmp_path / LIST}', line 3: {wanted.format(root=tmp_path)}" in str(caught.value)


def test_an_image_in_both_lists(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with (tmp_path / LIST).open("a") as file:
        file.write("2007_000001\n")
    with pytest.raises(DatasetError, match=r"val\.txt', line 3: .*2007_000001.* is in train\.txt too"):
        VocSource(tmp_path)


def test_empty_lists(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text("\n")
    with pytest.raises(NoImagesError, match=r"names no image: train\.txt and val\.txt are empty"):
        VocSource(tmp_path)
