"""``torchrun … fit``: real processes over gloo, against one process; killed, gone on with, and used wrongly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails
from tiny import contents, write_store

from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds: a busy machine is no failure
FIT = ("pipeline.main", "fit")
OPTIONS = (
    "--directions", 96, "--set", "restarts=1", "--set", "regime=sharp", "--set", "refine_steps=25", "--set", "kmeans_points=60",
    "--set", "kmeans_iterations=5", "--refits", "2", "--quiet",
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


def torchrun(*arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and what our command said on stderr: torchrun itself says much more when a process fails."""
    process = start({}, "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--module", *FIT, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith(("Error", "Interrupted"))]


def same(a: Path, b: Path) -> None:
    first, second = Directions.load(a), Directions.load(b)
    for name in ("filters", "signals", "thresholds"):
        x, y = getattr(first, name), getattr(second, name)
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x), name
    kept = [{key: value for key, value in found.info.items() if key != "run"} for found in (first, second)]
    assert kept[0] == kept[1]  # nothing but the record of the run tells how many processes there were


def wait_for_states(processes: list[subprocess.Popen[str]], checkpoint: Path, count: int) -> None:
    seen, deadline = set(), time.monotonic() + PATIENCE
    while len(seen) < count and time.monotonic() < deadline and processes[0].poll() is None:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=PATIENCE)


@pytest.mark.slow
def test_two_processes_fit_what_one_does(run: Run, store: Path, tmp_path: Path) -> None:
    arguments = ("--store", store, *OPTIONS)
    whole, two = tmp_path / "whole.safetensors", tmp_path / "two.safetensors"
    before = set(contents(store))
    code, out, said = torchrun(*arguments, "--out", two)
    assert (code, said) == (0, [])
    assert out.splitlines()[-1] == str(two)
    assert out.count("96 directions of synthetic") == 1  # said once
    assert {Path(name).parts[2] for name in set(contents(store)) - before} == {
        "statistics.safetensors"
    }  # kept by one of them
    assert run("fit", *arguments, "--out", whole).code == 0
    same(whole, two)
    assert sorted(path.name for path in tmp_path.glob("two*")) == sorted(
        path.name.replace("whole", "two") for path in tmp_path.glob("whole*")
    )

    # one of two processes dies: the other ends with a sentence, and one process goes on from their state
    again = tmp_path / "two-one.safetensors"
    checkpoint = again.with_suffix(".checkpoint")
    processes = start_each(2, *arguments, "--out", again, "--checkpoint-every", 0)
    try:
        wait_for_states(processes, checkpoint, 4)
        processes[1].kill()
        _, err = processes[0].communicate(timeout=PATIENCE)
    finally:
        end(processes)
    assert processes[0].returncode == 1
    assert err.startswith("Error: Another process of this fit ended or does not answer (noticed by rank 0 of 2)")
    assert "run the same command again to resume from the last checkpoint" in err
    assert checkpoint.exists()
    assert not again.exists()
    assert run("fit", *arguments, "--out", again).code == 0
    same(whole, again)

    # one process dies, and two go on from its state
    again = tmp_path / "one-two.safetensors"
    checkpoint = again.with_suffix(".checkpoint")
    processes = start_each(1, *arguments, "--out", again, "--checkpoint-every", 0)
    try:
        wait_for_states(processes, checkpoint, 4)
    finally:
        end(processes)
    assert checkpoint.exists()
    assert not again.exists()
    assert torchrun(*arguments, "--out", again)[0] == 0
    same(whole, again)
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.slow
def test_what_goes_wrong_is_said_once(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    code, _, said = torchrun("--store", store, "--directions", 3, "--method", "kmeans", "--out", out)
    assert code != 0
    assert said == ["Error: 'kmeans' is fitted by one process, not by 2: start it without torchrun."]
    x = np.random.default_rng(0).normal(size=(40, 4, 8)).astype(np.float32)
    x[33, 2, 5] = np.nan
    heads = {"a": (np.ones((3, 8), np.float32), np.zeros(3, np.float32))}
    made = {"model": "none", "weights": "none", "synthetic": {}}
    harmed = write_store(tmp_path / "n.zarr", {"a": x}, provenance=made, heads=heads)
    code, _, said = torchrun("--store", harmed, "--directions", 3, "--out", out)
    assert code != 0
    assert len(said) == 1
    assert said[0].startswith("Error (rank 1): Layer 'a' of the store ")
    assert "first for image '" in said[0]
    left = {path.name for path in tmp_path.iterdir()} - {"n.zarr"}
    assert all(name.endswith(".run.json") for name in left), left  # the record of a run that failed at most


def test_half_an_environment(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    ended = run("fit --store", store, "--directions 3 --out", tmp_path / "d.safetensors")
    fails(ended, 2, "nothing says MASTER_ADDR and MASTER_PORT: start them by torchrun, or unset both")
    assert not list(tmp_path.iterdir())
