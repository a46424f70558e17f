"""Which folders are classes, in the layouts that people have; what is odd about them is logged."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from PIL import Image

from extract.datasets import open_source


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".jpg", ".png", ".jpeg")):
            Image.new("RGB", (4, 3)).save(root / name, "PNG")
        else:
            (root / name).write_text("x")
    return root


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
    "yolo": (["images/train/1.jpg", "labels/train/1.txt", "data.yaml"], None),
    "cityscapes": (["leftImg8bit/train/aachen/a.png", "gtFine/train/aachen/a.png", "leftImg8bit/val/ulm/b.png"], ["aachen", "ulm"]),
    "videos": (["JPEGImages/480p/bear/0.jpg", "JPEGImages/480p/bus/0.jpg", "Annotations/480p/bus/0.png"], ["bear", "bus"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    files, classes = LAYOUTS[layout]
    with caplog.at_level(logging.WARNING):
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
    "background": (["BACKGROUND_Google/1.jpg", "ant/1.jpg"], "torchvision numbers the classes without it"),
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
    with caplog.at_level(logging.WARNING):
        open_source(put(tmp_path, *files))
    (record,) = caplog.records
    assert re.search(wanted, record.getMessage()), record.getMessage()


def test_a_folder_alone_next_to_images_is_a_class_of_subfolders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(put(tmp_path, "cats/persian/1.jpg", "cats/siam/2.jpg", "0.jpg"))
    assert source.class_names == ["cats"]
    assert [re.search("are next to|hold only folders", m) is not None for m in caplog.messages] == [True, True]


def test_numbers_from_0_are_the_class_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_source(put(tmp_path, *(f"format-val/{k}/x.jpeg" for k in range(12))))
    assert source.class_names == [str(k) for k in range(12)]
    assert all(source.name(i).split("/")[1] == str(source.label(i)) for i in range(12))
    assert not caplog.records


def test_a_class_without_images_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(
        tmp_path / "own", "train/cat/1.jpg", "train/dog/2.jpg", "train/bird/x.heic", "train/meta/x.txt", "val/owl/y.txt"
    )
    (tmp_path / "own/train/ant").mkdir()
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path / "own")
    assert source.class_names == ["ant", "bird", "cat", "dog"]
    assert source.empty_classes == ["ant", "bird"]
    assert [source.label(i) for i in range(2)] == [2, 3]
    assert "2 class folders of" in caplog.text
    assert "keep their numbers: ant, bird." in caplog.text


def test_an_empty_wnid_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "n00000002/1.jpg", "other/2.jpg")
    (tmp_path / "n00000001").mkdir()
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert (source.class_names, source.empty_classes) == (["n00000001", "n00000002"], ["n00000001"])
    assert [source.label(i) for i in range(2)] == [1, -1]
    assert "1 class folders of" in caplog.text
    assert "1 images of" in caplog.text


def test_a_folder_of_label_maps_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "gtFine", "a/1.png", "b/2.png")
    with caplog.at_level(logging.WARNING):
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
    with caplog.at_level(logging.WARNING):
        source = open_source(put(tmp_path, *files))
    assert [source.name(i) for i in range(len(source))] == [read]
    assert source.root == tmp_path
    assert "looks like a concept dataset" in caplog.text
    assert f"only the images in {read.split('/')[0]}/ are read" in caplog.text
