"""One run of a command, measured, and its record next to the result: also of a run that failed, was interrupted, or is under way."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from pipeline.environment import Busy, code_version, device_of, job, peak_gpu_memory_mib, peak_memory_mib, versions
from pipeline.logging import add_field, emit, is_json, plain, ranks
from pipeline.records import Place, merged, stopped_at
from pipeline.stage_times import Stages
from stores.errors import EDDPError, UsageError
from stores.io import json_bytes
from stores.progress import Progress

__all__ = ["Run", "code_version", "peak_memory_mib", "pick_device"]

log = logging.getLogger(__name__)
UNDER_WAY_SECONDS = 60.0  # between two writings of the record of a run that is under way
MOST_WARNINGS = 100
LONGEST = 1000  # characters of a warning


def pick_device(device: str) -> str:
    """``auto`` -> ``cuda`` or ``cpu``. Raises UsageError for a device that is not there or has no such name."""
    import torch  # takes a second: not for --help

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    name, _, number = device.partition(":")
    if name != "cuda" or (number and not number.isdigit()):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got '{device}'.")
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {device}: this machine offers no CUDA device to torch {torch.__version__}. Use --device cpu."
        )
    if number and int(number) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0.")
    return device


class Run:
    """Measures one run of a command, and keeps its record.

    Parameters
    ----------
    command, options : what was called, with the options in force.
    work : the stage whose steps are what the run does; without it any stage's are.
    in_place : a run that does not end well may leave the result of an earlier one changed.
    about : what else is known of it, such as ``shard``; every line of ``--log-json`` has it, too.
    """

    def __init__(
        self, command: str, options: Mapping[str, Any], *, work: str | None = None, in_place: bool = False, **about: Any
    ) -> None:
        self.command = command
        self.options = plain(options)
        self.work, self.in_place = work, in_place
        self.about = {key: value for key, value in about.items() if value is not None}
        rank, size = ranks()
        if size > 1:
            self.about = {"rank": rank, "ranks": size, **self.about}
        self.begun = datetime.now(UTC)
        self.clock = time.monotonic()
        self.device = "cpu"
        self.place: Place | None = None
        self.stages = Stages()
        self.warnings = Warnings()
        self.busy = Busy("cpu")
        self._kept: dict[str, Any] | None = (
            None  # the record of an earlier run, which its folder may take along when it goes
        )
        self._written = -UNDER_WAY_SECONDS
        self._writing = Lock()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock

    @property
    def earlier_stopped_at(self) -> str | None:
        """Where the run before this one stopped, if it did not come to its end."""
        return None if self._kept is None else stopped_at(self._kept)

    @property
    def worked(self) -> bool:
        """Whether it did anything yet."""
        return self.stages.steps(self.work) > 0 if self.work else self.stages.worked

    @contextmanager
    def watching(self, progress: Progress, place: Place | None = None, *, device: str = "cpu") -> Iterator[Progress]:
        """Take down what happens in the block: give the Progress to be called in it, collect warnings, and keep the record of a
        failure at ``place``.

        Wrong use (exit code 2) that is found before anything is done leaves no record: nothing was started.
        """
        self.place, self.device = place, device
        self._kept = place.read() if place else None
        self.stages = Stages()
        self.busy = Busy(device)
        if "shard" in self.about:
            add_field("shard", self.about["shard"])

        def told(stage: str, done: int, total: int | None = None, note: str = "") -> None:
            self.stages(stage, done, total)
            if time.monotonic() - self._written > UNDER_WAY_SECONDS and self.worked:
                self._keep_under_way()
            progress(stage, done, total, note)

        with self.warnings, self.busy:
            try:
                yield told
            except BaseException as error:
                self._failed(error)
                raise

    def record(self, **more: Any) -> dict[str, Any]:
        """Everything worth knowing of the run so far, JSON-able."""
        found: dict[str, Any] = {
            "command": self.command,
            "outcome": "done",
            "options": self.options,
            "begun": self.begun.isoformat(timespec="milliseconds"),
            "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 2),
            **self.about,
            "peak_memory_mib": peak_memory_mib(),
            "host": platform.node(),
            "pid": os.getpid(),
            "job": job(),
            "device": device_of(self.device),
            "peak_gpu_memory_mib": peak_gpu_memory_mib(self.device),
            "gpu_busy": self.busy.share,
            **versions(),
            "stages": self.stages.record(),
            "warnings": self.warnings.record(),
            "warnings_left_out": self.warnings.left_out or None,
        }
        return {key: value for key, value in {**found, **more}.items() if value is not None}

    def write(self, **more: Any) -> dict[str, Any]:
        """Keep the record of the run, which is done; where that is not possible any more, only a warning says so."""
        record = self.record(**more)
        where = None
        try:
            where = self._keep(record)
        except (EDDPError, OSError, ValueError) as error:  # a read-only disk, a name that is too long
            log.warning("the record of this run is not stored: %s", error)
        if is_json():
            shown = {
                key: value
                for key, value in record.items()
                if key not in ("options", "libraries", "command", *self.about)
            }
            emit("result", "info", f"{self.command}: {record['seconds']} s", record=where and str(where), **shown)
        return record

    def _keep(self, record: dict[str, Any]) -> str | None:
        if self.place is None:
            return None
        done = record["outcome"] == "done"
        # a run that was done and had nothing to do leaves the record of the one that did it
        changed = self.worked or not self.work if done else self.worked and self.in_place
        kept = self.place.read() or self._kept
        whole = merged(kept, record, stands=not changed)
        return str(self.place.write(json_bytes(plain(whole)), done=whole.get("outcome", "done") == "done"))

    def _keep_under_way(self) -> None:
        """Keep the record of a run that is under way: it says where it is, and that it was, should it be killed."""
        if self.place is None or not self._writing.acquire(blocking=False):
            return
        try:
            self._written = time.monotonic()
            with suppress(EDDPError, OSError, ValueError):  # the end will tell
                self._keep(
                    self.record(outcome="running", ended=None, reached=self.stages.reached(), **self._done_now())
                )
        finally:
            self._writing.release()

    def _failed(self, error: BaseException) -> None:
        """Keep the record of a run that did not end well, if it can be stored: whatever happens, the error is what counts."""
        code = getattr(error, "exit_code", 1) if isinstance(error, EDDPError) else 1
        if code == 2 and not self.worked:
            return
        stopped = isinstance(error, KeyboardInterrupt)
        told = {
            "outcome": "interrupted" if stopped else "failed",
            "error": None if stopped else _sentence(error),
            "reached": self.stages.reached(),
            **self._done_now(),
        }
        try:
            if self.place is not None and self.place.target(done=False).parent.is_dir():  # no folder is made for it
                self._keep(self.record(**told))
        except Exception as wrong:  # noqa: BLE001
            log.debug("the record of this run is not stored: %s", wrong)

    def _done_now(self) -> dict[str, int]:
        return {"done_now": self.stages.steps(self.work)} if self.work else {}


class Warnings(logging.Handler):
    """The warnings of a block, each once with how often it came; a context manager."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: dict[tuple[str, str, str], int] = {}
        self.left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage().strip()[:LONGEST]
        except Exception:  # noqa: BLE001  (a wrong call of a library)
            text = str(record.msg)[:LONGEST]
        key = (record.levelname.lower(), record.name, text)
        if key in self.found or len(self.found) < MOST_WARNINGS:
            self.found[key] = self.found.get(key, 0) + 1
        else:
            self.left_out += 1

    def add(self, text: str) -> None:
        """Take down one that no logger reported."""
        self.emit(logging.LogRecord("eddp", logging.WARNING, "", 0, "%s", (text,), None))

    def record(self) -> list[dict[str, Any]]:
        return [
            {"level": level, "logger": logger, "message": text, "count": count}
            for (level, logger, text), count in self.found.items()
        ]

    def __enter__(self) -> Warnings:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def _sentence(error: BaseException) -> str:
    """An error as the command line reports it."""
    if isinstance(error, EDDPError):
        return str(error)
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
