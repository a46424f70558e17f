"""ADE20K: its table of objects and its scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
from concept_folders import write_ade20k

from extract.segmentation.voc_ade_coco import Ade20kSource
from stores.errors import DatasetError


def test_without_scenes_there_are_objects_alone(tmp_path: Path) -> None:
    made = write_ade20k(tmp_path, scenes=False)
    source = Ade20kSource(made.root)
    assert source.categories == ["object"]
    assert all(set(source.masks(i)) == {"object"} for i in range(len(source)))


def test_the_table_of_the_first_release_has_one_column_less(tmp_path: Path) -> None:
    write_ade20k(tmp_path, scenes=False)
    before = Ade20kSource(tmp_path).labels
    rows = "".join(f"{label.number}\t0.1\t1\t1\t{label.name}\n" for label in before)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + rows)
    assert Ade20kSource(tmp_path).labels == before


def test_only_one_of_the_splits(tmp_path: Path) -> None:
    made = write_ade20k(tmp_path)
    for name in made.names[:4]:
        (tmp_path / name).unlink()
    source = Ade20kSource(tmp_path)
    assert [source.split(i) for i in range(len(source))] == ["val", "val"]
    assert source.masks(0)["scene"][0, 0, 0] == 152  # numbered as ever


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("objectInfo150.txt", "1\twall\n", "line 1 must name the columns, Idx and Name among them"),
        (
            "objectInfo150.txt",
            "Idx\tName\nx\twall\n",
            "line 2 must begin with a number (Idx) and end in a name, got 'x",
        ),
        ("objectInfo150.txt", "Idx\tName\n0\twall\n", "line 2 must begin with a number"),
        ("objectInfo150.txt", "Idx\tName\n99999\twall\n", "line 2 must begin with a number"),
        ("objectInfo150.txt", "Idx\tName\n1\n", "line 2 must begin with a number"),
        ("objectInfo150.txt", "Idx\tName\n1\twall\n1\tsky\n", "line 3: number 1 is already taken by 'wall'"),
        ("objectInfo150.txt", "Idx\tName\n", "lists no object"),
        ("sceneCategories.txt", "a street\nb\n", "line 2 must read NAME SCENE, got 'b'"),
        ("sceneCategories.txt", "a street\na alley\n", "line 2: 'a' is 'street' in a line above"),
    ],
)
def test_a_bad_line(tmp_path: Path, file: str, text: str, wanted: str) -> None:
    write_ade20k(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DatasetError) as caught:
        Ade20kSource(tmp_path)
    assert str(caught.value).startswith(f"'{tmp_path / file}'")
    assert wanted in str(caught.value)
