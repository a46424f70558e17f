"""Where the console scripts begin: an interruption while libraries are still loading is answered like any later one.

Loading them takes seconds, and an exception raised in the midst of it comes out of whatever library it happened to hit.
Nothing has been begun then, so the process simply ends.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

MESSAGE = b"Interrupted. What was committed is kept: run the same command again to go on.\n"


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, MESSAGE)
    os._exit(130)


def _run(script: str) -> None:
    """Import the commands, ending at once on Ctrl-C or SIGTERM, then run one of them."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    from pipeline import main

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
