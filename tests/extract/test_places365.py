import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.datasets import open_source
from extract.image_source import PathSource
from stores.errors import DatasetError, NoImagesError

PATHS = ["/a/airfield", "/a/airplane_cabin", "/a/apartment_building/outdoor", "/b/beach", "/z/zen_garden"]
NAMES = ["airfield", "airplane_cabin", "apartment_building/outdoor", "beach", "zen_garden"]
TRAIN = [("a/airfield/00000002.jpg", 0), ("a/airfield/00000001.jpg", 0), ("b/beach/00000001.jpg", 3),
         ("a/apartment_building/outdoor/00000007.jpg", 2)]  # fmt: skip
VAL = [(f"Places365_val_{k:08d}.jpg", label) for k, label in enumerate([4, 0, 3, 3], 1)]
TEST = [(f"Places365_test_{k:08d}.jpg", -1) for k in (1, 2)]
LISTS = {
    "categories_places365.txt": "".join(f"{path} {k}\n" for k, path in enumerate(PATHS)),
    "places365_train_standard.txt": "".join(f"/{name} {k}\n" for name, k in TRAIN),
    "places365_train_challenge.txt": "".join(f"/{name} {k}\n" for name, k in TRAIN[2:]),
    "places365_val.txt": "".join(f"{name} {k}\n" for name, k in VAL),
    "places365_test.txt": "".join(f"{name}\n" for name, _ in TEST),
}
STANDARD, CHALLENGE = "filelist_places365-standard", "filelist_places365-challenge"


def put(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (k, 10, 20)).save(root / name, "JPEG")
    return root


def put_lists(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or LISTS:
        (folder / name).write_text(LISTS[name])
    return folder


def places(
    root: Path, *, train: str = "data_256", val: str = "val_256", test: str = "test_256", lists: str = ""
) -> Path:
    for folder, pairs in ((train, TRAIN), (val, VAL), (test, TEST)):
        if folder:
            put(root / folder, *(name for name, _ in pairs))
    put_lists(root / lists)
    return root


def listed(source: object) -> list[tuple[str, int]]:
    assert isinstance(source, PathSource)
    assert source.kind == "places365"
    return [(source.name(i), source.label(i)) for i in range(len(source))]


def below(folder: str, pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(f"{folder}/{name}", label) for name, label in pairs]


@pytest.mark.parametrize("scheme", ["", "places365:"])
@pytest.mark.parametrize("lists", ["", STANDARD, CHALLENGE])
@pytest.mark.parametrize("size", ["256", "large"])
def test_all_that_is_there(tmp_path: Path, size: str, lists: str, scheme: str) -> None:
    places(tmp_path, train=f"data_{size}", val=f"val_{size}", test=f"test_{size}", lists=lists)
    source = open_source(f"{scheme}{tmp_path}")
    assert listed(source) == below(f"data_{size}", TRAIN) + below(f"test_{size}", TEST) + below(f"val_{size}", VAL)
    assert source.class_names == NAMES
    assert np.asarray(source.image(1))[0, 0].tolist() == pytest.approx([1, 10, 20], abs=3)


@pytest.mark.parametrize(
    ("folder", "pairs"),
    [
        ("val_256", VAL),
        ("test_large", TEST),
        ("data_256", TRAIN),
        ("data_256_standard", TRAIN),
        ("data_large_challenge", TRAIN[2:]),
    ],
)
@pytest.mark.parametrize("lists", ["", "..", "inside", STANDARD])
def test_one_image_folder(tmp_path: Path, folder: str, pairs: list[tuple[str, int]], lists: str) -> None:
    root = tmp_path / "a" / "b"
    put(root / folder, *(name for name, _ in pairs))
    put_lists(root / (folder if lists == "inside" else lists))
    source = open_source(root / folder)
    assert listed(source) == pairs
    assert source.class_names == NAMES
    assert source.path(0) == root / folder / pairs[0][0]


def test_a_folder_given_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places(tmp_path)
    monkeypatch.chdir(tmp_path / "val_256")
    assert listed(open_source(".")) == VAL
    assert listed(open_source("../val_256")) == VAL
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").symlink_to(tmp_path / "val_256")
    assert listed(open_source(tmp_path / "elsewhere" / "mine")) == VAL


def test_a_folder_above_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    put(tmp_path / "in" / "val_256", *(name for name, _ in VAL))
    put_lists(tmp_path / "in", "places365_val.txt")
    monkeypatch.setattr(Path, "is_file", refused)
    assert listed(open_source(tmp_path / "in" / "val_256")) == VAL


def test_standard_and_challenge_side_by_side(tmp_path: Path) -> None:
    places(tmp_path, train="data_256_standard", val="", test="")
    put(tmp_path / "data_256_challenge", *(name for name, _ in TRAIN[2:]))
    wanted = below("data_256_challenge", TRAIN[2:]) + below("data_256_standard", TRAIN)
    assert listed(open_source(tmp_path)) == wanted
    (tmp_path / "places365_train_standard.txt").unlink()
    put(tmp_path / "two" / "data_256", *(name for name, _ in TRAIN[2:]))  # as unpacked, with only the challenge's list
    assert listed(open_source(tmp_path / "two")) == below("data_256", TRAIN[2:])


def test_lists_with_other_line_ends_marks_and_bytes(tmp_path: Path) -> None:
    put(tmp_path / "val_256", *(name for name, _ in VAL), "x.jpg")
    odd = b"caf\xe9 au lait.jpg"
    (tmp_path / "val_256" / "x.jpg").rename(tmp_path / "val_256" / os.fsdecode(odd))
    put_lists(tmp_path)
    for name in ("places365_val.txt", "categories_places365.txt"):
        file = tmp_path / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"  \r\n\r\n"))
    with (tmp_path / "places365_val.txt").open("ab") as file:
        file.write(b"./" + odd + b"\t2")
    source = open_source(tmp_path)
    assert listed(source) == below("val_256", [*VAL, (os.fsdecode(odd), 2)])
    assert source.class_names == NAMES
    assert source.image(4).size == (4, 3)


