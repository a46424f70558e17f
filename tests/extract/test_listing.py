"""What is listed of a folder, what is left out of it and counted, and a disk that does not answer."""

from __future__ import annotations

import errno
import logging
import os
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from extract.datasets import open_folder
from extract.file_list import check_listed
from extract.folder_listing import Listing, ending_of, files_below, label_maps
from extract.string_array import Names
from stores.errors import DatasetError, UsageError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".png", ".jpg", ".gif", ".tif")):
            Image.new("RGB", (4, 3)).save(root / name, "PNG")
        else:
            (root / name).write_text("x")
    return root


def test_what_is_not_read_is_counted_by_ending(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.HEIC", "a/3.heic", "b/notes.txt", "b/README", "b/slice.0001", "b/x.png"]
    left = ["a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", "a/._1.png", "a/.hidden.png"]
    source = open_folder(put(tmp_path, *names, *left))
    assert [source.name(i) for i in range(len(source))] == ["a/1.png", "b/x.png"]
    assert source.left_out == {".heic": 2, ".txt": 1, "no ending": 2}


@pytest.mark.parametrize(
    "folder", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
)
def test_folders_that_are_no_data_are_not_entered(tmp_path: Path, folder: str) -> None:
    source = open_folder(put(tmp_path, "cat/1.png", f"cat/{folder}/2.png", "dog/3.png", f"{folder}/cat/4.png"))
    assert list(source.names) == ["cat/1.png", "dog/3.png"]
    assert source.class_names == ["cat", "dog"]
    assert source.left_out == {}


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("x_seg.png", "_seg.png"),
        ("x_parts_1.png", "_parts_N.png"),
        ("x_mask.PNG", "_mask.png"),
        ("x_mask.tif", "_mask.tif"),
        ("x-label.png", "-label.png"),
        ("x_labels.png", "_labels.png"),
        ("x.seg.png", ".seg.png"),
        ("x_gt.png", "_gt.png"),
        ("x_segmentation.jpg", "_segmentation.jpg"),
        ("x_annotation.png", "_annotation.png"),
        ("x_labelIds.png", "_labelids.png"),
        ("x_gtFine_labelTrainIds.png", "_gtfine_labeltrainids.png"),
        ("x_instanceIds.png", "_instanceids.png"),
        ("x_color.png", "_color.png"),
    ],
)
def test_a_label_map_next_to_its_image_is_left_out(tmp_path: Path, name: str, counted: str) -> None:
    source = open_folder(put(tmp_path, "a/x.jpg", f"a/{name}", "b/y_mask.png"))
    assert list(source.names) == ["a/x.jpg", "b/y_mask.png"]  # of no other image, so one itself
    assert source.left_out == {counted: 1}


@pytest.mark.parametrize(
    ("files", "left", "warned"),
    [
        (
            ["x/1.jpg", "x/1_seg.png", "x/2.jpg", "x/2_seg.png"],
            2,
            r"2 image files left out .*such as 'x/1_seg\.png'\. Rename",
        ),
        (["1.png", "1_part.png", "1_color.png", "1_object.png", "1_material_2.png"], 0, ""),
        (["1.PNG", "1_color.png"], 0, ""),
        (["1.jpg", "1_color.png", "2.png", "2_color.png"], 1, r"1 image files .*such as '1_color\.png'"),
        (["b/benign (1).png", "b/benign (1)_mask.png"], 1, r"such as 'b/benign \(1\)_mask\.png'"),
    ],
)
def test_label_maps_next_to_images_are_logged(
    tmp_path: Path, files: list[str], left: int, warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(list(files_below(put(tmp_path, *files)))) == len(files) - left
    assert len(caplog.messages) == bool(warned)
    assert re.search(warned, caplog.text)


@pytest.mark.parametrize(
    ("files", "warned"),
    [
        (["photo/1.png", "photo_mask/2.png"], r": photo_mask/ \(1 images\)\. Rename"),
        (["photo/1.png", "photo_mask/2.png", "drawing/3.png"], ": photo_mask/ "),
        (["pictures/1.png", "mask/2.png", "face/a/3.png"], ": mask/ "),
        ([f"{s}/{c}/1.png" for s in ("train", "val") for c in ("raw", "raw_labels", "cut")], ": train/raw_labels/, val/raw_labels/ "),
        (["images/1.png", "masks/1.png", "scripts/x.py"], ""),
        (["images/1.png", "annotations/1.xml", "drawing/3.png"], ""),
        (["train/1.png", "train_masks/1.png", "val/1.png"], ""),
        (["MSRA_Image/1.png", "MSRA_Mask/1.png"], ""),
        ([f"{k}/{c}/1.png" for k in range(3) for c in ("images", "masks")], ""),
    ],
)  # fmt: skip
def test_folders_of_label_maps_that_may_be_classes_are_logged(
    tmp_path: Path, files: list[str], warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        list(files_below(put(tmp_path, *files)))
    assert len(caplog.messages) == bool(warned)
    assert re.search(warned, caplog.text)


def test_other_suffixes_are_images() -> None:
    assert label_maps(["x.jpg", "x_1.jpg", "x_color.jpg", "x_left.png", "masked.png", "mask.png", "x_sign.png"]) == {}
    assert label_maps(["a_leftImg8bit.png", "a_gtFine_color.png"]) == {"a_gtFine_color.png": "_gtfine_color.png"}


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ("images", "masks"),
        ("images", "annotations/trimaps"),
        ("images/train", "labels/train"),
        ("leftImg8bit/train", "gtFine/train"),
        ("JPEGImages", "SegmentationObject"),
        ("train", "train_masks"),
        ("train", "trainannot"),
        ("training/image_2", "training/semantic_rgb"),
        ("MSRA_Image", "MSRA_Mask"),
        ("stage1_train/a/images", "stage1_train/a/masks"),
    ],
)
def test_folders_of_label_maps_next_to_images_are_left_out(tmp_path: Path, images: str, maps: str) -> None:
    source = open_folder(put(tmp_path, f"{images}/x.png", f"{maps}/x.png", f"{maps}/y.txt"))
    assert list(source.names) == [f"{images}/x.png"]
    assert list(source.left_out.values()) == [2]


