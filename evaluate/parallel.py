"""Where a pass over images runs: here, in threads, or on the workers of a dask cluster (``evaluate.cluster``).

A pass is a function of some chunks whose results add up to that of all.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from itertools import pairwise
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from evaluate.material import Material
from extract.worker_processes import cores
from stores.errors import UsageError
from stores.progress import Progress, silent

Scheduler = Literal["here", "threads"] | Any | None  # Any: a distributed.Client, not imported before it is asked for
T = TypeVar("T")


def spread(
    work: Callable[..., T],
    material: Material,
    scheduler: Scheduler,
    *arguments: Any,
    progress: Progress = silent,
    stage: str = "",
    labelled: bool = True,
) -> T:
    """``work(material, chunks, *arguments)`` summed over all chunks of the store.

    Parameters
    ----------
    scheduler : "here" for one chunk after the other, where torch has all cores; "threads" for a thread a core, each with one
        thread of torch; a ``distributed.Client`` for its workers. None takes threads, and "here" on a GPU: that is faster.
    labelled : whether the work is about labelled images alone: these are counted then.

    Raises EDDPError when the workers are gone, and whatever the work raises.
    """
    chunks = material.reader.store.n_chunks
    if scheduler is None:
        scheduler = "threads" if material.device.type == "cpu" and min(cores(), chunks) > 1 else "here"
    if isinstance(scheduler, str) and scheduler not in ("here", "threads"):
        raise UsageError(f"'scheduler' must be 'here', 'threads', None or a distributed.Client, got '{scheduler}'.")
    if scheduler == "here":
        return work(material, range(chunks), *arguments, progress)
    if scheduler == "threads":
        return _in_threads(work, material, ranges(chunks, 2 * cores()), arguments, progress, labelled)
    from evaluate.cluster import on_cluster  # which is built on this module

    return on_cluster(work, material, scheduler, arguments, progress, stage, labelled)


def ranges(chunks: int, parts: int) -> list[range]:
    """At most ``parts`` ranges of chunks, as equal as can be, none empty."""
    edges = np.linspace(0, chunks, min(parts, chunks) + 1).round().astype(int).tolist()
    return [range(a, b) for a, b in pairwise(edges)]


class _Shared:
    """One progress for many parts, each of which counts its own; it also ends those that are still at work."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.done = 0
        self.lock = Lock()
        self.ended = False

    def part(self) -> Progress:
        before = 0

        def report(stage: str, done: int, total: int | None = None, note: str = "") -> None:
            nonlocal before
            with self.lock:
                if self.ended:
                    raise CancelledError
                self.done += done - before
                before = done
                self.progress(stage, self.done, self.total, note)

        return report


def _in_threads(
    work: Callable[..., T],
    material: Material,
    parts: list[range],
    arguments: tuple[Any, ...],
    progress: Progress,
    labelled: bool,
) -> T:
    shared = _Shared(progress, len(material.rows(range(material.reader.store.n_chunks), labelled)))
    before = torch.get_num_threads()
    total: T | None = None
    with ThreadPoolExecutor(cores(), "dissection", torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(work, material, part, *arguments, shared.part()) for part in parts}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                while finished:  # each is let go once it is added: at no time are there more than there are threads
                    result: Any = finished.pop().result()
                    total = result if total is None else total + result
                    del result
        finally:
            shared.ended = True
            for future in running:
                future.cancel()
            torch.set_num_threads(before)
    assert total is not None
    return total
