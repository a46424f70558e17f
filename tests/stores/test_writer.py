"""Laying out, committing, resuming, sealing: what is written, and what is not changed."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import contents, fill, names_for, open_writer, write_store

from stores.errors import CorruptStoreError, StoreError, StoreExistsError, UnsealedStoreError
from stores.format import LayerSpec
from stores.layout import default_chunk_images
from stores.locks import LOCK, LOCK_BYTES
from stores.manifest import commit_file, forget
from stores.store import ActivationStore
from stores.writer import StoreWriter, extremes

X = {"a": np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float32)}


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_going_on_gives_the_same_bytes_as_never_stopping(tmp_path: Path, compress: str) -> None:
    write_store(tmp_path / "whole", X, compress=compress)
    for done in ([], [1], [0, 2]):
        path = write_store(tmp_path / f"{done}", X, compress=compress, chunks=done)
        before = {name: (path / name).stat().st_mtime_ns for name in contents(path) if "/c." in name}
        (path / "images/labels/.c.1.01234567.partial").write_bytes(b"half of it")  # what a kill leaves
        writer = open_writer(path, X, compress=compress)
        assert writer.missing() == [k for k in range(3) if k not in done]
        fill(writer, X)
        writer.seal()
        writer.close()
        assert contents(path) == contents(tmp_path / "whole")
        assert all((path / name).stat().st_mtime_ns == time for name, time in before.items())  # not written again


def test_a_finished_store_is_left_as_it_is(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", X)
    before = {name: (path / name).stat().st_mtime_ns for name in contents(path)}
    writer = open_writer(path, X)
    assert writer.sealed
    assert writer.missing() == []
    writer.close()
    assert {name: (path / name).stat().st_mtime_ns for name in contents(path)} == before


def test_sealing_needs_every_chunk(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "s", X)
    fill(writer, X, chunks=[0, 2])
    with pytest.raises(UnsealedStoreError, match=r"1 of 3 chunks are missing \(1\)\. Run the same"):
        writer.seal()
    writer.close()
    with pytest.raises(UnsealedStoreError, match="2 of 3 chunks are committed, 1 are missing"):
        ActivationStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"dtype": "float16"}, "dtype: float32 → float16"),
        ({"compress": "zstd"}, "compress: none → zstd"),
        ({"chunk_images": 5}, "chunk_images: 4 → 5"),
        ({"n_classes": 4}, "n_classes: 3 → 4"),
        ({"class_names": ["a", "b", "c"]}, "class_names: none → a, b, c"),
        ({"provenance": {"model": "by hand", "dataset": {"digest": "x"}}}, "provenance.dataset differs"),
        ({"provenance": {"model": "y" * 200}}, "provenance.model differs"),
        ({"specs": {"a": LayerSpec("a", (3, 1), 2)}}, "layers.a.grid: 1, 3 → 3, 1"),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_store_of_something_else_is_refused_and_the_difference_named(
    tmp_path: Path, options: dict, wanted: str, sealed: bool
) -> None:
    path = write_store(tmp_path / "s", X, chunks=None if sealed else [1])
    before = contents(path)
    with pytest.raises(StoreExistsError, match=rf"made from something else \({wanted}.*--overwrite to replace it"):
        open_writer(path, X, **options)
    assert contents(path) == before
    open_writer(path, X).close()  # and no lock is held


def test_a_head_that_rounds_differently_is_no_other_store(tmp_path: Path) -> None:
    head = (np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    write_store(tmp_path / "s", X, heads={"a": head}, chunks=[0])
    write_store(tmp_path / "s", X, heads={"a": (head[0] + 1e-6, head[1])})
    found = ActivationStore.open(tmp_path / "s").affine_head("a")
    assert found is not None
    assert np.array_equal(found[0], head[0])


def test_overwriting_leaves_nothing_of_the_old_store(tmp_path: Path) -> None:
    old = {"old": np.ones((20, 2, 2), np.float32)}
    path = write_store(tmp_path / "s", old, chunk_images=2)
    (path / "truth.safetensors").write_text("old")
    (path / ".zarr.json.0123abcd.partial").write_text("half")
    write_store(path, X, overwrite=True)
    write_store(tmp_path / "fresh", X)
    assert contents(path) == contents(tmp_path / "fresh")


def test_overwriting_replaces_damaged_and_unfinished_stores(tmp_path: Path) -> None:
    for name, text in (("damaged", "{"), ("newer", '{"attributes": {"eddp": {"format": 99}}}')):
        path = write_store(tmp_path / name, X)
        (path / "ledger").mkdir()  # of format 2
        (path / "zarr.json").write_text(text)
        with pytest.raises(StoreError):
            open_writer(path, X)
        write_store(path, X, overwrite=True)
        assert ActivationStore.open(path).verify() == []


def foreign_zarr(path: Path) -> None:
    import zarr

    zarr.open_group(path, mode="w").create_array("x", data=np.ones(3))


def user_folder(path: Path) -> None:
    (path / "photos").mkdir(parents=True)
    (path / "photos" / "a.jpg").write_bytes(b"dear")


def accounts(path: Path) -> None:
    (path / "commits").mkdir(parents=True)
    (path / "commits" / "2024.csv").write_text("1,2")


def broken_foreign_zarr(path: Path) -> None:
    foreign_zarr(path)
    (path / "zarr.json").write_text("{")


def store_with_notes(path: Path) -> None:
    write_store(path, X)
    (path / "notes.txt").write_text("keep me")


@pytest.mark.parametrize("make", [foreign_zarr, user_folder, accounts, broken_foreign_zarr, store_with_notes])
def test_overwrite_never_deletes_what_is_not_ours(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "s"
    make(path)
    before = contents(path)
    with pytest.raises(StoreExistsError, match=r"holds other things than a store of eddp .*not changed"):
        open_writer(path, X, overwrite=True)
    assert contents(path) == before
    if make is not store_with_notes:
        with pytest.raises(StoreExistsError, match=r"Move them, or give another --out"):
            open_writer(path, X)
    assert contents(path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "s").write_text("a thesis")
    with pytest.raises(StoreExistsError, match="is a file, not a store"):
        open_writer(tmp_path / "s", X, overwrite=overwrite)
    with pytest.raises(StoreError, match="No store can be made at"):
        open_writer(tmp_path / "s" / "below", X, overwrite=overwrite)
    assert (tmp_path / "s").read_text() == "a thesis"


def test_an_empty_folder_and_odd_paths_are_fine(tmp_path: Path) -> None:
    for name in ("plain", "with space", "weird::name.zarr", "100%", "grün"):
        (tmp_path / name).mkdir()
        path = write_store(tmp_path / name, X)
        assert ActivationStore.open(path).verify() == []
        assert ActivationStore.open(path).dask().shape == (10, 3, 2)


def test_committed_chunks_without_attributes_are_not_thrown_away(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", X)
    (path / "zarr.json").unlink()
    before = contents(path)
    with pytest.raises(CorruptStoreError, match="is missing, but chunks of a store are there"):
        open_writer(path, X)
    assert contents(path) == before


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "fcntl", unsupported)
    write_store(tmp_path / "s", X)
    assert caplog.text.count("a disk without locks") == 1
    assert ActivationStore.open(tmp_path / "s").verify() == []


def test_what_was_laid_out_and_has_changed_is_repaired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"heads": {"a": (np.ones((3, 2), np.float32), np.zeros(3, np.float32))}}
    whole = contents(write_store(tmp_path / "whole", X, **options))
    laid_out = [
        name for name in whole if name.startswith(("images", "layers")) and ("zarr.json" in name or "head" in name)
    ]
    assert len(laid_out) == 12
    for number, name in enumerate(laid_out):
        path = write_store(tmp_path / f"{number}", X, chunks=[1], **options)
        if number % 2:
            (path / name).unlink()
        else:
            (path / name).write_bytes(whole[name][:-1] + b"!")
        writer = open_writer(path, X, **options)
        assert name in caplog.text.partition("are written again: ")[2]
        caplog.clear()
        fill(writer, X)
        (path / name).write_bytes(whole[name] + b" ")  # and changed once more, while it is written
        with pytest.raises(CorruptStoreError, match="was changed while the store was written. Run the same"):
            writer.seal()
        writer.close()
        write_store(path, X, **options)
        assert contents(path) == whole


def test_a_head_that_is_missing_and_would_now_be_another_is_refused(tmp_path: Path) -> None:
    open_writer(tmp_path / "s", X, heads={"a": (np.ones((3, 2), np.float32), np.zeros(3, np.float32))}).close()
    (tmp_path / "s/layers/a/head_bias/c.0").unlink()
    with pytest.raises(CorruptStoreError, match=r"head_weight.*is missing or was changed since the store was laid out"):
        open_writer(tmp_path / "s", X, heads={"a": (np.ones((3, 2), np.float32), np.full(3, 1e-7, np.float32))})


@pytest.mark.parametrize("length", [0, 1, 20, -1])
def test_a_lock_file_that_was_half_written_is_completed(tmp_path: Path, length: int) -> None:
    whole = contents(write_store(tmp_path / "whole", X))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / LOCK).write_bytes(LOCK_BYTES[:length])
    write_store(tmp_path / "s", X)
    assert contents(tmp_path / "s") == whole


@pytest.mark.parametrize(
    ("harm", "sealed"), [("record", False), ("missing", False), ("missing", True), ("short", False), ("short", True)]
)
def test_what_is_missing_is_done_again_and_only_that(tmp_path: Path, harm: str, sealed: bool) -> None:
    write_store(tmp_path / "whole", X)
    path = write_store(tmp_path / "s", X, chunks=None if sealed else range(3))
    chunk = path / "layers/a/activations/c.1.0.0"
    if harm == "record":
        forget(path, 1)
    elif harm == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-1])
    writer = open_writer(path, X)
    assert not writer.sealed
    assert writer.missing() == [1]
    writer.close()
    write_store(path, X)
    assert contents(path) == contents(tmp_path / "whole")
    assert ActivationStore.open(path).verify() == []


def test_a_damaged_record_stops_going_on_with_advice_that_works(tmp_path: Path) -> None:
    path, wanted = write_store(tmp_path / "s", X, chunks=range(3)), contents(write_store(tmp_path / "whole", X))
    commit_file(path, 2).write_text("{")
    writer = open_writer(path, X)
    with pytest.raises(CorruptStoreError, match=r"00000002\.json .*Delete those files"):
        writer.missing()
    writer.close()
    commit_file(path, 2).unlink()
    write_store(path, X)
    assert contents(path) == wanted


def test_a_seal_that_was_cut_off_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the manifest and the end of the commits."""
    monkeypatch.setattr("stores.writer.remove_commits", lambda path: None)
    write_store(tmp_path / "s", X)
    monkeypatch.undo()
    assert ActivationStore.open(tmp_path / "s").verify() == []
    open_writer(tmp_path / "s", X).close()
    assert contents(tmp_path / "s") == contents(write_store(tmp_path / "whole", X))


