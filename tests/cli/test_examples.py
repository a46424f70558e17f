"""``examples/``, run as they stand: the batch scripts by a queue that runs them at once, dask by its own processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from queue_stub import queue
from tiny import write_broden

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HELPERS = Path(__file__).resolve().parents[1] / "helpers"


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody with a small network, a few images and a queue."""
    broden = write_broden(tmp_path / "broden", images=12).root
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(HELPERS),
        "OMP_NUM_THREADS": "1",
        "DATA": str(broden),
        "BRODEN": str(broden),
        "WORK": str(tmp_path / "work"),
        "MODEL": "tiny_net:build",
        "LAYER": "second",
        "DIRECTIONS": "4",
        "EDDP_FIT_REFITS": "0",  # the default of eight takes most of the time
    }
    return queue(tmp_path / "queue", environment)


def run(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_the_batch_scripts_from_images_to_pages(place: dict[str, str], tmp_path: Path) -> None:
    paths = {
        name: os.path.relpath(place[name], tmp_path) for name in ("DATA", "BRODEN", "WORK")
    }  # from where it is called
    environment = {**place, **paths, "SHARDS": "3", "SLURM_GPUS_ON_NODE": "2"}
    ended = run([str(EXAMPLES / "slurm" / "submit.sh"), "--account=vision"], environment, tmp_path)
    log = (tmp_path / "queue" / "log").read_text()
    assert ended.returncode == 0, ended.stderr + log
    assert "queued: extract 100 (array of 3), fit 101, evaluate 102" in ended.stdout
    submitted = (tmp_path / "queue" / "submitted").read_text().splitlines()
    assert [Path(line.split()[-1]).name for line in submitted] == ["extract.sbatch", "fit.sbatch", "evaluate.sbatch"]
    assert all("--account=vision" in line for line in submitted)
    assert "afterok:100 " in submitted[1]
    assert "afterok:101 " in submitted[2]
    work = tmp_path / "work"
    for made in ("acts.zarr/zarr.json", "eddp.safetensors", "evaluation/report.html", "report/index.html"):
        assert (work / made).is_file(), made
    assert (work / "acts.zarr" / "manifest.jsonl").is_file()
    lines = [line for line in log.splitlines() if line.startswith("{")]
    assert {json.loads(line)["command"] for line in lines} >= {"extract", "fit", "evaluate"}
    # the same line again: nothing is lost, nothing is done twice but the evaluation
    before = (work / "eddp.safetensors").read_bytes()
    ended = run([str(EXAMPLES / "slurm" / "submit.sh")], environment, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (work / "eddp.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_fit_on_several_nodes(place: dict[str, str], tmp_path: Path) -> None:
    made = run(["extract", "--model", "tiny_net:build", "--layer", "second", "--data", place["DATA"],
                "--out", f"{place['WORK']}/acts.zarr", "--quiet"], place, tmp_path)  # fmt: skip
    assert made.returncode == 0, made.stderr
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "2"}
    ended = run(["bash", str(EXAMPLES / "slurm" / "fit-nodes.sbatch")], {**place, **job}, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "work" / "eddp.safetensors").is_file()


def test_what_is_not_set_is_asked_for(place: dict[str, str], tmp_path: Path) -> None:
    del place["DATA"]
    ended = run([str(EXAMPLES / "slurm" / "submit.sh")], place, tmp_path)
    assert ended.returncode == 1
    assert "DATA: set it to the images" in ended.stderr
    assert not (tmp_path / "queue" / "submitted").exists()


def test_without_a_concept_dataset_labels_are_classes(place: dict[str, str], tmp_path: Path) -> None:
    for name in ("evaluate", "eddp"):
        (tmp_path / "queue" / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $*"\n')
        (tmp_path / "queue" / "bin" / name).chmod(0o755)
    job = ["bash", str(EXAMPLES / "slurm" / "evaluate.sbatch")]
    assert f"--broden {place['BRODEN']} --influence" in run(job, place, tmp_path).stdout
    assert "--classes --influence" in run(job, {**place, "BRODEN": ""}, tmp_path).stdout


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("slurm/*.sbatch")), ids=lambda path: path.name)
def test_directives_stand_before_the_first_command(script: Path) -> None:
    """SLURM reads no directive behind it, and says nothing."""
    lines = script.read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [k for k, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first
    assert re.search(r"--time=\d\d:\d\d:\d\d", script.read_text())


@pytest.mark.slow
def test_dask_by_hand(place: dict[str, str], tmp_path: Path) -> None:
    ended = run([str(EXAMPLES / "dask" / "by_hand.sh")], place, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "work" / "evaluation" / "summary.json").is_file()
    assert run(["eddp", "verify", str(tmp_path / "work" / "acts.zarr")], place, tmp_path).returncode == 0


@pytest.mark.slow
def test_workers_that_are_jobs(place: dict[str, str], tmp_path: Path) -> None:
    options = ("--queue", "Local", "--jobs", "2", "--cpus", "1", "--memory", "1GB", "--directions", "4",
               "--model", "tiny_net:build", "--layer", "second", "--data", place["DATA"],
               "--broden", place["BRODEN"], "--work", place["WORK"])  # fmt: skip
    ended = run([sys.executable, str(EXAMPLES / "dask" / "jobqueue.py"), *options], place, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "work" / "evaluation" / "summary.json").is_file()
