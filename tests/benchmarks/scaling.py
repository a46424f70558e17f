"""From one process to two: extraction as shards of one store, labelling on dask workers. Each process computes in one thread.

What limits is measured beside it: two commands that share nothing but the machine, and what one worker costs over none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evaluate.dissect import Dissector
from evaluate.metrics import choose_labels
from tests.benchmarks.dissection import POSITIVE, dissector
from tests.benchmarks.extraction import photographs
from tests.benchmarks.measure import Row, in_turns

IMAGES, FEW = 384, 32  # of the extraction; of one that is all start-up
LABELLED = 192
NET = ("--model", "mobilenet_v2", "--weights", "none", "--layer", "features.18", "--batch-size", "16")


def rows(folder: Path) -> Iterator[Row]:
    yield from extraction(folder)
    yield from labelling(folder)


def extraction(folder: Path) -> Iterator[Row]:
    """Whole commands, from their start to the sealed store."""
    data = folder / "data"
    photographs(data, IMAGES, 500, 375)
    alone, shared = in_turns(
        lambda: extract(data, folder / "one.zarr"),
        lambda: extract(data, folder / "two.zarr", ("--shard", "0/2"), ("--shard", "1/2")),
        repeats=2,
    )
    start, apart = in_turns(
        lambda: extract(data, folder / "few.zarr", ("--limit", FEW)),
        lambda: extract(data, None, *[("--limit", IMAGES // 2, "--out", folder / f"half{k}.zarr") for k in range(2)]),
        repeats=2,
    )
    start -= FEW / IMAGES * alone
    yield Row(
        f"extract, {IMAGES} photographs, two shards at once", "one process", alone / shared, "higher",
        f"{shared:.1f} and {alone:.1f} s: efficiency {percent(alone, shared)}, {percent(alone - start, shared - start)} without "
        f"the {start:.1f} s in which a process starts",
    )  # fmt: skip
    yield Row(
        "the two shards", "two commands with stores of their own", apart / shared, "higher", f"{shared:.1f} and {apart:.1f} s"
    )  # fmt: skip


def extract(data: Path, out: Path | None, *parts: tuple[object, ...]) -> None:
    """One command a part, all at once; each in one thread."""
    for old in data.parent.glob("*.zarr"):
        shutil.rmtree(old)
    common = [sys.executable, "-m", "pipeline.main", "extract", *NET, "--data", data, "--quiet"]
    commands = [[*common, *(("--out", out) if out else ()), *part] for part in parts or [()]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL)
        for command in commands
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"an extraction failed: {commands}")


def labelling(folder: Path) -> Iterator[Row]:
    """Both passes of a dissection on workers that are warm."""
    ours = dissector(folder, LABELLED, POSITIVE["0.5 % positive"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = {0: timed(ours, "here")}
        for workers in (1, 2):
            with started(workers) as client:
                seconds[workers] = timed(ours, client)
    finally:
        torch.set_num_threads(threads)
    yield Row(
        f"evaluate, {LABELLED} images with 500 detectors and 300 labels, two dask workers", "one dask worker",
        seconds[1] / seconds[2], "higher", f"{seconds[2]:.1f} and {seconds[1]:.1f} s: efficiency {percent(seconds[1], seconds[2])}",
    )  # fmt: skip
    yield Row(
        "one dask worker", "no dask", seconds[0] / seconds[1], "higher", f"{seconds[1]:.1f} and {seconds[0]:.1f} s"
    )


@contextmanager
def started(workers: int) -> Iterator[Any]:
    """A client of workers of this machine, which end with the block."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0", silence_logs=50,
            env={"OMP_NUM_THREADS": "1"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        yield client


def timed(ours: Dissector, scheduler: Any) -> float:
    """Seconds of both passes, after one round to warm up."""
    ours.scheduler = scheduler
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        ours.second(choose_labels(ours.count()))
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def percent(one: float, two: float) -> str:
    return f"{50 * one / two:.0f} %"
