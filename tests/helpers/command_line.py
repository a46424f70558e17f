"""The commands in this process, run as their console scripts run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.commands.fit import fit
from pipeline.main import group
from pipeline.options import run_command

COMMANDS = {"extract": extract, "fit": fit, "evaluate": evaluate, "eddp": group}
OWN = {"tiny_net", "own_nets", "shortcut_net", "fateful_net", "linear_sight", "word_sight", "toy_network"}


@dataclass
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def ok(ended: Ended) -> Ended:
    """The same, if it succeeded."""
    assert ended.code == 0, ended.err
    return ended


def command(*arguments: object) -> int:
    """Exit code of ``command("fit", "--store", path, ...)``.

    The first argument and those that start with ``--`` may be several words. ``--model`` is added for the tests' own networks.
    """
    words: list[str] = []
    for argument in arguments:
        several = isinstance(argument, str) and (not words or argument.startswith("--"))
        words += argument.split(" ") if several else [str(argument)]
    if {"fit", "evaluate", "report", "explain", "correct"} & set(words[:2]):
        words += _trust_in(words)
    with pytest.raises(SystemExit) as ended:
        run_command(COMMANDS[words[0]], words[0], words[1:])
    return int(ended.value.code or 0)


def _trust_in(words: list[str]) -> tuple[str, ...]:
    """``--model`` for a command that reads a store of one of the tests' own networks: whoever made them trusts them."""
    start = words.index("--store") if "--store" in words else 0
    for path in map(Path, words[start:]):
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if (path / "summary.json").is_file():
                path /= json.loads((path / "summary.json").read_bytes())["made_from"]["store"]
            model = json.loads((path / "zarr.json").read_bytes())["attributes"]["eddp"]["provenance"]["model"]
            return ("--model", model) if model.partition(":")[0] in OWN and "--model" not in words else ()
    return ()


def do(*arguments: object) -> None:
    """Run a command that must succeed."""
    assert command(*arguments) == 0, arguments


def fails(ended: Ended, code: int, *words: str) -> None:
    """It ended with this exit code and a message that holds all of these words."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err, ended.err
