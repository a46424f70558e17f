"""ImageNet: where its classes and validation labels are found, and kits that are damaged."""

import os
import tarfile
from pathlib import Path

import pytest
from image_folders import FLAT, KIT, listed, meta, put, put_archive, put_kaggle, put_kit
from image_folders import FLAT_LABELS as LABELS
from image_folders import IMAGENET_NAMES as NAMES

from extract.datasets import open_source
from stores.errors import DatasetError, NoImagesError


def flat(root: Path) -> Path:
    return put(root, *(f"val/{name}" for name in FLAT))


def test_numbers_without_a_kit_are_those_of_torchvision(tmp_path: Path) -> None:
    from extract.models import torchvision

    put(tmp_path, "train/n02119789/1.jpg", "train/n01440764/2.jpg", "train/n01443537/3.jpg", "train/n01443537/4.jpg")
    theirs = torchvision.datasets.ImageFolder(tmp_path / "train")
    ours = open_source(tmp_path / "train")
    assert ours.class_names == theirs.classes
    assert listed(ours) == [(os.path.relpath(path, tmp_path / "train"), label) for path, label in theirs.imgs]


@pytest.mark.parametrize("place", [KIT, "devkit", f"devkit/{KIT}", "val"])
def test_a_flat_validation_folder_and_a_kit(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    root = flat(tmp_path / "imagenet")
    put_kit(root / place)
    alone, whole = open_source(root / "val"), open_source(root)
    assert listed(alone) == LABELS
    assert listed(whole) == [(f"val/{name}", label) for name, label in LABELS]
    assert alone.class_names == whole.class_names == NAMES
    assert not caplog.records


def test_a_kit_far_above_and_one_that_is_nearer(tmp_path: Path) -> None:
    folder = put(tmp_path / "a" / "b" / "c" / "val", *FLAT)
    put_kit(tmp_path / KIT)
    assert listed(open_source(folder)) == LABELS
    put_kit(tmp_path / "a" / "b" / KIT, "1\n1\n1\n1\n1\n")
    assert [label for _, label in listed(open_source(folder))] == [3] * 5


def test_a_kit_as_it_was_downloaded(tmp_path: Path) -> None:
    root = flat(tmp_path / "imagenet")
    archive = put_archive(root)
    before = sorted(root.rglob("*"))
    assert listed(open_source(root / "val")) == LABELS
    assert open_source(root).class_names == NAMES
    assert sorted(root.rglob("*")) == before
    (root / "devkit").mkdir()
    archive.rename(root / "devkit" / archive.name)
    assert listed(open_source(root / "val")) == LABELS


def test_paths_and_links_that_lead_to_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_kit(flat(tmp_path) / KIT)
    (tmp_path / "elsewhere").mkdir()
    for there, data in ((tmp_path, "val"), (tmp_path / "val", "."), (tmp_path / "elsewhere", "../val")):
        monkeypatch.chdir(there)
        assert listed(open_source(data)) == LABELS
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "val")  # the kit is next to what it leads to
    assert listed(open_source("link")) == LABELS
    put(tmp_path / "disk" / "a" / "b" / "c" / "d" / "e", *FLAT)
    put_kit(tmp_path / "home" / KIT)
    (tmp_path / "home" / "val").symlink_to(tmp_path / "disk" / "a" / "b" / "c" / "d" / "e")  # or next to the link
    assert listed(open_source(tmp_path / "home" / "val")) == LABELS