@pytest.mark.parametrize(
    ("name", "line", "wanted"),
    [
        ("places365_val.txt", "x.jpg", r"val\.txt', line 5 must read PATH NUMBER, got 'x\.jpg'"),
        ("places365_val.txt", "x.jpg three", "line 5 must read PATH NUMBER"),
        ("places365_val.txt", "x.jpg -1", "line 5 must read PATH NUMBER"),
        ("places365_val.txt", "7", "line 5 must read PATH NUMBER, got '7'"),
        ("places365_val.txt", "x.jpg 5", r"line 5: there is no class 5; '.*categories_places365\.txt' lists 0 to 4\."),
        ("places365_val.txt", "../x.jpg 1", r"line 5: '\.\./x\.jpg' points outside the folder of the images"),
        ("places365_val.txt", "a/../../x.jpg 1", "line 5: .* points outside"),
        ("places365_val.txt", "//etc/x.jpg 1", "line 5: '/etc/x.jpg' points outside"),
        ("places365_val.txt", "/ 1", "line 5: '' names no image"),
        ("places365_val.txt", "a\0b 1", "line 5 is no line of text. The file must be a list in UTF-8"),
        ("places365_val.txt", "x" * 70_000, "line 5 is no line of text"),
        ("places365_val.txt", f"{VAL[1][0]} 0", r"line 5: 'val_256/Places365_val_00000002\.jpg' is already in line 2"),
        ("places365_test.txt", "../x.jpg", r"test\.txt', line 3: .* points outside"),
        ("places365_train_standard.txt", "/a/airfield/x.jpg 9", r"standard\.txt', line 5: there is no class 9"),
        ("categories_places365.txt", "/z/zoo 7", r"categories_places365\.txt', line 6 must read /LETTER/NAME 5, each"),
        ("categories_places365.txt", "zoo 5", "line 6 must read /LETTER/NAME 5"),
        ("categories_places365.txt", "/b/beach 5", "line 6 must read .* each name once"),
        ("categories_places365.txt", "two\x1bwords", r"line 6 must read .*, got 'two\\x1bwords'"),
    ],
)
def test_lines_that_make_no_sense(tmp_path: Path, name: str, line: str, wanted: str) -> None:
    places(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DatasetError, match=wanted) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_list_in_utf_16(tmp_path: Path) -> None:
    places(tmp_path)
    (tmp_path / "places365_val.txt").write_text(LISTS["places365_val.txt"], encoding="utf-16")
    with pytest.raises(DatasetError, match=r"places365_val\.txt', line 1 is no line of text"):
        open_source(tmp_path / "val_256")


