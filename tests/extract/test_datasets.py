"""What every reader of a dataset gives, how the reader is found, and what is refused before any is asked."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from concept_folders import WRITERS
from image_folders import (
    CIFAR_NAMES,
    FLAT,
    FLAT_LABELS,
    IMAGENET_NAMES,
    KIT,
    PLACES_LISTS,
    PLACES_NAMES,
    PLACES_TEST,
    PLACES_TRAIN,
    PLACES_VAL,
    TINY_NAMES,
    TINY_WNIDS,
    batches,
    listed,
    put,
    put_binary,
    put_kaggle,
    put_kit,
    put_places,
    put_python,
    put_tiny,
    shards,
)
from tiny import write_broden

from extract import image_source
from extract.datasets import open_source
from extract.file_list import read_pairs
from extract.image_source import READERS, PathSource, register
from stores.errors import DatasetError, EDDPError, ImageError, MissingPathError, NoImagesError, UsageError

Pairs = list[tuple[str, int]]


def below(folder: str, pairs: Pairs) -> Pairs:
    return [(f"{folder}/{name}", label) for name, label in pairs]


CIFAR = [label for _, labels, _ in batches().values() for label in labels]
# how a dataset is drawn, its reader and kind, its classes, and its images with their labels
DATASETS: dict[str, tuple[Callable[[Path], object], str, str, list[str] | None, Pairs]] = {
    "flat folder": (lambda root: put(root, "b.png", "a.JPG", "c.Jpeg"), "folder", "flat folder", None,
                    [("a.JPG", -1), ("b.png", -1), ("c.Jpeg", -1)]),
    "class folders": (lambda root: put(root, "dog/1.png", "cat/two\nlines.png", "cat/deep/3.png"), "folder", "class folders", ["cat", "dog"],
                      [("cat/deep/3.png", 0), ("cat/two\nlines.png", 0), ("dog/1.png", 1)]),
    "imagenet folders": (lambda root: put(root, "train/n02119789/1.JPEG", "val/n01440764/1.JPEG", "test/ILSVRC2012_test_00000001.JPEG"),
                         "imagenet", "imagenet", ["n01440764", "n02119789"],
                         [("test/ILSVRC2012_test_00000001.JPEG", -1), ("train/n02119789/1.JPEG", 1), ("val/n01440764/1.JPEG", 0)]),
    "imagenet flat": (lambda root: put_kit(put(root, *FLAT) / KIT), "imagenet", "imagenet", IMAGENET_NAMES, FLAT_LABELS),
    "imagenet of Kaggle": (lambda root: put_kaggle(put(root, *(f"ILSVRC/Data/CLS-LOC/val/{name}" for name in FLAT))),
                           "imagenet", "imagenet", IMAGENET_NAMES, below("ILSVRC/Data/CLS-LOC/val", FLAT_LABELS)),
    "tiny imagenet": (put_tiny, "tiny-imagenet", "tiny-imagenet", TINY_NAMES,
                      [("test/images/test_0.JPEG", -1),
                       *((f"train/{wnid}/images/{wnid}_{j}.JPEG", k) for k, wnid in enumerate(TINY_WNIDS) for j in range(2)),
                       *((f"val/images/val_{k}.JPEG", 2 - k) for k in range(3))]),
    "places365": (put_places, "places365", "places365", PLACES_NAMES,
                  below("data_256", PLACES_TRAIN) + below("test_256", PLACES_TEST) + below("val_256", PLACES_VAL)),
    "cifar10 binary": (lambda root: put_binary(root, batches()), "cifar10", "cifar10", CIFAR_NAMES,
                       [(f"train/{b}000{k}" if b < 5 else f"test/0000{k}", CIFAR[3 * b + k]) for b in range(6) for k in range(3)]),
    "cifar10 python": (lambda root: put_python(root, batches()), "cifar10", "cifar10", CIFAR_NAMES,
                       list(zip([f"{s}/{n}" for s, (_, _, names) in batches().items() for n in names], CIFAR, strict=True))),
    "webdataset": (shards, "webdataset", "webdataset", None, [(f"shard-{k // 3:06d}.tar/{k:06d}.png", k % 4) for k in range(6)]),
    "broden": (write_broden, "broden", "broden", None, [(f"sub/image {k}.jpg", -1) for k in range(6)]),
}  # fmt: skip
for kind, write in WRITERS.items():
    DATASETS[kind] = (write, kind, kind, None, [])
PACKED = ("cifar10 binary", "cifar10 python", "webdataset")  # several images in a file


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    root = tmp_path / "data"
    DATASETS[request.param][0](root)
    return request.param, root


def test_images_labels_and_classes(dataset: tuple[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    name, root = dataset
    _, reader, kind, classes, images = DATASETS[name]
    (root.parent / "link").symlink_to(root)
    for data in (root, str(root), f"{reader}:{root}", f"{reader.upper()}:{root}", root.parent / "link"):
        source = open_source(data)
        assert (source.kind, source.class_names) == (kind, classes)
        assert listed(source) == (images or listed(open_source(root)))
        assert all(source.path(i).is_file() for i in range(len(source)))
    assert all("CIFAR-10's own" in message for message in caplog.messages)
    names = [source.name(i) for i in range(len(source))]
    assert len(set(names)) == len(names) > 2
    for i in (0, len(source) - 1):
        assert source.image(i).mode == "RGB"
    for beyond in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source.image(beyond)


def test_a_source_is_pickled_to_workers(dataset: tuple[str, Path]) -> None:
    source = open_source(dataset[1])
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert listed(copy) == listed(source)
    assert copy.digest == source.digest
    assert copy.image(1).tobytes() == source.image(1).tobytes()


def test_the_digest_sees_another_image(dataset: tuple[str, Path]) -> None:
    source = open_source(dataset[1])
    assert source.digest == open_source(dataset[1]).digest
    path = source.path(len(source) - 1)
    data = bytearray(path.read_bytes())
    data[data.find(b"IHDR") + 20 if dataset[0] == "webdataset" else 3] ^= 1
    path.write_bytes(data)
    if "cifar10" not in dataset[0]:
        assert source.digest != open_source(dataset[1]).digest


def test_a_bad_image_and_a_missing_file_are_distinguished(dataset: tuple[str, Path]) -> None:
    """The first may be skipped; the second ends the run, since a disk may be away."""
    name, root = dataset
    source = open_source(root)
    path = source.path(1)
    if name not in PACKED:
        path.write_text("no picture")
        with pytest.raises(ImageError, match=re.escape(source.name(1).replace("\n", "\\n")) + "' is no image file"):
            source.image(1)
    path.unlink()
    with pytest.raises(EDDPError, match="cannot be read: No such file") as caught:
        source.image(1)
    assert not isinstance(caught.value, ImageError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_nothing_there(tmp_path: Path, reader: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((NoImagesError, MissingPathError), match="'.*empty'"):
        open_source(f"{reader}:{tmp_path / 'empty'}")
    for data in (f"{reader}:{tmp_path / 'gone'}", tmp_path / "gone"):
        with pytest.raises(MissingPathError, match=r"There is no .*gone'"):
            open_source(data)
    if not READERS[reader].files:
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(UsageError, match=r"a\.txt' \(--data\) is a file"):
            open_source(f"{reader}:{tmp_path}/a.txt")


# lists and tables of every reader: (dataset, file, what is appended or the whole text, what is reported)
TINY, PLACES, KAGGLE = "tiny imagenet", "places365", "imagenet of Kaggle"
VAL, SOLUTION, MAPPING = "places365_val.txt", "LOC_val_solution.csv", "LOC_synset_mapping.txt"
APPENDED = [
    (PLACES, VAL, "x.jpg", r"val\.txt', line 5 must read PATH NUMBER, got 'x\.jpg'"),
    (PLACES, VAL, "x.jpg three", "line 5 must read PATH NUMBER"),
    (PLACES, VAL, "7", "line 5 must read PATH NUMBER, got '7'"),
    (PLACES, VAL, "x.jpg 5", r"line 5: there is no class 5; '.*categories_places365\.txt' lists 0 to 4\."),
    (PLACES, VAL, "../x.jpg 1", r"line 5: '\.\./x\.jpg' points outside the folder of the images"),
    (PLACES, VAL, "a/../../x.jpg 1", "line 5: .* points outside"),
    (PLACES, VAL, "//etc/x.jpg 1", "line 5: '/etc/x.jpg' points outside"),
    (PLACES, VAL, ". 1", "line 5: '.' names no image"),
    (PLACES, VAL, "a\0b 1", "line 5 is no line of text. The file must be a list in UTF-8"),
    (PLACES, VAL, "x" * 70_000, "line 5 is no line of text"),
    (PLACES, VAL, f"{PLACES_VAL[1][0]} 0", r"line 5: the image 'val_256/Places365_val_00000002\.jpg' is already in line 2"),
    (PLACES, VAL, "x.jpg 1", r"line 5: there is no image '.*val_256/x\.jpg' \(missing: 1 of 5 listed\)\. Unpack.* folder:DIR"),
    (PLACES, "places365_test.txt", "../x.jpg", r"test\.txt', line 3: .* points outside"),
    (PLACES, "places365_train_standard.txt", "/a/airfield/x.jpg 9", r"standard\.txt', line 5: there is no class 9"),
    (PLACES, "categories_places365.txt", "/z/zoo 7", r"categories_places365\.txt', line 6 must have the number 5, got 7"),
    (PLACES, "categories_places365.txt", "zoo 5", "line 6 must read /LETTER/NAME NUMBER, each once, got 'zoo 5'"),
    (PLACES, "categories_places365.txt", "/b/beach 5", "line 6 must read .* each once"),
    (PLACES, "categories_places365.txt", "two\x1bwords", r"line 6 must read .*, got 'two\\x1bwords'"),
    (KAGGLE, SOLUTION, "ILSVRC2012_val_00000006", r"solution\.csv', line 7 must read ILSVRC2012_val_NUMBER,WNID"),
    (KAGGLE, SOLUTION, "ILSVRC2012_val_00000006,tench 1 2", "line 7 must read"),
    (KAGGLE, SOLUTION, "ILSVRC2012_val_00000001,n01440764 1", "line 7 must read .* each once"),
    (KAGGLE, SOLUTION, "../../x,n01440764 1", "line 7 must read"),
    (KAGGLE, MAPPING, "tench", r"mapping\.txt', line 5 must read WNID WORDS, each once, got 'tench'"),
    (KAGGLE, MAPPING, "n01440764 tench", "line 5 must read WNID WORDS, each once"),
    (KAGGLE, MAPPING, "n0144\0 x", r"mapping\.txt', line 5 is no line of text"),
    ("voc", "ImageSets/Segmentation/val.txt", "2007_123456", r"line 3: there is no image '.*JPEGImages/2007_123456\.jpg' \(missing: 1 of 3"),
    ("voc", "ImageSets/Segmentation/val.txt", "2007_999999", r"line 3: there is no mask '.*SegmentationClass/2007_999999\.png'"),
    ("voc", "ImageSets/Segmentation/val.txt", "2007_000004", r"line 3: the image 'JPEGImages/2007_000004\.jpg' is already in line 1"),
    ("voc", "ImageSets/Segmentation/val.txt", "2007_000001", r"line 3: .*2007_000001.* is in train\.txt too"),
    ("voc", "ImageSets/Segmentation/val.txt", "../../secret", "line 3: '../../secret' points outside the folder of the images"),
    ("masks", "split.csv", "a/image 0,training", "line 8: the split must be one of train, val, test, got 'training'"),
    ("masks", "split.csv", "a/nothing,val", "line 8: there is no image '.*/images/a/nothing'. Put it there"),
    ("masks", "split.csv", "a/image 0.png,val", "line 8: there is no image"),
    ("masks", "split.csv", "/etc/passwd,val", "line 8: '/etc/passwd' points outside the folder of the images"),
    ("masks", "split.csv", "a/image 1,val", r"line 8: 'a/image 1' is already in '.*split\.csv', line 3. An image is of one split"),
]  # fmt: skip
WHOLE = [
    (TINY, "wnids.txt", "n01443537\ngoldfish\n", "wnids.txt', line 2 must read a wnid such as"),
    (TINY, "wnids.txt", "n01443537\nn01443537\n", "line 2 must read a wnid .* each once"),
    (TINY, "wnids.txt", "", "wnids.txt' lists no class"),
    (TINY, "wnids.txt", "n01443537\n", "train/n01629819/.*wnids.txt' lists no class n01629819"),
    (TINY, "val/val_annotations.txt", "val_0.JPEG\n", "annotations.txt', line 1 must read NAME, WNID and a box"),
    (TINY, "val/val_annotations.txt", "../x.JPEG\tn01443537\n", "line 1 must read NAME"),
    (TINY, "val/val_annotations.txt", "val_0.JPEG\tn01443537\nval_0.JPEG\tn01443537\n", "line 2 must read NAME"),
    (TINY, "val/val_annotations.txt", "val_0.JPEG\tn01443537\n", "does not list 'val/images/val_1.JPEG'"),
    (TINY, "val/val_annotations.txt", "val_7.JPEG\tn01443537\n", r"line 1: there is no image .*val_7.JPEG' \(missing: 1 of 1"),
    (TINY, "val/val_annotations.txt", "val_0.JPEG\tn99999999\n", "line 1: .*wnids.txt' lists no class n99999999"),
    (PLACES, VAL, PLACES_LISTS[VAL].encode("utf-16"), r"places365_val\.txt', line 1 is no line of text"),
    ("imagenet flat", f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt", "3\n1\ncat\n", r"truth\.txt', line 3: 'cat' is no ILSVRC2012_ID"),
    ("imagenet flat", f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt", "3\n5\n", "line 2: '5' is no ILSVRC2012_ID"),
    ("imagenet flat", f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt", "3\n1\n4\n2\n", r"the class of 'ILSVRC2012_val_00000005\.JPEG'"),
    (KAGGLE, MAPPING, "n01440764 tench\nn01443537 goldfish\n", r"00000002\.JPEG': '.*mapping\.txt' does not list n02119789"),
    ("ade20k", "objectInfo150.txt", "1\twall\n", "objectInfo150.txt' lacks the column Idx, Name; its first line must name"),
    ("ade20k", "objectInfo150.txt", "Idx\tName\nx\twall\n", "line 2: 'Idx' must be an integer, got 'x'"),
    ("ade20k", "objectInfo150.txt", "Idx\tName\n0\twall\n", r"line 2: it must have a number \(Idx\) from 1 and a name"),
    ("ade20k", "objectInfo150.txt", "Idx\tName\n99999\twall\n", "line 2: 'Idx' must be from 0 to 65535, got 99999"),
    ("ade20k", "objectInfo150.txt", "Idx\tName\n1\n", "line 2 has fewer cells than the first"),
    ("ade20k", "objectInfo150.txt", "Idx\tName\n1\twall\n1\tsky\n", "line 3: number 1 is already taken by line 2"),
    ("ade20k", "objectInfo150.txt", "Idx\tName\n", "lists no label"),
    ("ade20k", "sceneCategories.txt", "a street\nb\n", "line 2 must read NAME SCENE, .* got 'b'"),
    ("ade20k", "sceneCategories.txt", "a street\na alley\n", "line 2 must read NAME SCENE, one scene a name"),
    ("cocostuff", "labels.txt", "1: person\nskis\n", "line 2 must read NUMBER: NAME"),
    ("cocostuff", "labels.txt", "1: person\n300: skis\n", "line 2 must read NUMBER: NAME, with a number up to 255"),
    ("cocostuff", "labels.txt", "1: person\n1: skis\n", "line 2 must read .* each once, got '1: skis'"),
    ("cocostuff", "labels.txt", "0: unlabeled\n", "lists no label"),
    ("masks", "labels.csv", "number,name\none,sky", "line 2: 'number' must be an integer, got 'one'"),
    ("masks", "labels.csv", "number,name\n-1,sky", "line 2: 'number' must be from 0 to 65535, got -1"),
    ("masks", "labels.csv", "number,name\n65536,sky", "line 2: 'number' must be from 0 to 65535, got 65536"),
    ("masks", "labels.csv", "number,name\n1,sky\n2,sea\n1,sun", "line 4: number 1 is already taken by line 2"),
    ("masks", "labels.csv", "number,name\n1,", "line 2: the name is missing"),
    ("masks", "labels.csv", "number,name,category\n1,sky,\n", "line 2: the category is missing"),
    ("masks", "labels.csv", "number,name\n0,background", "lists no label"),
    ("masks", "labels.csv", "id,name\n1,sky\n", r"labels\.csv' lacks the column number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "text", "wanted", "mode"), [
    *((*case, "ab") for case in APPENDED), *((*case, "wb") for case in WHOLE),
])  # fmt: skip
def test_a_damaged_list_names_file_and_line(
    tmp_path: Path, name: str, file: str, text: str | bytes, wanted: str, mode: str
) -> None:
    DATASETS[name][0](tmp_path)
    with (tmp_path / file).open(mode) as opened:
        opened.write(text if isinstance(text, bytes) else text.encode() + b"\n")
    with pytest.raises(DatasetError, match=wanted) as caught:
        open_source(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "file"), [(PLACES, VAL), (KAGGLE, SOLUTION), (KAGGLE, MAPPING),
                                            (TINY, "wnids.txt"), ("voc", "ImageSets/Segmentation/val.txt"),
                                            ("masks", "labels.csv"), ("ade20k", "objectInfo150.txt")])  # fmt: skip
def test_other_line_ends_and_marks(tmp_path: Path, name: str, file: str) -> None:
    DATASETS[name][0](tmp_path)
    before = open_source(tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\r\n"))
    assert listed(open_source(tmp_path)) == listed(before)
    assert open_source(tmp_path).class_names == before.class_names


# READER:PATH


def test_a_reader_can_be_forced(tmp_path: Path) -> None:
    write_broden(tmp_path)
    forced = open_source(Path(f"FOLDER:{tmp_path}"))
    assert (forced.kind, forced.class_names, forced.left_out) == ("class folders", ["sub"], {".csv": 2})
    assert forced.root == tmp_path


def test_a_reader_is_added_by_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.image_source.READERS", {})
    monkeypatch.setattr("extract.datasets.READERS", image_source.READERS)

    @register("listed", lambda root: (root / "list.txt").is_file())
    def open_listed(root: Path) -> PathSource:
        pairs = read_pairs(root / "list.txt", r"(\S+) (\d+)", "NAME CLASS")
        return PathSource(root, [(name, int(label)) for name, (label, _) in pairs.items()], ["cat", "dog"], "listed")

    (put(tmp_path, "x.png", "y.png") / "list.txt").write_text("y.png 1\nx.png 0\n")
    for data in (tmp_path, f"listed:{tmp_path}"):
        assert (open_source(data).kind, listed(open_source(data))) == ("listed", [("y.png", 1), ("x.png", 0)])


@pytest.mark.parametrize("data", ["folders:{}", "s3://bucket/images", "http:{}"])
def test_an_unknown_reader_lists_those_there_are(tmp_path: Path, data: str) -> None:
    with pytest.raises(UsageError, match=r"^There is no reader '\w+' for .* The readers are broden, voc, .*: give"):
        open_source(data.format(tmp_path))


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "imagenet:x/a.png", "day: one/a.png", "2024-01-01/a.png"))
    for data in ("imagenet:x", "day: one", "./imagenet:x", "folder:imagenet:x"):
        assert listed(open_source(data)) == [("a.png", -1)]
    for data in ("C:\\images", "C:images", "./x:y", "/x:y", "2024:x"):
        with pytest.raises(MissingPathError, match="There is no folder"):
            open_source(data)


def test_home_is_found_behind_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(put(tmp_path, "pictures/a.png")))
    assert open_source("folder:~/pictures").root == tmp_path / "pictures"
    with pytest.raises(UsageError, match="'imagenet:' .* names no folder: give imagenet:DIR"):
        open_source("imagenet:")


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        open_source("x" * 5000)
    with pytest.raises(MissingPathError, match=r"There is no folder 'a\\x00b'"):
        open_source("a\0b")
    for name in ("self", "gone"):
        (tmp_path / name).symlink_to(tmp_path / {"self": "self", "gone": "nothing"}[name])
        with pytest.raises(MissingPathError, match="There is no folder"):
            open_source(tmp_path / name)
    with pytest.raises(NoImagesError, match=r"no image in '.*' .*, only other files: \.txt \(1\)\. Give"):
        open_source(put(tmp_path / "texts", "class/notes.txt"))


def test_a_look_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    put(tmp_path, "a.png")
    for look in ("is_file", "exists"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, look, refused)
            with pytest.raises(UsageError, match=r"cannot be read: Permission denied\. Fix it, or its permissions"):
                open_source(tmp_path if look == "is_file" else f"imagenet:{tmp_path}")
