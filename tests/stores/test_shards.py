"""Several writers of one store: disjoint ranges, no two in one, and the last one seals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import contents, fill, open_writer, write_store

from stores.errors import StoreError, UsageError
from stores.layout import shard_chunks
from stores.locks import LOCK, LOCK_BYTES, StoreLock
from stores.store import ActivationStore

X = {"a": np.random.default_rng(0).normal(size=(21, 3, 2)).astype(np.float32)}


@given(n_chunks=st.integers(0, 500), n=st.integers(1, 60))
def test_shards_make_up_all_chunks_in_order_and_are_even(n_chunks: int, n: int) -> None:
    spans = [shard_chunks((i, n), n_chunks) for i in range(n)]
    assert [k for span in spans for k in span] == list(range(n_chunks))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


@pytest.mark.parametrize("shard", [(2, 2), (-1, 3), (0, 0)])
def test_a_shard_that_is_none(shard: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"'shard' must be i/n with 0 <= i < n, got"):
        shard_chunks(shard, 10)


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_shards_at_once_give_the_store_of_one_writer(tmp_path: Path, order: list[int], compress: str) -> None:
    write_store(tmp_path / "whole", X, compress=compress)
    writers = [open_writer(tmp_path / "s", X, shard=(i, 3), compress=compress) for i in range(3)]
    assert [list(writer.span) for writer in writers] == [[0, 1], [2, 3], [4, 5]]
    for i in order:
        assert not writers[i].seal_if_complete()
        fill(writers[i], X)
        assert writers[i].missing() == []
    assert [writers[i].seal_if_complete() for i in order] == [True] * 3
    for writer in writers:
        writer.close()
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    assert ActivationStore.open(tmp_path / "s").verify() == []


@pytest.mark.parametrize("other", [None, (0, 2), (1, 3), (0, 1)])
def test_two_writers_of_one_chunk_are_refused(tmp_path: Path, other: tuple[int, int] | None) -> None:
    first = open_writer(tmp_path / "s", X, shard=(0, 2))
    with pytest.raises(StoreError, match=r"Another process is writing to the store '.*s', to this part of it.*--shard"):
        open_writer(tmp_path / "s", X, shard=other)
    open_writer(tmp_path / "s", X, shard=(1, 2)).close()  # what was refused holds nothing
    first.close()
    open_writer(tmp_path / "s", X, shard=other).close()


def test_overwriting_is_refused_while_a_shard_is_written_and_for_shards(tmp_path: Path) -> None:
    first = open_writer(tmp_path / "s", X, shard=(1, 2))
    fill(first, X)
    before = contents(tmp_path / "s")
    with pytest.raises(StoreError, match="Another process is writing"):
        open_writer(tmp_path / "s", X, overwrite=True)
    with pytest.raises(UsageError, match=r"'overwrite' cannot go with 'shard'.*Delete the old store first"):
        open_writer(tmp_path / "s", X, shard=(0, 2), overwrite=True)
    assert contents(tmp_path / "s") == before
    first.close()


def test_more_shards_than_chunks(tmp_path: Path) -> None:
    write_store(tmp_path / "whole", X)
    for i in range(9):
        writer = open_writer(tmp_path / "s", X, shard=(i, 9))
        fill(writer, X)
        assert writer.seal_if_complete() == (i == 8)
        writer.close()
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


HOLD = """
import sys, time
from pathlib import Path
from stores.locks import LOCK, LOCK_BYTES, StoreLock
lock = StoreLock(Path(sys.argv[1]))
assert lock.claim(int(sys.argv[2]), int(sys.argv[3]))
print("held", flush=True)
time.sleep(60)
"""


def test_locks_are_between_processes_and_end_with_them(tmp_path: Path) -> None:
    ours = StoreLock(tmp_path / "s")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "s"), "3", "6"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert not ours.claim(5, 7)
        assert not ours.claim(0, 2**40)
        assert ours.claim(0, 3)
        assert ours.claim(6, 9)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert ours.claim(3, 6)
    ours.close()


def test_waiting_for_the_layout_ends_in_one_message(tmp_path: Path) -> None:
    one, two = StoreLock(tmp_path), StoreLock(tmp_path)
    with one.layout(), pytest.raises(StoreError, match="has been laying out or sealing the store"), two.layout(0.05):
        pass
    with two.layout(0.05):
        two.mark()
    assert (tmp_path / LOCK).read_bytes() == LOCK_BYTES
    one.close()
    two.close()


def test_a_store_that_has_moved_on_disk_with_its_images_says_where(tmp_path: Path) -> None:
    made = {"dataset": {"path": "/old", "digest": "d"}, "weights": "/old/w.pth", "weights_digest": "w"}
    moved = {"dataset": {"path": "/new", "digest": "d"}, "weights": "/new/w.pth", "weights_digest": "w"}
    open_writer(tmp_path / "s", X, provenance=made).close()
    write_store(tmp_path / "s", X, provenance=moved)
    store = ActivationStore.open(tmp_path / "s")
    assert store.provenance == moved
    open_writer(tmp_path / "s", X, provenance=made).close()  # sealed: nothing of it is touched any more
    assert ActivationStore.open(tmp_path / "s").provenance == moved
