"""In which form a command speaks, and how all that others would write to stderr is caught for it (``--log-json``)."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.messages import JsonLines, Sentences, appoint, ranks, visible

TRUE = ("1", "true", "t", "yes", "y", "on")  # as click reads a flag from the environment
OURS = ("pipeline", "evaluate", "fit", "extract", "stores")  # what --debug hears more of; libraries would bury it
MOST_BYTES, LONGEST_LINE = (
    2**16,
    2**13,
)  # of a configuration file: tomllib's time grows with the square of a dotted key's length
LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))


@contextmanager
def speaking(command: str, *, as_json: bool, debug: bool = False) -> Iterator[Sentences]:
    """Have everything of one command said in one form for as long as the block lasts."""
    rank, size = ranks()
    if not as_json:
        handler = logging.StreamHandler()
        handler.setFormatter(_Visible("Warning: %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        who = Sentences(command, rank)
        before = appoint(who)
        try:
            with _heard(debug):
                yield who
        finally:
            appoint(before)
        return
    lines = JsonLines(sys.stderr, command, rank, size)
    before = appoint(lines)
    try:
        with _caught(lines), _heard(debug):
            lines.emit("begun", "info", f"{command} begins", pid=os.getpid())
            yield lines
    finally:
        appoint(before)


@contextmanager
def _heard(debug: bool) -> Iterator[None]:
    """Everything that eddp's own loggers say, if ``debug``; of others, warnings."""
    loggers = [logging.getLogger(name) for name in OURS if debug]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _caught(lines: JsonLines) -> Iterator[None]:
    """Make lines of what loggers, warnings, threads that die, and whoever writes to ``sys.stderr`` have to say."""
    stderr, root, hook = sys.stderr, logging.getLogger(), threading.excepthook
    foreign = Foreign(lines)
    sys.stderr = foreign
    handlers, root.handlers = root.handlers, [_Records(lines)]
    before = root.level
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)

    def died(args: threading.ExceptHookArgs) -> None:
        trace = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        name = args.thread.name if args.thread else "thread"
        lines.emit("log", "error", f"{args.exc_type.__name__}: {args.exc_value}", logger=name, traceback=trace)

    threading.excepthook = died
    try:
        yield
    finally:
        foreign.close_line()
        threading.excepthook = hook
        logging.captureWarnings(False)
        root.handlers = handlers
        root.setLevel(before)
        sys.stderr = stderr


class _Visible(logging.Formatter):
    """Escapes what could move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Records(logging.Handler):
    """Makes a line of every record of a logger."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for least, name in LEVELS if record.levelno >= least), "debug")
        more = {}
        if record.exc_info and record.exc_info[0] is not None:
            more["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        try:
            text = record.getMessage().strip()
        except Exception as error:  # noqa: BLE001  (a wrong call of a library is no reason to end)
            text = f"{record.msg} ({type(error).__name__}: {error})"
        self.lines.emit("log", level, text, logger=record.name, **more)


class Foreign(io.TextIOBase):
    """Stands in for ``sys.stderr``: each line that somebody writes there becomes a line of the log."""

    def __init__(self, lines: JsonLines) -> None:
        self._lines = lines
        self._open = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._open = (self._open + text).split("\n")
            for line in whole:
                self._put(line)
        return len(text)

    def close_line(self) -> None:
        """Write what was begun and not ended."""
        with self._lock:
            line, self._open = self._open, ""
            self._put(line)

    def _put(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2].rstrip()  # of a line that was written over, what is seen at last
        if shown:
            self._lines.emit("log", "warning", shown, logger="stderr")

    def fileno(self) -> int:
        return self._lines.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


def wants_json(command: str, arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``--log-json`` holds, looked up before click does: its own errors are to be lines as well.

    The command line, then ``EDDP_COMMAND_LOG_JSON``, then ``log_json`` in the command's section of ``--config``.
    """
    given = list(arguments)
    if "--" in given:
        given = given[: given.index("--")]
    if "--log-json" in given:
        return True
    prefix = f"EDDP_{command.upper()}"
    chosen = environ.get(f"{prefix}_LOG_JSON")
    if chosen:
        return chosen.strip().lower() in TRUE
    config = environ.get(f"{prefix}_CONFIG")
    for at, text in enumerate(given):
        if text == "--config" and at + 1 < len(given):
            config = given[at + 1]
        elif text.startswith("--config="):
            config = text.partition("=")[2]
    if not config:
        return False
    try:  # what is wrong with the file is said by who reads it
        section = read_config(Path(config))[command]
        return section.get("log_json", section.get("log-json")) is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def read_config(path: Path) -> dict[str, Any]:
    """Read a small TOML file; a pipe or a device is not opened. Raises OSError, ValueError, or RecursionError for deep nesting."""
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES or max(map(len, data.split(b"\n"))) > LONGEST_LINE:
        raise ValueError(f"it has more than {MOST_BYTES} bytes, or more than {LONGEST_LINE} in a line")
    return tomllib.loads(data.decode())
