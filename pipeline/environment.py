"""What a run has to work with, and what of it it used: device, cores, memory, versions, and how busy a GPU was."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from extract.worker_processes import cores

LIBRARIES = ("torch", "torchvision", "zarr", "numpy", "numcodecs")
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")  # at most one of them: they have the same files
BUSY_SECONDS = 1.0  # between two looks at a GPU: NVML tells of the last second at most


@functools.cache
def code_version() -> str:
    """``0.1.0``, with the commit where the code runs from a git checkout: ``0.1.0+g1a2b3c4``."""
    number = _version("eddp") or "unknown"
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


def versions() -> dict[str, Any]:
    """Python, eddp, and the libraries that results depend on."""
    return {
        "python": platform.python_version(),
        "code_version": code_version(),
        "libraries": {name: _version(name) for name in (*LIBRARIES, *filter(_version, FAISS))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_of(device: str) -> dict[str, Any]:
    """What a device is: its kind (``cuda:0``), its name, and the cores that this process may use."""
    if device.startswith("cuda") and (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        return {"kind": device, "name": torch.cuda.get_device_name(device), "cores": cores()}
    return {"kind": device, "name": cpu_name(), "cores": cores()}


@functools.cache
def cpu_name() -> str:
    """The model of the processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def job(environ: Mapping[str, str] = os.environ) -> str | None:
    """The batch job as SLURM knows it: ``4711``, or ``4711_3`` for a task of an array."""
    task = environ.get("SLURM_ARRAY_TASK_ID")
    if task and environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{task}"
    return environ.get("SLURM_JOB_ID") or None


def peak_memory_mib() -> int:
    """Largest resident memory of this process so far, in MiB.

    Linux's own count where there is one: what getrusage reports begins with that of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**10)
    except (OSError, IndexError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def peak_gpu_memory_mib(device: str) -> int | None:
    """Largest memory that torch held on a GPU so far, in MiB; None for a CPU, and where it held none."""
    torch = sys.modules.get("torch")  # loaded by whoever uses a GPU; it takes a second
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20)


class Busy:
    """The share of a block's time in which a GPU worked, looked up every second; a context manager.

    ``share`` stays None on a CPU, and where NVML does not tell (torch asks it through the package nvidia-ml-py).
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.looks, self.percent = 0, 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def share(self) -> float | None:
        return round(self.percent / self.looks / 100, 3) if self.looks else None

    def __enter__(self) -> Busy:
        torch = sys.modules.get("torch")
        if torch is not None and self.device.startswith("cuda") and torch.cuda.is_available():
            self._thread = threading.Thread(target=self._look, name="gpu-busy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(BUSY_SECONDS)

    def _look(self) -> None:
        torch = sys.modules["torch"]
        while not self._stop.wait(BUSY_SECONDS):
            try:
                percent = int(torch.cuda.utilization(self.device))
            except Exception:  # noqa: BLE001  (no NVML, no rights, a driver that does not know: nothing is told then)
                return
            self.looks, self.percent = self.looks + 1, self.percent + percent
