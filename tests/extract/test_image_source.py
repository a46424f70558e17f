"""Lists of images: names in flat arrays, and what their digest sees."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from extract.datasets import open_folder
from extract.image_io import shown
from extract.image_source import SAMPLE, PathSource, fingerprint
from extract.loader import Decode
from extract.string_array import Names
from stores.errors import EDDPError, ImageError


def test_names_in_flat_arrays() -> None:
    texts = ["grün/猫.png", "", "caf\udce9\n.png"]
    for names in (Names(iter(texts)), pickle.loads(pickle.dumps(Names(texts)))):  # noqa: S301
        assert list(names) == texts
        assert (names[::-1], names[-1], names[np.int64(1)]) == (texts[::-1], texts[2], texts[1])
        for beyond in (3, -4):
            with pytest.raises(IndexError):
                names[beyond]
    assert list(Names([])) == []


def test_a_source_of_many_images_is_small_for_every_worker(tmp_path: Path) -> None:
    items = ((f"train/n{k // 1300:08d}/n{k // 1300:08d}_{k}.JPEG", k // 1300) for k in range(100_000))
    source = PathSource(tmp_path, items, [f"n{k:08d}" for k in range(1000)], "imagenet")
    data = pickle.dumps(source)
    assert len(data) < 6_000_000
    copy = pickle.loads(data)  # noqa: S301
    assert (copy.name(99_999), copy.label(99_999)) == ("train/n00000076/n00000076_99999.JPEG", 76)
    assert (copy.path(0), len(copy)) == (tmp_path / "train/n00000000/n00000000_0.JPEG", 100_000)
    assert copy.names[-1] == copy.name(99_999)
    decode = pickle.loads(pickle.dumps(Decode(source, shown, [[0, 1, 2], [], [3, 5], [7, 6], [9]])))  # noqa: S301
    assert decode.batches == [range(3), [], [3, 5], [7, 6], range(9, 10)]  # runs take no room in a worker


NOON = 1_700_000_000


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (24, 20, 3), np.uint8)
        Image.fromarray(pixels).save(root / name, "BMP")
        os.utime(root / name, (NOON, NOON))
    return root


def test_names_order_labels_and_sizes(tmp_path: Path) -> None:
    base = open_folder(put(tmp_path / "0", "a/1.bmp", "b/2.bmp"))
    assert base.digest == open_folder(put(tmp_path / "1", "a/1.bmp", "b/2.bmp")).digest
    others = {
        open_folder(put(tmp_path / "2", "a/1.bmp", "b/3.bmp")).digest,
        open_folder(put(tmp_path / "3", "a/1.bmp", "a/2.bmp")).digest,
        open_folder(put(tmp_path / "4", "a/1.bmp", "b/2.bmp", "b/3.bmp")).digest,
        PathSource(base.root, list(base.items)[::-1], base.class_names, base.kind).digest,
        PathSource(base.root, [(name, 0) for name, _ in base.items], base.class_names, base.kind).digest,
    }
    with (tmp_path / "1/a/1.bmp").open("ab") as file:
        file.write(b"x")
    os.utime(tmp_path / "1/a/1.bmp", (NOON, NOON))
    others.add(open_folder(tmp_path / "1").digest)
    assert len(others | {base.digest}) == 7


def exported_again(path: Path) -> None:
    """The mirrored picture, of the same size in bytes."""
    size = path.stat().st_size
    image = ImageOps.flip(Image.open(path))
    image.save(path)
    assert path.stat().st_size == size
    os.utime(path, (NOON, NOON))


def later(path: Path) -> None:
    os.utime(path, (NOON, NOON + 1))


@pytest.mark.parametrize("change", [exported_again, later])
def test_a_file_that_was_written_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    before = open_folder(put(tmp_path, "a/1.bmp", "a/2.bmp")).digest
    assert open_folder(tmp_path).digest == before
    change(tmp_path / "a/2.bmp")
    assert open_folder(tmp_path).digest != before


@pytest.mark.parametrize("size", [0, 1, 3 * SAMPLE, 3 * SAMPLE + 1, 10_000])
def test_start_middle_and_end_are_sampled(tmp_path: Path, size: int) -> None:
    def digest(data: bytes) -> object:
        (tmp_path / "x").write_bytes(data)
        os.utime(tmp_path / "x", (NOON, NOON))
        return fingerprint(str(tmp_path / "x"))

    plain = bytes(size)
    for place in {0, size // 2, size - 1} if size else ():
        changed = bytearray(plain)
        changed[place] = 1
        assert digest(changed) != digest(plain)
    assert digest(plain) == digest(plain)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("call", ["open", "fstat", "pread"])
def test_a_disk_that_does_not_answer_is_no_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    source = open_folder(put(tmp_path, "a/1.bmp"))

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"extract.image_source.os.{call}", refused)
    with pytest.raises(EDDPError, match=f"^'{tmp_path}/a/1.bmp' cannot be read: {os.strerror(number)}\\. Fix its"):
        _ = source.digest
    monkeypatch.undo()
    assert source.digest


def test_a_file_that_vanished_stops_and_a_link_to_nothing_does_not(tmp_path: Path) -> None:
    put(tmp_path, "a/1.bmp", "a/2.bmp")
    (tmp_path / "a/3.bmp").symlink_to(tmp_path / "nothing")
    (tmp_path / "a/4.bmp").symlink_to(tmp_path / "a/4.bmp")
    os.mkfifo(tmp_path / "a/5.bmp")
    source = open_folder(tmp_path)
    assert source.digest == open_folder(tmp_path).digest
    for i in (2, 3, 4):
        with pytest.raises(ImageError):
            source.image(i)
    source = open_folder(tmp_path)
    source.path(0).unlink()
    with pytest.raises(EDDPError, match=r"1\.bmp' cannot be read: No such file"):
        _ = source.digest
