"""What a command writes on stderr: text for people, or with ``--log-json`` one JSON object a line.

Messages of the commands are records of one logger with an ``event`` and fields of their own; those of libraries are records like any
other. Only the standard library is imported: this is ready before all else is.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

INTERRUPTED = "Interrupted. What was committed is stored: run the same command again to resume."
INTERRUPTED_ELSEWHERE = "Interrupted. Activations and checkpoints that were written stay and are used; the same command computes all else again."
OURS = ("pipeline", "evaluate", "fit", "extract", "stores")  # what --debug shows more of
EVENTS = logging.getLogger("eddp")
EVENTS.setLevel(logging.DEBUG)
EVENTS.propagate = False

_json_fields: dict[str, Any] | None = None  # with --log-json, what every line has: the process's number, the shard


def visible(text: str) -> str:
    """Text for a terminal: what could move its cursor or turn its lines (control characters, directions of writing) is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def echo(text: str) -> None:
    """Print a result on stdout."""
    sys.stdout.write(f"{visible(text)}\n")
    sys.stdout.flush()


def emit(event: str, level: str, message: str, **fields: Any) -> None:
    """Log one event of a command: progress, announce, error, result, ``begun`` or ended; ``level``: debug to error."""
    EVENTS.log(getattr(logging, level.upper()), "%s", message, extra={"event": event, "fields": fields})


def say(text: str, level: str = "info") -> None:
    """Write something that is no result: a note, a forecast, a step that begins. ``level``: info or warning."""
    emit("announce", level, text)


def error(message: str, code: int, **fields: Any) -> None:
    """Write why the command ends with this exit code; one of several processes says which it is."""
    rank = ranks()[0]
    text = message if is_json() or code == 130 else f"Error (rank {rank}): {message}" if rank else f"Error: {message}"
    emit("error", "error", text, exit_code=code, **fields)


def is_json() -> bool:
    """Whether stderr is a log of JSON lines at present."""
    return _json_fields is not None


def add_field(name: str, value: Any) -> None:
    """Add a field to every line of a JSON log from now on."""
    if _json_fields is not None:
        _json_fields[name] = value


@contextmanager
def logging_to_stderr(command: str, *, as_json: bool, debug: bool = False) -> Iterator[None]:
    """Write everything that is logged in the block to stderr, in one form; with JSON also warnings, threads that die, and text that
    others write to ``sys.stderr``."""
    global _json_fields
    root, stderr, hook, fields = logging.getLogger(), sys.stderr, threading.excepthook, _json_fields
    rank, size = ranks()
    _json_fields = ({"rank": rank, "ranks": size} if size > 1 else {}) if as_json else None
    handler = _Handler(stderr)
    handler.setFormatter(_JsonFormatter(command) if as_json else _TextFormatter())
    if not as_json:  # there each line that a library writes counts
        handler.addFilter(_Once().is_new)
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, OURS))}
    handlers, events = root.handlers, EVENTS.handlers
    EVENTS.handlers = [handler]
    if as_json or not handlers:  # a program that logs already gets our warnings its own way
        root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS if debug else ():
        logging.getLogger(name).setLevel(logging.DEBUG)
    written = _Written()
    if as_json:
        logging.captureWarnings(True)
        sys.stderr, threading.excepthook = written, _log_death
        emit("begun", "info", f"{command} begins", pid=os.getpid())
    try:
        yield
    finally:
        if as_json:
            written.write("\n")
            logging.captureWarnings(False)
            sys.stderr, threading.excepthook = stderr, hook
        root.handlers, EVENTS.handlers, _json_fields = handlers, events, fields
        for logger, level in levels.items():
            logger.setLevel(level)


class _Handler(logging.StreamHandler[Any]):
    """Writes complete lines; one whose reader has ended is no reason to end the work."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Once:
    """People read a library's warning once a command."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def is_new(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if hasattr(record, "event") or text not in self._seen:
            self._seen.add(text)
            return True
        return False


class _TextFormatter(logging.Formatter):
    """What people read. Escapes what could move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(record.getMessage() if hasattr(record, "event") else f"Warning: {super().format(record)}")


class _JsonFormatter(logging.Formatter):
    def __init__(self, command: str) -> None:
        super().__init__()
        self.command = command

    def format(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", "log")
        fields = dict(getattr(record, "fields", {} if event != "log" else {"logger": record.name}))
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = self.formatException(record.exc_info)
        try:
            text = record.getMessage().strip()
        except Exception as wrong:  # noqa: BLE001  (a wrong call of a library is no reason to end)
            text = f"{record.msg} ({type(wrong).__name__}: {wrong})"
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        return json_line(event, level, self.command, text, **(_json_fields or {}), **fields)


class _Written(io.TextIOBase):
    """Stands in for ``sys.stderr``: each line that is written there becomes a line of the log."""

    def __init__(self) -> None:
        self._open, self._lock = "", threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._open = (self._open + text).split("\n")
            for line in lines:
                shown = (
                    line.rstrip("\r").rpartition("\r")[2].rstrip()
                )  # of a line that was written over, what is seen last
                if shown:
                    logging.getLogger("stderr").warning("%s", shown)
        return len(text)

    def fileno(self) -> int:
        return sys.__stderr__.fileno() if sys.__stderr__ else 2


def _log_death(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "thread"
    what = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    logging.getLogger(name).error("%s: %s", args.exc_type.__name__, args.exc_value, exc_info=what)


def json_line(event: str, level: str, command: str, message: str, **fields: Any) -> str:
    """One line of the log, with its time in UTC. In ASCII: no encoding can break it, no name in it can end it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    head = {"time": now, "level": level, "event": event, "command": command, "message": message}
    return json.dumps(plain({**head, **fields}), allow_nan=False)


def ended(command: str, code: int, started: float) -> None:
    """Log that a command has ended, and how; ``started`` by ``time.monotonic``."""
    if is_json():
        text = {0: "is done", 130: "was interrupted"}.get(code, f"ended with exit code {code}")
        seconds = round(time.monotonic() - started, 2)
        emit("ended", "error" if code else "info", f"{command} {text}", exit_code=code, seconds=seconds)


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
