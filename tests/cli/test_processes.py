"""What is left of a command that is killed: no process, and no file once the next has run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ok
from own_process import HELPERS, SLOW, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def members(session: int) -> list[str]:
    """Command lines of the processes of a session that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, theirs = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(theirs) == session and state != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue  # it has ended
    return found


def kill_after_a_worker_started(process: subprocess.Popen[str], moment: float) -> None:
    late = time.monotonic() + 60
    while not any("spawn_main" in line for line in members(process.pid)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < late
        time.sleep(0.02)
    time.sleep(moment)
    process.kill()


def test_no_worker_outlives_a_killed_extraction(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    data, g = tiny_images(200), random.Random(3)
    started = [
        start(*SLOW, "--data", data, "--out", tmp_path / f"{k}.zarr", "--workers", 1, own_session=True)
        for k in range(2)
    ]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(kill_after_a_worker_started, started, [g.uniform(0, 1), g.uniform(1, 2)]))
        late = time.monotonic() + 30  # on a busy machine, importing torch takes long
        while any(members(process.pid) for process in started) and time.monotonic() < late:
            time.sleep(0.1)
        assert [members(process.pid) for process in started] == [[], []]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


ABANDON = """
import os, sys
from pathlib import Path
from typing import Any
from stores.io import aside
for path in map(Path, sys.argv[1:]):
    aside(path).write_bytes(b"half of it")
os._exit(9)
"""


def test_what_a_killed_fit_left_goes_with_the_next(run: Callable[..., Any], tiny_store: Callable[..., Path]) -> None:
    store = tiny_store({"a": np.random.default_rng(0).random((20, 4, 3), np.float32)})
    out = store.parent / "d.safetensors"
    subprocess.run([sys.executable, "-c", ABANDON, out], check=False, cwd=HELPERS.parents[1])
    theirs = store.parent / f".d.safetensors.{'a' * 20}.partial"  # of another machine
    theirs.write_bytes(b"half of it")
    assert len(list(store.parent.glob(".*.partial"))) == 2
    ok(run("fit --store", store, "--directions 2 --method kmeans --out", out, "--refits 0"))
    assert list(store.parent.glob(".*.partial")) == [theirs]