@pytest.mark.parametrize(
    ("shapes", "itemsize", "images", "expected"),
    [
        ([(64, 2048)], 2, 50_000, 128),
        ([(64, 2048)], 4, 50_000, 64),
        ([(49, 512), (196, 1024)], 2, 10**6, 64),
        ([(1, 1)], 2, 10**6, 4096),
        ([(10_000, 10_000)], 4, 7, 1),
        ([(49, 512)], 2, 10, 10),
        ([(49, 512)], 2, 1, 1),
    ],
)
def test_chunks_of_about_32_mebibytes(shapes: list, itemsize: int, images: int, expected: int) -> None:
    layers = [LayerSpec(f"{p}", (1, p), c) for p, c in shapes]
    assert default_chunk_images(layers, itemsize, images) == expected


def test_provenance_of_any_folder_name(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", X, provenance={"dataset": {"path": "/data/caf\udce9", "digest": "x"}})
    assert ActivationStore.open(path).provenance["dataset"]["path"] == "/data/caf\udce9"
    json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    open_writer(path, X, provenance={"dataset": {"path": "/data/caf\udce9", "digest": "x"}}).close()


def test_another_commit_of_the_same_version_resumes_and_another_version_does_not(tmp_path: Path) -> None:
    x = {"a": np.zeros((8, 2, 3), np.float32)}
    open_writer(tmp_path / "s", x, provenance={"code_version": "0.1.0+gaaaa"}).close()
    open_writer(tmp_path / "s", x, provenance={"code_version": "0.1.0+gbbbb"}).close()
    with pytest.raises(StoreExistsError, match="code_version"):
        open_writer(tmp_path / "s", x, provenance={"code_version": "0.2.0+gbbbb"})


def commit(writer: StoreWriter, **changes: object) -> None:
    values = {
        "names": names_for(4),
        "labels": np.zeros(4),
        "valid": np.ones(4, bool),
        "logits": np.zeros((4, 3)),
        "activations": {"a": np.zeros((4, 3, 2), np.float32)},
    }
    writer.commit(0, **{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"names": names_for(3)},
        {"names": ["much longer than any that was announced.jpg"] * 4},
        {"labels": np.zeros(3)},
        {"logits": np.zeros((4, 2))},
        {"activations": {}},
        {"activations": {"a": np.zeros((4, 3, 2), np.float32), "b": np.zeros((4, 3, 2), np.float32)}},
        {"activations": {"a": np.zeros((4, 2, 3), np.float32)}},
        {"activations": {"a": np.zeros((4, 3, 2), np.float16)}},
        {"positions": {"a": np.zeros((4, 3))}},
    ],
)
def test_a_commit_that_does_not_fit_is_no_commit(tmp_path: Path, changes: dict) -> None:
    writer = open_writer(tmp_path / "s", X)
    with pytest.raises(ValueError):
        commit(writer, **changes)
    assert writer.missing() == [0, 1, 2]
    commit(writer)
    with pytest.raises(ValueError):
        commit(writer, **changes)
    assert writer.missing() == [1, 2]  # the good one is still there
    writer.close()


