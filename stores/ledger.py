"""The ledger of a store: one record a committed chunk, written after the chunk's bytes are on disk.

A record is the attributes of an empty Zarr group ``ledger/<chunk>``, so that it is one small JSON file, replaced
atomically, and any Zarr reader can list the ledger. A chunk without a record does not exist, whatever lies on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stores import objects
from stores.documents import MOST_JSON_BYTES, UNREADABLE, read_small, record_problem, small_object
from stores.errors import CorruptStoreError, StoreError
from stores.io import json_bytes, sync_folder, write_atomically
from stores.paths import is_remote

MARK = {"attributes": {"eddp": "ledger"}, "zarr_format": 3, "node_type": "group"}  # of the folder: it is ours
MARK_BYTES = json.dumps(MARK).encode()


@dataclass(frozen=True)
class Record:
    """What was committed for one chunk.

    ``arrays`` maps an array's path in the store to the CRC-32C and the size in bytes of its chunk file; ``max_abs`` and
    ``nonfinite`` map a layer to the largest absolute activation and the number of NaN or infinite values;
    ``skipped`` lists the images of the range that could not be read: row, name and reason.
    """

    chunk: int
    first: int
    rows: int
    arrays: dict[str, dict[str, int]]
    max_abs: dict[str, float]
    nonfinite: dict[str, int]
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """The record's file, to the byte."""
        return json_bytes({"attributes": vars(self), "zarr_format": 3, "node_type": "group"})


class Ledger:
    """The records of one store, as files under ``folder``.

    ``misfit`` says what keeps a record, itself sound, from being one of this store's, or None.
    """

    def __init__(self, folder: Path, misfit: Callable[[Record], str | None] = lambda record: None) -> None:
        self.folder = folder
        self._misfit = misfit

    def path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:08d}" / "zarr.json"

    def commit(self, record: Record) -> None:
        """Make a chunk part of the store. Its files must be written and synced before."""
        write_atomically(self.path(record.chunk), record.to_bytes())

    def forget(self, chunk: int) -> None:
        """Make a chunk no part of the store any more, for good, if it was one."""
        path = self.path(chunk)
        if path.exists():
            path.unlink()
            sync_folder(path.parent)

    def records(self) -> dict[int, Record]:
        """All committed records by chunk number. Raises CorruptStoreError naming every record that is damaged."""
        found, bad = self.examine()
        if bad:
            listed = ", ".join(f"{name} ({reason})" for name, reason in bad.items())
            raise CorruptStoreError(
                f"The ledger in '{self.folder}' holds damaged records: {listed}. "
                "Delete those record folders and run the same extract command again: it redoes just these chunks."
            )
        return found

    def examine(self) -> tuple[dict[int, Record], dict[str, str]]:
        """The sound records by chunk number, and what is wrong with each of the others, by the name of its folder.

        A record is damaged unless it says, to the byte, what it would if it were written now (so that no flipped bit
        passes, not even one in what only Zarr reads), and belongs to this store.
        """
        found: dict[int, Record] = {}
        bad: dict[str, str] = {}
        for name, read in self._documents():
            try:
                record = self._record(name, read())
                found[record.chunk] = record
            except OSError as error:
                bad[name] = error.strerror or str(error)
            except UNREADABLE as error:
                bad[name] = f"it has no entry {error}" if isinstance(error, KeyError) else str(error)
        return found, bad

    def one(self, chunk: int) -> Record | None:
        """The record of one chunk, None where there is none that is sound. Raises StoreError when nobody answers."""
        path = self.path(chunk)
        try:
            return self._record(path.parent.name, read_small(path))
        except StoreError:
            raise
        except (OSError, *UNREADABLE):
            return None

    def _documents(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Each record's folder, in order, with what gives its bytes or raises OSError."""
        paths = sorted(self.folder.glob("*/zarr.json"))
        if not is_remote(self.folder):
            yield from ((path.parent.name, partial(read_small, path)) for path in paths)
            return
        remote: Any = paths
        for path, data in zip(paths, objects.fetch_all(remote, MOST_JSON_BYTES), strict=True):
            if data is not None:  # another writer may have taken it away meanwhile
                yield path.parent.name, partial(small_object, path, data)

    def _record(self, name: str, data: bytes) -> Record:
        """A record from its bytes. Raises one of UNREADABLE unless it is sound, and one of this store's."""
        values = json.loads(data)["attributes"]
        if problem := record_problem(values):
            raise ValueError(problem)
        record = Record(**values)
        if name != f"{record.chunk:08d}":
            raise ValueError("the record is another chunk's")
        if record.to_bytes() != data:
            raise ValueError("it was changed since it was written")
        if problem := self._misfit(record):
            raise ValueError(problem)
        return record


def digest(records: dict[int, Record]) -> str:
    """SHA-256 over all records in order: the identity of what was committed."""
    lines = [json.dumps(vars(records[k]), sort_keys=True) for k in sorted(records)]
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Sorted numbers as ranges, first and last each: ``[1, 2, 3, 7]`` -> ``[[1, 3], [7, 7]]``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def gaps(numbers: Iterable[int], stop: int) -> list[list[int]]:
    """Ranges, first and last each, of what sorted numbers leave out from 0 up to ``stop``: costs what they cost, not that."""
    found, begin = [], 0
    for number in numbers:
        if number > begin:
            found.append([begin, number - 1])
        begin = number + 1
    return [*found, [begin, stop - 1]] if begin < stop else found


def in_words(numbers: Iterable[int], most: int = 8) -> str:
    """``[1, 2, 3, 7]`` -> ``1-3, 7``; only the first ranges where there are many."""
    return ranges_in_words(ranges(numbers), most)


def ranges_in_words(found: list[list[int]], most: int = 8) -> str:
    """``[[1, 3], [7, 7]]`` -> ``1-3, 7``; only the first ranges where there are many."""
    listed = [f"{first}-{last}" if last > first else f"{first}" for first, last in found]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more ranges" if len(listed) > most else "")
