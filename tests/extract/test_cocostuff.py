"""COCO-Stuff: pixel values are one less than the numbers of ``labels.txt``, or, in its later form, the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from concept_folders import write_cocostuff, write_map

from extract.segmentation.voc_ade_coco import CocoStuffSource
from stores.errors import DatasetError


@pytest.mark.parametrize("by_value", [False, True])
def test_both_forms_of_the_list_name_the_same_pixels(tmp_path: Path, by_value: bool) -> None:
    made = write_cocostuff(tmp_path, by_value=by_value)
    write_map(tmp_path / "annotations/train2017/000000000000.png", np.array([[0, 34, 181, 255]] * 3, np.uint8))
    source = CocoStuffSource(tmp_path)
    numbers = source.masks(0)["object"][0, 0].tolist()
    assert numbers == [1, 35, 182, 0]
    assert [source.by_number[n].name for n in numbers[:3]] == ["person", "skis", "wood"]
    assert {label.number: (label.name, label.category) for label in source.labels} == made.labels
    np.testing.assert_array_equal(source.masks(4)["object"], made.masks[4]["object"])


def test_the_first_form_without_its_unlabelled_line(tmp_path: Path) -> None:
    write_cocostuff(tmp_path)
    before = CocoStuffSource(tmp_path).labels
    (tmp_path / "labels.txt").write_text("1: person\n35: skis\n182:wood\n")
    assert CocoStuffSource(tmp_path).labels == before


@pytest.mark.parametrize(("by_value", "more"), [(False, " (its number would be one more)"), (True, "")])
def test_a_value_without_a_label(tmp_path: Path, by_value: bool, more: str) -> None:
    write_cocostuff(tmp_path, by_value=by_value)
    write_map(tmp_path / "annotations/train2017/000000000000.png", np.array([[182, 183]], np.uint8))
    with pytest.raises(DatasetError) as caught:
        CocoStuffSource(tmp_path).masks(0)
    wanted = f"holds the value 182, for which '{tmp_path / 'labels.txt'}' has no label{more}: mend the mask"
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1: person\nskis\n", "line 2 must read NUMBER: NAME"),
        ("1: person\n300: skis\n", "line 2 must read NUMBER: NAME, with a number up to 255"),
        ("1: person\n-1: skis\n", "line 2 must read NUMBER: NAME"),
        ("1: person\n1: skis\n", "line 2: number 1 is already taken by 'person'"),
        ("0: unlabeled\n", "lists no label"),
        ("", "lists no label"),
    ],
)
def test_a_bad_line(tmp_path: Path, text: str, wanted: str) -> None:
    write_cocostuff(tmp_path)
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DatasetError) as caught:
        CocoStuffSource(tmp_path)
    assert str(caught.value).startswith(f"'{tmp_path / 'labels.txt'}'")
    assert wanted in str(caught.value)
