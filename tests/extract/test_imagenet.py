import io
import logging
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from extract.datasets import open_source
from extract.image_source import PathSource
from stores.errors import DatasetError, NoImagesError

KIT = "ILSVRC2012_devkit_t12"
# (ILSVRC2012_ID, wnid, words, children): the IDs are in an order of their own, and some synsets are not leaves
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n02100735", "English setter", 0),
    (3, "n01440764", "tench, Tinca tinca", 0),
    (4, "n01443537", "goldfish, Carassius auratus", 0),
    (5, "n00001740", "entity", 2),
    (1001, "n09999999", "thing", 3),
]
WNIDS = ["n01440764", "n01443537", "n02100735", "n02119789"]
NAMES = ["n01440764 tench", "n01443537 goldfish", "n02100735 English setter", "n02119789 kit fox"]
NUMBER = {1: 3, 2: 2, 3: 0, 4: 1}  # ILSVRC2012_ID -> place among the sorted wnids
TRUTH = [3, 1, 4, 2, 1]


def put(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (k, 10, 20)).save(root / name, "PNG")
    return root


def val(k: int, folder: str = "") -> str:
    return f"{folder}ILSVRC2012_val_{k:08d}.JPEG"


def listed(source: object) -> list[tuple[str, int]]:
    assert isinstance(source, PathSource)
    return [(source.name(i), source.label(i)) for i in range(len(source))]


def meta(synsets: list[tuple[int, str, str, int]] | None = None) -> bytes:
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    table = np.zeros((len(synsets or SYNSETS), 1), [(name, object) for name in fields])
    for row, (number, wnid, words, children) in zip(table, synsets or SYNSETS, strict=True):
        row[0] = (number, wnid, words, "a gloss", children, np.arange(children), 0, 1300)
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def put_kit(folder: Path, truth: str = "".join(f"{k}\n" for k in TRUTH), **options) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(meta(**options))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    (folder / "evaluation").mkdir()
    (folder / "readme.txt").write_text("x")
    return folder


def put_archive(root: Path) -> Path:
    kit = put_kit(root / "unpacked" / KIT)
    with tarfile.open(root / f"{KIT}.tar.gz", "w:gz") as tar:
        tar.add(kit, KIT)
    for file in sorted((root / "unpacked").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (root / "unpacked").rmdir()
    return root / f"{KIT}.tar.gz"


def put_kaggle(root: Path, *, mapping: bool = True) -> Path:
    """What Kaggle's archive unpacks to: two lists beside ILSVRC/Data/CLS-LOC."""
    lines = "\n".join(f"{val(k + 1)[:-5]},{wnid(i)} 85 1 499 272 {wnid(i)} 1 2 3 4 " for k, i in enumerate(TRUTH))
    root.mkdir(parents=True, exist_ok=True)
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{lines}\n")
    if mapping:
        words = {w: text for _, w, text, children in SYNSETS if not children}
        (root / "LOC_synset_mapping.txt").write_text("".join(f"{w} {words[w]}\n" for w in WNIDS))
    return root


def wnid(number: int) -> str:
    return next(w for k, w, _, _ in SYNSETS if k == number)


FLAT = [val(k) for k in range(1, 6)]
LABELS = [(name, NUMBER[i]) for name, i in zip(FLAT, TRUTH, strict=True)]


@pytest.mark.parametrize("scheme", ["", "imagenet:"])
def test_class_folders_and_splits(tmp_path: Path, scheme: str) -> None:
    put(
        tmp_path,
        "train/n02119789/n02119789_1.JPEG",
        "train/n01440764/a.JPEG",
        "val/n02119789/b.JPEG",
        "test/ILSVRC2012_test_00000001.JPEG",
    )
    source = open_source(f"{scheme}{tmp_path}")
    assert listed(source) == [
        ("test/ILSVRC2012_test_00000001.JPEG", -1),
        ("train/n01440764/a.JPEG", 0),
        ("train/n02119789/n02119789_1.JPEG", 1),
        ("val/n02119789/b.JPEG", 1),
    ]
    assert source.class_names == ["n01440764", "n02119789"]
    assert source.kind == "imagenet"
    assert np.asarray(source.image(2))[0, 0, 0] == 0


def test_numbers_without_a_kit_are_those_of_torchvision(tmp_path: Path) -> None:
    from extract.models import torchvision

    put(tmp_path, "train/n02119789/1.jpg", "train/n01440764/2.jpg", "train/n01443537/3.jpg", "train/n01443537/4.jpg")
    theirs = torchvision.datasets.ImageFolder(tmp_path / "train")
    ours = open_source(tmp_path / "train")
    assert ours.class_names == theirs.classes
    assert listed(ours) == [(os.path.relpath(path, tmp_path / "train"), label) for path, label in theirs.imgs]


PLACES = [KIT, "devkit", f"devkit/{KIT}", "val"]


@pytest.mark.parametrize("place", PLACES)
def test_a_flat_validation_folder_and_a_kit(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    root = put(tmp_path / "imagenet", *(f"val/{name}" for name in FLAT))
    put_kit(root / place)
    with caplog.at_level(logging.WARNING):
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
    put(tmp_path, *(f"val/{name}" for name in FLAT))
    archive = put_archive(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert listed(open_source(tmp_path / "val")) == LABELS
    assert open_source(tmp_path).class_names == NAMES
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "devkit").mkdir()
    archive.rename(tmp_path / "devkit" / archive.name)
    assert listed(open_source(tmp_path / "val")) == LABELS


def test_a_folder_given_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"val/{name}" for name in FLAT))
    put_kit(tmp_path / KIT)
    (tmp_path / "elsewhere").mkdir()
    for there, data in ((tmp_path, "val"), (tmp_path / "val", "."), (tmp_path / "elsewhere", "../val")):
        monkeypatch.chdir(there)
        assert listed(open_source(data)) == LABELS
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "val")
    assert listed(open_source("link")) == LABELS


