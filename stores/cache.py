"""A local copy of what is read of a store in an object store: each chunk fetched once, checked, and mapped from then on.

::

    <EDDP_CACHE>/<fingerprint>/<array path>/<chunk>     as in the store, to the byte

Only sealed stores are cached, under their fingerprint: a store that is written anew has another one. Chunks are compared with their
checksums when they are fetched, and when a process first reads them from here. Any number of processes may fill and use the same folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.errors import StoreError, UsageError
from stores.io import write_atomically

log = logging.getLogger(__name__)

VARIABLE = "EDDP_CACHE"


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Cache what is read of remote stores in a folder while the block lasts, in this process and those that it starts.

    None: what the environment says. Raises UsageError for what is no folder.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"'{folder}' (--cache) is no folder.")
    before = os.environ.get(VARIABLE)
    if folder is not None:
        os.environ[VARIABLE] = str(folder.absolute())
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def cache_of(fingerprint: str) -> ChunkCache | None:
    """The cache of the store of this fingerprint; None unless the environment names a folder for it."""
    folder = os.environ.get(VARIABLE)
    return ChunkCache(Path(folder) / fingerprint.rpartition(":")[2]) if folder else None


class ChunkCache:
    """The cached part of one store, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.full = False

    def file(self, array: str, name: str, size: int) -> Path | None:
        """The file of a chunk, if there is one of that size."""
        file = self.folder / array / name
        try:
            return file if file.stat().st_size == size else None
        except OSError:
            return None

    def keep(self, array: str, name: str, data: bytes) -> None:
        """Cache a chunk that was fetched, as long as there is room."""
        if self.full:
            return
        try:
            write_atomically(self.folder / array / name, data)
        except StoreError as error:
            self.full = True
            log.warning(
                "nothing more is cached in '%s' (%s); what is not there is fetched each time", self.folder, error
            )
