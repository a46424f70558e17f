"""Places365: where its folders and lists are found, and the easy layout."""

import os
from pathlib import Path

import pytest
from image_folders import PLACES_NAMES as NAMES
from image_folders import PLACES_TEST as TEST
from image_folders import PLACES_TRAIN as TRAIN
from image_folders import PLACES_VAL as VAL
from image_folders import listed, put, put_lists, put_places

from extract.datasets import open_source
from extract.datasets.places365 import open_places365
from stores.errors import DatasetError, NoImagesError

STANDARD, CHALLENGE = "filelist_places365-standard", "filelist_places365-challenge"
Pairs = list[tuple[str, int]]


def below(folder: str, pairs: Pairs) -> Pairs:
    return [(f"{folder}/{name}", label) for name, label in pairs]


def without(root: Path, *lists: str) -> Path:
    for name in lists:
        (root / name).unlink()
    return root


TRAIN_LISTS = ("places365_train_standard.txt", "places365_train_challenge.txt")


@pytest.mark.parametrize(("size", "lists"), [("256", STANDARD), ("large", CHALLENGE)])
def test_all_that_is_there(tmp_path: Path, size: str, lists: str) -> None:
    source = open_source(put_places(tmp_path, size=size, lists=lists))
    assert listed(source) == below(f"data_{size}", TRAIN) + below(f"test_{size}", TEST) + below(f"val_{size}", VAL)
    assert source.class_names == NAMES


@pytest.mark.parametrize(
    ("folder", "pairs"),
    [("val_256", VAL), ("test_large", TEST), ("data_256_standard", TRAIN), ("data_large_challenge", TRAIN[2:])],
)
@pytest.mark.parametrize("lists", ["", "..", "inside", STANDARD])
def test_one_image_folder(tmp_path: Path, folder: str, pairs: Pairs, lists: str) -> None:
    root = tmp_path / "a" / "b"
    put(root / folder, *(name for name, _ in pairs))
    put_lists(root / (folder if lists == "inside" else lists))
    source = open_source(root / folder)
    assert listed(source) == pairs
    assert source.class_names == NAMES
    assert source.path(0) == root / folder / pairs[0][0]


def test_a_folder_given_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_places(tmp_path)
    monkeypatch.chdir(tmp_path / "val_256")
    assert listed(open_source(".")) == listed(open_source("../val_256")) == VAL
    (tmp_path / "mine").symlink_to(tmp_path / "val_256")
    assert listed(open_source(tmp_path / "mine")) == VAL


def test_standard_and_challenge_side_by_side(tmp_path: Path) -> None:
    put(tmp_path / "data_256_standard", *(name for name, _ in TRAIN))
    put(tmp_path / "data_256_challenge", *(name for name, _ in TRAIN[2:]))
    put_lists(tmp_path)
    wanted = below("data_256_challenge", TRAIN[2:]) + below("data_256_standard", TRAIN)
    assert listed(open_source(tmp_path)) == wanted
    without(tmp_path, TRAIN_LISTS[0])
    put(tmp_path / "two" / "data_256", *(name for name, _ in TRAIN[2:]))  # as unpacked, with only the challenge's list
    assert listed(open_source(tmp_path / "two")) == below("data_256", TRAIN[2:])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    put(tmp_path / "val_256", *(name for name, _ in VAL), "x.jpg")
    odd = os.fsdecode(b"caf\xe9 au lait.jpg")
    (tmp_path / "val_256" / "x.jpg").rename(tmp_path / "val_256" / odd)
    with (put_lists(tmp_path) / "places365_val.txt").open("ab") as file:
        file.write(b"./caf\xe9 au lait.jpg\t2")
    source = open_source(tmp_path)
    assert listed(source) == below("val_256", [*VAL, (odd, 2)])
    assert source.image(4).size == (4, 3)


def test_folders_are_listed_once_and_what_no_line_names_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(put_places(tmp_path), "val_256/extra.jpg", "val_256/.hidden.jpg", "data_256/b/beach/more.jpg", "val_256/n.txt")
    asked: list[str] = []
    listdir, stat = os.listdir, os.stat
    monkeypatch.setattr(os, "listdir", lambda path: asked.append(str(path)) or listdir(path))
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(str(path)) or stat(path, **more))
    assert len(open_places365(tmp_path)) == 10
    assert sorted(p for p in asked if "_256/" in p and "places365" not in p.rpartition("/")[2]) == [
        str(tmp_path / "data_256" / name) for name in ("a/airfield", "a/apartment_building/outdoor", "b/beach")
    ]
    assert [message.split("'")[1] for message in caplog.messages] == [
        f"{tmp_path}/places365_{which}.txt" for which in ("train_standard", "val")
    ]
    assert all(message.endswith("left out: 1") for message in caplog.messages)


