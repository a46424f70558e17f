"""Work done ahead in threads, in order, a bounded number of results at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    work: Callable[[T], R], items: Iterable[T], *, threads: int = 2, depth: int = 2
) -> Generator[R, None, None]:
    """``map(work, items)``, with up to ``depth`` results computed before they are asked for.

    For work that lets go of the interpreter's lock: decoding, reading, gathering.
    """
    upcoming = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(upcoming, depth))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(upcoming, 1))
                yield result
                del result
        finally:
            for future in waiting:
                future.cancel()
