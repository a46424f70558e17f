"""Atomic files: written under another name, synced, then renamed.

``Together`` does this for several files at once, so that a chunk of a store costs a few waits for the disk and not a few
a file. Every touch of the disk goes through the four small functions at the end: tests stop and spoil them one by one.
Writes of objects are atomic as they are: they happen when all files get their names.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from stores import objects
from stores.errors import StoreError
from stores.objects import ObjectPath
from stores.paths import is_remote

BLOCK_BYTES = 2**20  # what is read at a time to be checked: stays in the processor's cache


def checksum(data: memoryview | bytes | bytearray, before: int = 0) -> int:
    """CRC-32C of bytes; ``before`` is that of the bytes before them."""
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False  # the C implementation takes only read-only buffers
    return int(google_crc32c.extend(before, view))


def file_checksum(path: Path) -> int:
    """CRC-32C of a file's bytes, a few at a time, or of an object's. Raises OSError."""
    if is_remote(path):
        return checksum(path.read_bytes())
    crc = 0
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = checksum(memoryview(buffer)[:count], crc)
    return crc


Data = bytes | bytearray | memoryview
PIECE_BYTES = 8 * 2**20  # written at a time: the disk starts early, and the page cache still gets large pages
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None


class Together:
    """Files that get their names only when the bytes of all of them are on disk; a context manager.

    ``add`` writes a file's bytes under another name and begins to sync it (on the executor, if one is given, so that the
    caller can continue meanwhile); ``publish`` waits for all of them, renames them and syncs their folders. Left without
    ``publish``, nothing stays. Raises StoreError when the disk is full, or a folder cannot be written to.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._waiting: list[tuple[Path, Path, Future[None] | None]] = []
        self._objects: dict[ObjectPath, bytes] = {}
        self._made: set[Path] = set()

    def add(self, path: Path, data: Data) -> int:
        """Write ``data`` for ``path``; returns its CRC-32C, computed while the disk is busy with it."""
        if is_remote(path):
            self._objects[path] = bytes(data)
            return checksum(data)
        temporary = aside(path)
        with writing(path):
            if not path.parent.is_dir():
                self._made.update(above for above in path.parents if not above.exists())
                path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._waiting.append((path, temporary, None))
            try:
                crc = _write_pieces(handle, data)
            except BaseException:
                os.close(handle)
                raise
            if self._executor is None:
                _sync_and_close(handle, len(data))
            else:
                self._waiting[-1] = (path, temporary, self._executor.submit(_sync_and_close, handle, len(data)))
        return crc

    def publish(self) -> None:
        """Give all files their names, for good."""
        objects.put(self._objects)
        self._objects.clear()
        for path, _, future in self._waiting:
            if future is not None:
                with writing(path):
                    future.result()
        folders = {folder.parent for folder in self._made}
        for path, temporary, _ in self._waiting:
            with writing(path):
                rename(temporary, path)
            folders.add(path.parent)
        self._waiting.clear()
        for folder in sorted(folders, reverse=True):  # a folder before the one that names it
            with writing(folder):
                sync_folder(folder)

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *exception: object) -> None:
        for _, temporary, future in self._waiting:
            if future is not None:
                with suppress(Exception):
                    future.result()  # it still holds the file
            with suppress(OSError):
                temporary.unlink()
        self._waiting.clear()


def write_atomically(path: Path, data: Data) -> None:
    """Write bytes so that ``path`` afterwards holds all of them or what it held before, also after a power cut.

    Raises StoreError when the disk is full or the folder cannot be written to.
    """
    with Together() as files:
        files.add(path, data)
        files.publish()


def check_writable(path: Path) -> None:
    """Raise StoreError before long work where its result could not be written to ``path`` afterwards; nothing is written to ``path``.

    What killed processes left half-written for it is deleted.
    """
    remove_abandoned(path)
    with Together() as files:
        files.add(path, bytes(2**20))  # an empty file fits on a full disk