def test_a_link_whose_kit_is_beside_it_and_not_beside_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "disk" / "a" / "b" / "c" / "d", *FLAT)
    put_kit(tmp_path / "home" / KIT)
    (tmp_path / "home" / "sets").mkdir()
    (tmp_path / "home" / "sets" / "val").symlink_to(tmp_path / "disk" / "a" / "b" / "c" / "d")
    monkeypatch.chdir(tmp_path / "home" / "sets")
    for data in ("val", tmp_path / "home" / "sets" / "val"):
        assert listed(open_source(data)) == LABELS


@pytest.mark.parametrize("mapping", [True, False])
@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_kaggle(tmp_path: Path, given: str, mapping: bool) -> None:
    base = "ILSVRC/Data/CLS-LOC/"
    put(
        tmp_path,
        *(f"{base}val/{name}" for name in FLAT),
        f"{base}train/n01443537/n01443537_7.JPEG",
        f"{base}test/ILSVRC2012_test_00000001.JPEG",
    )
    annotation = tmp_path / "ILSVRC/Annotations/CLS-LOC/train/n01443537/n01443537_7.xml"
    annotation.parent.mkdir(parents=True)
    annotation.write_text("<x/>")
    put_kaggle(tmp_path, mapping=mapping)
    source = open_source(tmp_path / given)
    wanted = [
        (f"{base}test/ILSVRC2012_test_00000001.JPEG", -1),
        (f"{base}train/n01443537/n01443537_7.JPEG", 1),
        *((f"{base}val/{name}", label) for name, label in LABELS),
    ]
    inside = f"{given}/" if given else ""
    assert listed(source) == [(name.removeprefix(inside), label) for name, label in wanted if name.startswith(inside)]
    assert source.class_names == (NAMES if mapping else WNIDS)


def test_some_class_folders_take_the_numbers_of_all(tmp_path: Path) -> None:
    put(tmp_path, "val/n02100735/1.JPEG", "val/n01443537/2.JPEG", "val/loose.JPEG")
    alone = open_source(tmp_path / "val")
    assert (listed(alone), alone.class_names) == (
        [("loose.JPEG", -1), ("n01443537/2.JPEG", 0), ("n02100735/1.JPEG", 1)],
        ["n01443537", "n02100735"],
    )
    put_kit(tmp_path / KIT)
    for data in (tmp_path / "val", f"imagenet:{tmp_path / 'val'}"):
        source = open_source(data)
        assert listed(source) == [("loose.JPEG", -1), ("n01443537/2.JPEG", 1), ("n02100735/1.JPEG", 2)]
        assert source.class_names == NAMES
    one = open_source(tmp_path / "val" / "n02100735")
    assert one.label(0) == 2
    assert open_source(f"folder:{tmp_path / 'val'}").class_names == ["n01443537", "n02100735"]


def test_one_class_alone(tmp_path: Path) -> None:
    put(tmp_path, "train/n02100735/n02100735_1.JPEG", "val/n02100735/ILSVRC2012_val_00000004.JPEG")
    for split in ("train", "val"):
        source = open_source(tmp_path / split / "n02100735")
        assert (source.label(0), source.class_names) == (0, ["n02100735"])


def test_wnids_within_the_names_of_files(tmp_path: Path) -> None:
    names = ["n01443537_10026.JPEG", "n02119789_10_n02119789.JPEG", "ILSVRC2012_val_00000001_n01440764.JPEG"]
    source = open_source(put(tmp_path, *names))
    assert listed(source) == [(names[2], 0), (names[0], 1), (names[1], 2)]


