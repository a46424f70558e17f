"""Who may write where in a store: locks on byte ranges of one file, byte k standing for chunk k.

The operating system keeps them and releases them when a process ends, however it ends, and NFS carries them between machines.
Ranges need no agreement between the writers: whatever shards they were given, two whose chunks overlap exclude each other.
An object store has no locks: everything is granted, and an existing record is not replaced (``FORMAT.md``).
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores import objects
from stores.errors import StoreError
from stores.paths import is_remote

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
LOCK = "eddp.lock"
LOCK_BYTES = b"Whoever writes to this store of eddp locks this file.\n"
LAYOUT = 1 << 40  # the byte that stands for the complete store; chunks are below it
PATIENCE = 120.0  # seconds to wait for another process that lays out or seals the store: moments, on a healthy disk


class StoreLock:
    """The lock file of a store, open for as long as its writer lives.

    ``claim`` holds a range of chunks until ``close``; within ``layout()`` no other process lays out, seals or claims.
    Raises StoreError when the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_only = self._warned = False
        self._handle = -1
        if is_remote(path):
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            try:
                self._handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # writable: NFS locks no other files
            except OSError:
                self._handle = os.open(path / LOCK, os.O_RDONLY)  # a finished store on a read-only disk
                self.read_only = True
        except OSError as error:
            raise StoreError(f"No store can be made at '{path}': {error.strerror or error}.") from error

    def mark(self) -> None:
        """Write the file's text, also where an earlier process did not finish it. To be called within ``layout()``."""
        if is_remote(self.path):
            if objects.fetch_all([self.path / LOCK], len(LOCK_BYTES)) != [LOCK_BYTES]:
                objects.put({self.path / LOCK: LOCK_BYTES})
            return
        try:
            if os.pread(self._handle, len(LOCK_BYTES) + 1, 0) != LOCK_BYTES and not self.read_only:
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, LOCK_BYTES, 0)
                os.fsync(self._handle)
        except OSError as error:
            raise StoreError(f"'{self.path / LOCK}' could not be written: {error.strerror or error}.") from error

    @contextmanager
    def layout(self, patience: float = PATIENCE) -> Iterator[None]:
        """Hold the complete store for a moment. Raises StoreError when another process does not release it."""
        end = time.monotonic() + patience
        while not self._set(True, LAYOUT, 1):
            if time.monotonic() > end:
                since = f"Another process has been laying out or sealing the store '{self.path}' for {patience:.0f} s"
                raise StoreError(f"{since}. Wait until it has ended, then run the command again.")
            time.sleep(0.02)
        try:
            yield
        finally:
            self._set(False, LAYOUT, 1)

    def claim(self, first: int, stop: int) -> bool:
        """Hold chunks ``first`` up to ``stop`` for writing; False when another process holds one of them."""
        return first >= stop or self._set(True, first, stop - first)

    def release(self) -> None:
        """Release all chunks, but not the complete store."""
        self._set(False, 0, LAYOUT)

    def close(self) -> None:
        """Release everything."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def _set(self, hold: bool, start: int, length: int) -> bool:
        """Lock or unlock a byte range; whether that succeeded."""
        if fcntl is None or self._handle < 0:
            return True
        # a lock for reading is all that a file on a read-only disk allows, and nothing can be written there anyhow
        kind = fcntl.F_UNLCK if not hold else fcntl.F_RDLCK if self.read_only else fcntl.F_WRLCK
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):  # of the open file: two writers in one process exclude each other as well
                # C's ``struct flock`` on 64-bit Linux: type, whence, start, length, process (0)
                fcntl.fcntl(
                    self._handle, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)
                )
            else:
                operation = fcntl.LOCK_UN if not hold else fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
                fcntl.lockf(self._handle, operation | (fcntl.LOCK_NB if hold else 0), length, start)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if not self._warned:
                log.warning(
                    "'%s' is on a disk without locks (%s): let no two processes write to the same shard",
                    self.path, error.strerror,
                )  # fmt: skip
            self._warned = True
        return True
