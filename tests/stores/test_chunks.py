from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd

from stores.chunks import ChunkedArray, content_size
from stores.errors import CorruptStoreError
from stores.format import ArraySpec, array_document
from stores.io import checksum, json_bytes


def make(root: Path, shape: tuple[int, ...], rows: int, dtype: str, codec: str, fill: float = 0) -> ChunkedArray:
    spec = ArraySpec(shape, (rows, *shape[1:]), dtype, fill, codec == "zstd")
    (root / "x").mkdir(parents=True)
    (root / "x/zarr.json").write_bytes(json_bytes(array_document(spec)))
    return ChunkedArray(root, "x", spec)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 3)])
def test_zarr_reads_what_is_written_and_the_other_way_round(
    tmp_path: Path, shape: tuple, dtype: str, codec: str
) -> None:
    x = (np.arange(np.prod(shape)).reshape(shape) % 100).astype(dtype)
    ours = make(tmp_path / "ours", shape, 4, dtype, codec)
    for k in range(ours.n_chunks):
        ours.write(k, x[k * 4 : (k + 1) * 4])
    assert np.array_equal(zarr.open_array(tmp_path / "ours" / "x", mode="r")[:], x)
    theirs = make(tmp_path / "theirs", shape, 4, dtype, codec)
    zarr.open_array(tmp_path / "theirs" / "x", mode="r+")[:] = x
    for array in (ours, theirs):
        read = [np.asarray(array.read(k)) for k in range(array.n_chunks)]
        assert [len(r) for r in read] == [4, 3]
        assert np.array_equal(np.concatenate(read), x)
        assert read[0].dtype == x.dtype


@given(n=st.integers(1, 20), rows=st.integers(1, 8), seed=st.integers(0, 9))
def test_any_split_into_chunks(tmp_path_factory: pytest.TempPathFactory, n: int, rows: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 2, 3)).astype(np.float32)
    array = make(tmp_path_factory.mktemp("a"), x.shape, min(rows, n), "float32", "none")
    entries = [array.write(k, x[k * array.chunk_rows :][: array.chunk_rows]) for k in range(array.n_chunks)]
    assert np.array_equal(np.concatenate([array.read(k) for k in range(array.n_chunks)]), x)
    assert sum(array.rows(k) for k in range(array.n_chunks)) == n
    assert {entry["bytes"] for entry in entries} == {array.chunk_bytes}


@pytest.mark.parametrize(("rows", "dtype"), [(3, "float16"), (4, "float32"), (4, "float64")])
def test_rows_of_another_shape_or_type_are_refused(tmp_path: Path, rows: int, dtype: str) -> None:
    array = make(tmp_path, (8, 2), 4, "float16", "none")
    with pytest.raises(ValueError, match=r"takes \(4, 2\) float16, got"):
        array.write(0, np.zeros((rows, 2), dtype))
    assert not array.file(0).exists()


def test_a_map_can_be_written_to_without_reaching_the_file(tmp_path: Path) -> None:
    array = make(tmp_path, (4, 2), 4, "float32", "none")
    array.write(0, np.ones((4, 2), np.float32))
    array.read(0)[:] = 9
    assert np.array_equal(array.read(0), np.ones((4, 2)))


def test_crc32c_of_the_standard() -> None:
    assert checksum(memoryview(b"123456789")) == 0xE3069283
    assert checksum(memoryview(b"")) == 0


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "longer", "text", "folder"])
def test_a_damaged_file_is_never_read_as_numbers(tmp_path: Path, codec: str, harm: str) -> None:
    array = make(tmp_path, (5, 3), 4, "float32", codec)
    entry = array.write(0, np.ones((4, 3), np.float32))
    assert array.check(0, entry, every_byte=True) is None
    file, data = array.file(0), array.file(0).read_bytes()
    if harm in ("missing", "folder"):
        file.unlink()
    if harm == "folder":
        file.mkdir()
    harmed = {"empty": b"", "truncated": data[:-1], "longer": data + b"\0" * len(data), "text": b"hello"}
    if harm in harmed:
        file.write_bytes(harmed[harm])
    problem = array.check(0, entry, every_byte=False)
    assert problem is not None
    assert problem.startswith("chunk 0 of x: ")
    if (codec, harm) != ("zstd", "longer"):  # zstd stops at its frame's end; its record knows better
        with pytest.raises(CorruptStoreError, match=r"Chunk 0 of 'x' cannot be read .*Run `eddp verify`"):
            array.read(0)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_every_flipped_byte_is_found(tmp_path: Path, codec: str) -> None:
    array = make(tmp_path, (5, 3), 4, "float16", codec)  # the last chunk is padded: its padding counts too
    entry = array.write(1, np.full((1, 3), 2, np.float16))
    data = array.file(1).read_bytes()
    for i in range(len(data)):
        array.file(1).write_bytes(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :])
        assert "do not match" in str(array.check(1, entry, every_byte=True))
        with suppress(CorruptStoreError):  # decoding it either fails with one message, or gives the right shape
            assert array.read(1).shape == (1, 3)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_791, 65_792, 10**6])
@pytest.mark.parametrize("level", [1, 19])
def test_a_frame_says_how_large_it_is(size: int, level: int) -> None:
    data = bytes(Zstd(level=level).encode(np.random.default_rng(0).integers(0, 4, size, np.uint8)))
    assert content_size(data) == size
    assert content_size(data[:4]) is None
    assert content_size(b"\0" + data[1:]) is None


def test_a_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    array = make(tmp_path, (8, 3), 4, "float32", "zstd")
    for rows in (3, 5, 400):
        array.file(0).parent.mkdir(parents=True, exist_ok=True)
        array.file(0).write_bytes(Zstd().encode(np.zeros((rows, 3), np.float32)))
        with pytest.raises(CorruptStoreError, match=f"{rows * 12} decoded bytes instead of 48"):
            array.read(0)
