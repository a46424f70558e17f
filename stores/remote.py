"""Chunks of a Zarr array that are objects: fetched complete, or chosen rows of them as ranges of bytes.

An uncompressed chunk is its rows as they are in memory, so that a row is a range of the object. Ranges near each
other are fetched as one: with many under way together, a request costs what a hundred kilobytes do. With a ``ChunkCache``
an object is fetched once, and is then a file that is mapped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from stores import objects
from stores.cache import ChunkCache
from stores.chunks import ChunkedArray, Mapping, can_map
from stores.errors import CorruptStoreError, StoreError
from stores.io import checksum
from stores.prefetch import prefetch

log = logging.getLogger(__name__)
AHEAD = 4  # chunks on their way while one is looked at
BATCH_BYTES = 2**26  # fetched in one call
BATCH_CHUNKS = 512
GAP_BYTES = 2**17  # between two ranges, at most, that is fetched along rather than asked around


class RemoteArray(ChunkedArray):
    """A ``ChunkedArray`` in an object store; ``cache``: where its chunks are cached once fetched, if anywhere."""

    cache: ChunkCache | None = None
    _all_cached = False

    @property
    def prefetch_depth(self) -> int:
        return AHEAD

    @property
    def at_hand(self) -> bool:
        if not self._all_cached and self.cache is not None:
            self._all_cached = all(self._cached(k) for k in range(self.n_chunks))
        return self._all_cached

    def fetch(self, chunks: list[int]) -> list[bytes]:
        """The objects of chunks, many at once. Raises CorruptStoreError when one is missing, StoreError without an answer."""
        # Zstandard adds less than a hundredth to what it cannot shrink
        most = self.chunk_bytes + (0 if self.raw else self.chunk_bytes // 64 + 1024)
        found = objects.fetch_all([self.file(k) for k in chunks], most)
        for k, data in zip(chunks, found, strict=True):
            if data is None:
                raise self._unreadable(k, FileNotFoundError(2, "no such object"))
        return [data for data in found if data is not None]

    def read(self, chunk: int) -> np.ndarray:
        """The rows of one chunk, in memory; mapped where they are cached. Raises as ``fetch``, and where they are no chunk."""
        return self._read_several([chunk])[0]

    def _read_several(self, chunks: list[int]) -> list[np.ndarray]:
        missing = [k for k in chunks if self._cached(k, compare=True) is None]
        fetched = dict(zip(missing, self.fetch(missing), strict=True))
        return [self._block(k, fetched.get(k))[: self.rows(k)] for k in chunks]

    def _block(self, k: int, data: bytes | None) -> np.ndarray:
        """A complete chunk from what was fetched, or from its cached file."""
        if data is not None:
            self._compare(k, self.file(k), partial(checksum, data))
            if self.cache is not None:
                self.cache.keep(self.path, self.name(k), data)
        file, data = self._cached(k), data or b""
        try:
            if file is not None:
                return self._read_file(k, file)
            if not self.raw:
                return self._decoded(data)
            if len(data) != self.chunk_bytes:
                found = "more" if len(data) > self.chunk_bytes else len(data)
                raise ValueError(f"{found} bytes instead of {self.chunk_bytes}")
            # a copy: torch wants of what it shares that it may be written to
            return np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(self.chunk_shape).copy()
        except CorruptStoreError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(k, error) from error

    def _cached(self, k: int, *, compare: bool = False) -> Path | None:
        """The cached file of a chunk; with ``compare``, unless it was changed."""
        if self.cache is None:
            return None
        file = self.cache.file(self.path, self.name(k), self.records[k].arrays[self.path]["bytes"])
        if compare and file is not None:
            try:
                self.compare(np.array([k]), {k: file})
            except CorruptStoreError as error:
                log.warning("Fetched again: %s", error)
                return None
        return file

    def each(self, chunks: Iterable[int]) -> Iterator[np.ndarray]:
        """The rows of several chunks, in order, many small ones fetched at once, and the next ones meanwhile."""
        upcoming, size = iter(chunks), max(1, min(BATCH_CHUNKS, BATCH_BYTES // max(1, self.chunk_bytes)))
        batches = iter(lambda: list(islice(upcoming, size)), [])
        for blocks in prefetch(self._read_several, batches, threads=2, depth=2):
            yield from blocks

    def take(self, numbers: np.ndarray, axes: int = 1, out: np.ndarray | None = None) -> np.ndarray:
        """Chosen rows, as ``ChunkedArray.take``: from cached chunks, and as ranges of all others that have ranges."""
        numbers = np.asarray(numbers, np.int64)
        if out is None:
            out = np.empty((len(numbers), *self.shape[axes:]), self.dtype)
        per_chunk = int(np.prod(self.chunk_shape[:axes]))
        of = numbers // per_chunk
        whole = [k for k in np.unique(of).tolist() if not self.raw or self._cached(k) is not None]
        for k, block in zip(whole, self.each(whole), strict=True):
            chosen = of == k
            out[chosen] = block.reshape(-1, *self.shape[axes:])[numbers[chosen] - k * per_chunk]
        places = np.flatnonzero(~np.isin(of, whole))
        places = places[np.argsort(numbers[places], kind="stable")]
        self._take_ranges(numbers[places], places, axes, out)
        return out

    def _take_ranges(self, numbers: np.ndarray, places: np.ndarray, axes: int, out: np.ndarray) -> None:
        """Fill ``out`` at ``places`` with rows, by ascending numbers, that are fetched as ranges of their chunks."""
        rest, per_chunk = self.shape[axes:], int(np.prod(self.chunk_shape[:axes]))
        size = max(1, int(np.prod(rest)) * self.dtype.itemsize)
        spans = ranges_of(numbers, per_chunk, GAP_BYTES // size)
        for some in _batches([int(numbers[stop - 1] - numbers[start] + 1) * size for start, stop in spans]):
            firsts = [int(numbers[start]) for start, _ in spans[some]]
            files = [self.file(first // per_chunk) for first in firsts]
            begins = [first % per_chunk * size for first in firsts]
            lengths = [
                int(numbers[stop - 1] + 1) * size - first * size
                for first, (_, stop) in zip(firsts, spans[some], strict=True)
            ]
            try:
                found = objects.fetch_ranges(files, begins, [a + n for a, n in zip(begins, lengths, strict=True)])
            except StoreError:
                raise
            except OSError as error:
                raise self._unreadable(firsts[0] // per_chunk, error) from error
            for data, (start, stop), first, length in zip(found, spans[some], firsts, lengths, strict=True):
                if len(data) != length:
                    raise self._unreadable(first // per_chunk, ValueError("it is shorter than a chunk"))
                rows = np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(-1, *rest)
                out[places[start:stop]] = rows[numbers[start:stop] - first]

    def mapped(self) -> Mapping | None:
        """All chunks as one mapping of cached files, the missing ones fetched first; None without a cache, or no room in it."""
        if self.cache is None or not self.raw or not can_map(self.chunk_bytes, self.n_chunks):
            return None
        for _ in self.each([k for k in range(self.n_chunks) if self._cached(k) is None]):
            if self.cache.full:
                return None
        files = [file for k in range(self.n_chunks) if (file := self._cached(k)) is not None]
        try:
            return Mapping(files, self.chunk_bytes) if len(files) == self.n_chunks else None
        except OSError:
            return None


def ranges_of(numbers: np.ndarray, per_chunk: int, gap: int) -> list[tuple[int, int]]:
    """Runs of sorted numbers that one request fetches: (start, stop) in ``numbers`` each.

    ``per_chunk`` numbers are in one object; up to ``gap`` numbers between two of a run are fetched without need.
    """
    breaks = (np.diff(numbers) > gap + 1) | (np.diff(numbers // per_chunk) > 0)
    edges = np.flatnonzero(np.concatenate([[True], breaks, [True]])) if len(numbers) else np.zeros(1, int)
    return list(pairwise(edges.tolist()))


def _batches(sizes: list[int]) -> Iterator[slice]:
    """Consecutive ranges that are fetched in one call, by their bytes."""
    batch = (np.cumsum(sizes) - 1) // BATCH_BYTES
    edges = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(sizes)] if sizes else []
    return (
        slice(a, b) for start, stop in pairwise(edges) for a, b in pairwise([*range(start, stop, BATCH_CHUNKS), stop])
    )
