"""Stores of objects, in fsspec's memory file system: the same as on a disk, in few requests, by several writers, kept."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept import CONTENT, LAYERS, OPTIONS
from object_places import URL, Asked, X
from tiny import contents, fill, open_writer, write_store

from stores import objects
from stores.attachments import write_attachment
from stores.errors import (
    CorruptStoreError,
    MissingPathError,
    StoreError,
    StoreExistsError,
    UnknownNameError,
    UnsealedStoreError,
    UsageError,
)
from stores.manifest import forget
from stores.paths import as_path, is_remote
from stores.readers import LayerReader
from stores.remote import GAP_BYTES, RemoteArray, ranges_of
from stores.shuffle import Shuffle, shuffled
from stores.sketch import quantile_sketch
from stores.statistics import statistics
from stores.store import ActivationStore


def below(path: Any) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in objects.sizes_below(path)}


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("s3://bucket/a.zarr", "s3://bucket/a.zarr"),
        ("s3://bucket//a.zarr/", "s3://bucket/a.zarr"),
        (Path("s3://bucket/a.zarr"), "s3://bucket/a.zarr"),  # which has lost a slash
        ("S3://bucket/a b/ü.zarr", "s3://bucket/a b/ü.zarr"),
        ("memory://x", "memory://x"),
        ("gs://b/x", "gs://b/x"),
    ],
)
def test_urls_stay_what_they_are(given_: str | Path, text: str) -> None:
    found = as_path(given_)
    assert is_remote(found)
    assert str(found) == text
    assert as_path(str(found)) == found == as_path(found)
    assert str(found / "layers/x" / "zarr.json") == f"{text}/layers/x/zarr.json"
    assert (found / "y").parent == found


@pytest.mark.parametrize(
    ("given_", "path"),
    [
        ("acts.zarr", "acts.zarr"), ("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("a:/b", "a:/b"), ("nothing:/b", "nothing:/b"),
        ("C:/x", "C:/x"), (Path("/s3:/b"), "/s3:/b"), ("s3:/b", "s3:/b"),
    ],
)  # fmt: skip
def test_paths_stay_paths(given_: str | Path, path: str) -> None:
    found = as_path(given_)
    assert not is_remote(found)
    assert found == Path(path)


@pytest.mark.parametrize("text", ["s3://", "s3:///", "s3://b/../c", "blockcache::s3://b/c"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no URL of a store|several protocols"):
        as_path(text)


def test_an_unknown_protocol_and_a_missing_package() -> None:
    with pytest.raises(UnknownNameError, match="no protocol 'nonsense://'"):
        ActivationStore.open("nonsense://a/b")
    pytest.importorskip("fsspec")
    with pytest.raises((UsageError, StoreError, MissingPathError)):  # whichever packages are here
        ActivationStore.open("oci://a/b")


@given(numbers=st.lists(st.integers(0, 120), max_size=40), per_chunk=st.integers(1, 40), gap=st.integers(0, 12))
def test_near_rows_of_one_object_are_one_range(numbers: list[int], per_chunk: int, gap: int) -> None:
    ordered = np.sort(np.array(numbers, np.int64))
    spans = ranges_of(ordered, per_chunk, gap)
    assert [k for start, stop in spans for k in range(start, stop)] == list(range(len(ordered)))  # each once, in order
    for start, stop in spans:
        run = ordered[start:stop]
        assert run[0] // per_chunk == run[-1] // per_chunk
        assert (np.diff(run) <= gap + 1).all()
        if stop < len(ordered):
            assert ordered[stop] - run[-1] > gap + 1 or ordered[stop] // per_chunk > run[-1] // per_chunk


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("gap", [0, 100, GAP_BYTES])
def test_rows_by_ranges_are_those_of_the_disk(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str, gap: int
) -> None:
    monkeypatch.setattr("stores.remote.GAP_BYTES", gap)
    monkeypatch.setattr("stores.remote.BATCH_BYTES", 3000)
    valid = np.arange(26) % 5 != 3
    for path in (remote, tmp_path / "s"):
        write_store(path, X, compress=compress, valid=valid)
    ours, theirs = LayerReader(remote), LayerReader(tmp_path / "s")
    assert isinstance(ours.array, RemoteArray)
    assert ours.array.prefetch_depth > 1
    g = np.random.default_rng(0)
    for count in (0, 1, 50, 3000):
        numbers = g.integers(0, theirs.n_rows, count)
        assert np.array_equal(ours.rows(numbers), theirs.rows(numbers))
    images = g.permutation(ours.image_indices)[:9]
    assert np.array_equal(ours.images(images), theirs.images(images))
    assert np.array_equal(ours.store.rows("logits", images), theirs.store.rows("logits", images))
    for (a, x), (b, y) in zip(ours.blocks(3), theirs.blocks(3), strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(x, y)
    assert ours.mapping is None
    assert np.array_equal(ours.sampled_rows(40, 1), theirs.sampled_rows(40, 1))
    how = Shuffle(batch_rows=100, window_bytes=1)
    for ours_, theirs_ in zip(shuffled(ours, how), shuffled(theirs, how), strict=True):
        assert np.array_equal(ours_.x.numpy(), theirs_.x.numpy())
    assert np.array_equal(statistics(ours).covariance, statistics(theirs).covariance)
    assert np.array_equal(quantile_sketch(ours, images=7).counts, quantile_sketch(theirs, images=7).counts)
    lazily = [reader.store.dask("a").compute(scheduler="synchronous") for reader in (ours, theirs)]
    assert np.array_equal(*lazily, equal_nan=True)


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_the_same_bytes_as_on_a_disk(remote: Path, tmp_path: Path, compress: str) -> None:
    """Heads, prefixes, sampled positions, an image that cannot be read: all that a store may hold."""
    for path in (remote, tmp_path / "s"):
        writer = open_writer(path, LAYERS, **{**OPTIONS, "compress": compress})
        fill(writer, LAYERS, **CONTENT)
        assert writer.missing() == []
        writer.seal()
        with pytest.raises(StoreError, match="sealed"):  # a late writer
            fill(writer, LAYERS, **CONTENT, chunks=[0])
        writer.close()
        for file in ActivationStore.open(path).attachments():
            write_attachment(file, {"x": np.arange(6.0), "none": np.zeros((0, 3))}, {"why": "to see"})
    assert below(remote) == contents(tmp_path / "s")
    store = ActivationStore.open(URL)
    assert store.verify() == []
    head, other = (ActivationStore.open(path).affine_head("block.1") for path in (remote, tmp_path / "s"))
    assert head is not None
    assert other is not None
    assert np.array_equal(head[0], other[0])
    late, disk = (LayerReader(path, "late") for path in (remote, tmp_path / "s"))
    assert np.array_equal(late.places(2), disk.places(2))


def test_opening_costs_two_requests(remote: Path, asked: Asked) -> None:
    write_store(remote, {"a": np.zeros((200, 2, 2), np.float32)}, chunk_images=1)
    with asked() as requests:
        store = ActivationStore.open(URL)
    assert requests == Counter(get=2, bytes=requests["bytes"])  # the root and the manifest
    with asked() as requests:
        assert store.valid.all()
    assert requests == Counter(get=200, bytes=200)


def test_chosen_rows_cost_their_bytes(remote: Path, asked: Asked) -> None:
    x = {"a": np.random.default_rng(0).standard_normal((8, 1024, 256)).astype(np.float32)}  # 4 MiB a chunk, 2 chunks
    write_store(remote, x)
    reader = LayerReader(URL)
    numbers = [0, 1, 3, 2047, 5000]
    with asked() as requests:
        assert np.array_equal(reader.rows(numbers), x["a"].reshape(-1, 256)[numbers])
    assert requests["get"] == 3  # 0, 1 and 3 are neighbours
    assert requests["bytes"] == 4 * 1024 + 2 * 1024
    with asked() as requests:
        reader.rows(range(512))
    assert requests["get"] == 1


def test_damaged_truncated_and_missing(remote: Path) -> None:
    write_store(remote, X)
    whole = below(remote)
    array = "layers/a/activations"

    def verified_with(name: str, data: bytes | None) -> list[str]:
        """What ``verify`` says with one object changed; what reading says, if it cannot."""
        objects.remove([remote / name]) if data is None else objects.put({remote / name: data})
        found = ActivationStore.examine(URL).verify()
        objects.put({remote / name: whole[name]})
        return found

    chunk = f"{array}/c.1.0.0"
    assert verified_with(chunk, None) == [f"chunk 1 of {array}: no such object"]
    assert verified_with(chunk, whole[chunk][:-4])[0].startswith(
        f"chunk 1 of {array}: {len(whole[chunk]) - 4} bytes instead of"
    )
    assert verified_with(chunk, b"\1" + whole[chunk][1:]) == [
        f"chunk 1 of {array}: its bytes do not match its recorded checksum"
    ]
    for name in ("layers/a/zarr.json", f"{array}/zarr.json", "images/zarr.json", "eddp.lock"):
        assert verified_with(name, None), name
        assert verified_with(name, whole[name] + b" "), name
    assert ActivationStore.examine(URL).verify() == []
    reader = LayerReader(URL)
    objects.put({remote / chunk: whole[chunk][:100]})
    with pytest.raises(CorruptStoreError):
        list(reader.blocks())
    objects.remove([remote / chunk])
    for read in (lambda: reader.rows([4 * 256 + 50]), lambda: reader.images([5]), lambda: list(reader.blocks())):
        with pytest.raises(CorruptStoreError, match="Chunk 1 of"):
            read()
    writer = open_writer(remote, X)  # the same command again redoes what is gone
    assert writer.missing() == [1]
    writer.close()
    write_store(remote, X)
    assert below(remote) == whole


def test_nothing_there_and_other_things(remote: Path) -> None:
    with pytest.raises(MissingPathError, match="There is no store at 'memory://somewhere/deep/acts.zarr'"):
        ActivationStore.open(URL)
    objects.put({remote / "notes.txt": b"mine"})
    with pytest.raises(MissingPathError, match="holds no zarr.json"):
        ActivationStore.open(URL)
    for overwrite in (False, True):
        with pytest.raises(StoreExistsError, match=r"notes\.txt"):
            open_writer(remote, X, overwrite=overwrite)
    assert below(remote) == {"notes.txt": b"mine"}
    with pytest.raises(StoreExistsError, match="is a file"):
        open_writer(remote / "notes.txt", X)


def test_a_record_of_another_writer_stays(remote: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two processes were given the same part: whoever comes second to a chunk leaves it as it is."""
    one, other = open_writer(remote, X), open_writer(remote, X)
    fill(one, X, chunks=[0, 1, 2])
    before = below(remote)
    changed = {"a": X["a"] + 1}  # as a machine would that rounds otherwise
    fill(other, changed, chunks=[0, 1, 2])
    assert caplog.text.count("another process fills the same part") == 1
    assert below(remote) == before
    fill(other, X, chunks=[3, 4])
    assert not one.seal_if_complete()
    fill(one, X, chunks=[3, 5, 6])
    assert other.seal_if_complete()
    assert one.seal_if_complete()
    for writer in (one, other):
        with pytest.raises(StoreError, match="sealed"):
            fill(writer, X, chunks=[0])
        writer.close()
    write_store(tmp_path / "s", X)
    assert below(remote) == contents(tmp_path / "s")


