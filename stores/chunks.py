"""Chunk files of a Zarr v3 array, written and mapped without going through the Zarr engine.

An array here has chunks along its first axis only, so chunk ``i`` of a 3-d array is the file ``c.i.0.0``: the rows'
little-endian bytes, the last chunk padded with the fill value to full size, then compressed with zstd or not at all.
That is exactly what any Zarr v3 reader expects, and uncompressed it can be memory-mapped. The chunks of an
array are in one folder, which spares the disk two folders a chunk.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numcodecs import Zstd

from stores.errors import RESTORE, CorruptStoreError, EDDPError
from stores.format import ZSTD_LEVEL, ArraySpec, chunk_name
from stores.io import Together, checksum, file_checksum, write_atomically
from stores.manifest import Entry, Record

VERIFY = "Run `eddp verify` on the store for a list of all bad chunks."


class ChunkedArray:
    """One Zarr array as files: write, map and check its chunks.

    Parameters
    ----------
    root : the store's folder.
    path : the array's path in the store, such as ``layers/features.18/activations``.
    spec : its shape, chunks, dtype, fill value and codec.

    Chunks that are in ``records`` are compared with its recorded checksum when they are first read.
    """

    def __init__(self, root: Path, path: str, spec: ArraySpec) -> None:
        self.path = path
        self.spec = spec
        self.folder = root / path
        self.shape = spec.shape
        self.chunk_shape = spec.chunks
        self.chunk_rows = spec.chunks[0]
        self.dtype = np.dtype(spec.dtype)
        self.raw = not spec.zstd
        self.records: dict[int, Record] = {}
        self._compared = np.zeros(self.n_chunks, bool)

    @property
    def prefetch_depth(self) -> int:
        """How many chunks are worth reading ahead, each in a thread: 0 where that takes no time (mapped), a few where they are
        decoded or fetched."""
        return 0 if self.raw else 2

    @property
    def at_hand(self) -> bool:
        """Whether ``mapped`` has nothing to fetch."""
        return True

    @property
    def n_chunks(self) -> int:
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk before compression."""
        return int(np.prod(self.chunk_shape)) * self.dtype.itemsize

    def file(self, chunk: int) -> Path:
        return self.folder / self.name(chunk)

    def name(self, chunk: int) -> str:
        """A chunk's file within the array's folder."""
        return chunk_name(chunk, len(self.shape))

    def rows(self, chunk: int) -> int:
        """How many rows of a chunk belong to the array (the last chunk is padded beyond them)."""
        return min(self.chunk_rows, self.shape[0] - chunk * self.chunk_rows)

    def write(self, chunk: int, rows: np.ndarray, files: Together | None = None) -> Entry:
        """Write one chunk; returns its file's CRC-32C and size for its record.

        With ``files`` it is only added to them, and durable once they are published; else at once.
        """
        shape = (self.rows(chunk), *self.shape[1:])
        if rows.shape != shape or rows.dtype != self.dtype:
            raise ValueError(f"chunk {chunk} of {self.path} takes {shape} {self.dtype}, got {rows.shape} {rows.dtype}")
        block = rows
        if len(rows) < self.chunk_rows:
            block = np.full(self.chunk_shape, self.spec.fill, self.dtype)
            block[: len(rows)] = rows
        block = np.ascontiguousarray(block, dtype=self.dtype.newbyteorder("<"))
        data = block.view(np.uint8).reshape(-1).data if self.raw else memoryview(Zstd(level=ZSTD_LEVEL).encode(block))
        if files is not None:
            return {"crc32c": files.add(self.file(chunk), data), "bytes": len(data)}
        write_atomically(self.file(chunk), data)
        return {"crc32c": checksum(data), "bytes": len(data)}

    def read(self, chunk: int) -> np.ndarray:
        """The rows of one chunk: a copy-on-write memory map where uncompressed, decoded otherwise.

        Raises CorruptStoreError when the file is missing, damaged, or cannot be decoded: never zeros; MemoryError.
        """
        block = self._read_file(chunk, self.file(chunk))
        return block[: self.rows(chunk)]

    def _read_file(self, chunk: int, file: Path) -> np.ndarray:
        """A complete chunk from its file, which is mapped where uncompressed."""
        try:
            if self.raw:
                block = self._map(file)
                self._compare(chunk, file, partial(file_checksum, file))
                return block
            data = file.read_bytes()
            self._compare(chunk, file, partial(checksum, data))
            return self._decoded(data)
        except CorruptStoreError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(chunk, error) from error

    def _compare(self, chunk: int, file: Path, crc: Callable[[], int]) -> None:
        """Raise CorruptStoreError when a chunk is not what was committed; each is compared once."""
        if self._compared[chunk] or chunk not in self.records:
            return
        if crc() != self.records[chunk].arrays[self.path]["crc32c"]:
            where = f"Chunk {chunk} of '{self.path}' in '{file}'"
            raise CorruptStoreError(f"{where} was changed after it was written. {RESTORE} {VERIFY}")
        self._compared[chunk] = True

    @property
    def all_compared(self) -> bool:
        """Whether every chunk was compared: then rows need not be asked which chunk they are in."""
        return bool(self._compared.all())

    def compare(self, chunks: np.ndarray, files: Sequence[Path] | dict[int, Path]) -> None:
        """Compare chunks that are mapped from ``files`` with their checksums. Raises CorruptStoreError as ``read``."""
        new = chunks[~self._compared[chunks]]
        for k in np.unique(new).tolist() if len(new) else ():
            try:
                self._compare(k, files[k], partial(file_checksum, files[k]))
            except CorruptStoreError:
                raise
            except OSError as error:
                raise self._unreadable(k, error) from error

    def _decoded(self, data: bytes) -> np.ndarray:
        """A complete chunk from the bytes of its compressed file. Raises ValueError, RuntimeError."""
        if (found := content_size(data)) != self.chunk_bytes:  # before memory is asked for: the shape may be hostile
            raise ValueError(f"{found} decoded bytes instead of {self.chunk_bytes}")
        block = np.empty(self.chunk_shape, self.dtype)
        Zstd().decode(data, block.view(np.uint8).reshape(-1))
        return block

    def _unreadable(self, chunk: int, error: Exception) -> CorruptStoreError | MemoryError:
        if getattr(error, "errno", None) == errno.ENOMEM:
            return MemoryError(f"'{self.file(chunk)}' could not be mapped")
        reason = getattr(error, "strerror", None) or error
        return CorruptStoreError(
            f"Chunk {chunk} of '{self.path}' cannot be read from '{self.file(chunk)}': {reason}. {VERIFY}"
        )

    def each(self, chunks: Iterable[int]) -> Iterator[np.ndarray]:
        """The rows of several chunks, in order."""
        return map(self.read, chunks)

    def take(self, numbers: np.ndarray, axes: int = 1, out: np.ndarray | None = None) -> np.ndarray:
        """Chosen rows, in the order given, each as often as it is named.

        Parameters
        ----------
        numbers : (m,) int, counted over the first ``axes`` axes.
        out : (m, ...) to be filled.
        """
        numbers = np.asarray(numbers, np.int64)
        if out is None:
            out = np.empty((len(numbers), *self.shape[axes:]), self.dtype)
        per_chunk = int(np.prod(self.chunk_shape[:axes]))
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        chunks = np.unique(ordered // per_chunk)
        edges = np.searchsorted(ordered, np.append(chunks, self.n_chunks) * per_chunk)
        for k, start, stop in zip(chunks, edges[:-1], edges[1:], strict=True):
            block = self.read(int(k)).reshape(-1, *self.shape[axes:])
            out[order[start:stop]] = block[ordered[start:stop] - k * per_chunk]
        return out

    def _map(self, file: Path) -> np.ndarray:
        # a private mapping: torch wants a writable buffer to share; nothing written to it reaches the file
        handle = os.open(file, os.O_RDONLY)
        try:
            if (found := os.fstat(handle).st_size) != self.chunk_bytes:
                raise ValueError(f"{found} bytes instead of {self.chunk_bytes}")
            mapping = mmap.mmap(handle, self.chunk_bytes, access=mmap.ACCESS_COPY)
        finally:
            os.close(handle)
        return np.frombuffer(mapping, self.dtype.newbyteorder("<")).reshape(self.chunk_shape)

    def mapped(self) -> Mapping | None:
        """All chunk files in one mapping, padding included; None where they cannot be: compressed, or of odd sizes.

        Raises CorruptStoreError when a file is missing or of another size.
        """
        if not self.raw or self.dtype.byteorder == ">" or not can_map(self.chunk_bytes, self.n_chunks):
            return None
        try:
            return Mapping([self.file(k) for k in range(self.n_chunks)], self.chunk_bytes)
        except OSError as error:
            if error.errno == errno.ENOMEM:  # the process has used up its mappings; chunk by chunk works still
                return None
            raise CorruptStoreError(f"'{self.path}' cannot be mapped: {error}. {VERIFY}") from error

    def check(self, chunk: int, entry: Entry, *, every_byte: bool, sizes: dict[str, int] | None = None) -> str | None:
        """What is wrong with a chunk's file or object, or None. Without ``every_byte`` only presence and size are looked at.

        ``sizes`` are bytes of all objects of the store by their names, listed once for all chunks.
        """
        file, where = self.file(chunk), f"chunk {chunk} of {self.path}"
        try:
            size = file.stat().st_size if sizes is None else sizes.get(f"{self.path}/{self.name(chunk)}")
            if size is None:
                return f"{where}: no such object"
            if size != entry["bytes"]:
                return f"{where}: {size} bytes instead of {entry['bytes']}"
            if every_byte and file_checksum(file) != entry["crc32c"]:
                return f"{where}: its bytes do not match its recorded checksum"
        except OSError as error:
            if isinstance(error, EDDPError):
                raise
            return f"{where}: {error.strerror}"
        return None


def content_size(data: bytes) -> int | None:
    """Decoded size of a Zstandard frame by its header; None where that has none, or there is no frame (RFC 8878, 3.1.1)."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flag, single, dictionary = data[4] >> 6, data[4] >> 5 & 1, data[4] & 3
    size = (single, 2, 4, 8)[flag]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[dictionary]
    field = data[start : start + size]
    if not size or len(field) < size:
        return None
    return int.from_bytes(field, "little") + (256 if size == 2 else 0)


MOST_FILES = 32_768  # half of what Linux lets a process map by default
_FIXED, _NORESERVE = 0x10, 0x4000
_WILLNEED = 3
_FAILED = ctypes.c_void_p(-1).value


def can_map(size: int, count: int) -> bool:
    """Whether ``count`` files of ``size`` bytes can be mapped one behind the other."""
    return sys.platform == "linux" and size > 0 and size % mmap.PAGESIZE == 0 and 0 < count <= MOST_FILES


class Mapping:
    """``files`` mapped one behind the other: ``array`` (their bytes, uint8).

    It may be written to, as torch wants of what it shares; nothing written reaches the files. The mapping goes when the
    last view of the array does. Raises OSError when a file is missing or of another size.
    """

    def __init__(self, files: Sequence[Path], size: int) -> None:
        total = len(files) * size
        address = _mmap(None, total, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1)
        self.files, self.address, self.size = files, address, size
        buffer = (ctypes.c_uint8 * total).from_address(address)
        unmap = weakref.finalize(buffer, _libc().munmap, ctypes.c_void_p(address), ctypes.c_size_t(total))
        unmap.atexit = False  # the system does it then, when no thread can be reading any more
        for k, file in enumerate(files):
            handle = os.open(file, os.O_RDONLY)
            try:
                found = os.fstat(handle).st_size
                if found != size:
                    raise OSError(f"'{file}' has {found} bytes instead of {size}")
                flags = mmap.MAP_PRIVATE | _FIXED | _NORESERVE
                _mmap(address + k * size, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, handle)
            finally:
                os.close(handle)
        self.array: np.ndarray = np.frombuffer(memoryview(buffer), np.uint8)

    def will_need(self, file: int) -> None:
        """Have the system begin to read one file ahead."""
        _libc().madvise(
            ctypes.c_void_p(self.address + file * self.size), ctypes.c_size_t(self.size), ctypes.c_int(_WILLNEED)
        )


def _mmap(address: int | None, size: int, protection: int, flags: int, handle: int) -> int:
    found = _libc().mmap(ctypes.c_void_p(address), ctypes.c_size_t(size), protection, flags, handle, ctypes.c_int64(0))
    if found in (None, _FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    return libc
