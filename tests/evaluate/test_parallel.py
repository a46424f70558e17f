"""A pass in threads and on the workers of a cluster: the same sums to the last position, and sentences when workers are gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_dissection import LABELS, WHOLE, Broden, random_rows

import extract.dask
from evaluate.counts import Counts, count_images
from evaluate.detector_bank import make_bank
from evaluate.dissect import Dissector, Second
from evaluate.dissection_batches import Material
from evaluate.metrics import choose_labels
from evaluate.parallel import added_up, cores, on_cluster, pack, ranges
from evaluate.report.logit_histograms import survey
from extract.dask import cluster
from extract.labels import Alignment
from stores.directions import Directions
from stores.errors import CorruptStoreError, EDDPError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

Make = Callable[..., Directions]
Store = Callable[..., ActivationStore]
IMAGES = 12
STAYS = 300.0  # seconds


@pytest.fixture(scope="module")
def make_dissector(
    tmp_path_factory: pytest.TempPathFactory, make_broden: Broden, make_store: Store, make_directions: Make
) -> Callable[..., Dissector]:
    folder = tmp_path_factory.mktemp("parallel")
    g = np.random.default_rng(1)
    source = make_broden(folder / "b", LABELS, random_rows(g, IMAGES, (8, 8)))
    x = g.normal(size=(IMAGES, 4, 3)).astype(np.float32)
    valid = np.arange(IMAGES) != 5
    store = make_store(folder / "s.zarr", x, grid=(2, 2), chunk_images=2, valid=valid)
    reader = LayerReader(store)
    sets = {
        "a": make_directions(g.normal(size=(3, 7)), g.normal(size=7)),
        "b": make_directions(np.eye(3), quantile=0.2),
    }
    bank = make_bank(sets, reader)
    alignment = Alignment(source, {i: i for i in range(IMAGES)}, lambda image: WHOLE)
    return lambda scheduler: Dissector(reader, bank, alignment, scheduler=scheduler)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes."""
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as workers,
        Client(workers, set_as_default=False) as client,
    ):
        yield client


def both_passes(dissector: Dissector) -> tuple[Counts, Second, list[tuple[str, int, int | None]]]:
    told: list[tuple[str, int, int | None]] = []

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        told.append((stage, done, total))

    counts = dissector.count(progress)
    return counts, dissector.second(choose_labels(counts), replicates=20, progress=progress), told


def assert_all_equal(a: Any, b: Any, names: tuple[str, ...]) -> None:
    for name in names:
        np.testing.assert_equal(getattr(a, name), getattr(b, name), err_msg=name)


def assert_the_same_survey(make_dissector: Callable[..., Dissector], scheduler: Any) -> None:
    """The pass of a report is over all readable images, labelled or not."""
    material, told = make_dissector("here").material, []

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        told.append((done, total))

    alone = survey(material.reader, material.bank, 3, scheduler="here")
    found = survey(material.reader, material.bank, 3, progress, scheduler)
    assert alone.keys() == found.keys()
    for one, other in zip(alone.values(), found.values(), strict=True):
        assert_all_equal(one, other, ("histograms", "positives", "covered", "positions"))
        assert_all_equal(one.top, other.top, ("rows", "values"))
        assert_all_equal(one.across, other.across, ("rows", "values"))
    assert max(told) == (IMAGES - 1, IMAGES - 1)


def assert_the_same(make_dissector: Callable[..., Dissector], scheduler: Any) -> None:
    assert_the_same_survey(make_dissector, scheduler)
    counts, second, told = both_passes(make_dissector("here"))
    found, more, heard = both_passes(make_dissector(scheduler))
    names = (
        "both",
        "detector",
        "label",
        "points",
        "images",
        "positive",
        "positions",
        "covered",
        "active",
        "low",
        "high",
    )
    assert_all_equal(counts, found, names)
    assert_all_equal(second, more, ("positive", "negative", "union_both", "union", "both", "detector", "label"))
    assert second.positive.any()
    for stage in ("dissection", "average precision"):
        ends = {max(done for s, done, _ in calls if s == stage) for calls in (told, heard)}
        assert ends == {next(total for s, _, total in heard if s == stage)}


@given(st.integers(1, 60), st.integers(1, 12))
def test_ranges_are_a_partition(chunks: int, parts: int) -> None:
    found = ranges(chunks, parts)
    assert [k for part in found for k in part] == list(range(chunks))
    sizes = [len(part) for part in found]
    assert len(found) == min(chunks, parts)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 70), st.integers(2, 9))
def test_a_tree_adds_up_what_a_loop_does(parts: int, fan: int) -> None:
    widest = 0

    def submit(work: Callable[..., str], *some: str) -> str:
        nonlocal widest
        widest = max(widest, len(some))
        return work(*some)

    letters = [chr(64 + k) for k in range(parts)]  # strings: their sum tells the order
    total, submitted = added_up(submit, letters, fan)
    assert total == "".join(letters)
    assert widest <= fan
    assert len(submitted) <= max(0, parts - 1)
    assert parts == 1 or submitted[-1] == total


