"""A local copy of what is read of a store in an object store: each chunk fetched once, checked, and mapped from then on.

::

    <EDDP_CACHE>/<fingerprint>/<array path>/<chunk>     as in the store, to the byte

Only sealed stores are kept, under their fingerprint: a store that is written anew has another one. A file's checksum is compared
when it is put here, and its mtime encodes the checksum, so a later write is detected. Any number of processes may fill and use the
same folder.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from stores.errors import CorruptStoreError, UsageError
from stores.io import checksum, file_checksum
from stores.manifest import Record

log = logging.getLogger(__name__)

VARIABLE = "EDDP_CACHE"
TIMES = 2**31  # seconds that every file system can hold as a time of change


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Keep what is read of remote stores in a folder while the block lasts, in this process and those that it starts.

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


def cache_of(fingerprint: str, records: Mapping[int, Record]) -> ChunkCache | None:
    """Where the store of this fingerprint is kept; None unless the environment names a folder for it."""
    folder = os.environ.get(VARIABLE)
    return ChunkCache(Path(folder) / fingerprint.rpartition(":")[2], records) if folder else None


class ChunkCache:
    """The kept part of one store, in ``folder``; ``records`` are what its chunks must be."""

    def __init__(self, folder: Path, records: Mapping[int, Record]) -> None:
        self.folder = folder
        self.records = records
        self.full = False

    def kept(self, array: str, name: str, chunk: int) -> Path | None:
        """The file of a chunk, if it is here and what it must be."""
        file, entry = self.folder / array / name, self.records[chunk].arrays[array]
        try:
            found = file.stat()
            if found.st_size != entry["bytes"]:
                return None
            if int(found.st_mtime) != entry["crc32c"] % TIMES:  # somebody wrote to it, or its time could not be set
                if file_checksum(file) != entry["crc32c"]:
                    log.warning("'%s' was changed since it was fetched, and is fetched again", file)
                    return None
                _mark(file, entry["crc32c"])
        except OSError:
            return None
        return file

    def keep(self, array: str, name: str, chunk: int, data: bytes) -> Path | None:
        """Put a chunk here that was fetched; None where there is no room.

        Raises CorruptStoreError when it does not have its recorded checksum.
        """
        entry = self.records[chunk].arrays[array]
        if len(data) != entry["bytes"] or checksum(data) != entry["crc32c"]:
            raise CorruptStoreError(
                f"Chunk {chunk} of '{array}' does not have its recorded checksum. Run `eddp verify` on the store for a list of all "
                "bad chunks."
            )
        file = self.folder / array / name
        return file if self._write(file, data, entry["crc32c"]) else None

    def _write(self, file: Path, data: bytes, crc: int) -> bool:
        """Put a file in its place; False, and one warning, where that is not possible."""
        if self.full:
            return False
        temporary = file.with_name(f".{file.name[:200]}.{uuid.uuid4().hex[:8]}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as opened:
                    opened.write(data)
                    opened.flush()
                    os.fsync(opened.fileno())
                _mark(temporary, crc)
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self.full = True
            log.warning("nothing more is kept in '%s' (%s); what is not there is fetched each time", self.folder, error)
            return False
        return True


def _mark(file: Path, crc: int) -> None:
    with suppress(OSError):
        os.utime(file, (crc % TIMES, crc % TIMES))
