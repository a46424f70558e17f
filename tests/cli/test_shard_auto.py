"""``extract --shard auto``: job arrays and torchrun fill one store, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Run, ok
from tiny import contents

from stores.store import ActivationStore

NET = ("--model", "tiny_net:build", "--layer", "second")
ARRAY = "SLURM_ARRAY_TASK_"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 images."""
    monkeypatch.setattr("stores.layout.TARGET_CHUNK_BYTES", 2048)


def submitted(monkeypatch: pytest.MonkeyPatch, task: int, ids: list[int]) -> None:
    """The environment of one task of an array."""
    for name, value in {"ID": task, "MIN": ids[0], "MAX": ids[-1], "STEP": 1, "COUNT": len(ids)}.items():
        monkeypatch.setenv(ARRAY + name, str(value))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("count", [2, 9])  # of 3 chunks
def test_an_array_gives_the_store_of_one_process(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    options = (*NET, "--data", tiny_images(20), "--quiet")
    assert run("extract", *options, "--out", tmp_path / "whole").code == 0
    ids = list(range(1, count + 1))
    for task in ids[1:] + ids[:1]:  # the first one comes last
        submitted(monkeypatch, task, ids)
        ended = ok(run("extract", *options, "--out", tmp_path / "s", "--shard auto"))
        if count == 2:  # of nine, the first holds no chunk
            assert ("1 of 3 chunks are missing yet" in ended.out) == (task != 1)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    record = json.loads((tmp_path / f"s.shard-{count - 1}-of-{count}.run.json").read_text())
    assert record["options"]["shard"] == f"{count - 1}/{count}"


@pytest.mark.usefixtures("chunks")
def test_one_task_that_is_queued_again_does_whatever_is_missing(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*NET, "--data", tiny_images(20), "--out", tmp_path / "s", "--shard", "auto", "--json", "--quiet")
    submitted(monkeypatch, 0, [0, 1, 2])
    assert run("extract", *options).code == 0
    submitted(monkeypatch, 2, [2])
    ended = ok(run("extract", *options))
    assert (json.loads(ended.out)["done_now"], json.loads(ended.out)["missing_chunks"]) == (12, 0)
    assert ActivationStore.open(tmp_path / "s").verify() == []


@pytest.mark.parametrize(
    ("options", "environ", "told"),
    [
        (("--shard", "auto"), {}, "--shard auto finds no job array"),
        (("--dry-run",), {"RANK": "1", "WORLD_SIZE": "2"}, "add --shard auto"),
    ],
)
def test_wrong_use_is_one_message(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], environ: dict[str, str], told: str,
) -> None:  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ended = run("extract", *NET, "--data", tiny_images(2), "--out", tmp_path / "s", *options)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_torchrun(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    data = tiny_images(20)
    assert run("extract", *NET, "--data", data, "--out", tmp_path / "whole", "--quiet").code == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "pipeline.main",
        "extract", *NET, "--data", data, "--out", tmp_path / "s", "--shard", "auto", "--quiet",
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    ended = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    for i in range(2):
        assert json.loads((tmp_path / f"s.shard-{i}-of-2.run.json").read_text())["options"]["shard"] == f"{i}/2"
