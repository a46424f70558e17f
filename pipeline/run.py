"""Records of runs: what was in force, how long it took and what it needed, written beside each result."""

from __future__ import annotations

import logging
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stores.errors import StoreError, UsageError
from stores.files import write_json

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "torchvision", "zarr", "numpy", "faiss-cpu", "numcodecs")


def code_version() -> str:
    """``0.1.0``, with the commit where the code runs from a git checkout: ``0.1.0+g1a2b3c4``."""
    try:
        number = version("eddp")
    except PackageNotFoundError:
        number = "unknown"
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return number
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return f"{number}+g{found.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        return number


def pick_device(device: str) -> str:
    """``auto`` -> ``cuda`` or ``cpu``. Raises UsageError for a device that is not there or has no such name."""
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
    """Measures one command and writes its record."""

    def __init__(self, command: str, options: Mapping[str, Any]) -> None:
        self.command = command
        self.options = {k: _plain(v) for k, v in options.items()}
        self.begun = datetime.now(UTC)
        self.clock = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock

    def record(self, **more: Any) -> dict[str, Any]:
        """Everything worth knowing of the run, JSON-able."""
        found: dict[str, Any] = {
            "command": self.command,
            "options": self.options,
            "begun": self.begun.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "peak_memory_mib": peak_memory_mib(),
            "host": platform.node(),
            "python": platform.python_version(),
            "code_version": code_version(),
            "libraries": {name: _version(name) for name in LIBRARIES},
        }
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
            found["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        return {**found, **more}

    def write_beside(self, path: Path, ending: str, **more: Any) -> dict[str, Any]:
        """Write the record beside a result; where that is not possible any more, only a warning says so."""
        there = path.absolute()
        try:
            return self.write(there.with_name(there.name + ending), **more)
        except (StoreError, ValueError) as error:  # a read-only disk; the root of a disk has no name
            log.warning("the record of this run is not kept: %s", error)
            return self.record(**more)

    def write(self, path: Path, **more: Any) -> dict[str, Any]:
        record = self.record(**more)
        write_json(path, record)
        return record


def peak_memory_mib() -> int:
    """Largest resident memory of this process so far, in MiB.

    Linux's own count where there is one: what getrusage tells begins with that of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**10)
    except (OSError, IndexError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
