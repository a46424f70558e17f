"""A local copy of what is read of a store in an object store: each chunk fetched once, checked, and mapped from then on.

::

    <EDDP_CACHE>/<fingerprint>/ledger.json              the records, so that they are not fetched one by one
                               <array path>/<chunk>     as in the store, to the byte

Only sealed stores are kept, under what they hold: a store that is written anew has another fingerprint. A file is what the
ledger says: its checksum was right when it was put here, and its time of change, which is set to tell the checksum, says
that nobody has written to it since. Any number of processes may fill and use the same folder.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from stores.documents import UNREADABLE, record_problem
from stores.errors import CorruptStoreError, UsageError
from stores.io import checksum, file_checksum
from stores.ledger import Record, digest

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


def cache_of(fingerprint: str) -> ChunkCache | None:
    """Where a store of this content is kept; None unless the environment names a folder for it."""
    folder = os.environ.get(VARIABLE)
    name = fingerprint.rpartition(":")[2]
    return ChunkCache(Path(folder) / name) if folder and name.isalnum() else None


class ChunkCache:
    """The kept part of one store, in ``folder``; ``records`` are what its chunks must be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[int, Record] = {}
        self.full = False

    def ledger(self, fingerprint: str) -> dict[int, Record] | None:
        """The records that are kept, if they are those of the store to the byte."""
        try:
            listed = json.loads((self.folder / "ledger.json").read_bytes())
            if any(record_problem(values) for values in listed):
                return None
            found = {values["chunk"]: Record(**values) for values in listed}
            return found if digest(found) == fingerprint else None
        except (OSError, *UNREADABLE):
            return None

    def keep_ledger(self, records: Mapping[int, Record]) -> None:
        """Keep the records of a store that was found complete."""
        data = json.dumps([vars(records[k]) for k in sorted(records)]).encode()
        self._write(self.folder / "ledger.json", data, None)

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

        Raises CorruptStoreError when it is not what the ledger says.
        """
        entry = self.records[chunk].arrays[array]
        if len(data) != entry["bytes"] or checksum(data) != entry["crc32c"]:
            raise CorruptStoreError(
                f"Chunk {chunk} of '{array}' is not what the store's ledger says. Run `eddp verify` on the store for a list of all "
                "bad chunks."
            )
        file = self.folder / array / name
        return file if self._write(file, data, entry["crc32c"]) else None

    def _write(self, file: Path, data: bytes, crc: int | None) -> bool:
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
                if crc is not None:
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
