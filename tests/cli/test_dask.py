"""``evaluate --dask``: the same results from processes of this machine, one sentence for an address nobody listens on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Run, ok
from tiny import contents

import extract.dask

NET = ("--model", "tiny_net:build", "--layer", "second")


@pytest.fixture
def fitted(
    run: Run, tiny_broden: Callable[..., object], tiny_images: Callable[..., Path], tmp_path: Path
) -> list[object]:
    """Arguments of an evaluation of directions that were fitted on other images: the model is run over the concept dataset."""
    broden, store, out = tiny_broden(images=12).root, tmp_path / "acts.zarr", tmp_path / "pca.safetensors"
    ok(run("extract", *NET, "--data", tiny_images(12), "--out", store))
    ok(run("fit --store", store, "--directions 4 --method pca --out", out))
    return ["--store", store, "--directions", out, "--broden", broden, "--json", "--quiet"]


def test_processes_of_this_machine_give_the_same(
    run: Run, fitted: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract.dask, "cores", lambda: 2)
    plain, spread = tmp_path / "plain", tmp_path / "spread"
    ok(run("evaluate", *fitted, "--out", plain))
    (beside,) = tmp_path.glob("acts.second.broden-*.zarr")
    of_one_process = contents(beside)
    shutil.rmtree(beside)
    ended = ok(run("evaluate", *fitted, "--out", spread, "--dask local"))
    assert ended.err == ""
    assert contents(beside) == of_one_process
    here, there = contents(plain), contents(spread)
    assert here.keys() == there.keys()
    assert any(name.endswith(".webp") for name in here)
    for name in here.keys() - {"run.json"}:  # tables, summary, pictures and report, to the byte
        assert here[name] == there[name], name
    entry = json.loads(ended.out)["directions"]["pca"]
    assert entry.keys() >= {"intervals", "supervised_thresholds", "union"}
    assert all(low <= high for low, high in entry["intervals"].values())
    assert json.loads((spread / "run.json").read_bytes())["options"]["dask"] == "local"


def test_an_address_without_a_listener(
    run: Run, fitted: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract.dask, "PATIENCE", 0.5)
    ended = run("evaluate", *fitted, "--out", tmp_path / "out", "--dask tcp://127.0.0.1:9")
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err.startswith("Error: No dask scheduler answers at 'tcp://127.0.0.1:9' (--dask).")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_of_distributed_is_loaded_without_it() -> None:
    code = "import sys, pipeline.commands.extract, pipeline.evaluation, extract.dask; sys.exit('distributed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
