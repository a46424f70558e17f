import logging
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from extract.datasets import open_source
from extract.datasets.cifar10 import Cifar10Source, open_cifar10
from stores.errors import DatasetError, EDDPError, ImageError, MissingPathError, UsageError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STEMS = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
N = 3  # images in each small batch

Batches = dict[str, tuple[np.ndarray, list[int], list[str]]]


def batches() -> Batches:
    g = np.random.default_rng(1)
    return {
        stem: (
            g.integers(0, 256, (N, 3072), np.uint8),
            g.integers(0, 10, N).tolist(),
            [f"{stem[0]}_s_{k}{i:05d}.png" for i in range(N)],
        )
        for k, stem in enumerate(STEMS)
    }


def put_binary(folder: Path, data: Batches) -> Path:
    folder.mkdir(parents=True)
    for stem, (pixels, labels, _) in data.items():
        rows = (bytes([y]) + row.tobytes() for y, row in zip(labels, pixels, strict=True))
        (folder / f"{stem}.bin").write_bytes(b"".join(rows))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    (folder / "readme.html").write_text("x")
    return folder


class Python2:
    """Writes what cPickle of Python 2 wrote, protocol 2: texts and data as bytes, every string and container memoised."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[str, int] = {}

    def put(self, key: str = "") -> None:
        k = len(self.memo)
        self.memo[key or f"#{k}"] = k
        self.out += b"q" + bytes([k]) if k < 256 else b"r" + struct.pack("<I", k)

    def text(self, data: bytes) -> None:
        if len(data) < 256:
            self.out += b"U" + bytes([len(data)]) + data
        else:
            self.out += b"T" + struct.pack("<i", len(data)) + data
        self.put()

    def number(self, n: int) -> None:
        self.out += (
            b"K" + bytes([n]) if 0 <= n < 256 else b"M" + struct.pack("<H", n) if n >= 0 else b"J\xff\xff\xff\xff"
        )

    def called(self, name: bytes) -> None:
        self.out += b"c" + name
        self.put()

    def array(self, x: np.ndarray) -> None:
        self.called(b"numpy.core.multiarray\n_reconstruct\n")
        self.called(b"numpy\nndarray\n")
        self.number(0)
        self.out += b"\x85"
        self.put()
        self.text(b"b")
        self.out += b"\x87"
        self.put()
        self.out += b"R"
        self.put()
        self.out += b"("
        self.number(1)
        self.number(x.shape[0])
        self.number(x.shape[1])
        self.out += b"\x86"
        self.put()
        self.called(b"numpy\ndtype\n")
        self.text(b"u1")
        self.number(0)
        self.number(1)
        self.out += b"\x87"
        self.put()
        self.out += b"R"
        self.put()
        self.out += b"("
        self.number(3)
        self.text(b"|")
        self.out += b"NNN"
        self.number(-1)
        self.number(-1)
        self.number(0)
        self.out += b"t"
        self.put()
        self.out += b"b\x89"
        self.text(x.tobytes())
        self.out += b"t"
        self.put()
        self.out += b"b"

    def value(self, value: object) -> None:
        if isinstance(value, np.ndarray):
            self.array(value)
        elif isinstance(value, str):
            self.text(value.encode("latin-1"))
        elif isinstance(value, int):
            self.number(value)
        elif isinstance(value, list):
            self.out += b"]"
            self.put()
            self.out += b"("
            for item in value:
                self.value(item)
            self.out += b"e"
        elif isinstance(value, dict):
            self.out += b"}"
            self.put()
            self.out += b"("
            for key, item in value.items():
                self.value(key)
                self.value(item)
            self.out += b"u"

    def dumps(self, value: object) -> bytes:
        self.value(value)
        return bytes(self.out + b".")


def batch_value(stem: str, pixels: np.ndarray, labels: list[int], names: list[str]) -> dict[str, object]:
    return {"batch_label": f"{stem} of 5", "labels": labels, "data": pixels, "filenames": names}


def put_python(folder: Path, data: Batches) -> Path:
    folder.mkdir(parents=True)
    for stem, batch in data.items():
        (folder / stem).write_bytes(Python2().dumps(batch_value(stem, *batch)))
    meta = {"num_cases_per_batch": N, "label_names": NAMES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(Python2().dumps(meta))
    return folder


def check(source: Cifar10Source, data: Batches, names: list[str]) -> None:
    assert source.kind == "cifar10"
    assert source.class_names == NAMES
    assert [source.name(i) for i in range(len(source))] == names
    assert [source.label(i) for i in range(len(source))] == [y for _, labels, _ in data.values() for y in labels]
    pixels = np.concatenate([pixels for pixels, _, _ in data.values()]).reshape(-1, 3, 32, 32)
    for i in range(len(source)):
        image = source.image(i)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.moveaxis(pixels[i], 0, 2))


BINARY_NAMES = [f"train/{b}000{k}" for b in range(5) for k in range(N)] + [f"test/0000{k}" for k in range(N)]


def test_the_writer_of_these_tests_writes_what_python_2_did() -> None:
    x = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    data = Python2().dumps({"a": [1, 300, "x"], "data": x, "n": -1})
    value = pickle.loads(data, encoding="latin1")  # noqa: S301
    assert value["a"] == [1, 300, "x"]
    assert value["n"] == -1
    assert np.array_equal(value["data"], x)


@pytest.mark.parametrize("scheme", ["", "cifar10:"])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_the_binary_version(tmp_path: Path, inner: str, scheme: str) -> None:
    data = batches()
    root = put_binary(tmp_path / inner if inner else tmp_path / "c", data)
    source = open_source(f"{scheme}{tmp_path if inner else root}")
    assert isinstance(source, Cifar10Source)
    check(source, data, BINARY_NAMES)
    assert source.path(0) == root / "data_batch_1.bin"
    assert source.path(-1) == source.path(5 * N) == root / "test_batch.bin"


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_the_version_for_python(tmp_path: Path, inner: str) -> None:
    data = batches()
    root = put_python(tmp_path / inner if inner else tmp_path / "c", data)
    source = open_source(tmp_path if inner else root)
    assert isinstance(source, Cifar10Source)
    check(source, data, [f"{stem}/{name}" for stem, (_, _, names) in data.items() for name in names])
    assert source.path(N) == root / "data_batch_2"


@pytest.mark.parametrize("protocol", [3, 4])
def test_what_python_3_pickles_again(tmp_path: Path, protocol: int) -> None:
    data = batches()
    root = put_python(tmp_path / "c", data)
    for stem, batch in data.items():
        value = {key.encode(): item for key, item in batch_value(stem, *batch).items()}
        (root / stem).write_bytes(pickle.dumps(value, protocol=protocol))
    check(open_cifar10(root), data, [f"{stem}/{name}" for stem, (_, _, names) in data.items() for name in names])


def test_the_binary_version_wins_where_both_are(tmp_path: Path) -> None:
    put_python(tmp_path / "cifar-10-batches-py", batches())
    put_binary(tmp_path / "cifar-10-batches-bin", batches())
    assert open_cifar10(tmp_path).name(0) == "train/00000"


@pytest.mark.parametrize(
    ("stem", "names"),
    [
        ("test_batch", ["test/00000", "test/00001", "test/00002"]),
        ("data_batch_2", [f"train/1000{k}" for k in range(N)]),
    ],
)
def test_one_file_alone(tmp_path: Path, stem: str, names: list[str]) -> None:
    data = {stem: batches()[stem]}
    check(open_source(put_binary(tmp_path / "b", data) / f"{stem}.bin"), data, names)
    root = put_python(tmp_path / "p", data)
    check(open_source(f"cifar10:{root / stem}"), data, [f"{stem}/{name}" for name in data[stem][2]])


def test_without_names_of_files_or_of_classes(tmp_path: Path) -> None:
    data = batches()
    root = put_python(tmp_path / "c", data)
    pixels, labels, names = data["data_batch_1"]
    for given in (None, [names[0], *names[:2]], names[:2], [1, 2, 3]):
        value = batch_value("x", pixels, labels, names) | {"filenames": given}
        if given is None:
            del value["filenames"]
        (root / "data_batch_1").write_bytes(Python2().dumps(value))
        assert open_cifar10(root).name(1) == "data_batch_1/00001"
    (root / "batches.meta").unlink()
    assert open_cifar10(root).class_names is None
    binary = put_binary(tmp_path / "b", data)
    (binary / "batches.meta.txt").unlink()
    assert open_cifar10(binary).class_names is None


@pytest.mark.parametrize("put", [put_binary, put_python])
def test_a_source_for_workers(tmp_path: Path, put) -> None:
    data = batches()
    source = open_cifar10(put(tmp_path / "c", data))
    pickled = pickle.dumps(source)
    assert len(pickled) < 5000
    copy = pickle.loads(pickled)  # noqa: S301
    assert np.array_equal(np.asarray(copy.image(7)), np.asarray(source.image(7)))
    assert copy.digest == source.digest
    with pytest.raises(IndexError):
        source.image(6 * N)


def test_the_digest_sees_pixels_labels_and_names(tmp_path: Path) -> None:
    data = batches()
    digests = [
        open_cifar10(put_binary(tmp_path / "0", data)).digest,
        open_cifar10(put_python(tmp_path / "1", data)).digest,
    ]
    data["test_batch"][0][0, 0] ^= 1
    digests.append(open_cifar10(put_binary(tmp_path / "2", data)).digest)
    data["test_batch"][1][0] ^= 1
    digests.append(open_cifar10(put_binary(tmp_path / "3", data)).digest)
    assert len(set(digests)) == 4
    assert open_cifar10(put_binary(tmp_path / "4", data)).digest == digests[-1]


def test_whole_files_of_another_length_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_cifar10(put_binary(tmp_path / "c", batches()))
    assert "data_batch_1.bin' holds 3 images, CIFAR-10's own 10000" in caplog.text
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073 * 10_000))
    assert len(open_source(tmp_path / "test_batch.bin")) == 10_000
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073 * 10_001))
    with pytest.raises(DatasetError, match="test_batch.bin' holds 10001 images, CIFAR-10's own 10000"):
        open_source(tmp_path / "test_batch.bin")


def test_a_binary_file_that_is_cut_short(tmp_path: Path) -> None:
    root = put_binary(tmp_path / "c", batches())
    file = root / "data_batch_4.bin"
    for size in (0, 3072, 3073 * 2 + 1):
        os.truncate(file, size)
        with pytest.raises(
            DatasetError, match=rf"data_batch_4\.bin' has {size} bytes, .* of 3073 .* 30730000.*Unpack or download"
        ):
            open_source(root)
        file.write_bytes(bytes(3073 * 3))


def test_a_pickle_that_is_cut_short(tmp_path: Path) -> None:
    root = put_python(tmp_path / "c", batches())
    file = root / "data_batch_4"
    whole = file.read_bytes()
    for size in range(0, len(whole), 97):
        file.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=rf"data_batch_4' \({size} bytes\) is cut short or damaged: .*Unpack"):
            open_source(root)


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
    assert not [sentence for sentence in refused if "\n" in sentence or "test_batch" not in sentence]


def test_files_that_are_missing(tmp_path: Path) -> None:
    root = put_binary(tmp_path / "c", batches())
    (root / "data_batch_2.bin").unlink()
    (root / "test_batch.bin").unlink()
    with pytest.raises(
        DatasetError, match=r"c' lacks data_batch_2\.bin, test_batch\.bin of CIFAR-10\. Unpack the whole"
    ):
        open_source(root)
    (tmp_path / "empty").mkdir()
    for place in ("empty", "gone"):
        with pytest.raises(MissingPathError, match=rf"There is no CIFAR-10 in '.*{place}' .*data_batch_1\.bin"):
            open_source(f"cifar10:{tmp_path / place}")


def test_a_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "mine.bin").write_bytes(bytes(3073))
    with pytest.raises(
        DatasetError, match=r"mine\.bin' \(--data\) is no batch file of CIFAR-10: it must be called data_batch_1"
    ):
        open_source(f"cifar10:{tmp_path / 'mine.bin'}")
    with pytest.raises(UsageError, match=r"mine\.bin' \(--data\) is a file"):
        open_source(tmp_path / "mine.bin")


def test_a_class_that_there_is_not(tmp_path: Path) -> None:
    data = batches()
    data["data_batch_3"][1][2] = 10
    for put, name in ((put_binary, "data_batch_3.bin"), (put_python, "data_batch_3")):
        with pytest.raises(DatasetError, match=rf"{name}', image 2: there is no class 10; the classes are 0 to 9\."):
            open_cifar10(put(tmp_path / put.__name__, data))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    root = put_python(tmp_path / "c", batches())
    pixels, labels, names = batches()["test_batch"]
    bomb = Bomb(tmp_path / "exploded")
    for protocol in (0, 1, 2, 3, 4, 5):
        for value in (bomb, {"data": bomb}, batch_value("x", pixels, labels, names) | {"more": [bomb]}):
            (root / "test_batch").write_bytes(pickle.dumps(value, protocol=protocol))
            with pytest.raises(
                DatasetError, match=r"test_batch' is refused: .* nothing is unpickled here\. Take the files"
            ):
                open_source(root)
    (root / "test_batch").write_bytes(pickle.dumps({"data": bomb}, protocol=3))
    with pytest.raises(DatasetError, match="it calls 'posix system'"):
        open_source(root)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda v: v.pop("data"),
        lambda v: v.pop("labels"),
        lambda v: v.update(labels=v["labels"][:-1]),
        lambda v: v.update(labels=["1", "2", "3"]),
        lambda v: v.update(data=v["data"][:, :3000].copy()),
        lambda v: v.update(data=v["data"][:2].copy()),
        lambda v: v.update(data=np.asfortranarray(v["data"])),
        lambda v: v.update(data=v["data"].astype(np.int16)),
        lambda v: v.update(data=[1, 2]),
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, harm) -> None:
    root = put_python(tmp_path / "c", batches())
    pixels, labels, names = batches()["test_batch"]
    value = batch_value("x", pixels, labels, names)
    harm(value)
    (root / "test_batch").write_bytes(pickle.dumps(value, protocol=4))
    with pytest.raises(
        DatasetError, match="test_batch' is no batch of CIFAR-10: it must hold 'data', bytes in rows of 3072"
    ):
        open_source(root)


def test_an_array_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    pixels, labels, names = batches()["test_batch"]
    value = Python2().dumps(batch_value("x", pixels[:2], labels, names))
    assert value.count(b"K\x02M\x00\x0c") == 1
    (tmp_path / "test_batch").write_bytes(value.replace(b"K\x02M\x00\x0c", b"K\x03M\x00\x0c"))
    with pytest.raises(DatasetError, match="test_batch' is no batch of CIFAR-10"):
        open_source(tmp_path / "test_batch")


def test_names_of_classes_that_are_none(tmp_path: Path) -> None:
    root = put_python(tmp_path / "c", batches())
    for value in ([1], {"label_names": []}, {"label_names": [1]}, {"names": NAMES}):
        (root / "batches.meta").write_bytes(pickle.dumps(value, protocol=4))
        with pytest.raises(DatasetError, match=r"batches\.meta' must hold a list 'label_names' of texts"):
            open_cifar10(root)


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    root = put_binary(tmp_path / "c", batches())
    source = open_cifar10(root)
    os.truncate(root / "data_batch_1.bin", 3073 + 100)
    assert source.image(0).size == (32, 32)
    with pytest.raises(EDDPError, match=r"'train/00001' .*data_batch_1\.bin' ends 2973 bytes too early") as caught:
        source.image(1)
    assert not isinstance(caught.value, ImageError)  # nothing to skip: all images that follow would be
    (root / "data_batch_1.bin").unlink()
    with pytest.raises(
        EDDPError, match=r"'train/00000' in '.*data_batch_1\.bin' cannot be read: No such file"
    ) as caught:
        source.image(0)
    assert not isinstance(caught.value, ImageError)


def nested(depth: int, kind: type) -> object:
    """A value of a few bytes in a pickle that goes on for ever when it is looked into."""
    value: object = kind(["a"])
    for _ in range(depth):
        value = kind([value, value])
    return value


def as_pickled(value: object) -> bytes:
    """A value's opcodes alone: without those that begin a pickle and the one that ends it."""
    return pickle.dumps(value, protocol=2)[2:-1]


