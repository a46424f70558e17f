"""A store of objects without a server: fsspec's memory file system, and what was asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from object_places import URL, Asked, asking

from stores.paths import as_path


@pytest.fixture
def remote() -> Iterator[Path]:
    """The place of a store, with nothing at it."""
    fsspec.filesystem("memory").store.clear()
    yield as_path(URL)
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return asking(monkeypatch)
