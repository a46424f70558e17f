"""Folders of images: what is listed and what is left out, which folders are classes, and what is logged of them."""

from __future__ import annotations

import errno
import os
import re
from array import array
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from image_folders import listed, put

from extract.datasets import open_folder, open_source
from extract.file_list import check_listed
from extract.folder_listing import ending_of, label_maps, list_files
from extract.string_array import Names
from stores.errors import DatasetError, ImageError, UsageError


def test_what_is_not_read_is_counted_by_ending(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.HEIC", "a/3.heic", "b/notes.txt", "b/README", "b/slice.0001", "b/x.png"]
    left = ["a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", "a/._1.png", "a/.hidden.png"]
    source = open_folder(put(tmp_path, *names, *left))
    assert [source.name(i) for i in range(len(source))] == ["a/1.png", "b/x.png"]
    assert source.left_out == {".heic": 2, ".txt": 1, "no ending": 2}


def test_folders_that_are_no_data_are_not_entered(tmp_path: Path) -> None:
    no_data = ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
    put(tmp_path, "cat/1.png", "dog/3.png", *(f"{place}{name}/2.png" for name in no_data for place in ("cat/", "")))
    source = open_folder(tmp_path)
    assert list(source.names) == ["cat/1.png", "dog/3.png"]
    assert (source.class_names, source.left_out) == (["cat", "dog"], {})


def test_label_maps_next_to_their_image_are_left_out(tmp_path: Path) -> None:
    maps = ["_seg.png", "_mask.PNG", "_mask.tif", "-label.png", "_labels.png", ".seg.png", "_gt.png", "_segmentation.jpg",
            "_annotation.png", "_labelIds.png", "_gtFine_labelTrainIds.png", "_instanceIds.png", "_color.png"]  # fmt: skip
    source = open_folder(put(tmp_path, "a/x.jpg", *(f"a/x{name}" for name in maps), "a/x_parts_1.png", "b/y_mask.png"))
    assert list(source.names) == ["a/x.jpg", "b/y_mask.png"]  # the mask of no image is an image
    assert source.left_out["_parts_N.png"] == 1
    assert set(source.left_out) - {"_parts_N.png"} == {name.lower() for name in maps}


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
    assert len(list_files(put(tmp_path, *files)).files) == len(files) - left
    assert len(caplog.messages) == bool(warned)
    assert re.search(warned, caplog.text)


def test_other_suffixes_are_images() -> None:
    assert label_maps(["x.jpg", "x_1.jpg", "x_color.jpg", "x_left.png", "masked.png", "mask.png", "x_sign.png"]) == {}
    assert label_maps(["a_leftImg8bit.png", "a_gtFine_color.png"]) == {"a_gtFine_color.png": "_gtfine_color.png"}
    names = ["a.JPG", "b.tar.gz", "c", "d.0001", "e.and so on", ".f", "g.averylongending"]
    assert [ending_of(name) for name in names] == [".jpg", ".gz", *["no ending"] * 5]


@pytest.mark.parametrize(
    "folders",
    ["images masks", "images annotations/trimaps", "images/train labels/train", "leftImg8bit/train gtFine/train",
     "JPEGImages SegmentationObject", "train train_masks", "train trainannot", "training/image_2 training/semantic_rgb",
     "MSRA_Image MSRA_Mask", "stage1_train/a/images stage1_train/a/masks"],
)  # fmt: skip
def test_folders_of_label_maps_next_to_images_are_left_out(tmp_path: Path, folders: str) -> None:
    images, maps = folders.split()
    source = open_folder(put(tmp_path, f"{images}/x.png", f"{maps}/x.png", f"{maps}/y.txt"))
    assert list(source.names) == [f"{images}/x.png"]
    assert list(source.left_out.values()) == [2]


def test_classes_called_like_label_maps_are_classes(tmp_path: Path) -> None:
    classes = open_folder(put(tmp_path, "face/1.png", "face_mask/2.png", "mask/3.png"))
    assert classes.class_names == ["face", "face_mask", "mask"]


def test_only_some_endings_are_asked_for_and_maps_are_files(tmp_path: Path) -> None:
    put(tmp_path, "x.png", "x_mask.png", "masks/y.png")
    found = list_files(tmp_path, (".png",))
    assert found.files == ["masks/y.png", "x.png", "x_mask.png"]
    assert found.folders == ["masks"]


def refusing(monkeypatch: pytest.MonkeyPatch, number: int, what: str) -> None:
    """``os.scandir`` of a folder ``what``! fails, or looking what its entry ``what`` is."""
    real = os.scandir

    def is_dir(entry: os.DirEntry[str]) -> bool:
        if entry.name == what:
            raise OSError(number, os.strerror(number))
        return entry.is_dir()

    def scan(path: str) -> object:
        if str(path).endswith(f"{what}!"):
            raise OSError(number, os.strerror(number))
        with real(path) as entries:
            return nullcontext(
                [
                    SimpleNamespace(name=e.name, path=e.path, is_symlink=e.is_symlink, is_dir=partial(is_dir, e))
                    for e in entries
                ]
            )

    monkeypatch.setattr(os, "scandir", scan)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
@pytest.mark.parametrize("what", ["dog!", "dog"])
def test_a_disk_that_does_not_answer_stops_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    put(tmp_path, "cat/1.png", f"{what}/2.png")
    refusing(monkeypatch, number, "dog")
    with pytest.raises(UsageError, match=f"^The folder '{tmp_path}.*' cannot be listed: {os.strerror(number)}\\. Fix"):
        open_folder(tmp_path)


def test_a_disk_that_does_not_answer_is_no_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = array("q", [1])
    with pytest.raises(DatasetError, match="there is no image"):
        check_listed(tmp_path, Names(["a/1.png"]), lines, tmp_path / "list.txt")
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(OSError, match="Stale"):
        check_listed(tmp_path, Names(["a/1.png"]), lines, tmp_path / "list.txt")


def test_links_that_lead_up_or_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = put(tmp_path / "data", "a/1.png", "b/2.png")
    put(tmp_path, "not ours.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "higher").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    (root / "b" / "to a").symlink_to(root / "a")
    (root / "gone.png").symlink_to(root / "nothing")
    names = [name for name, _ in listed(open_folder(root))]
    assert names == ["a/1.png", "b/2.png", "gone.png"]
    assert caplog.messages == [
        f"'{root}' holds 3 links to folders that are listed already or lead back up; left out",
        f"1 images of '{root}' are next to its class folders (a, b): they have no class",
    ]
    with pytest.raises(ImageError, match="No such file"):
        open_folder(root).image(2)


def test_links_to_class_folders_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "elsewhere", "n1/deep/1.png", "n2/2.png", "n2/0.png")
    put(tmp_path / "data", "n0/3.png")
    for name in ("n1", "n2"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    source = open_folder(tmp_path / "link")
    assert listed(source) == [("n0/3.png", 0), ("n1/deep/1.png", 1), ("n2/0.png", 2), ("n2/2.png", 2)]
    assert not caplog.records
    assert source.image(1).size == (4, 3)


def test_a_folder_is_listed_once_by_its_own_name_or_its_first_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "all", "1.png")
    put(tmp_path / "data", "real/2.png")
    (tmp_path / "data" / "also real").symlink_to(tmp_path / "data" / "real")
    for name in ("z", "x", "y"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "all")
    assert listed(open_folder(tmp_path / "data")) == [("real/2.png", 0), ("x/1.png", 1)]
    (record,) = caplog.records
    assert "holds 3 links to folders that are listed already" in record.getMessage()


def test_links_that_fan_out_are_listed_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two links to the next folder in each of 40: 2^40 ways to the last one."""
    for k in range(40):
        put(tmp_path / f"{k:02d}", "image.png")
        for name in ("left", "right") if k < 39 else ():
            (tmp_path / f"{k:02d}" / name).symlink_to(tmp_path / f"{k + 1:02d}")
    source = open_folder(tmp_path / "00")
    assert len(source) == 40
    assert source.name(39) == "left/" * 39 + "image.png"
    assert "holds 39 links to folders that are listed already" in caplog.messages[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("inner", ["", "class"])
def test_a_folder_that_may_not_be_read(tmp_path: Path, inner: str) -> None:
    root = put(tmp_path / "data", "class/1.png", "2.png")
    (root / inner).chmod(0)
    try:
        with pytest.raises(UsageError, match=r"cannot be (read|listed): Permission denied\. .*permissions"):
            open_source(root)
    finally:
        (root / inner).chmod(0o755)


def test_splits_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/dog/1.png", "train/cat/2.png", "Val/dog/3.png", "val/loose.png")
    (tmp_path / "devkit").mkdir()  # holds no image, so it says nothing
    (tmp_path / "devkit" / "readme.txt").write_text("x")
    source = open_folder(tmp_path)
    assert source.class_names == ["cat", "dog"]
    assert listed(source) == [
        ("Val/dog/3.png", 1),
        ("train/cat/2.png", 0),
        ("train/dog/1.png", 1),
        ("val/loose.png", -1),
    ]


LAYOUTS = {
    "food-101": (["images/pie/1.jpg", "images/egg/1.jpg", "meta/classes.txt"], ["egg", "pie"]),
    "cub": (
        ["images/001.Albatross/a.jpg", "images/002.Auk/a.jpg", "segmentations/001.Albatross/a.png", "parts/p.txt"],
        ["001.Albatross", "002.Auk"],
    ),
    "stanford dogs": (
        ["Images/n02085620-Chihuahua/n02085620_1.jpg", "Images/n02085782-Spaniel/n02085782_1.jpg", "Annotation/x/y"],
        ["n02085620-Chihuahua", "n02085782-Spaniel"],
    ),
    "oxford pets": (["images/beagle_1.jpg", "annotations/trimaps/beagle_1.png"], None),
    "imagenette": (["val/n01440764/1.jpg", "val/n02102040/1.jpg"], ["n01440764", "n02102040"]),
    "val_256": (["val_256/cat/1.jpg", "val_256/dog/1.jpg"], ["cat", "dog"]),
    "cats and dogs": (
        ["training_set/training_set/cats/1.jpg", "training_set/training_set/dogs/1.jpg", "test_set/test_set/cats/2.jpg"],
        ["cats", "dogs"],
    ),
    "intel": (["seg_train/seg_train/sea/1.jpg", "seg_test/seg_test/forest/1.jpg"], ["forest", "sea"]),
    "unpacked once more": (["PetImages/Cat/1.jpg", "PetImages/Dog/1.jpg", "readme.txt"], ["Cat", "Dog"]),
    "unpacked twice more": (["kagglecatsanddogs/PetImages/Cat/1.jpg", "kagglecatsanddogs/PetImages/Dog/1.jpg", "kagglecatsanddogs/readme.txt"], ["Cat", "Dog"]),
    "one kind of animal": (["animals/cats/persian/1.jpg", "animals/cats/siam/1.jpg"], ["persian", "siam"]),
    "four levels": (["a/b/c/d/cat/1.jpg", "a/b/c/d/dog/1.jpg"], ["cat", "dog"]),
    "splits below": (["archive/pets/animals/train/cat/1.jpg", "archive/pets/animals/val/dog/1.jpg"], ["cat", "dog"]),
    "splits above": (["train/set/pets/cat/1.jpg", "val/set/pets/dog/1.jpg"], ["cat", "dog"]),
    "coco": (["train2017/1.jpg", "val2017/2.jpg", "annotations/instances.json"], None),
    "a class called like a split": (["train/1.png", "bus/2.png"], ["bus", "train"]),
    "flat splits": (["train/1.png", "test/2.png"], None),
    "yolo": (["images/train/1.jpg", "labels/train/1.txt", "data.yaml"], None),
    "cityscapes": (["leftImg8bit/train/aachen/a.png", "gtFine/train/aachen/a.png", "leftImg8bit/val/ulm/b.png"], ["aachen", "ulm"]),
    "videos": (["JPEGImages/480p/bear/0.jpg", "JPEGImages/480p/bus/0.jpg", "Annotations/480p/bus/0.png"], ["bear", "bus"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    files, classes = LAYOUTS[layout]
    source = open_source(put(tmp_path, *files))
    assert source.class_names == classes
    images = [source.name(i) for i in range(len(source))]
    assert not any(
        folder in name.split("/") for name in images for folder in ("annotations", "gtFine", "segmentations")
    )
    for i, name in enumerate(images):
        label = source.label(i)
        assert (classes[label] in name.split("/")) if classes else label == -1
    assert not caplog.records


ODD = {
    "splits next to others": (["train/cat/1.jpg", "val/cat/2.jpg", "extra/dog/3.jpg"], "include train, val, which .*--data .*/train"),
    "images next to others": (["images/cat/1.jpg", "images/dog/2.jpg", "other/3.jpg"], "include images, which .*--data .*/images"),
    "domains": (["amazon/images/mug/1.jpg", "dslr/images/mug/2.jpg"], "hold only folders: .*--data .*/amazon"),
    "letters": (["a/abbey/1.jpg", "a/alley/1.jpg", "b/bar/1.jpg"], r"2 class folders of .* \(a, b\) hold only folders"),
    "numbers from 1": ([f"{k}/1.jpg" for k in (1, 2, 10)], r"are numbers \(1, 10, 2\) but not 0 to 2"),
    "maps among classes": (["cat/1.jpg", "dog/1.jpg", "masks/1.png"], "include masks: if these are label maps"),
    "containers": (["photos/1.jpg", "pictures/2.jpg"], "folders photos, pictures of .* are not taken as classes"),
    "one folder": (["img_align_celeba/1.jpg", "img_align_celeba/2.jpg"], r"one folder \(img_align_celeba\), so there is only one class\. .*--data .*/img_align_celeba\)"),
    "one folder twice": (["celeba/img_align/1.jpg", "celeba/list.csv"], r"one folder \(img_align\), so .*--data .*/celeba/img_align\)"),
    "one folder with more": (["cats/1.jpg", "cats/persian/2.jpg"], r"only one class, which includes its subfolders\. If .*/cats\)"),
    "one class in splits": (["train/cats/1.jpg", "val/cats/2.jpg"], r"one folder \(cats\), so there is only one class"),
    "loose": (["cat/1.jpg", "dog/2.jpg", "3.jpg", "4.jpg"], r"2 images of .* next to its class folders \(cat, dog\)"),
}  # fmt: skip


@pytest.mark.parametrize("layout", ODD)
def test_what_looks_wrong_is_logged(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    files, wanted = ODD[layout]
    open_source(put(tmp_path, *files))
    (record,) = caplog.records
    assert re.search(wanted, record.getMessage()), record.getMessage()


def test_one_folder_next_to_images_is_a_class_of_subfolders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(put(tmp_path, "cats/persian/1.jpg", "cats/siam/2.jpg", "0.jpg"))
    assert source.class_names == ["cats"]
    assert [re.search("are next to|hold only folders", m) is not None for m in caplog.messages] == [True, True]


def test_numbers_from_0_are_the_class_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(put(tmp_path, *(f"format-val/{k}/x.jpeg" for k in range(12))))
    assert source.class_names == [str(k) for k in range(12)]
    assert all(source.name(i).split("/")[1] == str(source.label(i)) for i in range(12))
    assert not caplog.records


def test_a_class_without_images_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(
        tmp_path / "own", "train/cat/1.jpg", "train/dog/2.jpg", "train/bird/x.heic", "train/meta/x.txt", "val/owl/y.txt"
    )
    (tmp_path / "own/train/ant").mkdir()
    source = open_source(tmp_path / "own")
    assert source.class_names == ["ant", "bird", "cat", "dog"]
    assert source.empty_classes == ["ant", "bird"]
    assert [source.label(i) for i in range(2)] == [2, 3]
    assert "2 class folders of" in caplog.text
    assert "keep their numbers: ant, bird" in caplog.text


def test_a_folder_of_label_maps_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "gtFine", "a/1.png", "b/2.png")
    open_source(tmp_path / "gtFine")
    assert "called like a folder of label maps" in caplog.text


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["images/a/1.jpg", "masks/a/1.png", "more/2.jpg"], "images/a/1.jpg"),
        (["JPEGImages/1.jpg", "SegmentationClass/1.png", "SegmentationObject/1.png"], "JPEGImages/1.jpg"),
        (["images/training/1.jpg", "annotations/training/1.png"], "images/training/1.jpg"),
        (["label.csv", "images/x/1.jpg", "images/x/1_color_0.png"], "images/x/1.jpg"),
    ],
)
def test_a_concept_dataset_without_its_tables_is_its_images(
    tmp_path: Path, files: list[str], read: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(put(tmp_path, *files))
    assert [source.name(i) for i in range(len(source))] == [read]
    assert source.root == tmp_path
    assert "looks like a concept dataset" in caplog.text
    assert f"only the images in {read.split('/')[0]}/ are read" in caplog.text
