"""Helper processes and threads: signals are blocked in them, and they end with the process that started them.

A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes of a job. A helper that ends first would turn an
interruption into a failure: the parent handles it. A killed parent handles nothing, so helpers watch it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals in threads and processes that are started in the block; those that arrive here are handled after it."""
    if not hasattr(signal, "pthread_sigmask"):  # a system that knows no such thing
        yield
        return
    resource_tracker.ensure_running()  # the first to start a process starts it, and it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(_number: int = 0) -> None:
    """End this worker process as soon as the one that started it has ended, also if that was before this call."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # waits on a pipe that the parent holds open: no process number that another could get
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