def test_classes_called_like_label_maps_are_classes(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path, "face/1.png", "face_mask/2.png", "mask/3.png"))
    assert source.class_names == ["face", "face_mask", "mask"]


def test_the_whole_ade20k_and_its_maps(tmp_path: Path) -> None:
    below = "images/ADE/training/cultural/apse"
    maps = [f"{below}/A_{k}{s}.png" for k in range(2) for s in ("_seg", "_parts_1", "_parts_2")]
    source = open_folder(put(tmp_path, f"{below}/A_0.jpg", f"{below}/A_1.jpg", *maps, "index.pkl"))
    assert list(source.names) == [f"{below}/A_0.jpg", f"{below}/A_1.jpg"]
    assert source.left_out == {".pkl": 1, "_seg.png": 2, "_parts_N.png": 4}


def test_only_some_endings_are_asked_for_and_maps_are_files(tmp_path: Path) -> None:
    found = Listing()
    put(tmp_path, "x.png", "x_mask.png", "masks/y.png")
    assert sorted(files_below(tmp_path, (".png",), found)) == ["masks/y.png", "x.png", "x_mask.png"]
    assert found.folders == ["masks"]


def test_endings_as_they_are_counted() -> None:
    names = ["a.JPG", "b.tar.gz", "c", "d.0001", "e.and so on", ".f", "g.averylongending"]
    assert [ending_of(name) for name in names] == [".jpg", ".gz", *["no ending"] * 5]


def refusing(monkeypatch: pytest.MonkeyPatch, number: int, what: str) -> None:
    """``os.scandir`` of a folder called ``what`` fails, or looking what its entry of that name is."""
    real = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.entry = entry.name, entry.path, entry

        def is_dir(self) -> bool:
            if self.name == what:
                raise OSError(number, os.strerror(number))
            return self.entry.is_dir()

        def is_symlink(self) -> bool:
            return self.entry.is_symlink()

    class Scan:
        def __init__(self, path: str) -> None:
            if str(path).endswith(f"{what}!"):
                raise OSError(number, os.strerror(number))
            self.scanned = real(path)

        def __enter__(self) -> Iterator[Entry]:
            return (Entry(entry) for entry in self.scanned.__enter__())

        def __exit__(self, *_: object) -> None:
            self.scanned.close()

    monkeypatch.setattr(os, "scandir", Scan)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
@pytest.mark.parametrize("what", ["dog!", "dog"])
def test_a_disk_that_does_not_answer_stops_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    put(tmp_path, "cat/1.png", f"{what}/2.png")
    refusing(monkeypatch, number, "dog")
    with pytest.raises(UsageError, match=f"^The folder '{tmp_path}.*' cannot be listed: {os.strerror(number)}\\. Fix"):
        open_folder(tmp_path)


@pytest.mark.parametrize("check", [check_listed, check_listed])
def test_a_disk_that_does_not_answer_is_no_missing_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[..., None]
) -> None:
    lines, more = array("q", [1]), ("image",) * (check is check_listed)
    with pytest.raises(DatasetError, match="there is no image"):
        check(tmp_path, Names(["a/1.png"]), lines, tmp_path / "list.txt", *more)
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(OSError, match="Stale"):
        check(tmp_path, Names(["a/1.png"]), lines, tmp_path / "list.txt", *more)