def test_a_chunk_without_a_record_is_written_again(remote: Path, tmp_path: Path) -> None:
    """What a run leaves that was killed between the objects of a chunk and its record."""
    write_store(remote, X, chunks=[0, 1])
    forget(remote, 1)
    objects.put({remote / "layers/a/activations/c.1.0.0": b"of somebody else"})
    with pytest.raises(UnsealedStoreError, match="1 of 7 chunks are committed"):
        ActivationStore.open(URL)
    again = open_writer(remote, X)
    assert again.missing() == [1, 2, 3, 4, 5, 6]
    write_store(remote, X)
    write_store(tmp_path / "s", X)
    assert below(remote) == contents(tmp_path / "s")


def test_many_begin_at_once(remote: Path, tmp_path: Path) -> None:
    """Without a lock: all lay out, each fills its shard, and the last one seals."""
    n = 4
    together, wrong = threading.Barrier(n), []

    def work(i: int) -> None:
        try:
            together.wait()
            writer = open_writer(remote, X, shard=(i, n))
            fill(writer, X)
            writer.seal_if_complete()
            writer.close()
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    write_store(tmp_path / "s", X)
    assert below(remote) == contents(tmp_path / "s")


def test_a_root_that_is_missing_deletes_nothing(remote: Path) -> None:
    write_store(remote, X)
    objects.remove([remote / "zarr.json"])
    before = below(remote)
    with pytest.raises(CorruptStoreError, match=r"is missing, but chunks of a store are there"):
        open_writer(remote, X)
    assert below(remote) == before
    write_store(remote, X, overwrite=True)
    assert ActivationStore.open(URL).verify() == []


def test_an_object_that_arrives_cut_short_is_no_chunk(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(remote, X)
    system = objects.filesystem("memory")
    whole = type(system).pipe_file

    def cut(self: Any, path: str, value: bytes, **more: Any) -> None:
        whole(self, path, value[:-1] if "activations/c." in path else value, **more)

    monkeypatch.setattr(type(system), "pipe_file", cut)
    with pytest.raises(StoreError, match="of 16384 bytes arrived"):
        fill(writer, X, chunks=[0])
    monkeypatch.undo()
    assert writer.committed() == {}
    fill(writer, X)
    writer.seal()
    assert ActivationStore.open(URL).verify() == []
