"""A store read by several ranks: who reads what, and that together they see what one process sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.errors import NonFiniteError, UsageError
from stores.ranks import ALONE, part_of
from stores.readers import LayerReader
from stores.shuffle import Shuffle, shuffled
from stores.statistics import compute, statistics
from tests.helpers.threads import Member, on_ranks

Store = Callable[..., Path]


def member(rank: int, size: int) -> Member:
    """A rank that nothing is to be asked of."""
    return Member(rank, size, None, [])  # type: ignore[arg-type]


@given(st.integers(0, 60), st.integers(1, 9))
def test_parts_are_in_order_complete_and_even(count: int, size: int) -> None:
    parts = [part_of(count, member(rank, size)) for rank in range(size)]
    assert [thing for part in parts for thing in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts[0]) == max(map(len, parts))  # rank 0 has the first, if there is one
    assert part_of(count, ALONE) == range(count)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> LayerReader:
    from tiny import write_store

    valid = np.ones(23, bool)
    valid[[0, 4, 5, 6, 7, 15]] = False  # the second chunk of four holds no readable image
    x = np.arange(23 * 3 * 2, dtype=np.float32).reshape(23, 3, 2)
    path = write_store(tmp_path_factory.mktemp("ranks") / "a.zarr", {"a": x}, valid=valid, chunk_images=4)
    return LayerReader(path)


@given(st.integers(0, 17), st.integers(0, 17), st.sampled_from([None, 1, 2, 3, 4, 7]))
def test_blocks_of_some_images_are_those_of_all_that_hold_one(
    reader: LayerReader, a: int, b: int, images: int | None
) -> None:
    own = range(min(a, b), max(a, b))
    wanted, done = [], 0
    for index, block in reader.blocks(images):
        if set(range(done, done + len(index))) & set(own):
            wanted.append((index.tolist(), block.tolist()))
        done += len(index)
    assert [(index.tolist(), block.tolist()) for index, block in reader.blocks(images, of=own)] == wanted


def test_only_the_chunks_of_those_images_are_read(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    chunk = LayerReader.chunk
    monkeypatch.setattr(LayerReader, "chunk", lambda self, k: (read.append(k), chunk(self, k))[1])
    list(reader.blocks(of=range(8, 12)))  # images 13, 14, 16, 17
    assert read == [3, 4]
    list(reader.blocks(of=range(3, 3)))
    assert read == [3, 4]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_statistics_are_those_of_one_process(tiny_store: Store, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block the same float32 products; their float64 sums differ by the order of addition at most."""
    monkeypatch.setattr("stores.statistics.TILE", 24)
    g = np.random.default_rng(0)
    x = (g.normal(size=(50, 4, 5)) * g.uniform(0.1, 9, 5) + 30).astype(np.float32)
    valid = g.random(50) < 0.8
    path = tiny_store({"a": x}, valid=valid, chunk_images=8)
    alone = compute(LayerReader(path))
    for found in on_ranks(size, lambda ranks: compute(LayerReader(path), ranks=ranks)):
        assert found.count == alone.count == valid.sum() * 4
        np.testing.assert_allclose(found.mean, alone.mean, rtol=1e-14)
        np.testing.assert_allclose(found.covariance, alone.covariance, rtol=1e-12, atol=1e-13)


def test_rank_0_only_keeps_them_and_looks_for_what_is_stored(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_store({"a": np.random.default_rng(1).normal(size=(20, 3, 4)).astype(np.float32)})
    wanted = compute(LayerReader(path))
    kept: list[object] = []
    monkeypatch.setattr("stores.statistics.write_cache", lambda *given: kept.append(given))
    on_ranks(3, lambda ranks: statistics(LayerReader(path), ranks=ranks))
    assert len(kept) == 1
    monkeypatch.undo()
    statistics(LayerReader(path))
    monkeypatch.setattr("stores.statistics.compute", lambda *a, **k: pytest.fail("it is there"))
    for found in on_ranks(3, lambda ranks: statistics(LayerReader(path), ranks=ranks)):
        assert np.array_equal(found.covariance, wanted.covariance)
        assert found.count == 60


def test_more_ranks_than_images_and_none_at_all(tiny_store: Store) -> None:
    x = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)
    path = tiny_store({"a": x})
    alone = compute(LayerReader(path))
    for found in on_ranks(5, lambda ranks: compute(LayerReader(path), ranks=ranks)):
        np.testing.assert_allclose(found.covariance, alone.covariance, rtol=1e-12, atol=1e-13)
    nothing = tiny_store({"a": x}, valid=np.zeros(2, bool), name="none.zarr")
    with pytest.raises(NonFiniteError, match="no readable image"):
        on_ranks(2, lambda ranks: compute(LayerReader(nothing), ranks=ranks))


@pytest.mark.parametrize("bad", [0, 17])
def test_an_image_that_is_not_finite_is_named_by_whoever_reads_it(tiny_store: Store, bad: int) -> None:
    x = np.ones((20, 3, 4), np.float32)
    x[bad, 1, 2] = np.nan
    path = tiny_store({"a": x})
    name = LayerReader(path).store.names[bad]
    with pytest.raises(NonFiniteError, match=f"first for image '{name}'"):
        on_ranks(2, lambda ranks: compute(LayerReader(path), ranks=ranks))


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_shares_of_shuffled_batches_make_up_the_batches_of_one(tiny_store: Store, compress: str) -> None:
    x = np.random.default_rng(3).normal(size=(30, 3, 4)).astype(np.float32)
    reader = LayerReader(tiny_store({"a": x}, compress=compress))
    how = {"batch_rows": 16, "seed": 5, "epoch": 2, "window_bytes": 1}
    whole = [(batch.rows, batch.x.numpy()) for batch in shuffled(reader, Shuffle(**how))]
    parts = [[(b.rows, b.x.numpy()) for b in shuffled(reader, Shuffle(**how, share=(k, 3)))] for k in range(3)]
    for number, (rows, vectors) in enumerate(whole):
        for k in range(3):
            assert np.array_equal(parts[k][number][0], rows[k::3])
            assert np.array_equal(parts[k][number][1], vectors[k::3])
    with pytest.raises(UsageError, match=r"'share' must be \(k, n\) with k from 0 to n - 1, got \(3, 3\)"):
        Shuffle(share=(3, 3))
