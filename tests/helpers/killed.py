"""An extraction in a process of its own that ends itself, by SIGKILL, at a chosen moment of its writing.

The four functions through which ``stores.io`` touches the disk tell each step they take: which kind of file (the store's
root, a commit, a chunk) and what is being done to it. The process stops at the n-th such step, or says at the
end which steps there were.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stores import io

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["extract.stream", "extract.models", "timm"])


def extract_in_a_process(
    root: Path, out: Path, options: dict[str, Any], *, stop_at: tuple[str, int] | None = None, steps: Path | None = None
) -> int:
    """Run ``extract``; returns the exit code, ``-SIGKILL`` when it was stopped at the n-th step of a kind."""
    process = SERVER.Process(target=_work, args=(root, out, options, stop_at, steps))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return int(code if code is not None else 1)


def _work(root: Path, out: Path, options: dict[str, Any], stop_at: tuple[str, int] | None, steps: Path | None) -> None:
    import torch

    from extract.datasets import open_source
    from extract.stream import ExtractConfig, extract

    torch.set_num_threads(1)
    taken = watch(out, stop_at)
    extract(open_source(root), out, ExtractConfig(**options))
    if steps is not None:
        steps.write_text(json.dumps(taken))


def watch(out: Path, stop_at: tuple[str, int] | None) -> list[str]:
    """Have every step of writing below ``out`` counted, and the process killed at the one named."""
    taken: list[str] = []
    lock = threading.Lock()

    def step(what: str, where: Path) -> None:
        kind = "commit" if "commits" in where.parts else "root" if where.parent == out or where == out else "chunk"
        if "sync folder" not in what and kind == "chunk" and where.name.lstrip(".").startswith("zarr.json"):
            kind = "layout"
        with lock:
            taken.append(f"{kind}: {what}")
            if stop_at is not None and taken[-1] == stop_at[0] and taken.count(stop_at[0]) > stop_at[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    def path_of(handle: int) -> Path:
        return Path(f"/proc/self/fd/{handle}").readlink()

    write, sync, rename, sync_folder = io.write_bytes, io.sync, io.rename, io.sync_folder

    def write_half_and_half(handle: int, data: io.Data) -> None:
        view = memoryview(data).cast("B")
        step("before a byte", path_of(handle))
        write(handle, view[: len(view) // 2])
        step("half written", path_of(handle))
        write(handle, view[len(view) // 2 :])
        step("written", path_of(handle))

    io.write_bytes = write_half_and_half
    io.sync = _told("synced", sync, step, path_of)
    io.rename = lambda old, new: (step("before the rename", new), rename(old, new), step("renamed", new))  # type: ignore[assignment]
    io.sync_folder = _told("sync folder", sync_folder, step, Path)
    return taken


def _told(
    what: str, function: Callable[[Any], None], step: Callable[[str, Path], None], path: Callable[[Any], Path]
) -> Callable[[Any], None]:
    def call(argument: Any) -> None:
        where = path(argument)
        function(argument)
        step(what, where)

    return call