def write_json(path: Path, value: Any) -> bytes:
    """Write a JSON document atomically, keys in their order, readable by people; gives the bytes written."""
    data = json_bytes(value)
    write_atomically(path, data)
    return data


def json_bytes(value: Any) -> bytes:
    """The one form in which this project writes a JSON document.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) become JSON escapes, and come back by reading.
    """
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def aside(path: Path, ending: str = "partial") -> Path:
    """A hidden name next to ``path``, for what is being written; it names the machine and the process."""
    return path.with_name(f".{path.name}.{_machine()}{os.getpid():06x}{uuid.uuid4().hex[:6]}.{ending}")


def asides(path: Path, ending: str = "partial") -> list[Path]:
    """What there is under names that ``aside`` gave for ``path``."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 20}.{ending}"))


def is_abandoned(path: Path) -> bool:
    """Whether the process that ``aside`` named ``path`` for ran on this machine and has ended."""
    token = path.suffixes[-2][1:]
    try:
        os.kill(int(token[8:14], 16), 0)
    except ProcessLookupError:
        return token[:8] == _machine()
    except OSError:  # another user's
        pass
    return False


def remove_abandoned(path: Path) -> None:
    """Delete what killed processes of this machine left half-written for ``path``, a file or a folder."""
    if not is_remote(path):
        _remove(left for left in asides(path) if is_abandoned(left))


@lru_cache
def _machine() -> str:
    """This machine in 8 digits; containers with process numbers of their own are machines, too."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        numbers = ""
    return f"{checksum(f'{platform.node()} {numbers}'.encode()):08x}"


def remove_partial(folders: Iterable[Path]) -> None:
    """Delete what writers that were killed left half-written in these folders, files and folders."""
    for folder in folders:
        if is_remote(folder):
            return  # an object is complete, or missing
        _remove(folder.glob(".*.partial"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise StoreError for whatever the disk refuses within the block."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"'{path}' could not be written: {error.strerror or error}. Nothing committed before is lost; "
            "free some space or fix the folder, then run the same command again."
        ) from error


def _write_pieces(handle: int, data: Data) -> int:
    """Write bytes, having the disk begin with each piece while the next is copied and checked; gives their CRC-32C."""
    view, crc = memoryview(data).cast("B"), 0
    for start in range(0, max(1, len(view)), PIECE_BYTES):
        piece = view[start : start + PIECE_BYTES]
        write_bytes(handle, piece)
        if len(view) > PIECE_BYTES:
            _begin_to_sync(handle, start, len(piece))
        crc = checksum(piece, crc)
    return crc


def _begin_to_sync(handle: int, start: int, size: int) -> None:
    """Ask the system to write a range out without waiting for it, where it can be asked (Linux)."""
    if _sync_file_range is not None:
        _sync_file_range(handle, ctypes.c_int64(start), ctypes.c_int64(size), _WRITE)


def _sync_and_close(handle: int, size: int) -> None:
    try:
        sync(handle)
        found = os.fstat(handle).st_size
        if found != size:  # a filesystem that lost bytes and did not say so
            raise OSError(errno.EIO, f"only {found} of {size} bytes arrived on the disk")
    finally:
        os.close(handle)


def write_bytes(handle: int, data: Data) -> None:
    """Write all of ``data``, however little the system takes at a time."""
    rest = memoryview(data).cast("B")
    while len(rest):
        written = os.write(handle, rest)
        if written <= 0:
            raise OSError(errno.ENOSPC, "the disk takes no more bytes")
        rest = rest[written:]


def sync(handle: int) -> None:
    """Wait until an open file's bytes are on the disk."""
    os.fsync(handle)


def rename(old: Path, new: Path) -> None:
    """Give a file its name, replacing what had it."""
    old.replace(new)


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable (POSIX asks for it; elsewhere there is nothing to do)."""
    if is_remote(path):
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a disk that knows no such thing
            raise
    finally:
        os.close(handle)
