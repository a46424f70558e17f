"""Commands run in this process, and extractions by networks as people bring them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from brought import folders, picture
from command_line import Ended, Run, command, ok

from stores.store import ActivationStore


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("fit", "--store", path, ...)``: exit code, stdout and stderr (see ``command_line.command``)."""
    return lambda *arguments: Ended(command(*arguments), *capsys.readouterr())


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return folders(tmp_path / "animals", "abcde", lambda k, j: picture(10 * k + j))


@pytest.fixture
def extracted(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[ActivationStore, str]]:
    """Extract one layer by the command line: the store, and what it said on stderr, warnings last."""

    def extract(model: str, layer: str, data: Path, *options: object) -> tuple[ActivationStore, str]:
        out = tmp_path / f"{model}-{data.name}.zarr"
        caplog.clear()
        net = f"--model own_nets:{model} --weights none --layer {layer}"
        ended = ok(run("extract", net, "--data", data, "--out", out, "--dtype float32", *options))
        return ActivationStore.open(out), ended.err + caplog.text

    return extract


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., str]:
    """The same for what is refused before anything is written: what it says."""

    def extract(model: str, layer: str, data: Path, *options: object) -> str:
        out = tmp_path / "refused.zarr"
        net = f"--model own_nets:{model} --weights none --layer {layer}"
        ended = run("extract", net, "--data", data, "--out", out, *options)
        assert ended.code == 2, (ended.code, ended.err)
        assert "unexpected" not in ended.err
        assert not out.exists()
        return " ".join(ended.err.split())

    return extract
