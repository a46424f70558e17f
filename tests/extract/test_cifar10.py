"""CIFAR-10: its pixels, its files alone, and pickles that are damaged or hostile."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import PER_BATCH as N
from image_folders import batch_value, batches, listed, put_binary, put_python, python2

from extract.datasets import open_source
from extract.datasets.cifar10 import open_cifar10
from stores.errors import DatasetError, EDDPError, ImageError, MissingPathError, UsageError

Put = Callable[[Path, dict], Path]


def python_names(data: dict) -> list[str]:
    return [f"{stem}/{name}" for stem, (_, _, names) in data.items() for name in names]


def check_pixels(source: Any, data: dict) -> None:
    pixels = np.concatenate([pixels for pixels, _, _ in data.values()]).reshape(-1, 3, 32, 32)
    for i in range(len(source)):
        np.testing.assert_array_equal(np.asarray(source.image(i)), np.moveaxis(pixels[i], 0, 2))


@pytest.mark.parametrize(("put", "inner"), [(put_binary, "cifar-10-batches-bin"), (put_python, "cifar-10-batches-py")])
def test_pixels_and_the_folder_above(tmp_path: Path, put: Put, inner: str) -> None:
    root = put(tmp_path / inner, batches())
    source = open_source(tmp_path)
    check_pixels(source, batches())
    ending = ".bin" if put is put_binary else ""
    assert source.path(0) == root / f"data_batch_1{ending}"
    assert source.path(-1) == source.path(5 * N) == root / f"test_batch{ending}"


@pytest.mark.parametrize("protocol", [3, 4])
def test_what_python_3_pickles_again(tmp_path: Path, protocol: int) -> None:
    data = batches()
    root = put_python(tmp_path / "c", data)
    for stem, batch in data.items():
        value = {key.encode(): item for key, item in batch_value(stem, *batch).items()}
        (root / stem).write_bytes(pickle.dumps(value, protocol=protocol))
    source = open_cifar10(root)
    assert [name for name, _ in listed(source)] == python_names(data)
    check_pixels(source, data)


def test_the_binary_version_wins_where_both_are(tmp_path: Path) -> None:
    put_python(tmp_path / "cifar-10-batches-py", batches())
    put_binary(tmp_path / "cifar-10-batches-bin", batches())
    assert open_cifar10(tmp_path).name(0) == "train/00000"


@pytest.mark.parametrize(("stem", "first"), [("test_batch", "test/00000"), ("data_batch_2", "train/10000")])
def test_one_file_only(tmp_path: Path, stem: str, first: str) -> None:
    data = {stem: batches()[stem]}
    source = open_source(put_binary(tmp_path / "b", data) / f"{stem}.bin")
    assert (source.name(0), len(source)) == (first, N)
    check_pixels(source, data)
    source = open_source(f"cifar10:{put_python(tmp_path / 'p', data) / stem}")
    assert [name for name, _ in listed(source)] == python_names(data)


def test_without_names_of_files_or_of_classes(tmp_path: Path) -> None:
    data = batches()
    root = put_python(tmp_path / "c", data)
    pixels, labels, names = data["data_batch_1"]
    for given in (None, [names[0], *names[:2]], names[:2], [1, 2, 3]):
        value = batch_value("x", pixels, labels, names) | {"filenames": given}
        (root / "data_batch_1").write_bytes(python2({k: v for k, v in value.items() if v is not None}))
        assert open_cifar10(root).name(1) == "data_batch_1/00001"
    (root / "batches.meta").unlink()
    assert open_cifar10(root).class_names is None
    binary = put_binary(tmp_path / "b", data)
    (binary / "batches.meta.txt").unlink()
    assert open_cifar10(binary).class_names is None


def test_the_digest_sees_pixels_labels_and_names(tmp_path: Path) -> None:
    data = batches()
    digests = [open_cifar10(put(tmp_path / put.__name__, data)).digest for put in (put_binary, put_python)]
    data["test_batch"][0][0, 0] ^= 1
    digests.append(open_cifar10(put_binary(tmp_path / "0", data)).digest)
    data["test_batch"][1][0] ^= 1
    digests.append(open_cifar10(put_binary(tmp_path / "1", data)).digest)
    assert len(set(digests)) == 4
    assert open_cifar10(put_binary(tmp_path / "4", data)).digest == digests[-1]
    assert len(pickle.dumps(open_cifar10(tmp_path / "4"))) < 5000


def test_files_of_another_length(tmp_path: Path) -> None:
    file = tmp_path / "test_batch.bin"
    file.write_bytes(bytes(3073 * 10_000))
    assert len(open_source(file)) == 10_000
    file.write_bytes(bytes(3073 * 10_001))
    with pytest.raises(DatasetError, match="test_batch.bin' holds 10001 images, CIFAR-10's own 10000"):
        open_source(file)
    for size in (0, 3072, 3073 * 2 + 1):
        os.truncate(file, size)
        with pytest.raises(DatasetError, match=rf"batch\.bin' has {size} bytes, no multiple of 3073\. Unpack or"):
            open_source(file)


def test_a_pickle_that_is_cut_short(tmp_path: Path) -> None:
    file = put_python(tmp_path / "c", {"test_batch": batches()["test_batch"]}) / "test_batch"
    whole = file.read_bytes()
    for size in range(0, len(whole), 97):
        file.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"test_batch' (\(\d+ bytes\) is cut short or damaged|is refused): "):
            open_source(file)


def test_any_flipped_bytes_of_a_pickle_are_read_or_refused(tmp_path: Path) -> None:
    data = {"test_batch": batches()["test_batch"]}
    file = put_python(tmp_path / "c", data) / "test_batch"
    whole = file.read_bytes()
    g = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(400):
        harmed = bytearray(whole)
        for _ in range(2):
            k = int(g.integers(0, 400))  # the head up to the pixels, and the tail behind them
            harmed[k if k < 250 else len(whole) - k + 249] = g.integers(256)
        file.write_bytes(harmed)
        try:
            source = open_cifar10(file)
            for i in range(len(source)):
                source.image(i)
        except DatasetError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not [message for message in refused if "\n" in message or "test_batch" not in message]


def test_files_that_are_missing_or_called_otherwise(tmp_path: Path) -> None:
    root = put_binary(tmp_path / "c", batches())
    (root / "data_batch_2.bin").unlink()
    (root / "test_batch.bin").unlink()
    with pytest.raises(DatasetError, match=r"c' lacks data_batch_2\.bin, test_batch\.bin of CIFAR-10\. Unpack the"):
        open_source(root)
    with pytest.raises(MissingPathError, match=r"There is no CIFAR-10 in '.*gone' .*data_batch_1\.bin"):
        open_source(f"cifar10:{tmp_path / 'gone'}")
    (tmp_path / "mine.bin").write_bytes(bytes(3073))
    with pytest.raises(DatasetError, match=r"mine\.bin' \(--data\) is no batch file .* called data_batch_1"):
        open_source(f"cifar10:{tmp_path / 'mine.bin'}")
    with pytest.raises(UsageError, match=r"mine\.bin' \(--data\) is a file"):
        open_source(tmp_path / "mine.bin")


@pytest.mark.parametrize("put", [put_binary, put_python])
def test_an_unknown_class(tmp_path: Path, put: Put) -> None:
    data = batches()
    data["data_batch_3"][1][2] = 10
    with pytest.raises(DatasetError, match=r"data_batch_3.*', image 2: class 10 is not one of 0 to 9\."):
        open_cifar10(put(tmp_path / "c", data))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path) -> None:
    root = put_python(tmp_path / "c", batches())
    bomb = Bomb(tmp_path / "exploded")
    for protocol in range(6):
        for value in (bomb, {"data": bomb}, batch_value("x", *batches()["test_batch"]) | {"more": [bomb]}):
            (root / "test_batch").write_bytes(pickle.dumps(value, protocol=protocol))
            with pytest.raises(DatasetError, match=r"test_batch' is refused: .* nothing is unpickled here\. Take the"):
                open_source(root)
    (root / "test_batch").write_bytes(pickle.dumps({"data": bomb}, protocol=3))
    with pytest.raises(DatasetError, match="it calls 'posix system'"):
        open_source(root)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("opcodes", [
    b"cnumpy\nload\n(U\x05x.npytR.", b"cnumpy.core.multiarray\nfromfile\n.", b"cbuiltins\neval\n.", b"\x82\x01.", b"Px\n.",
    b"(iposix\nsystem\n.", b"}(" + pickle.dumps(((("a",),),), 2)[2:-1] + b"K\x01u.", b"\x8f.", b"t.", b"(d.", b"r\xff\xff\xff\xff.",
])  # fmt: skip
def test_hostile_opcodes(tmp_path: Path, opcodes: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(b"\x80\x02" + opcodes)
    with pytest.raises(DatasetError, match=r"test_batch' (is refused|\(.*is cut short or damaged): "):
        open_source(tmp_path / "test_batch")


@pytest.mark.parametrize(
    "harm",
    [
        lambda v: v.pop("data"),
        lambda v: v.pop("labels"),
        lambda v: v.update(labels=v["labels"][:-1]),
        lambda v: v.update(labels=["1", "2", "3"]),
        lambda v: v.update(labels=[], data=v["data"][:0]),
        lambda v: v.update(data=v["data"][:, :3000].copy()),
        lambda v: v.update(data=v["data"][:2].copy()),
        lambda v: v.update(data=np.asfortranarray(v["data"])),
        lambda v: v.update(data=v["data"].astype(np.int16)),
        lambda v: v.update(data=[1, 2]),
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, harm: Callable[[dict], object]) -> None:
    value = batch_value("x", *batches()["test_batch"])
    harm(value)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(DatasetError, match="test_batch' is no batch of CIFAR-10: it must hold 'data', bytes in rows"):
        open_source(tmp_path / "test_batch")


def test_an_array_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    pixels, labels, names = batches()["test_batch"]
    value = python2(batch_value("x", pixels[:2], labels, names))
    assert value.count(b"K\x02M\x00\x0c") == 1
    (tmp_path / "test_batch").write_bytes(value.replace(b"K\x02M\x00\x0c", b"K\x03M\x00\x0c"))
    with pytest.raises(DatasetError, match="test_batch' is no batch of CIFAR-10"):
        open_source(tmp_path / "test_batch")


@pytest.mark.parametrize("value", [[1], {"label_names": []}, {"label_names": [1]}, {"names": ["cat"]}])
def test_names_of_classes_that_are_none(tmp_path: Path, value: object) -> None:
    root = put_python(tmp_path / "c", batches())
    (root / "batches.meta").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(DatasetError, match=r"batches\.meta' must hold a list 'label_names' of texts"):
        open_cifar10(root)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    root = put_binary(tmp_path / "c", batches())
    source = open_cifar10(root)
    os.truncate(root / "data_batch_1.bin", 3073 + 100)
    assert source.image(0).size == (32, 32)
    with pytest.raises(EDDPError, match=r"'train/00001' .*data_batch_1\.bin' ends 2973 bytes too early") as caught:
        source.image(1)
    assert not isinstance(caught.value, ImageError)  # nothing to skip: all images that follow would be


@pytest.mark.parametrize("kind", [list, tuple])
def test_filenames_that_are_nested_are_none(tmp_path: Path, kind: type) -> None:
    """A value of a few bytes that never ends when it is compared or hashed."""
    value: object = kind(["a"])
    for _ in range(400):
        value = kind([value, value])
    file = put_python(tmp_path / "c", batches()) / "test_batch"
    whole = file.read_bytes()
    # the memo's numbers would clash: the list is put behind all that is remembered, under the same key
    file.write_bytes(whole[: whole.rindex(b"u.")] + b"U\x09filenames" + pickle.dumps([value] * N, 2)[2:-1] + b"u.")
    assert open_source(file).name(N - 1) == f"test_batch/{N - 1:05d}"