def test_class_folders_with_folders_in_them(tmp_path: Path) -> None:
    source = open_source(put(tmp_path, "train/n01443537/images/n01443537_0.JPEG", "val/images/val_0.JPEG"))
    assert listed(source) == [("train/n01443537/images/n01443537_0.JPEG", 0), ("val/images/val_0.JPEG", -1)]


@pytest.mark.parametrize("more", [(), ("train/n02119789/1.JPEG",)])
def test_validation_images_without_labels_are_told_of(
    tmp_path: Path, more: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, *(f"val/{name}" for name in FLAT), *more)
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert [label for name, label in listed(source) if name.startswith("val")] == [-1] * 5
    assert source.class_names == (["n02119789"] if more else None)
    assert caplog.messages == [
        f"the 5 validation images of '{tmp_path}' have no labels: put {KIT}.tar.gz, or LOC_val_solution.csv of Kaggle, into "
        f"'{tmp_path}'"
    ]
    put_kit(tmp_path / KIT)
    (tmp_path / KIT / "data" / "ILSVRC2012_validation_ground_truth.txt").unlink()
    assert open_source(tmp_path / "val").label(0) == -1
    put_kaggle(tmp_path, mapping=False)  # the kit knows the classes, Kaggle's list the labels
    assert listed(open_source(tmp_path / "val")) == LABELS


def test_test_images_have_no_labels_and_need_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "test/ILSVRC2012_test_00000001.JPEG", "test/ILSVRC2012_test_00000002.JPEG")
    source = open_source(tmp_path / "test")
    assert ([label for _, label in listed(source)], source.class_names) == ([-1, -1], None)
    put_kit(tmp_path / KIT)
    source = open_source(tmp_path / "test")
    assert ([label for _, label in listed(source)], source.class_names) == ([-1, -1], NAMES)
    assert not caplog.records


def test_lists_with_other_line_ends_and_marks(tmp_path: Path) -> None:
    put(tmp_path / "kit", *(f"val/{name}" for name in FLAT))
    put_kit(tmp_path / "kit" / KIT, "\ufeff" + "".join(f" {k}\r\n\r\n" for k in TRUTH))
    assert listed(open_source(tmp_path / "kit" / "val")) == LABELS
    root = put_kaggle(put(tmp_path / "kaggle", *(f"val/{name}" for name in FLAT)))
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        file = root / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n").replace(b"tench", b"t\xe9nch"))
    source = open_source(root / "val")
    assert listed(source) == LABELS
    assert source.class_names == ["n01440764 t\udce9nch", *NAMES[1:]]


def test_classes_that_the_kit_does_not_know(tmp_path: Path) -> None:
    put(tmp_path, "train/n99999999/1.JPEG", "train/n88888888/1.JPEG", "train/n01440764/1.JPEG")
    put_kit(tmp_path / KIT)
    with pytest.raises(
        DatasetError,
        match=rf"holds 2 classes that '.*meta\.mat' does not list, n88888888 the first\. Give folder:{tmp_path} to",
    ):
        open_source(tmp_path)
    assert open_source(f"folder:{tmp_path}").class_names == ["n01440764", "n88888888", "n99999999"]


@pytest.mark.parametrize(
    ("truth", "wanted"),
    [
        ("3\n1\ncat\n", r"ground_truth\.txt', line 3: 'cat' is no ILSVRC2012_ID of a class in '.*meta\.mat'"),
        ("3\n5\n", r"line 2: '5' is no ILSVRC2012_ID"),
        ("3\n\n-1\n", r"line 3: '-1' is no"),
        (
            "3\n1\n4\n2\n",
            r"ground_truth\.txt' does not tell the class of 'ILSVRC2012_val_00000005\.JPEG': none of its 4 images",
        ),
    ],
)
def test_a_truth_that_is_damaged(tmp_path: Path, truth: str, wanted: str) -> None:
    put(tmp_path / "val", *FLAT)
    put_kit(tmp_path / KIT, truth)
    with pytest.raises(DatasetError, match=wanted) as caught:
        open_source(tmp_path / "val")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "is no meta.mat of ILSVRC2012: "),
        (b"MATLAB 5.0" * 100, "is no meta.mat of ILSVRC2012: "),
        (meta()[:300], "is no meta.mat of ILSVRC2012: "),
        (meta([(1, "fox", "kit fox", 0)]), "is no meta.mat of ILSVRC2012: 'fox' is no wnid."),
        (meta([(1, "n00000001", "a", 0), (2, "n00000001", "b", 0)]), "its classes are missing or there twice."),
        (meta([(1, "n00000001", "a", 1)]), "its classes are missing or there twice."),
    ],
)
def test_a_kit_that_is_damaged(tmp_path: Path, data: bytes, wanted: str) -> None:
    put(tmp_path / "val", *FLAT)
    (put_kit(tmp_path / KIT) / "data" / "meta.mat").write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        open_source(tmp_path / "val")
    assert f"'{tmp_path}/{KIT}/data/meta.mat' {wanted.split(':')[0]}"[:40] in str(caught.value)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_class_is_a_table_too(tmp_path: Path) -> None:
    put(tmp_path / "val", FLAT[0])
    put_kit(tmp_path / KIT, "7\n", synsets=[(7, "n00000007", "seven", 0)])
    source = open_source(tmp_path / "val")
    assert (source.label(0), source.class_names) == (0, ["n00000007 seven"])