def test_training_images_without_a_list(tmp_path: Path) -> None:
    put(tmp_path / "data_256", *(name for name, _ in TRAIN))
    without(put_lists(tmp_path), *TRAIN_LISTS)
    source = open_source(tmp_path / "data_256")
    assert (listed(source), source.class_names) == (sorted(TRAIN), NAMES)
    put(tmp_path / "data_256", "loose.jpg", "q/quarry/1.jpg")
    with pytest.raises(DatasetError, match=r"categories_places365\.txt' lists no class '/q/quarry'"):
        open_source(tmp_path)
    source = open_source(without(tmp_path, "categories_places365.txt"))
    assert source.class_names == ["airfield", "apartment_building/outdoor", "beach", "quarry"]
    assert [label for _, label in listed(source)] == [0, 0, 1, 2, -1, 3]


def test_lists_without_categories_number_the_classes(tmp_path: Path) -> None:
    source = open_source(without(put_places(tmp_path), "categories_places365.txt"))
    assert listed(source) == below("data_256", TRAIN) + below("test_256", TEST) + below("val_256", VAL)
    assert source.class_names is None
    # what numbers the folders here need not number the list
    assert open_source(without(tmp_path, *TRAIN_LISTS)).class_names is None


def test_validation_images_without_a_list_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "val_256", *(name for name, _ in VAL))
    assert {label for _, label in listed(open_source(tmp_path))} == {-1}
    assert f"the 4 images of '{tmp_path}/val_256' have no labels: put places365_val.txt into" in caplog.text


EASY = [
    ("train/airfield/00000001.jpg", 0),
    ("train/apartment_building-outdoor/00000001.jpg", 2),
    ("train/apartment_building-outdoor/00000002.jpg", 2),
    ("val/zen_garden/Places365_val_00000001.jpg", 4),
]


def easy(root: Path, categories: Path | None) -> Path:
    put(root, *(name for name, _ in EASY))
    if categories:
        put_lists(categories, "categories_places365.txt")
    return root


@pytest.mark.parametrize("where", ["", "..", f"../{STANDARD}"])
def test_the_easy_layout(tmp_path: Path, where: str) -> None:
    root = easy(tmp_path / "places365_standard", tmp_path / "places365_standard" / where)
    source = open_source(root)
    assert (listed(source), source.class_names) == (EASY, NAMES)
    for split in ("train", "val"):
        alone = open_source(root / split)
        assert listed(alone) == [(n.removeprefix(f"{split}/"), k) for n, k in EASY if n.startswith(split)]
        assert alone.class_names == NAMES


def test_the_easy_layout_without_categories(tmp_path: Path) -> None:
    root = easy(tmp_path / "places365_standard", None)
    source = open_source(f"places365:{root}")
    assert [label for _, label in listed(source)] == [0, 1, 1, 2]
    assert source.class_names == ["airfield", "apartment_building-outdoor", "zen_garden"]
    assert open_source(root).kind == "class folders"


def test_the_easy_layouts_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = easy(tmp_path / "places365_standard", tmp_path)
    (root / "train.txt").write_text(f"{EASY[2][0]}\r\n{EASY[0][0]} 0\n")
    (root / "val.txt").write_text(EASY[3][0])
    assert listed(open_source(root)) == [EASY[2], EASY[0], EASY[3]]
    assert [name for name, _ in listed(open_source(root / "train"))] == [EASY[2][0][6:], EASY[0][0][6:]]
    assert "left out: 1" in caplog.text
    for line, what in (
        ("airfield/00000001.jpg", "must begin with 'train/'"),
        ("train/../x.jpg", ": .* points outside"),
        ("/train/airfield/00000001.jpg", "must begin with 'train/'"),
        ("train/airfield/9.jpg", r": there is no image '.*train/airfield/9\.jpg' \(missing: 1 of 1 listed\)"),
    ):
        (root / "train.txt").write_text(line)
        for data in (root, root / "train"):
            with pytest.raises(DatasetError, match=rf"train\.txt', line 1 ?{what}"):
                open_source(data)


def test_folders_that_only_look_like_it(tmp_path: Path) -> None:
    root = put(easy(tmp_path / "mine", tmp_path), "train/kitchen/1.jpg")
    assert open_source(root).kind == "class folders"  # an ordinary dataset next to Places365's lists
    with pytest.raises(
        DatasetError, match=r"holds 1 class folders, such as 'kitchen', that '.*categories.*' does not list"
    ):
        open_source(f"places365:{root}")
    put(tmp_path / "b", "val_256/cat/1.jpg", "val_256/dog/1.jpg", "data_256/cat/1.jpg")
    for name in ("val_256", "data_256", ""):
        assert open_source(tmp_path / "b" / name).kind == "class folders"
    (tmp_path / "c" / "val_256").mkdir(parents=True)
    with pytest.raises(NoImagesError, match="There is no image in"):
        open_source(f"places365:{tmp_path / 'c'}")
