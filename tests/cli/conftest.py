"""Commands run as their console scripts run them, in this process: exit code, stdout and stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from brought import folders, picture

from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.commands.fit import fit
from pipeline.main import group
from pipeline.options import run_command
from stores.store import ActivationStore

COMMANDS = {"extract": extract, "fit": fit, "evaluate": evaluate, "eddp": group}


OWN = {"tiny_net", "own_nets", "shortcut_net", "fateful_net", "linear_sight", "toy_network"}


def word_on(arguments: tuple[object, ...]) -> tuple[str, ...]:
    """``--model`` for a command that reads a store of one of the tests' own networks: whoever made them trusts them."""
    start = arguments.index("--store") if "--store" in arguments else 0
    for path in map(Path, map(str, arguments[start:])):
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if (path / "summary.json").is_file():
                path /= json.loads((path / "summary.json").read_bytes())["made_from"]["store"]
            model = json.loads((path / "zarr.json").read_bytes())["attributes"]["eddp"]["provenance"]["model"]
            return ("--model", model) if model.partition(":")[0] in OWN and "--model" not in arguments else ()
    return ()


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``run("fit", "--store", path, ...)``; the tests' own networks are trusted, see ``word_on``."""

    def call(name: str, *arguments: object) -> Ended:
        reads = {"fit", "evaluate", "report", "explain", "correct"} & {name, str((*arguments, "")[0])}
        typed = (*arguments, *word_on(arguments)) if reads else arguments
        with pytest.raises(SystemExit) as ended:
            run_command(COMMANDS[name], name, [str(a) for a in typed])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return folders(tmp_path / "animals", "abcde", lambda k, j: picture(10 * k + j))


@pytest.fixture
def extracted(
    run: Callable[..., Ended], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[ActivationStore, str]]:
    """Extract one layer by the command line: the store, and what it said on stderr, warnings last."""

    def extract(model: str, layer: str, data: Path, *options: object) -> tuple[ActivationStore, str]:
        out = tmp_path / f"{model}-{data.name}.zarr"
        caplog.clear()
        ended = run("extract", "--model", f"own_nets:{model}", "--weights", "none", "--layer", layer, "--data", data, "--out", out, "--dtype", "float32", *options)  # fmt: skip
        assert ended.code == 0, ended.err
        return ActivationStore.open(out), ended.err + caplog.text

    return extract


@pytest.fixture
def refused(run: Callable[..., Ended], tmp_path: Path) -> Callable[..., str]:
    """The same for what is refused before anything is written: what it says."""

    def extract(model: str, layer: str, data: Path, *options: object) -> str:
        out = tmp_path / "refused.zarr"
        ended = run(
            "extract",
            "--model",
            f"own_nets:{model}",
            "--weights",
            "none",
            "--layer",
            layer,
            "--data",
            data,
            "--out",
            out,
            *options,
        )
        assert ended.code == 2, (ended.code, ended.err)
        assert "unexpected" not in ended.err
        assert not out.exists()
        return " ".join(ended.err.split())

    return extract
