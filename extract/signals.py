"""Signals held back while processes and threads are started, which then never see them: the one that started them answers.

A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes of a job. A helper that goes first would make a failure of
what was an interruption.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def held(*signals: signal.Signals) -> Iterator[None]:
    """Have threads and processes that begin in the block not see some signals; what arrives here meanwhile is answered after it."""
    if not hasattr(signal, "pthread_sigmask"):  # a system that knows no such thing
        yield
        return
    resource_tracker.ensure_running()  # the first to start a process starts it, and it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
