import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.broden import BrodenSource
from extract.images import PathSource, open_folder, open_source, read_image
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


def test_links_that_lead_up_or_nowhere(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a/1.png", "b/2.png")
    put(tmp_path, "not ours.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "higher").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    (root / "b" / "to a").symlink_to(root / "a")
    (root / "gone.png").symlink_to(root / "nothing")
    names = [name for name, _ in listed(open_folder(root))]
    assert names == ["a/1.png", "b/2.png", "b/to a/1.png", "gone.png"]
    with pytest.raises(ImageError, match="No such file"):
        open_folder(root).image(3)


def test_two_links_to_one_folder_are_two_classes(tmp_path: Path) -> None:
    put(tmp_path / "all", "1.png")
    (tmp_path / "data").mkdir()
    for name in ("x", "y"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "all")
    assert listed(open_folder(tmp_path / "data")) == [("x/1.png", 0), ("y/1.png", 1)]


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
    with pytest.raises(NoImagesError, match=r"no image in '.*empty'.*\.jpg, \.jpeg, \.png"):
        open_source(tmp_path / "empty")


def test_the_kind_of_a_folder_is_found(tmp_path: Path, tiny_broden) -> None:
    assert isinstance(open_source(put(tmp_path / "flat", "a.png")), PathSource)
    assert isinstance(open_source(str(tiny_broden().root)), BrodenSource)


def test_the_digest_sees_names_order_labels_and_sizes(tmp_path: Path) -> None:
    base = open_folder(put(tmp_path / "0", "a/1.png", "b/2.png"))
    assert base.digest == open_folder(put(tmp_path / "1", "a/1.png", "b/2.png")).digest
    others = {
        open_folder(put(tmp_path / "2", "a/1.png", "b/3.png")).digest,
        open_folder(put(tmp_path / "3", "a/1.png", "a/2.png")).digest,
        open_folder(put(tmp_path / "4", "a/1.png", "b/2.png", "b/3.png")).digest,
        PathSource(base.root, base.items[::-1], base.class_names, base.kind).digest,
        PathSource(base.root, [(name, 0) for name, _ in base.items], base.class_names, base.kind).digest,
    }
    (tmp_path / "1" / "a" / "1.png").write_bytes(b"shorter")
    others.add(open_folder(tmp_path / "1").digest)
    assert len(others | {base.digest}) == 7


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
    read = read_image(file)
    assert (read.mode, read.size) == ("RGB", (4, 4))
    if mode not in ("1", "CMYK"):
        assert np.abs(np.asarray(read)[..., 0].astype(int) - grey).max() <= 1  # 16 bits are scaled, never clipped


def test_a_palette_with_transparency_warns_nobody(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert read_image(tmp_path / "a.png").mode == "RGB"


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
        ("missing", "cannot be decoded: No such file or directory"),
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


def test_whatever_a_decoder_raises_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import struct

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