@pytest.mark.parametrize("mapping", [True, False])
@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_kaggle(tmp_path: Path, given: str, mapping: bool) -> None:
    base = "ILSVRC/Data/CLS-LOC/"
    put(tmp_path, *(f"{base}val/{name}" for name in FLAT))
    put(tmp_path, f"{base}train/n01443537/n01443537_7.JPEG", f"{base}test/ILSVRC2012_test_00000001.JPEG")
    put(tmp_path, "ILSVRC/Annotations/CLS-LOC/train/n01443537/n01443537_7.xml")
    put_kaggle(tmp_path)
    if not mapping:
        (tmp_path / "LOC_synset_mapping.txt").unlink()
    source = open_source(tmp_path / given)
    wanted = [
        (f"{base}test/ILSVRC2012_test_00000001.JPEG", -1),
        (f"{base}train/n01443537/n01443537_7.JPEG", 1),
        *((f"{base}val/{name}", label) for name, label in LABELS),
    ]
    assert listed(source) == [
        (name.removeprefix(f"{given}/"), label) for name, label in wanted if name.startswith(given)
    ]
    assert source.class_names == (NAMES if mapping else [name.split()[0] for name in NAMES])


def test_class_folders_keep_the_numbers_of_all_classes(tmp_path: Path) -> None:
    put(tmp_path, "val/n02100735/1.JPEG", "val/n01443537/2.JPEG", "val/loose.JPEG")
    put_kit(tmp_path / KIT)
    for data in (tmp_path / "val", f"imagenet:{tmp_path / 'val'}"):
        source = open_source(data)
        assert listed(source) == [("loose.JPEG", -1), ("n01443537/2.JPEG", 1), ("n02100735/1.JPEG", 2)]
        assert source.class_names == NAMES
    assert open_source(tmp_path / "val" / "n02100735").label(0) == 2
    assert open_source(f"folder:{tmp_path / 'val'}").class_names == ["n01443537", "n02100735"]


def test_one_class_only_and_an_empty_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "train/n02100735/n02100735_1.JPEG", "val/n02100735/ILSVRC2012_val_00000004.JPEG")
    for split in ("train", "val"):
        source = open_source(tmp_path / split / "n02100735")
        assert (source.label(0), source.class_names) == (0, ["n02100735"])
    (tmp_path / "train" / "n00000001").mkdir()
    source = open_source(tmp_path / "train")
    assert (source.class_names, source.label(0)) == (["n00000001", "n02100735"], 1)
    assert source.empty_classes == ["n00000001"]
    assert "1 class folders of" in caplog.text


def test_wnids_within_names(tmp_path: Path) -> None:
    names = ["n01443537_10026.JPEG", "n02119789_10_n02119789.JPEG", "ILSVRC2012_val_00000001_n01440764.JPEG"]
    assert listed(open_source(put(tmp_path / "a", *names))) == [(names[2], 0), (names[0], 1), (names[1], 2)]
    source = open_source(put(tmp_path / "b", "train/n01443537/images/n01443537_0.JPEG", "val/images/val_0.JPEG"))
    assert listed(source) == [("train/n01443537/images/n01443537_0.JPEG", 0), ("val/images/val_0.JPEG", -1)]


def test_validation_images_without_labels_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(flat(tmp_path), "train/n02119789/1.JPEG")
    source = open_source(tmp_path)
    assert [label for name, label in listed(source) if name.startswith("val")] == [-1] * 5
    assert source.class_names == ["n02119789"]
    (message,) = caplog.messages
    assert message.startswith(f"the 5 validation images of '{tmp_path}' have no labels: put {KIT}.tar.gz, or LOC_val")
    (put_kit(tmp_path / KIT) / "data" / "ILSVRC2012_validation_ground_truth.txt").unlink()
    assert open_source(tmp_path / "val").label(0) == -1
    put_kaggle(tmp_path)  # the kit knows the classes, Kaggle's list the labels
    assert listed(open_source(tmp_path / "val")) == LABELS


def test_test_images_have_no_labels_and_need_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "test/ILSVRC2012_test_00000001.JPEG", "test/ILSVRC2012_test_00000002.JPEG")
    source = open_source(tmp_path / "test")
    assert ([label for _, label in listed(source)], source.class_names) == ([-1, -1], None)
    put_kit(tmp_path / KIT)
    source = open_source(tmp_path / "test")
    assert ([label for _, label in listed(source)], source.class_names) == ([-1, -1], NAMES)
    assert not caplog.records


