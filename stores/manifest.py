"""Which chunks a store holds: one record a committed chunk, and one manifest of all of them once the store is complete.

While a store is written, each commit is a small file ``commits/<chunk>.json`` of its own, written after the chunk's bytes are
on disk: any number of writers can add theirs, on a disk or in an object store. Sealing writes ``manifest.jsonl``, a header and
all records, a line each, and deletes the commits. A chunk without a record does not exist, whatever is on disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict

import msgspec
from msgspec import Meta, Struct

from stores import objects
from stores.documents import UNREADABLE, Whole, brief, check, parse_json, read_documents
from stores.errors import RESTORE, CorruptStoreError
from stores.format import Count, Crc, Images
from stores.io import sync_folder, write_atomically
from stores.paths import is_remote

MANIFEST = "manifest.jsonl"
COMMITS = "commits"
MOST_BYTES = 2**30  # of a manifest
Positive = Annotated[int, Meta(ge=1, le=2**62)]


class Entry(TypedDict):
    """A chunk's file in one array."""

    crc32c: Crc
    bytes: Positive


class Skip(TypedDict):
    """An image that could not be read."""

    row: Whole
    name: str
    reason: str


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was committed for one chunk.

    ``arrays`` maps an array's path in the store to its chunk file; ``max_abs`` and ``nonfinite`` map a layer to the largest
    absolute activation and the number of NaN or infinite values; ``skipped`` lists the images that could not be read.
    """

    chunk: Whole
    first: Whole
    rows: Images
    arrays: dict[str, Entry]
    max_abs: dict[str, Annotated[float, Meta(ge=0, le=1e39)]]
    nonfinite: dict[str, Annotated[int, Meta(ge=0, le=2**62)]]
    skipped: list[Skip]

    def line(self) -> bytes:
        """The record as it is written."""
        return json.dumps(msgspec.structs.asdict(self), sort_keys=True).encode()


class ManifestHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a manifest: the CRC-32C of the store's zarr.json, and the digest of the lines that follow."""

    chunks: Count
    fingerprint: str
    root: Crc

    def line(self) -> bytes:
        return json.dumps(msgspec.structs.asdict(self)).encode()


class Manifest(NamedTuple):
    """A parsed manifest."""

    header: ManifestHeader
    records: dict[int, Record]


def write_manifest(path: Path, records: dict[int, Record], root: int) -> None:
    """Write the manifest of the store at ``path``, whose zarr.json has the CRC-32C ``root``."""
    body = b"\n".join(records[k].line() for k in sorted(records))
    header = ManifestHeader(len(records), fingerprint_of(body), root)
    write_atomically(path / MANIFEST, header.line() + b"\n" + body + b"\n")


def fingerprint_of(body: bytes) -> str:
    """SHA-256 of all records, a line each: the identity of what was committed."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a store, None where there is none. Raises as ``parse_manifest``."""
    (data,) = read_documents([path / MANIFEST], MOST_BYTES)
    return None if data is None else parse_manifest(path, data)


def parse_manifest(path: Path, data: bytes) -> Manifest:
    """A manifest from its bytes. Raises CorruptStoreError where one of them was changed."""
    try:
        first, _, body = data.partition(b"\n")
        header = check(parse_json(first), ManifestHeader)
        if header.line() != first or fingerprint_of(body.removesuffix(b"\n")) != header.fingerprint:
            raise ValueError("it was changed after it was written")
        records = [check(parse_json(line), Record) for line in body.split(b"\n")[:-1]]
        if len({record.chunk for record in records}) != header.chunks or len(records) != header.chunks:
            raise ValueError(f"it must have records of {header.chunks} chunks")
    except UNREADABLE as error:
        raise CorruptStoreError(f"The manifest '{path / MANIFEST}' is damaged ({brief(error)}). {RESTORE}") from error
    return Manifest(header, {record.chunk: record for record in records})


def commit_file(path: Path, chunk: int) -> Path:
    return path / COMMITS / f"{chunk:08d}.json"


def commit(path: Path, record: Record) -> None:
    """Make a chunk part of the store at ``path``. Its files must be written and synced before."""
    write_atomically(commit_file(path, record.chunk), record.line() + b"\n")


def forget(path: Path, chunk: int) -> None:
    """Undo a commit, for good, if there was one."""
    file = commit_file(path, chunk)
    if file.exists():
        file.unlink()
        sync_folder(file.parent)


def remove_commits(path: Path) -> None:
    """Delete all commits, once a manifest holds them."""
    folder = path / COMMITS
    if is_remote(path):
        objects.remove(list(folder.glob("*")))
    else:
        shutil.rmtree(folder, ignore_errors=True)


def read_commits(path: Path, chunks: Iterable[int] | None = None) -> tuple[dict[int, Record], dict[str, str]]:
    """Commits by chunk number, all or some, and what is wrong with the damaged ones, by the name of their file."""
    files = sorted((path / COMMITS).glob("*.json")) if chunks is None else [commit_file(path, k) for k in chunks]
    found: dict[int, Record] = {}
    bad: dict[str, str] = {}
    for file, data in zip(files, read_documents(files), strict=True):
        if data is None:  # another writer has just sealed the store
            continue
        try:
            record = check(parse_json(data), Record)
            if file != commit_file(path, record.chunk):
                raise ValueError("it is of another chunk")
            found[record.chunk] = record
        except UNREADABLE as error:
            bad[file.name] = brief(error)
    return found, bad


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
    """Ranges, first and last each, of what some numbers leave out from 0 up to ``stop``."""
    there = set(numbers)
    return ranges(k for k in range(stop) if k not in there)


def in_words(found: list[list[int]], most: int = 8) -> str:
    """``[[1, 3], [7, 7]]`` -> ``1-3, 7``; only the first ranges where there are many."""
    listed = [f"{first}-{last}" if last > first else f"{first}" for first, last in found]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more ranges" if len(listed) > most else "")