def test_images_that_are_listed_and_missing(tmp_path: Path) -> None:
    places(tmp_path)
    (tmp_path / "val_256" / VAL[2][0]).unlink()
    with pytest.raises(
        DatasetError,
        match=r"val\.txt', line 3: there is no image '.*val_256/Places365_val_00000003\.jpg' \(missing: 1 of 4 listed\)\. Unpack",
    ):
        open_source(tmp_path)
    for name, _ in TRAIN[:2]:
        (tmp_path / "data_256" / name).unlink()
    (tmp_path / "data_256" / "a" / "airfield").rmdir()
    with pytest.raises(
        DatasetError,
        match=r"standard\.txt', line 1: there is no image .* \(missing: 2 of 4 listed\).* or give folder:DIR",
    ):
        open_source(tmp_path / "data_256")


def test_images_that_no_line_names_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(places(tmp_path), "val_256/extra.jpg", "val_256/.hidden.jpg", "data_256/b/beach/more.jpg")
    (tmp_path / "val_256" / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(open_source(tmp_path)) == 10
    assert caplog.messages == [
        f"'{tmp_path}/places365_{which}.txt' does not name all images beside it; left out: 1"
        for which in ("train_standard", "val")
    ]


def test_folders_are_listed_once_and_no_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from extract.datasets.places365 import open_places365

    places(tmp_path)
    asked: list[str] = []
    listdir, stat = os.listdir, os.stat
    monkeypatch.setattr(os, "listdir", lambda path: asked.append(str(path)) or listdir(path))
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(str(path)) or stat(path, **more))
    open_places365(tmp_path)
    assert sorted(p for p in asked if "_256/" in p and "places365" not in p.rpartition("/")[2]) == [
        str(tmp_path / "data_256" / name) for name in ("a/airfield", "a/apartment_building/outdoor", "b/beach")
    ]


def test_training_images_without_a_list(tmp_path: Path) -> None:
    places(tmp_path, val="", test="")
    (tmp_path / "places365_train_standard.txt").unlink()
    (tmp_path / "places365_train_challenge.txt").unlink()
    for data in (tmp_path / "data_256", f"places365:{tmp_path / 'data_256'}"):
        source = open_source(data)
        assert listed(source) == sorted(TRAIN)
        assert source.class_names == NAMES
    put(tmp_path / "data_256", "loose.jpg", "q/quarry/1.jpg")
    with pytest.raises(DatasetError, match=r"categories_places365\.txt' lists no class '/q/quarry'"):
        open_source(tmp_path)
    (tmp_path / "categories_places365.txt").unlink()
    source = open_source(tmp_path)
    assert source.class_names == ["airfield", "apartment_building/outdoor", "beach", "quarry"]
    assert [label for _, label in listed(source)] == [0, 0, 1, 2, -1, 3]


def test_lists_without_categories_number_the_classes(tmp_path: Path) -> None:
    places(tmp_path)
    (tmp_path / "categories_places365.txt").unlink()
    source = open_source(tmp_path)
    assert listed(source) == below("data_256", TRAIN) + below("test_256", TEST) + below("val_256", VAL)
    assert source.class_names is None
    (tmp_path / "places365_train_standard.txt").unlink()
    (tmp_path / "places365_train_challenge.txt").unlink()
    assert open_source(tmp_path).class_names is None  # what numbers the folders here need not number the list


def test_validation_images_without_a_list_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "val_256", *(name for name, _ in VAL))
    put(tmp_path / "test_256", *(name for name, _ in TEST))
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert {label for _, label in listed(source)} == {-1}
    assert caplog.messages == [
        f"the 4 images of '{tmp_path}/val_256' have no labels: put places365_val.txt into '{tmp_path}'"
    ]


EASY = [
    ("train/airfield/00000001.jpg", 0),
    ("train/apartment_building-outdoor/00000001.jpg", 2),
    ("train/apartment_building-outdoor/00000002.jpg", 2),
    ("val/zen_garden/Places365_val_00000001.jpg", 4),
]


