"""What workers do, without a cluster: other files, other versions, chunks that somebody holds; and how parts are shared out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import contents

from extract import dask
from extract.config import ExtractConfig
from extract.dask import LEAST, PARTS, Order, batch_size, extract_on, fill_part, look_ahead, parts_of
from extract.datasets import open_source
from extract.plan import plan_extraction
from extract.stream import extract
from stores.errors import EDDPError, StoreError, UsageError
from stores.layout import shard_chunks
from stores.writer import StoreWriter

CONFIG = ExtractConfig(model="tiny_net:build", layers=("second",), chunk_images=4, batch_size=3, workers=0)
Images = Callable[..., Path]


@given(n_chunks=st.integers(0, 300), workers=st.integers(1, 40), data=st.data())
def test_parts_hold_every_missing_chunk_once(n_chunks: int, workers: int, data: st.DataObject) -> None:
    missing = data.draw(st.sets(st.integers(0, n_chunks - 1))) if n_chunks else set()
    parts = parts_of(missing, n_chunks, workers)
    chunks = [k for part in parts for k in shard_chunks(part, n_chunks)]
    assert len(chunks) == len(set(chunks))
    assert missing <= set(chunks)
    assert all(missing.intersection(shard_chunks(part, n_chunks)) for part in parts)
    if len(missing) == n_chunks:
        assert len(parts) == min(n_chunks, max(PARTS * workers, LEAST))


@pytest.fixture
def order(tmp_path: Path, tiny_images: Images) -> Order:
    """What is asked of workers, for a store that is laid out."""
    dask._opened.clear()  # of a run of the same name
    root = tiny_images(10)
    plan = plan_extraction(open_source(root), CONFIG)
    StoreWriter.open(tmp_path / "s.zarr", plan.store).close()
    return Order("a run", str(root), str(tmp_path / "s.zarr"), CONFIG)


def test_parts_in_any_order_and_twice_are_the_store_of_one_process(order: Order, tmp_path: Path) -> None:
    for i in (2, 0, 2, 1, 1):
        fill_part(order, (i, 3))
    extract(open_source(order.data), tmp_path / "whole.zarr", CONFIG)
    assert contents(Path(order.out)) == contents(tmp_path / "whole.zarr")


def test_what_is_opened_serves_one_run(order: Order) -> None:
    fill_part(order, (0, 3))
    opened = dask._opened["a run"]
    fill_part(order, (1, 3))
    assert dask._opened == {"a run": opened}
    assert dask._opened["a run"] is opened
    laid_out = replace(order, config=replace(CONFIG, batch_size=2))
    assert batch_size(laid_out) == 2  # the same model, asked for in another way
    assert dask._opened["a run"].loaded is opened.loaded
    fill_part(replace(order, run="another"), (2, 3))
    assert list(dask._opened) == ["another"]
    assert dask._opened["another"].loaded is not opened.loaded


def test_a_worker_looks_ahead_with_its_own_rate(order: Order) -> None:
    found = look_ahead(order, overwrite=False)
    assert found.images == 10
    assert found.rate is not None
    assert found.rate > 0


def test_a_worker_with_another_disk(order: Order, tmp_path: Path) -> None:
    with pytest.raises(
        EDDPError, match=r"This process finds no store at '.*nowhere' \(--dask\)\. Give all workers the same"
    ):
        fill_part(replace(order, out=str(tmp_path / "nowhere")), (0, 3))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(
        EDDPError, match=r"This process does not see what this command sees \(--dask\): There is no folder"
    ):
        fill_part(replace(order, run="b", data=str(tmp_path / "gone")), (0, 3))


def test_a_worker_with_other_images(order: Order, tiny_images: Images) -> None:
    other = tiny_images(10, name="other", size=24)
    before = contents(Path(order.out))
    with pytest.raises(EDDPError, match=r"This process sees other images, .*the images are others"):
        fill_part(replace(order, run="c", data=str(other)), (0, 3))
    assert contents(Path(order.out)) == before


def test_a_worker_that_sees_the_same_by_another_path_changes_nothing(order: Order, tmp_path: Path) -> None:
    Path(order.data).rename(tmp_path / "moved")
    moved = replace(order, run="moved", data=str(tmp_path / "moved"))
    root = Path(order.out, "zarr.json").read_bytes()
    fill_part(moved, (0, 2))
    assert Path(order.out, "zarr.json").read_bytes() == root


def test_a_worker_of_another_version(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "version", lambda name: "9.9")
    with pytest.raises(EDDPError, match=r"This process runs eddp 9.9, this command 0.1.0 \(--dask\)"):
        fill_part(replace(order, run="d", code_version="0.1.0+gabc"), (0, 3))


def test_chunks_that_somebody_holds_are_waited_for_a_while(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "BUSY_PATIENCE", 0.1)
    monkeypatch.setattr(dask, "BUSY_PAUSE", 0.02)
    plan = plan_extraction(open_source(order.data), CONFIG)
    with closing(StoreWriter.open(order.out, plan.store, shard=(0, 3))):
        with pytest.raises(StoreError, match=r"has been writing to a part of the store"):
            fill_part(order, (0, 1))
        fill_part(order, (1, 3))  # what is free is filled
    fill_part(order, (0, 1))


def test_a_shard_is_no_matter_for_a_cluster(order: Order, tmp_path: Path) -> None:
    config = replace(CONFIG, shard=(0, 2))
    with pytest.raises(UsageError, match="'shard' cannot go with a cluster"):
        extract_on(None, open_source(order.data), order.data, tmp_path / "t.zarr", config)