@pytest.mark.parametrize("scheduler", ["threads", None])
def test_threads_count_the_same(
    make_dissector: Callable[..., Dissector], scheduler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluate.parallel.cores", lambda: 3)
    before = torch.get_num_threads()
    assert_the_same(make_dissector, scheduler)
    assert torch.get_num_threads() == before


def test_workers_elsewhere_count_the_same(make_dissector: Callable[..., Dissector], client: Any) -> None:
    assert_the_same(make_dissector, client)


def stays_once(material: Material, chunks: range, file: str, progress: Progress = silent) -> Counts:
    """The first process that comes to chunk 3 says who it is and stays there, in the midst of its part."""
    found = count_images(material, chunks, progress)
    if 3 in chunks:
        try:
            with Path(file).open("x") as told:
                told.write(f"{os.getpid()}\n")
            time.sleep(STAYS)
        except FileExistsError:
            pass
    return found


def test_a_worker_that_is_killed_changes_nothing(
    make_dissector: Callable[..., Dissector], client: Any, tmp_path: Path
) -> None:
    """Its part is done again, and so are those it had done, if nobody has added them up yet."""
    file = tmp_path / "process"

    def kill() -> None:
        while not (file.exists() and file.read_text().endswith("\n")):
            time.sleep(0.01)
        os.kill(int(file.read_text()), signal.SIGKILL)

    client.run_on_scheduler(allow_failures, 3)
    material, told = make_dissector("here").material, []
    before = set(client.run(os.getpid).values())
    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    begun = time.monotonic()

    def progress(stage: str, done: int, total: int) -> None:
        told.append((done, total))

    found = on_cluster(stays_once, material, client, (str(file),), progress, "stage")
    client.run_on_scheduler(allow_failures, 0)
    client.wait_for_workers(2)
    assert time.monotonic() - begun < STAYS
    assert int(file.read_text()) in before
    assert int(file.read_text()) not in set(client.run(os.getpid).values())
    whole = count_images(material, range(material.reader.store.n_chunks))
    assert_all_equal(whole, found, ("both", "detector", "label", "points", "images", "positive", "low", "high"))
    assert told[-1] == (whole.images.sum(), whole.images.sum())


def allow_failures(number: int, dask_scheduler: Any = None) -> None:
    dask_scheduler.allowed_failures = number


def test_only_names_are_taken(make_dissector: Callable[..., Dissector]) -> None:
    assert cores() >= 1
    with pytest.raises(UsageError, match="must be 'here', 'threads', None or a distributed.Client, got 'processes'"):
        make_dissector("processes").count()


def test_an_error_in_one_part_ends_the_others(make_dissector: Callable[..., Dissector]) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dissector("threads").count(stop)


def test_what_is_sent_is_small_and_opens_elsewhere(make_dissector: Callable[..., Dissector]) -> None:
    material = make_dissector("here").material
    parcel = pack(material, range(1, 3))
    assert set(parcel.rows) <= {2, 3, 4, 5}
    assert set(parcel.boxes) == set(parcel.rows.values())
    assert_all_equal(
        count_images(parcel.open(), range(1, 3)), count_images(material, range(1, 3)), ("both", "detector")
    )
    other = type(parcel)(**{**vars(parcel), "fingerprint": "another"})
    with pytest.raises(CorruptStoreError, match="Workers find another store"):
        other.open()


def dies(*arguments: object) -> None:
    os._exit(1)


def fails(*arguments: object) -> None:
    raise UsageError("This is wrong.")


def test_errors_of_workers_are_reported_as_they_are(make_dissector: Callable[..., Dissector], client: Any) -> None:
    with pytest.raises(UsageError, match=r"^This is wrong\.$"):
        on_cluster(fails, make_dissector(client).material, client, (), lambda *a, **k: None, "stage")


def test_workers_that_die_are_one_message(make_dissector: Callable[..., Dissector], client: Any) -> None:
    with pytest.raises(EDDPError, match="dask workers died of one part of the images"):
        on_cluster(dies, make_dissector(client).material, client, (), lambda *a, **k: None, "stage")


def test_no_one_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract.dask, "PATIENCE", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        with pytest.raises(EDDPError, match=f"No dask scheduler answers at '{address}'"), cluster(address):
            pass


def test_a_scheduler_without_workers_is_one_message(
    make_dissector: Callable[..., Dissector], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(extract.dask, "PATIENCE", 0.5)
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50) as empty:
        address = empty.scheduler_address
        with pytest.raises(EDDPError, match="has no worker"), cluster(address):
            pass


def test_workers_that_left_are_not_waited_for(
    make_dissector: Callable[..., Dissector], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster

    monkeypatch.setattr(extract.dask, "PATIENCE", 0.5)
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50) as empty,
        Client(empty, set_as_default=False) as client,
        pytest.raises(EDDPError, match="All dask workers are lost"),
    ):
        make_dissector(client).count()


def test_a_cluster_of_this_machine(make_dissector: Callable[..., Dissector], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract.dask, "cores", lambda: 1)
    with cluster("local") as client:
        found = make_dissector(client).count()
    np.testing.assert_array_equal(found.both, make_dissector("here").count().both)


def test_paths_are_absolute(make_dissector: Callable[..., Dissector]) -> None:
    parcel = pack(make_dissector("here").material, range(2))
    assert Path(parcel.store).is_absolute()
    assert Path(parcel.concepts[1]).is_absolute()