def test_an_archive_that_is_damaged_or_another(tmp_path: Path) -> None:
    put(tmp_path / "val", *FLAT)
    archive = put_archive(tmp_path)
    whole = archive.read_bytes()
    for data in (b"", b"x" * 1000, whole[: len(whole) // 2]):
        archive.write_bytes(data)
        with pytest.raises(DatasetError, match=rf"{KIT}\.tar\.gz' is damaged: .*\. Download it again"):
            open_source(tmp_path / "val")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "val" / FLAT[0], "meta.mat.png")
        info = tarfile.TarInfo("data/meta.mat")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DatasetError, match=r"holds no meta\.mat: it is no development kit"):
        open_source(tmp_path / "val")


@pytest.mark.parametrize(
    ("name", "line", "wanted"),
    [
        (
            "LOC_val_solution.csv",
            "ILSVRC2012_val_00000006",
            r"solution\.csv', line 7 must read ILSVRC2012_val_NUMBER,WNID",
        ),
        ("LOC_val_solution.csv", "val_6,n01440764 1 2 3 4", "line 7 must read"),
        ("LOC_val_solution.csv", "ILSVRC2012_val_00000006,tench 1 2", "line 7 must read"),
        ("LOC_val_solution.csv", "ILSVRC2012_val_00000001,n01440764 1", "line 7 must read .* each image once"),
        ("LOC_val_solution.csv", "../../x,n01440764 1", "line 7 must read"),
        ("LOC_synset_mapping.txt", "tench", r"mapping\.txt', line 5 must read WNID WORDS, each wnid once, got 'tench'"),
        ("LOC_synset_mapping.txt", "n01440764 tench", r"mapping\.txt', line 5 must read WNID WORDS, each wnid once"),
        ("LOC_synset_mapping.txt", "n0144\0 x", r"mapping\.txt', line 5 is no line of text"),
    ],
)
def test_kaggles_lists_when_damaged(tmp_path: Path, name: str, line: str, wanted: str) -> None:
    put_kaggle(put(tmp_path, *(f"val/{name}" for name in FLAT)))
    (tmp_path / name).write_text((tmp_path / name).read_text() + line + "\n")
    with pytest.raises(DatasetError, match=wanted):
        open_source(tmp_path / "val")


def test_a_solution_that_the_mapping_does_not_know(tmp_path: Path) -> None:
    put_kaggle(put(tmp_path, *(f"val/{name}" for name in FLAT)))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    with pytest.raises(
        DatasetError,
        match=r"solution\.csv' does not tell .*00000002\.JPEG': '.*mapping\.txt' does not list its class n02119789",
    ):
        open_source(tmp_path / "val")


def test_what_is_no_imagenet(tmp_path: Path) -> None:
    put(tmp_path / "cats", "train/cat/1.png", "train/dog/2.png")
    assert open_source(tmp_path / "cats").kind == "class folders"
    with pytest.raises(
        DatasetError, match=r"cats' \(--data\) is no ImageNet: none of its 2 images .* Give folder:.*cats to"
    ):
        open_source(f"imagenet:{tmp_path / 'cats'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError, match="There is no image in '.*empty'"):
        open_source(f"imagenet:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "train" / "n01440764").mkdir(parents=True)
    with pytest.raises(NoImagesError, match="There is no image in '.*empty'"):
        open_source(tmp_path / "empty")


def test_links_that_lead_round_and_names_that_are_hostile(tmp_path: Path) -> None:
    put(tmp_path, "train/n01440764/a\nb.JPEG", "train/n01443537/x.JPEG")
    (tmp_path / "train" / "n01440764" / "up").symlink_to(tmp_path)
    (tmp_path / "train" / "self").symlink_to(tmp_path / "train" / "self")
    (tmp_path / "train" / "n01443537" / "x.JPEG").rename(
        tmp_path / "train" / "n01443537" / os.fsdecode(b"caf\xe9.JPEG")
    )
    source = open_source(tmp_path)
    assert listed(source) == [("train/n01440764/a\nb.JPEG", 0), ("train/n01443537/caf\udce9.JPEG", 1)]
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert listed(copy) == listed(source)
    assert copy.image(1).size == (4, 3)
    assert copy.digest == source.digest