def easy(root: Path, *, categories: Path | None) -> Path:
    put(root, *(name for name, _ in EASY))
    if categories:
        put_lists(categories, "categories_places365.txt")
    return root


@pytest.mark.parametrize("scheme", ["", "places365:"])
@pytest.mark.parametrize("where", ["", "..", f"../{STANDARD}"])
def test_the_easy_layout(tmp_path: Path, where: str, scheme: str) -> None:
    root = easy(tmp_path / "places365_standard", categories=tmp_path / "places365_standard" / where)
    source = open_source(f"{scheme}{root}")
    assert listed(source) == EASY
    assert source.class_names == NAMES
    for split in ("train", "val"):
        alone = open_source(f"{scheme}{root / split}")
        assert listed(alone) == [(n.removeprefix(f"{split}/"), k) for n, k in EASY if n.startswith(split)]
        assert alone.class_names == NAMES


def test_the_easy_layout_without_categories(tmp_path: Path) -> None:
    root = easy(tmp_path / "places365_standard", categories=None)
    source = open_source(f"places365:{root}")
    assert [label for _, label in listed(source)] == [0, 1, 1, 2]
    assert source.class_names == ["airfield", "apartment_building-outdoor", "zen_garden"]
    as_folders = open_source(root)
    assert as_folders.kind == "class folders"
    assert [as_folders.label(i) for i in range(4)] == [0, 1, 1, 2]


def test_the_easy_layouts_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = easy(tmp_path / "places365_standard", categories=tmp_path)
    (root / "train.txt").write_text(f"{EASY[2][0]}\r\n{EASY[0][0]} 0\n")
    (root / "val.txt").write_text(EASY[3][0])
    wanted = [EASY[2], EASY[0]]
    with caplog.at_level(logging.WARNING):
        assert listed(open_source(root)) == [*wanted, EASY[3]]
        assert listed(open_source(root / "train")) == [(name.removeprefix("train/"), k) for name, k in wanted]
    assert "does not name all images beside it; left out: 1" in caplog.text
    for line, what in (
        ("airfield/00000001.jpg", r"train\.txt', line 1 must begin with 'train/'"),
        ("train/../x.jpg", r"train\.txt', line 1: .* points outside"),
        ("/train/airfield/00000001.jpg", r"train\.txt', line 1: .* points outside"),
        (
            "train/airfield/9.jpg",
            r"train\.txt', line 1: there is no image '.*train/airfield/9\.jpg' \(missing: 1 of 1 listed\)",
        ),
    ):
        (root / "train.txt").write_text(line)
        for data in (root, root / "train"):
            with pytest.raises(DatasetError, match=what):
                open_source(data)


def test_class_folders_that_the_categories_do_not_name(tmp_path: Path) -> None:
    root = put(easy(tmp_path / "mine", categories=tmp_path), "train/kitchen/1.jpg")
    assert open_source(root).kind == "class folders"  # an ordinary dataset beside Places365's lists
    with pytest.raises(
        DatasetError,
        match=r"mine' \(--data\) holds 1 class folders that '.*categories_places365\.txt' does not list, 'kitchen'",
    ):
        open_source(f"places365:{root}")


def test_folders_that_are_only_called_so(tmp_path: Path) -> None:
    put(tmp_path, "val_256/cat/1.jpg", "val_256/dog/1.jpg", "data_256/cat/1.jpg")
    for name in ("val_256", "data_256", ""):
        assert open_source(tmp_path / name).kind == "class folders"


def test_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "val_256").mkdir()
    for data in (tmp_path / "val_256", tmp_path):
        with pytest.raises(NoImagesError, match="There is no image in"):
            open_source(f"places365:{data}")


def test_a_source_for_workers_and_hostile_names(tmp_path: Path) -> None:
    places(tmp_path)
    (tmp_path / "data_256" / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "places365_train_standard.txt").unlink()
    (tmp_path / "places365_train_challenge.txt").unlink()
    put(tmp_path, "data_256/b/beach/two\nlines.jpg")
    source = open_source(tmp_path)
    assert len(source) == 11
    assert ("data_256/b/beach/two\nlines.jpg", 3) in listed(source)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert listed(copy) == listed(source)
    assert copy.digest == source.digest
    assert copy.image(0).size == (4, 3)
