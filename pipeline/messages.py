"""What a command says on stderr: sentences for people, or with ``--log-json`` one JSON object a line.

Everything goes through here, whoever says it: the commands (``say``), errors, progress, and what ``pipeline.speaking`` catches
of loggers and libraries. Only the standard library is imported: this is ready before all else is.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

INTERRUPTED = "Interrupted. What was committed is kept: run the same command again to go on."
SAID = ("announce", "error")  # what people read of the events


def visible(text: str) -> str:
    """Text for a terminal: what could move its cursor or turn its lines (control characters, directions of writing) is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def echo(text: str) -> None:
    """Print a result on stdout."""
    sys.stdout.write(f"{visible(text)}\n")
    sys.stdout.flush()


class Sentences:
    """Says what people should read, as it is; what only a program would ask for is left out."""

    json = False

    def __init__(self, command: str = "eddp", rank: int = 0) -> None:
        self.command, self.rank = command, rank
        self.fields: dict[str, Any] = {}  # that every line has, such as the shard

    def emit(self, event: str, level: str, message: str, **fields: Any) -> None:
        """Say one thing. ``event``: progress, log, announce, error, result, begun or ended; ``level``: debug to error."""
        if event in SAID:
            sys.stderr.write(f"{visible(message)}\n")
            sys.stderr.flush()

    def error(self, message: str, code: int, **fields: Any) -> None:
        """Say why the command ends with this exit code; one of several processes says which it is."""
        self.emit("error", "error", f"Error (rank {self.rank}): {message}" if self.rank else f"Error: {message}")

    def interrupted(self, message: str) -> None:
        """Say that the command was asked to end."""
        self.emit("error", "error", message)

    def ended(self, code: int) -> None:
        """Say that the command has ended, and how."""


class JsonLines(Sentences):
    """Writes one JSON object a line: whole, flushed, and never two threads' in one another."""

    json = True

    def __init__(self, stream: TextIO, command: str = "eddp", rank: int = 0, size: int = 1) -> None:
        super().__init__(command, rank)
        self.stream = stream
        self.lock = threading.RLock()
        self.begun = time.monotonic()
        if size > 1:
            self.fields = {"rank": rank, "ranks": size}

    def emit(self, event: str, level: str, message: str, **fields: Any) -> None:
        line = json_line(event, level, self.command, message, **{**self.fields, **fields})
        with self.lock, suppress(ValueError, OSError):  # nobody reads any more: no reason to end the work
            self.stream.write(line)
            self.stream.flush()

    def error(self, message: str, code: int, **fields: Any) -> None:
        self.emit("error", "error", message, exit_code=code, **fields)

    def interrupted(self, message: str) -> None:
        self.error(message, 130)

    def ended(self, code: int) -> None:
        seconds = round(time.monotonic() - self.begun, 2)
        text = {0: "is done", 130: "was interrupted"}.get(code, f"ended with exit code {code}")
        self.emit("ended", "error" if code else "info", f"{self.command} {text}", exit_code=code, seconds=seconds)


_speaker = Sentences()


def speaker() -> Sentences:
    """Who speaks on stderr at present."""
    return _speaker


def appoint(who: Sentences) -> Sentences:
    """Let somebody else speak; gives who did before."""
    global _speaker
    before, _speaker = _speaker, who
    return before


def say(text: str, level: str = "info") -> None:
    """Say something that is no result: a note, a forecast, a step that begins. ``level``: info or warning."""
    _speaker.emit("announce", level, text)


def json_line(event: str, level: str, command: str, message: str, **fields: Any) -> str:
    """One line of the log, with its time in UTC. In ASCII: no encoding can break it, no name in it can end it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    head = {"time": now, "level": level, "event": event, "command": command, "message": message}
    return json.dumps(plain({**head, **fields}), allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The same value as JSON has it: what is no number there (NaN, infinite) is null, what it does not know is a string."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def ranks(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says; (0, 1) without it."""
    try:
        rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, size) if 0 <= rank < size else (0, 1)
