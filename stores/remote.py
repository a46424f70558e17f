"""Chunks of a Zarr array that are objects: fetched whole, or chosen rows of them as ranges of bytes.

An uncompressed chunk is its rows as they lie in memory, so that a row is a range of the object. Ranges that lie near each
other are fetched as one: with many under way together, a request costs what a hundred kilobytes do. With a ``ChunkCache``
an object is fetched once, and is then a file that is mapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from stores import objects
from stores.cache import ChunkCache
from stores.chunks import ChunkedArray, Mapping, can_map
from stores.errors import CorruptStoreError, StoreError
from stores.io import checksum
from stores.manifest import Entry
from stores.objects import ObjectPath
from stores.prefetch import prefetch

AHEAD = 4  # chunks on their way while one is looked at
BATCH_BYTES = 2**26  # fetched in one call
BATCH_CHUNKS = 512
GAP_BYTES = 2**17  # between two ranges, at most, that is fetched along rather than asked around
MOST_BYTES = 2**23  # of one range: longer ones are fetched as several at once


class RemoteArray(ChunkedArray):
    """A ``ChunkedArray`` in an object store; ``cache``: where its chunks are kept once fetched, if anywhere."""

    folder: ObjectPath  # type: ignore[assignment]
    cache: ChunkCache | None = None
    _all_kept = False

    @property
    def prefetch(self) -> int:
        return AHEAD

    @property
    def at_hand(self) -> bool:
        if not self._all_kept and self.cache is not None:
            self._all_kept = all(self.cache.kept(self.path, self.name(k), k) for k in range(self.n_chunks))
        return self._all_kept

    @property
    def most_bytes(self) -> int:
        """More than any sound object of a chunk has: Zstandard adds less than a hundredth to what it cannot shrink."""
        return self.chunk_bytes + (0 if self.raw else self.chunk_bytes // 64 + 1024)

    def fetch(self, chunks: list[int]) -> list[bytes]:
        """The objects of chunks, whole, at once. Raises CorruptStoreError when one is missing, StoreError when nobody answers."""
        try:
            files = [self.folder / self.name(k) for k in chunks]
            return objects.fetch_ranges(files, [0] * len(files), [self.most_bytes + 1] * len(files))
        except StoreError:
            raise
        except OSError as error:
            gone = next((k for k in chunks if objects.size_of(self.folder / self.name(k)) is None), chunks[0])
            raise self._unreadable(gone, error) from error

    def read(self, chunk: int) -> np.ndarray:
        """The rows of one chunk, in memory; mapped where they are kept. Raises as ``fetch``, and where they are no chunk."""
        return self._read_several([chunk])[0]

    def _read_several(self, chunks: list[int]) -> list[np.ndarray]:
        blocks: list[np.ndarray] = []
        cache = self.cache
        kept = [None if cache is None else cache.kept(self.path, self.name(k), k) for k in chunks]
        wanted = [k for k, file in zip(chunks, kept, strict=True) if file is None]
        fetched = dict(zip(wanted, self.fetch(wanted), strict=True)) if wanted else {}
        for k, file in zip(chunks, kept, strict=True):
            if file is None and cache is not None:
                file = cache.keep(self.path, self.name(k), k, fetched[k])
            try:
                if file is not None:
                    block = self._read_file(k, file)
                else:
                    self._compare(k, self.file(k), partial(checksum, fetched[k]))
                    block = self._of_bytes(fetched[k]) if self.raw else self._decoded(fetched[k])
            except CorruptStoreError:
                raise
            except (OSError, ValueError, RuntimeError) as error:
                raise self._unreadable(k, error) from error
            blocks.append(block[: self.rows(k)])
        return blocks

    def _of_bytes(self, data: bytes) -> np.ndarray:
        if len(data) != self.chunk_bytes:
            raise ValueError(
                f"{'more' if len(data) > self.chunk_bytes else len(data)} bytes instead of {self.chunk_bytes}"
            )
        stored = np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(self.chunk_shape)
        return stored.copy()  # torch wants of what it shares that it may be written to

    def each(self, chunks: Iterable[int]) -> Iterator[np.ndarray]:
        """The rows of several chunks, in order, many small ones fetched at once, and the next ones meanwhile."""
        upcoming, size = iter(chunks), max(1, min(BATCH_CHUNKS, BATCH_BYTES // max(1, self.chunk_bytes)))
        batches = iter(lambda: list(islice(upcoming, size)), [])
        for blocks in prefetch(self._read_several, batches, threads=2, depth=2):
            yield from blocks

    def take(self, numbers: np.ndarray, axes: int = 1, out: np.ndarray | None = None) -> np.ndarray:
        """Chosen rows, as ``ChunkedArray.take``: from chunks that are kept, and as ranges of all others that have ranges."""
        numbers = np.asarray(numbers, np.int64)
        if out is None:
            out = np.empty((len(numbers), *self.shape[axes:]), self.dtype)
        per_chunk = int(np.prod(self.chunk_shape[:axes]))
        of = numbers // per_chunk
        here = [k for k in np.unique(of).tolist() if self._is_kept(k)] if self.raw else np.unique(of).tolist()
        for k, block in zip(here, self.each(here), strict=True):
            chosen = of == k
            out[chosen] = block.reshape(-1, *self.shape[axes:])[numbers[chosen] - k * per_chunk]
        places = np.flatnonzero(~np.isin(of, here))
        if len(places):
            self._take_ranges(numbers[places], places, axes, out)
        return out

    def _is_kept(self, chunk: int) -> bool:
        return self.cache is not None and self.cache.kept(self.path, self.name(chunk), chunk) is not None

    def _take_ranges(self, numbers: np.ndarray, places: np.ndarray, axes: int, out: np.ndarray) -> None:
        """Fill ``out`` at ``places`` with rows that are fetched as ranges of their chunks."""
        rest, per_chunk = self.shape[axes:], int(np.prod(self.chunk_shape[:axes]))
        size = max(1, int(np.prod(rest)) * self.dtype.itemsize)
        order = np.argsort(numbers, kind="stable")
        ordered, places = numbers[order], places[order]
        spans = merged(ordered, per_chunk, GAP_BYTES // size, max(1, MOST_BYTES // size))
        lengths = [int(ordered[stop - 1] - ordered[start] + 1) * size for start, stop in spans]
        for some in batches_of(lengths, BATCH_BYTES, BATCH_CHUNKS):
            files, begins, ends = [], [], []
            for start, stop in spans[some.start : some.stop]:
                chunk, first = divmod(int(ordered[start]), per_chunk)
                files.append(self.folder / self.name(chunk))
                begins.append(first * size)
                ends.append(begins[-1] + int(ordered[stop - 1] - ordered[start] + 1) * size)
            try:
                found = objects.fetch_ranges(files, begins, ends)
            except StoreError:
                raise
            except OSError as error:
                raise self._unreadable(int(ordered[spans[some.start][0]]) // per_chunk, error) from error
            for data, (start, stop), file in zip(found, spans[some.start : some.stop], files, strict=True):
                first = int(ordered[start])
                if len(data) != (int(ordered[stop - 1]) - first + 1) * size:
                    raise CorruptStoreError(
                        f"'{file}' is shorter than a chunk. Run `eddp verify` on the store for a list of all bad chunks."
                    )
                rows = np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(-1, *rest)
                out[places[start:stop]] = rows[ordered[start:stop] - first]

    def mapped(self) -> Mapping | None:
        """All chunks as one mapping of kept files, the missing ones fetched first; None without a cache, or no room in it."""
        if self.cache is None or not self.raw or not can_map(self.chunk_bytes, self.n_chunks):
            return None
        missing = [k for k in range(self.n_chunks) if not self._is_kept(k)]
        for _ in self.each(missing):
            if self.cache.full:
                return None
        files = [self.cache.kept(self.path, self.name(k), k) for k in range(self.n_chunks)]
        if None in files:
            return None
        try:
            return Mapping([file for file in files if file is not None], self.chunk_bytes)
        except OSError:
            return None

    def check(self, chunk: int, entry: Entry, *, every_byte: bool, sizes: dict[str, int] | None = None) -> str | None:
        """As ``ChunkedArray.check``; what is kept of the object elsewhere does not count."""
        file = self.folder / self.name(chunk)
        size = objects.size_of(file) if sizes is None else sizes.get(f"{self.path}/{self.name(chunk)}")
        if size is None:
            return f"chunk {chunk} of {self.path}: no such object"
        if size != entry["bytes"]:
            return f"chunk {chunk} of {self.path}: {size} bytes instead of {entry['bytes']}"
        if every_byte:
            try:
                data = objects.fetch(file, size)
            except FileNotFoundError:
                return f"chunk {chunk} of {self.path}: no such object"
            if len(data) != size or checksum(data) != entry["crc32c"]:
                return f"chunk {chunk} of {self.path}: its bytes do not match its recorded checksum"
        return None


def merged(numbers: np.ndarray, per_chunk: int, gap: int, most: int) -> list[tuple[int, int]]:
    """Runs of sorted numbers that one request fetches: (start, stop) in ``numbers`` each.

    Parameters
    ----------
    numbers : (m,) int, sorted; some may be there more than once.
    per_chunk : numbers of one object: a run never goes on in the next.
    gap : numbers between two of a run that are fetched though nobody asked for them, at most.
    most : numbers from the first to the last of a run, at most.
    """
    if not len(numbers):
        return []
    breaks = (np.diff(numbers) > gap + 1) | (np.diff(numbers // per_chunk) > 0)
    run = np.concatenate([[0], np.cumsum(breaks)])
    first = numbers[np.flatnonzero(np.concatenate([[True], breaks]))][run]
    piece = (numbers - first) // most
    edges = np.flatnonzero(np.concatenate([[True], breaks | (np.diff(piece) > 0), [True]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def batches_of(sizes: list[int], most_bytes: int, most: int) -> Iterator[range]:
    """Consecutive items in batches of so many bytes and items at most, at least one each."""
    start, total = 0, 0
    for k, size in enumerate(sizes):
        if k > start and (total + size > most_bytes or k - start == most):
            yield range(start, k)
            start, total = k, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))
