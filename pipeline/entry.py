"""Where the console scripts begin: an interruption while libraries are still loading is answered like any later one.

Loading them takes seconds, and an exception raised in the midst of it comes out of whatever library it happened to hit.
Nothing has started then, so the process simply ends.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from pipeline.logging import INTERRUPTED, json_line
from pipeline.name_clash import name_clash
from pipeline.options import wants_json
from pipeline.out_of_memory import limited_address_space


def _run(script: str) -> None:
    """Import the commands, ending at once on Ctrl-C or SIGTERM, then run one of them."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        leave(INTERRUPTED, 130)

    def leave(message: str, code: int) -> NoReturn:
        line = json_line("error", "error", command, message, exit_code=code) if as_json else message
        os.write(2, f"{line}\n".encode())
        os._exit(code)

    command, as_json = script.removesuffix("_script"), False
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    if command == "eddp":  # which subcommand is not known yet: its name is the first word
        command = next((text for text in sys.argv[1:] if not text.startswith("-")), command)
    as_json = wants_json(command, sys.argv[1:])
    if message := name_clash():
        leave(message if as_json else f"Error: {message}", 1)
    from pipeline import main

    if command in main.COMMANDS:
        if message := limited_address_space(command):
            leave(message if as_json else f"Error: {message}", 1)
        main.load(command)
        if not {"-h", "--help"} & set(sys.argv[1:]):
            importlib.import_module(main.COMMANDS[command][2])
    for number, handler in before.items():
        signal.signal(number, handler)
    getattr(main, script)()


def eddp() -> None:
    """Entry point of ``eddp``."""
    _run("eddp")


def extract() -> None:
    """Entry point of ``extract``."""
    _run("extract_script")


def fit() -> None:
    """Entry point of ``fit``."""
    _run("fit_script")


def evaluate() -> None:
    """Entry point of ``evaluate``."""
    _run("evaluate_script")