@pytest.mark.parametrize("kind", [list, tuple])
def test_filenames_that_are_nested_a_thousand_times_are_none(tmp_path: Path, kind: type) -> None:
    root = put_python(tmp_path / "c", batches())
    value = pickle.loads((root / "test_batch").read_bytes(), encoding="latin1")  # noqa: S301
    whole = (root / "test_batch").read_bytes()
    names = [nested(400, kind)] * len(value["labels"])
    # the memo's numbers would clash: the list is put behind all that is remembered, under the same key
    at = whole.rindex(b"u.")
    (root / "test_batch").write_bytes(whole[:at] + b"U\x09filenames" + as_pickled(names) + b"u.")
    source = open_cifar10(root)
    assert source.name(len(source) - 1) == f"test_batch/{len(names) - 1:05d}"


def test_a_key_that_is_nested_a_thousand_times_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x80\x02}(" + as_pickled(nested(400, tuple)) + b"K\x01u.")
    with pytest.raises(DatasetError, match=r"a' .*is cut short or damaged: a key is no text"):
        read_pickled(tmp_path / "a")


def test_many_marks_are_read_in_no_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".")
    value = read_pickled(tmp_path / "a")
    assert isinstance(value, tuple)
    while value:
        (value,) = value
    (tmp_path / "a").write_bytes(b"\x80\x02t.")
    with pytest.raises(DatasetError, match=r"a' .*is cut short or damaged: a mark is missing"):
        read_pickled(tmp_path / "a")


def test_plain_pickles(tmp_path: Path) -> None:
    file = tmp_path / "a"
    values = [
        {"a": [1, -1, 70_000, 2**40, None, True, False, ("x", (), (1,), (1, 2), (1, 2, 3, 4))]},
        [],
        {},
        ["é", ["é"]],
    ]
    for value in values:
        for protocol in (2, 3, 4, 5):
            file.write_bytes(pickle.dumps(value, protocol=protocol))
            assert read_pickled(file) == value
    with pytest.raises(DatasetError, match=r"gone' cannot be read: No such file"):
        read_pickled(tmp_path / "gone")
