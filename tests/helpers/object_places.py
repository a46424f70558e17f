"""What is asked of fsspec's memory file system, counted as an object store would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

Asked = Callable[[], AbstractContextManager[Counter[str]]]

URL = "memory://somewhere/deep/acts.zarr"
X = {"a": np.random.default_rng(3).standard_normal((26, 256, 4)).astype(np.float32)}


def asking(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """``with asked() as requests``: how often objects were got (and their ``bytes``), looked at, listed, put."""
    counts: list[Counter[str]] = []

    def counted(name: str, what: str) -> None:
        whole = getattr(MemoryFileSystem, name)

        def call(self: Any, *args: Any, **more: Any) -> Any:
            found = whole(self, *args, **more)
            for requests in counts:
                requests[what] += 1
                if what == "get":
                    requests["bytes"] += len(found)
            return found

        monkeypatch.setattr(MemoryFileSystem, name, call)

    for name, what in (
        ("cat_file", "get"),
        ("pipe_file", "put"),
        ("info", "head"),
        ("find", "list"),
        ("rm_file", "delete"),
    ):
        counted(name, what)

    @contextmanager
    def asked() -> Iterator[Counter[str]]:
        requests: Counter[str] = Counter()
        counts.append(requests)
        try:
            yield requests
        finally:
            counts.remove(requests)

    return asked
