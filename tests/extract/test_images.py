import logging
import os
import pickle
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.datasets import open_folder, open_source
from extract.image_io import decode_image, read_image, shown, to_mode
from extract.image_source import PathSource
from extract.loader import Decode
from extract.segmentation.broden import BrodenSource
from extract.string_array import Items, Names
from stores.errors import ImageError, MissingPathError, NoImagesError, UsageError


def put(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (k, 10, 20)).save(root / name, "PNG")
    return root


def listed(source: PathSource) -> list[tuple[str, int]]:
    return [(source.name(i), source.label(i)) for i in range(len(source))]


def test_a_flat_folder(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path, "b.png", "a.JPG", "c.Jpeg", "d.txt", ".hidden.png"))
    assert listed(source) == [("a.JPG", -1), ("b.png", -1), ("c.Jpeg", -1)]
    assert source.class_names is None
    assert source.kind == "flat folder"
    assert source.path(1) == tmp_path / "b.png"


def test_class_folders(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path, "dog/1.png", "cat/2.png", "cat/deep/3.png", "loose.png", ".git/x.png"))
    assert listed(source) == [("cat/2.png", 0), ("cat/deep/3.png", 0), ("dog/1.png", 1), ("loose.png", -1)]
    assert source.class_names == ["cat", "dog"]
    assert source.kind == "class folders"


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


def test_a_split_without_classes(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path, "train/1.png", "test/2.png"))
    assert listed(source) == [("test/2.png", -1), ("train/1.png", -1)]
    assert source.class_names is None


def test_a_class_that_is_called_like_a_split_among_others(tmp_path: Path) -> None:
    assert open_folder(put(tmp_path, "train/1.png", "bus/2.png")).class_names == ["bus", "train"]