def test_commits_of_chunks_of_other_writers_are_refused(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "s", X, shard=(1, 2))
    with pytest.raises(ValueError, match="chunk 0 is not among this writer's: 1-2"):
        commit(writer)
    writer.close()
    write_store(tmp_path / "s", X)
    writer = open_writer(tmp_path / "s", X)
    with pytest.raises(StoreError, match="is sealed: nothing is written to it any more"):
        commit(writer)
    writer.close()
    assert ActivationStore.open(tmp_path / "s").verify() == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_record_counts_what_is_not_finite(tmp_path: Path, dtype: str) -> None:
    x = np.zeros((4, 3, 2), dtype)
    x[0, 0] = np.nan, np.inf
    x[1, 2, 1] = -np.inf
    x[2, 0, 0] = -2.5
    x[3] = np.nan  # the image that could not be read does not count
    writer = open_writer(tmp_path / "s", X, dtype=dtype)
    commit(writer, activations={"a": x}, valid=np.array([True, True, True, False]))
    assert writer.committed()[0].nonfinite == {"a": 3}
    assert writer.committed()[0].max_abs == {"a": 2.5}
    writer.close()


@given(
    x=hnp.arrays(
        st.sampled_from([np.float16, np.float32]),
        hnp.array_shapes(max_dims=3, max_side=9),
        elements=st.floats(width=16) | st.sampled_from([0.0, -0.0, 65504.0, -65504.0, 6e-8]),
    ),
    block=st.integers(1, 64),
)
def test_extremes_by_bits_are_those_by_value(x: np.ndarray, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stores.writer.BLOCK", block)
        peak, nonfinite = extremes(x)
    finite = x[np.isfinite(x)]
    assert peak == float(np.abs(finite).max(initial=0))
    assert nonfinite == x.size - finite.size
