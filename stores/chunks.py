"""Chunk files of a Zarr v3 array, written and mapped without going through the Zarr engine.

An array here has chunks along its first axis only, so chunk ``i`` of a 3-d array is the file ``c/i/0/0``: the rows'
little-endian bytes, the last chunk padded with the fill value to full size, then compressed with zstd or not at all.
That is exactly what any Zarr v3 reader expects, and uncompressed it can be memory-mapped.
"""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from numcodecs import Zstd

from stores.errors import CorruptStoreError
from stores.files import write_atomically

ZSTD_LEVEL = 1  # post-ReLU activations shrink 1.6-4.4 times already there; higher levels cost time and gain little


class ChunkedArray:
    """One Zarr array as files: write, map and check its chunks.

    Parameters
    ----------
    root : the store's folder.
    path : the array's path in the store, such as ``layers/features.18/activations``.
    array : the open Zarr array (for shape, chunks, dtype, fill value and codecs).
    """

    def __init__(self, root: Path, path: str, array: zarr.Array) -> None:
        self.path = path
        self.array = array
        self.folder = root / path
        self.shape: tuple[int, ...] = array.shape
        self.chunk_rows: int = array.chunks[0]
        self.chunk_shape: tuple[int, ...] = array.chunks
        self.dtype: np.dtype = np.dtype(array.dtype)
        self.raw = not array.compressors and not array.filters

    @property
    def n_chunks(self) -> int:
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk before compression."""
        return int(np.prod(self.chunk_shape)) * self.dtype.itemsize

    def file(self, chunk: int) -> Path:
        return self.folder / "c" / "/".join([str(chunk)] + ["0"] * (len(self.shape) - 1))

    def rows(self, chunk: int) -> int:
        """How many rows of a chunk belong to the array (the last chunk is padded beyond them)."""
        return min(self.chunk_rows, self.shape[0] - chunk * self.chunk_rows)

    def write(self, chunk: int, rows: np.ndarray) -> dict[str, int]:
        """Write one chunk durably; returns its file's CRC-32C and size for the ledger."""
        if rows.shape != (self.rows(chunk), *self.shape[1:]) or rows.dtype != self.dtype:
            raise ValueError(
                f"chunk {chunk} of {self.path} takes {(self.rows(chunk), *self.shape[1:])} {self.dtype}, "
                f"got {rows.shape} {rows.dtype}"
            )
        block = rows
        if len(rows) < self.chunk_rows:
            block = np.full(self.chunk_shape, self.array.fill_value, self.dtype)
            block[: len(rows)] = rows
        block = np.ascontiguousarray(block, dtype=self.dtype.newbyteorder("<"))
        data = block.view(np.uint8).reshape(-1).data if self.raw else memoryview(Zstd(level=ZSTD_LEVEL).encode(block))
        write_atomically(self.file(chunk), data)
        return {"crc32c": checksum(data), "bytes": len(data)}

    def read(self, chunk: int) -> np.ndarray:
        """The rows of one chunk: a copy-on-write memory map where uncompressed, decoded otherwise.

        Raises CorruptStoreError when the file is missing, too short, or cannot be decoded: never zeros.
        """
        file = self.file(chunk)
        try:
            if self.raw:
                if file.stat().st_size != self.chunk_bytes:
                    raise ValueError(f"{file.stat().st_size} bytes instead of {self.chunk_bytes}")
                # mode "c": torch wants a writable buffer to share; nothing written to it reaches the file
                block: np.ndarray = np.memmap(file, self.dtype.newbyteorder("<"), "c", shape=self.chunk_shape)
            else:
                block = np.empty(self.chunk_shape, self.dtype)
                decoded = Zstd().decode(file.read_bytes())
                if len(decoded) != self.chunk_bytes:
                    raise ValueError(f"{len(decoded)} decoded bytes instead of {self.chunk_bytes}")
                block.view(np.uint8).reshape(-1)[:] = np.frombuffer(decoded, np.uint8)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:  # hostile sizes ask for any memory
            reason = getattr(error, "strerror", None) or error
            raise CorruptStoreError(
                f"Chunk {chunk} of '{self.path}' cannot be read from '{file}': {reason}. "
                "Run `eddp verify` on the store for a list of all bad chunks."
            ) from error
        return block[: self.rows(chunk)]

    def check(self, chunk: int, entry: dict[str, int], *, every_byte: bool) -> str | None:
        """What is wrong with a chunk's file, or None. Without ``every_byte`` only presence and size are looked at."""
        file = self.file(chunk)
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                return f"chunk {chunk} of {self.path}: {size} bytes instead of {entry['bytes']}"
            if every_byte and checksum(memoryview(file.read_bytes())) != entry["crc32c"]:
                return f"chunk {chunk} of {self.path}: its bytes do not match the ledger's checksum"
        except OSError as error:
            return f"chunk {chunk} of {self.path}: {error.strerror}"
        return None


def checksum(data: memoryview) -> int:
    """CRC-32C of bytes."""
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False  # the C implementation takes read-only buffers alone
    return int(google_crc32c.value(view))