def test_links_that_lead_up_or_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = put(tmp_path / "data", "a/1.png", "b/2.png")
    put(tmp_path, "not ours.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "higher").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    (root / "b" / "to a").symlink_to(root / "a")
    (root / "gone.png").symlink_to(root / "nothing")
    with caplog.at_level(logging.WARNING):
        names = [name for name, _ in listed(open_folder(root))]
    assert names == ["a/1.png", "b/2.png", "gone.png"]
    assert caplog.messages == [
        f"'{root}' holds 3 links to folders that are listed already or that lead back up; left out",
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
    with caplog.at_level(logging.WARNING):
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
    with caplog.at_level(logging.WARNING):
        assert listed(open_folder(tmp_path / "data")) == [("real/2.png", 0), ("x/1.png", 1)]
    (record,) = caplog.records
    assert "holds 3 links to folders that are listed already" in record.getMessage()


def test_links_that_fan_out_are_listed_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two links to the next folder in each of 40: 2^40 ways to the last one."""
    for k in range(40):
        put(tmp_path / f"{k:02d}", "image.png")
        for name in ("left", "right") if k < 39 else ():
            (tmp_path / f"{k:02d}" / name).symlink_to(tmp_path / f"{k + 1:02d}")
    with caplog.at_level(logging.WARNING):
        source = open_folder(tmp_path / "00")
    assert len(source) == 40
    assert source.name(39) == "left/" * 39 + "image.png"
    assert "holds 39 links to folders that are listed already" in caplog.messages[0]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    put(tmp_path, "grün/猫 1.png")
    try:
        (tmp_path / "grün/猫 1.png").rename(tmp_path / "grün" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    source = open_folder(tmp_path)
    assert source.name(0) == "grün/caf\udce9.png"
    assert source.image(0).size == (4, 3)
    assert source.digest.startswith("sha256:")


def test_nothing_to_see(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match=r"There is no folder '.*x' \(--data\)\. Give a folder of images"):
        open_source(tmp_path / "x")
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UsageError, match=r"a\.png' \(--data\) is a file\. Give a folder"):
        open_source(tmp_path / "a.png")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(NoImagesError, match=r"no image in '.*empty' .*, only other files: \.txt \(1\)\. Give"):
        open_source(tmp_path / "empty")


def test_the_kind_of_a_folder_is_found(tmp_path: Path, tiny_broden) -> None:
    assert isinstance(open_source(put(tmp_path / "flat", "a.png")), PathSource)
    assert isinstance(open_source(str(tiny_broden().root)), BrodenSource)


def test_a_scheme_says_what_a_folder_is(tmp_path: Path, tiny_broden) -> None:
    root = tiny_broden().root
    assert open_source(root).kind == "broden"
    assert open_source(f"broden:{root}").kind == "broden"
    forced = open_source(Path(f"FOLDER:{root}"))
    assert forced.kind == "class folders"
    assert forced.class_names == ["sub"]
    assert forced.left_out == {".csv": 2}
    assert forced.root == root


@pytest.mark.parametrize("data", ["folders:{}", "s3://bucket/images", "http:{}"])
def test_a_scheme_that_is_none_lists_those_there_are(tmp_path: Path, data: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"^There is no reader '\w+' for .* The readers are broden, voc, .*: give folder:DIR",
    ):
        open_source(data.format(tmp_path))


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "imagenet:x/a.png", "day: one/a.png", "2024-01-01/a.png"))
    for data in ("imagenet:x", "day: one", "./imagenet:x", "folder:imagenet:x"):
        assert listed(open_source(data)) == [("a.png", -1)]
    for data in ("C:\\images", "C:images", "./x:y", "/x:y", "2024:x"):
        with pytest.raises(MissingPathError, match="There is no folder"):
            open_source(data)


def test_home_is_found_behind_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(put(tmp_path, "pictures/a.png")))
    assert open_source("folder:~/pictures").root == tmp_path / "pictures"


def test_a_scheme_in_front_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'imagenet:' .* names no folder: give imagenet:DIR"):
        open_source("imagenet:")
    (tmp_path / "a.txt").write_text("x")
    for scheme in ("folder", "broden", "imagenet", "places365"):
        with pytest.raises(MissingPathError, match=r"There is no folder '.*gone'"):
            open_source(f"{scheme}:{tmp_path}/gone")
        with pytest.raises(UsageError, match=r"a\.txt' \(--data\) is a file"):
            open_source(f"{scheme}:{tmp_path}/a.txt")


def test_a_name_that_no_disk_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        open_source("x" * 5000)
    with pytest.raises(MissingPathError, match=r"There is no folder 'a\\x00b'"):
        open_source("a\0b")


def test_a_folder_that_is_a_link_to_itself_or_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    for name in ("self", "gone"):
        with pytest.raises(MissingPathError, match="There is no folder"):
            open_source(tmp_path / name)


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


def test_a_look_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    put(tmp_path, "a.png")
    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(UsageError, match=r"cannot be read: Permission denied\. Fix it, or its permissions"):
        open_source(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "exists", refused)
    for scheme in ("folder", "broden", "imagenet", "places365"):
        with pytest.raises(UsageError, match=r"cannot be read: Permission denied"):
            open_source(f"{scheme}:{tmp_path}")


def test_a_name_with_a_line_break_stays_in_its_line(tmp_path: Path) -> None:
    source = open_folder(put(tmp_path, "one\ntwo/a\tb\r\n.png"))
    assert source.name(0) == "one\ntwo/a\tb\r\n.png"
    assert source.class_names == ["one\ntwo"]
    assert source.image(0).size == (4, 3)
    source.path(0).write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        source.image(0)
    assert "one\\ntwo/a\\tb\\r\\n.png' is no image file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_as_they_are_shown() -> None:
    assert shown("grün/猫 1.png") == "grün/猫 1.png"
    assert shown(Path("a\x1b[31m\udce9\u2028")) == "a\\x1b[31m\\udce9\\u2028"


def test_names_and_labels_in_flat_arrays() -> None:
    pairs = [("grün/猫.png", 3), ("", -1), ("caf\udce9\n.png", 2**31 - 1)]
    for items in (Items(iter(pairs)), pickle.loads(pickle.dumps(Items(pairs)))):  # noqa: S301
        assert list(items) == pairs
        assert items[::-1] == pairs[::-1]
        assert (items[-1], items[np.int64(1)]) == (pairs[2], pairs[1])
        assert items.names[1:] == [name for name, _ in pairs[1:]]
        assert items.labels.tolist() == [label for _, label in pairs]
        for beyond in (3, -4):
            with pytest.raises(IndexError):
                items[beyond]
    assert (len(Items([])), list(Names([]))) == (0, [])


def test_a_source_of_many_images_is_small_for_every_worker(tmp_path: Path) -> None:
    items = ((f"train/n{k // 1300:08d}/n{k // 1300:08d}_{k}.JPEG", k // 1300) for k in range(100_000))
    source = PathSource(tmp_path, items, [f"n{k:08d}" for k in range(1000)], "imagenet")
    data = pickle.dumps(source)
    assert len(data) < 6_000_000
    copy = pickle.loads(data)  # noqa: S301
    assert (copy.name(99_999), copy.label(99_999)) == ("train/n00000076/n00000076_99999.JPEG", 76)
    assert (copy.path(0), len(copy)) == (tmp_path / "train/n00000000/n00000000_0.JPEG", 100_000)
    assert copy.names[-1] == copy.name(99_999)
    assert copy.labels[-1] == 76
    decode = pickle.loads(pickle.dumps(Decode(source, shown, [[0, 1, 2], [], [3, 5], [7, 6], [9]])))  # noqa: S301
    assert decode.batches == [range(3), [], [3, 5], [7, 6], range(9, 10)]  # runs take no room in a worker


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 255, 16).astype(np.uint8).reshape(4, 4)
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode not in ("L", "RGB"):
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    file = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
    image.save(file)
    read = to_mode(read_image(file), "RGB", (0, 255) if mode == "F" else None)
    assert (read.mode, read.size) == ("RGB", (4, 4))
    if mode not in ("1", "CMYK"):
        assert np.abs(np.asarray(read)[..., 0].astype(int) - grey).max() <= 1  # 16 bits are scaled, never clipped


def test_a_palette_with_transparency_warns_nobody(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert to_mode(read_image(tmp_path / "a.png")).mode == "RGB"


def test_the_image_outlives_its_file(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    image = read_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert np.asarray(image).shape == (3, 4, 3)


def bad_image(path: Path, kind: str) -> Path:
    g = np.random.default_rng(0)
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("I am no picture")
    elif kind == "truncated":
        Image.fromarray(g.integers(0, 256, (40, 40, 3), np.uint8)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-900])
    elif kind == "bomb":
        Image.new("L", (400, 400)).save(path, "PNG")
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("zero bytes", "is no image file"),
        ("text", "is no image file"),
        ("truncated", "cannot be decoded: image file is truncated"),
        ("bomb", "is refused: Image size .* exceeds limit"),
        ("folder", "cannot be decoded: Is a directory"),
    ],
)
def test_bad_images_end_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, wanted: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path = bad_image(tmp_path / "x.jpg", kind)
    with pytest.raises(ImageError, match=wanted) as caught:
        read_image(path)
    assert f"'{path}'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ".." not in str(caught.value)


def test_a_large_image_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between once and twice the limit Pillow warns; threads must not undo each other's filters."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    Image.new("L", (120, 120)).save(tmp_path / "large.png")
    Image.new("L", (150, 150)).save(tmp_path / "bomb.png")
    raw: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # undoes whatever was filtered before
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: raw.append(str(message)))
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(read_image, [tmp_path / "large.png"] * 200))
        with pytest.raises(ImageError, match="is refused: Image size"):
            read_image(tmp_path / "bomb.png")
        filters = len(warnings.filters)
        read_image(tmp_path / "large.png")
        assert len(warnings.filters) == filters
        warnings.warn("others are still heard", UserWarning, stacklevel=1)
    assert {image.size for image in images} == {(120, 120)}
    assert raw == ["others are still heard"]


def test_threads_that_swap_filters_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    Image.new("L", (120, 120)).save(tmp_path / "large.png")
    read_image(tmp_path / "large.png")  # as in a process of its own, whose filters hold ours from the first import on
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            with warnings.catch_warnings():
                pass

    other = threading.Thread(target=swap)
    other.start()
    try:
        for _ in range(300):
            read_image(tmp_path / "large.png")  # a warning would be an error here
    finally:
        stop.set()
        other.join()


def test_broken_metadata_beside_sound_pixels_warns_nobody(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\x00\x01\0\0\x12\x01\x03\0\x01"
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 20)


def test_bytes_are_decoded_as_files_are() -> None:
    file = BytesIO()
    Image.new("L", (3, 2), 7).save(file, "PNG")
    assert np.asarray(decode_image(file.getvalue(), "x")).tolist() == [[7] * 3] * 2
    with pytest.raises(ImageError, match="^'a shard/b' is no image file"):
        decode_image(b"", "a shard/b")


def test_whatever_a_decoder_raises_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png")

    def load(_: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageError, match="cannot be decoded: unpack requires"):
        read_image(tmp_path / "a.png")


def test_any_flipped_bytes_give_an_image_or_an_image_error(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    pixels = Image.fromarray(g.integers(0, 256, (16, 16, 3), np.uint8))
    for ending in ("png", "jpg", "bmp", "ppm", "webp"):
        file = tmp_path / f"a.{ending}"
        pixels.save(file)
        data = bytearray(file.read_bytes())
        for _ in range(60):
            harmed = bytearray(data)
            for i in g.integers(0, min(len(data), 80), 3):
                harmed[i] = g.integers(256)
            file.write_bytes(harmed[: g.integers(len(data) // 2, len(data) + 1)])
            with suppress(ImageError):
                assert read_image(file).mode == "RGB"
