"""``torchrun … fit``: real processes over gloo, against one process; killed, gone on with, and used wrongly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import contents, write_store

from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions
from stores.layers import LayerSpec

ROOT = Path(__file__).parents[2]
FIT = ("pipeline.main", "fit")
OPTIONS = (
    "--directions", 96, "--set", "restarts=1", "--set", "regime=sharp", "--set", "refine_steps=25", "--set", "kmeans_points=60",
    "--set", "kmeans_iterations=5", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 000 positions: with 96 directions two tiles, so both processes have work."""
    path = tmp_path_factory.mktemp("torchrun") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=4500, positions=4))
    return path


def start(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_each(size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """The processes themselves, without torchrun, which would end all of them when one ends."""
    if size == 1:
        return [start({}, *FIT, *arguments)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start({**meeting, "RANK": str(k), "LOCAL_RANK": str(k)}, *FIT, *arguments) for k in range(size)]


def run(processes: int, *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and what our command said on stderr: torchrun itself says much more when a process fails."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", processes, "--module")
    process = start({}, *(torchrun if processes > 1 else ()), *FIT, *arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith(("Error", "Interrupted"))]


def same(a: Path, b: Path) -> None:
    first, second = Directions.load(a), Directions.load(b)
    for name in ("filters", "signals", "thresholds"):
        x, y = getattr(first, name), getattr(second, name)
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x), name
    kept = [{key: value for key, value in found.info.items() if key != "run"} for found in (first, second)]
    assert kept[0] == kept[1]  # nothing but the record of the run tells how many processes there were


def wait_for_states(processes: list[subprocess.Popen[str]], checkpoint: Path, count: int) -> None:
    seen, deadline = set(), time.monotonic() + 120
    while len(seen) < count and time.monotonic() < deadline and processes[0].poll() is None:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=60)


def kill_when_kept(processes: int, out: Path, arguments: Sequence[object]) -> None:
    """Start, wait for some states to be kept, and end all processes at once, by SIGKILL."""
    started = start_each(processes, *arguments, "--out", out, "--checkpoint-every", 0)
    checkpoint = out.with_suffix(".checkpoint")
    wait_for_states(started, checkpoint, 4)
    end(started)
    assert checkpoint.exists()
    assert not out.exists(), "it was faster than the test"


@pytest.mark.slow
def test_two_processes_fit_what_one_does_and_go_on_with_each_other_s_states(store: Path, tmp_path: Path) -> None:
    arguments = ("--store", store, *OPTIONS)
    whole, two = tmp_path / "whole.safetensors", tmp_path / "two.safetensors"
    before = set(contents(store))
    code, out, said = run(2, *arguments, "--out", two)
    assert (code, said) == (0, [])
    assert out.splitlines()[-1] == str(two)
    assert out.count("96 directions") == 1  # said once
    assert {Path(name).parts[2] for name in set(contents(store)) - before} == {"statistics"}  # kept by one of them
    assert run(1, *arguments, "--out", whole)[0] == 0
    same(whole, two)
    assert sorted(path.name for path in tmp_path.glob("two*")) == sorted(
        path.name.replace("whole", "two") for path in tmp_path.glob("whole*")
    )
    for killed, going_on in ((2, 1), (1, 2)):
        again = tmp_path / f"from-{killed}.safetensors"
        kill_when_kept(killed, again, arguments)
        code, _, said = run(going_on, *arguments, "--out", again)
        assert (code, said) == (0, [])
        same(whole, again)
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.slow
def test_what_goes_wrong_is_said_once(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    code, _, said = run(2, "--store", store, "--directions", 3, "--method", "kmeans", "--out", out)
    assert code != 0
    assert said == ["Error: 'kmeans' is fitted by one process, not by 2: start it without torchrun."]
    x = np.random.default_rng(0).normal(size=(40, 4, 8)).astype(np.float32)
    x[33, 2, 5] = np.nan
    spec = LayerSpec("a", (1, 4), 8, layout="tokens")
    harmed = write_store(
        tmp_path / "n.zarr", {"a": x}, specs={"a": spec}, provenance={"model": "none", "weights": "none", "synthetic": {}},
        heads={"a": (np.ones((3, 8), np.float32), np.zeros(3, np.float32))},
    )  # fmt: skip
    code, _, said = run(2, "--store", harmed, "--directions", 3, "--out", out)
    assert code != 0
    assert len(said) == 1
    assert said[0].startswith("Error (rank 1): Layer 'a' of the store ")
    assert "first for image '" in said[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("d.")] in ([], ["d.safetensors.run.json"], ["d.run.json"])  # fmt: skip


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_sentence(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    long = ("--set", "refine_steps=100000", "--set", "patience=0", "--checkpoint-every", 0)
    processes = start_each(2, "--store", store, *OPTIONS, *long, "--out", out)
    try:
        wait_for_states(processes, out.with_suffix(".checkpoint"), 2)
        processes[1].kill()
        _, err = processes[0].communicate(timeout=60)
    finally:
        end(processes)
    assert processes[0].returncode == 1
    assert err.startswith("Error: Another process of this fit is gone or does not answer (noticed by rank 0 of 2)")
    assert "run the same command again to go on from the last checkpoint" in err
    assert out.with_suffix(".checkpoint").exists()
    assert not out.exists()


def test_half_an_environment(store: Path, tmp_path: Path) -> None:
    half = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": ""}
    process = start(half, *FIT, "--store", store, "--directions", 3, "--out", tmp_path / "d.safetensors")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "nothing says MASTER_ADDR and MASTER_PORT: start them by torchrun, or unset both" in err
    assert not list(tmp_path.iterdir())
