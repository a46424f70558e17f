"""Commands run as their console scripts run them, in this process: exit code, stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.commands.fit import fit
from pipeline.main import group
from pipeline.options import run_command

COMMANDS = {"extract": extract, "fit": fit, "evaluate": evaluate, "eddp": group}


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``run("fit", "--store", path, ...)``."""

    def call(name: str, *arguments: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            run_command(COMMANDS[name], name, [str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call
