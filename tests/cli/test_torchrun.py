"""``torchrun … fit``: real processes over gloo, against one process; killed, gone on with, and used wrongly."""

from __future__ import annotations

import os
import signal
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
OPTIONS = (
    "--directions", 96, "--set", "restarts=1", "--set", "regime=sharp", "--set", "refine_steps=40", "--set", "kmeans_points=60",
    "--set", "kmeans_iterations=5", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 000 positions: with 96 directions more than two tiles, so both processes have work."""
    path = tmp_path_factory.mktemp("torchrun") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=6000, positions=4))
    return path


def start(processes: int, *arguments: object) -> subprocess.Popen[str]:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", processes, "--module")
    command = [
        sys.executable,
        "-m",
        *map(str, (*(torchrun if processes > 1 else ()), "pipeline.main", "fit", *arguments)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip


def run(processes: int, *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and what our command said on stderr: torchrun itself says much more when a process fails."""
    process = start(processes, *arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith(("Error", "Interrupted"))]


def same(a: Path, b: Path) -> None:
    first, second = Directions.load(a), Directions.load(b)
    for name in ("filters", "signals", "thresholds"):
        x, y = getattr(first, name), getattr(second, name)
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x), name
    kept = [{key: value for key, value in found.info.items() if key != "run"} for found in (first, second)]
    assert kept[0] == kept[1]  # nothing but the record of the run tells how many processes there were


def kill_when_kept(processes: int, out: Path, arguments: Sequence[object]) -> None:
    """Start, wait for some states to be kept, and end all its processes at once, by SIGKILL."""
    process = start(processes, *arguments, "--out", out, "--checkpoint-every", 0)
    checkpoint, seen, deadline = out.with_suffix(".checkpoint"), set(), time.monotonic() + 120
    while len(seen) < 4 and time.monotonic() < deadline and process.poll() is None:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        _, err = process.communicate(timeout=60)
    assert checkpoint.exists(), err
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
    """Started without torchrun, which would end them itself."""
    out, processes = tmp_path / "d.safetensors", []
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    command = [sys.executable, "-m", "pipeline.main", "fit", "--store", str(store), *map(str, OPTIONS)]
    command += ["--out", str(out), "--set", "refine_steps=100000", "--set", "patience=0", "--checkpoint-every", "0"]
    for rank in ("0", "1"):
        environment = {**os.environ, **meeting, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        deadline = time.monotonic() + 120
        while not out.with_suffix(".checkpoint").exists() and time.monotonic() < deadline:
            assert processes[0].poll() is None
            time.sleep(0.01)
        processes[1].kill()
        _, err = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1
    assert err.startswith("Error: Another process of this fit is gone or does not answer (noticed by rank 0 of 2)")
    assert "run the same command again to go on from the last checkpoint" in err
    assert out.with_suffix(".checkpoint").exists()
    assert not out.exists()


def test_half_an_environment(store: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""}
    environment.pop("MASTER_PORT", None)
    command = [sys.executable, "-m", "pipeline.main", "fit", "--store", str(store), "--directions", "3"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "d.safetensors")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "nothing says MASTER_ADDR and MASTER_PORT: start them by torchrun, or unset both" in ended.stderr
    assert not list(tmp_path.iterdir())
