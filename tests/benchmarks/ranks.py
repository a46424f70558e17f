"""One fit by one and by two processes, each with one thread: how much faster, and what crosses the network at a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fit.eddp import EDDP
from fit.process_group import Group
from fit.synthetic import SyntheticConfig, make_synthetic
from pipeline.distributed import joined
from stores.progress import Progress
from stores.readers import LayerReader
from tests.benchmarks.measure import Row

CHANNELS, DIRECTIONS, STEPS, WARM = 128, 128, 24, 4
START = {"kmeans_points": 128, "kmeans_iterations": 10, "restarts": 2, "restart_steps": 20}
SMALL, LARGE = 1000, 4000  # images of 25 positions


@dataclass(frozen=True)
class Measured:
    """Of one run: seconds of the whole fit and of a step; collective operations, their bytes, and the seconds in them, a step."""

    fit: float
    step: float
    calls: float
    bytes: float
    waiting: float


class Watched(Group):
    """A group that takes the time of its operations: their own, and the wait for the slower process."""

    waited = 0.0

    def _run(self, *given: object, **more: object) -> None:
        start = time.perf_counter()
        super()._run(*given, **more)  # type: ignore[arg-type]
        self.waited += time.perf_counter() - start


def work(store: str) -> None:
    """One process's part; rank 0 prints what it measured."""
    torch.set_num_threads(1)
    with joined("cpu") as (ranks, device):
        group = Watched() if ranks.size > 1 else None
        seen: dict[int, tuple[float, int, int, float]] = {}

        def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
            if stage == "refinement":
                numbers = (0, 0, 0.0) if group is None else (group.calls, group.bytes, group.waited)
                seen[done] = (time.perf_counter(), *numbers)

        watch: Progress = progress
        settings = {
            "n_directions": DIRECTIONS,
            "refine_steps": STEPS,
            "patience": 0,
            "reseed": False,
            **START,
        }
        start = time.perf_counter()
        EDDP(**settings, device=device).fit(LayerReader(store), progress=watch, ranks=group or ranks)
        seconds = time.perf_counter() - start
        each = [(b - a) / (STEPS - WARM) for a, b in zip(seen[WARM], seen[STEPS], strict=True)]
        if ranks.rank == 0:
            sys.stdout.write(json.dumps([seconds, *each]) + "\n")


def measured(processes: int, store: Path) -> Measured:
    """Run ``work`` in so many processes."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--module"]
    command = [sys.executable, "-m", *(torchrun if processes > 1 else []), "tests.benchmarks.ranks", str(store)]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return Measured(*json.loads(ended.stdout.splitlines()[-1]))


def rows(folder: Path) -> Iterator[Row]:
    """The speed-up on the larger of two stores; bytes a step on both, which have to be the same."""
    stores = {}
    for images in (SMALL, LARGE):
        stores[images] = folder / f"{images}.zarr"
        make_synthetic(stores[images], SyntheticConfig(channels=CHANNELS, concepts=32, images=images, positions=25))
    small, large = (measured(2, store) for store in stores.values())
    turns = [(measured(1, stores[LARGE]), large), (measured(1, stores[LARGE]), measured(2, stores[LARGE]))]
    one, two = (min((turn[k] for turn in turns), key=lambda found: found.step) for k in (0, 1))
    shape = f"{LARGE * 25:,} × {CHANNELS} × {DIRECTIONS}".replace(",", " ")
    share = f"{1000 * two.step:.0f} ms, {100 * two.waiting / two.step:.0f} % of it in the network or waiting"
    yield Row(
        f"a step of fit, {shape}, 2 processes", "1 process, as many threads each", one.step / two.step, "higher", share
    )
    yield Row(
        f"a whole fit of {STEPS} steps, 2 processes", "1 process", one.fit / two.fit, "higher", f"{two.fit:.1f} s"
    )
    what = f"bytes a step of fit, {LARGE * 25} positions"
    sizes = f"{two.bytes / 2**10:.0f} KiB in {two.calls:.1f} operations"
    yield Row(what, f"{SMALL * 25} positions", large.bytes / small.bytes, "lower", sizes)


if __name__ == "__main__":
    work(sys.argv[1])