def test_classes_that_the_kit_does_not_know(tmp_path: Path) -> None:
    put(tmp_path, "train/n99999999/1.JPEG", "train/n88888888/1.JPEG", "train/n01440764/1.JPEG")
    put_kit(tmp_path / KIT)
    with pytest.raises(
        DatasetError,
        match=rf"holds 2 class folders, such as 'n88888888', that .*meta\.mat' does not list.*folder:{tmp_path} to",
    ):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", ""),
        (b"MATLAB 5.0" * 100, ""),
        (meta()[:300], ""),
        (meta([(1, "fox", "kit fox", 0)]), "'fox' is no wnid."),
        (meta([(1, "n00000001", "a", 0), (2, "n00000001", "b", 0)]), "its classes are missing or there twice."),
        (meta([(1, "n00000001", "a", 1)]), "its classes are missing or there twice."),
    ],
)
def test_a_kit_that_is_damaged(tmp_path: Path, data: bytes, wanted: str) -> None:
    (put_kit(flat(tmp_path) / KIT) / "data" / "meta.mat").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"data/meta\.mat' is no meta.mat of ILSVRC2012: .*{wanted}") as caught:
        open_source(tmp_path / "val")
    assert "\n" not in str(caught.value)


def test_one_class_is_a_table_too(tmp_path: Path) -> None:
    put(tmp_path / "val", FLAT[0])
    put_kit(tmp_path / KIT, "7\n", synsets=[(7, "n00000007", "seven", 0)])
    source = open_source(tmp_path / "val")
    assert (source.label(0), source.class_names) == (0, ["n00000007 seven"])


def test_an_archive_that_is_damaged_or_another(tmp_path: Path) -> None:
    archive = put_archive(flat(tmp_path / "x"))
    whole = archive.read_bytes()
    for data in (b"", b"x" * 1000, whole[: len(whole) // 2]):
        archive.write_bytes(data)
        with pytest.raises(DatasetError, match=rf"{KIT}\.tar\.gz' is damaged or unreadable: .*\. Download it again"):
            open_source(tmp_path / "x" / "val")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "x" / "val" / FLAT[0], "meta.mat.png")
        info = tarfile.TarInfo("data/meta.mat")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DatasetError, match=r"holds no meta\.mat: it is no development kit"):
        open_source(tmp_path / "x" / "val")


def test_what_is_no_imagenet(tmp_path: Path) -> None:
    put(tmp_path / "cats", "train/cat/1.png", "train/dog/2.png")
    assert open_source(tmp_path / "cats").kind == "class folders"
    with pytest.raises(DatasetError, match=r"cats' \(--data\) is no ImageNet: none of its 2 images .*folder:.*cats"):
        open_source(f"imagenet:{tmp_path / 'cats'}")
    (tmp_path / "empty" / "train" / "n01440764").mkdir(parents=True)
    with pytest.raises(NoImagesError, match="There is no image in '.*empty'"):
        open_source(tmp_path / "empty")


def test_links_that_lead_round_and_names_that_are_hostile(tmp_path: Path) -> None:
    put(tmp_path, "train/n01440764/a\nb.JPEG", "train/n01443537/x.JPEG")
    (tmp_path / "train" / "n01440764" / "up").symlink_to(tmp_path)
    (tmp_path / "train" / "self").symlink_to(tmp_path / "train" / "self")
    odd = tmp_path / "train" / "n01443537" / os.fsdecode(b"caf\xe9.JPEG")
    (tmp_path / "train" / "n01443537" / "x.JPEG").rename(odd)
    source = open_source(tmp_path)
    assert listed(source) == [("train/n01440764/a\nb.JPEG", 0), ("train/n01443537/caf\udce9.JPEG", 1)]
    assert source.image(1).size == (4, 3)
