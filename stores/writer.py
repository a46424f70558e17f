"""Writing an activation store: laid out once, filled range by range by any number of writers, sealed when all are in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stores.documents import read_small
from stores.errors import RESUME, CorruptStoreError, StoreBusyError, StoreError, UnsealedStoreError, UsageError
from stores.format import ROOT, read_attributes
from stores.io import Together, checksum, remove_partial
from stores.layout import (
    StorePlan,
    changed_files,
    clear,
    lay_out,
    refuse_another,
    refuse_foreign,
    repair,
    shard_chunks,
)
from stores.locks import LAYOUT, StoreLock
from stores.manifest import (
    COMMITS,
    MANIFEST,
    Record,
    commit,
    forget,
    in_words,
    ranges,
    read_commits,
    remove_commits,
    write_manifest,
)
from stores.paths import as_path, is_remote
from stores.store import StoreBase

log = logging.getLogger(__name__)


class StoreWriter(StoreBase):
    """An unfinished store, open for writing by one process. Use ``open``.

    ``span`` is the range of chunks that are this writer's to fill: all of them, or a shard. ``commit`` may be called by
    several threads, for different chunks.
    """

    span: range
    _met = False  # another writer, in a remote store
    _syncing: ThreadPoolExecutor
    _lock: StoreLock

    @classmethod
    def open(
        cls,
        path: str | Path,
        plan: StorePlan,
        *,
        shard: tuple[int, int] | None = None,
        overwrite: bool = False,
    ) -> StoreWriter:
        """Lay out a new store, or resume an unfinished one that was made from exactly the same.

        ``shard`` (i, n) takes the i-th of n parts of the chunks; the others are left to other writers, now or later.

        Raises StoreExistsError when something else is there (it is touched only with ``overwrite``), StoreError when
        another process is writing to one of the chunks.
        """
        path = as_path(path)
        if shard is not None and overwrite:
            raise UsageError(
                "'overwrite' cannot go with 'shard': each shard would delete the others' work. Delete the old store first."
            )
        refuse_foreign(path, overwrite=overwrite)
        lock = StoreLock(path)  # before anything is compared, deleted or laid out
        try:
            with lock.layout():
                lock.mark()
                if overwrite or not (path / ROOT).exists():
                    _start(path, plan, lock, overwrite=overwrite)
                refuse_another(path, plan)
                writer = cls(path, read_attributes(path))
                writer._lock, writer.span = lock, shard_chunks(shard, plan.n_chunks)
                writer._syncing = ThreadPoolExecutor(4, thread_name_prefix="sync")
                _claim(path, lock, writer.span)
                if writer.sealed:
                    writer._reopen()
                if not writer.sealed:
                    writer.attributes = repair(path, plan)
        except BaseException:
            lock.close()
            raise
        return writer

    @classmethod
    def preview(
        cls, path: str | Path, plan: StorePlan, *, shard: tuple[int, int] | None = None, overwrite: bool = False
    ) -> tuple[dict[str, Any], list[int]]:
        """What ``open`` would find: the store's attributes, and the chunks to be filled.

        Nothing is written. Raises StoreExistsError as that does.
        """
        path = as_path(path)
        refuse_foreign(path, overwrite=overwrite)
        span = shard_chunks(shard, plan.n_chunks)
        if overwrite or not (path / ROOT).exists():
            return plan.attributes, list(span)
        refuse_another(path, plan)
        there = cls(path, read_attributes(path))
        there.span = span
        return there.attributes, there.missing()

    def missing(self, *, anywhere: bool = False) -> list[int]:
        """Chunks of this writer that are not committed yet, or whose files are missing or cut short since, in order.

        With ``anywhere`` those of all writers.
        """
        done = self.committed()
        sizes = self.sizes() if done else None
        return [
            k
            for k in (range(self.n_chunks) if anywhere else self.span)
            if k not in done or not self.is_there(done[k], sizes)
        ]

    def _reopen(self) -> None:
        """Unseal a store of which chunks are missing: its manifest keeps the others."""
        if not (missing := self.missing()):
            remove_commits(self.path)  # what a writer left that was killed after it sealed
            return
        log.warning(
            "%d chunks of the sealed store '%s' are missing or cut short; redoing them", len(missing), self.path
        )
        left = {k: record for k, record in self.committed().items() if k not in missing}
        remove_commits(self.path)
        if left:
            write_manifest(self.path, left, checksum(read_small(self.path / ROOT)))
        else:
            (self.path / MANIFEST).unlink()

    def commit(
        self,
        chunk: int,
        *,
        names: Sequence[str],
        labels: np.ndarray,
        valid: np.ndarray,
        logits: np.ndarray,
        activations: dict[str, np.ndarray],
        positions: dict[str, np.ndarray] | None = None,
        skipped: Sequence[Any] = (),
    ) -> None:
        """Write one range of images and, when all its bytes are on disk, record it.

        Parameters
        ----------
        chunk : number of the range; its images are ``chunk * chunk_images`` onwards.
        names, labels, valid, logits : (n,), (n,) int, (n,) bool, (n, K) float of the images.
        activations : layer name -> (n, P, C); rows of invalid images must be NaN.
        positions : layer name -> (n, P) int, for layers whose positions are sampled.
        skipped : row, name and reason of each image that could not be read.

        Raises ValueError, and changes nothing, for a chunk that is not this writer's or whose arrays do not fit the store;
        StoreError when it is sealed or the disk refuses. In a remote store, which has no
        locks, one that another writer has committed meanwhile is left as it is.
        """
        if chunk not in self.span:
            raise ValueError(f"chunk {chunk} is not among this writer's: {in_words(ranges(self.span))}")
        if self.sealed:
            raise StoreError(f"The store '{self.path}' is sealed: nothing is written to it any more.")
        if self._is_taken(chunk):
            return
        valid = np.asarray(valid, bool)
        encoded = np.zeros((len(names), self.specs["images/names"].shape[1]), np.uint8)
        for row, name in zip(encoded, names, strict=True):
            data = name.encode("utf-8", "surrogateescape")
            row[: len(data)] = np.frombuffer(data, np.uint8)
        blocks: dict[str, np.ndarray] = {
            "images/names": encoded,
            "images/labels": np.asarray(labels, np.int64),
            "images/valid": np.asarray(valid, np.uint8),
            "images/logits": np.asarray(logits, np.float32),
        }
        for layer, x in activations.items():
            blocks[f"layers/{layer}/activations"] = x
        for layer, index in (positions or {}).items():
            blocks[f"layers/{layer}/positions"] = np.asarray(index, np.int32)
        if set(blocks) != set(self.image_arrays()):
            raise ValueError(f"a commit needs {sorted(self.image_arrays())}, got {sorted(blocks)}")
        largest = sorted(blocks, key=lambda path: -blocks[path].nbytes)  # its sync takes longest, so it begins first
        with Together(self._syncing) as files:
            entries = {path: self.array(path).write(chunk, blocks[path], files) for path in largest}
            found = {layer: extremes(x if valid.all() else x[valid]) for layer, x in activations.items()}
            forget(self.path, chunk)  # of a chunk that was lost: its record must not vouch for what replaces it
            files.publish()
        record = Record(
            chunk=chunk,
            first=chunk * self.chunk_images,
            rows=len(names),
            arrays={path: entries[path] for path in blocks},
            max_abs={layer: peak for layer, (peak, _) in found.items()},
            nonfinite={layer: count for layer, (_, count) in found.items()},
            skipped=list(skipped),
        )
        commit(self.path, record)

    def _is_taken(self, chunk: int) -> bool:
        """Whether another writer, whom no lock keeps away, has committed a chunk of a remote store."""
        if not is_remote(self.path):
            return False
        record = read_commits(self.path, [chunk])[0].get(chunk)
        if record is None or not self.is_there(record):
            return False
        if not self._met:
            log.warning("another process fills the same part of '%s': its chunks are not replaced", self.path)
        self._met = True
        return True

    def seal(self) -> None:
        """Declare the store complete. Raises UnsealedStoreError when chunks are missing."""
        if not self.seal_if_complete():
            missing = self.missing(anywhere=True)
            listed = f"{len(missing)} of {self.n_chunks} chunks are missing ({in_words(ranges(missing))})"
            raise UnsealedStoreError(f"The store '{self.path}' cannot be sealed: {listed}. {RESUME}")

    def seal_if_complete(self) -> bool:
        """Seal the store if the chunks of all writers are in; whoever finishes last does."""
        with self._lock.layout():
            if self.sealed:
                return True
            if self.missing(anywhere=True):
                return self.sealed  # by a writer in an object store, at this moment
            if changed := changed_files(self.path, self.attributes):
                raise CorruptStoreError(f"'{self.path / changed[0]}' was changed while the store was written. {RESUME}")
            remove_partial([self.path, *(self.path / path for path in self.image_arrays())])
            write_manifest(self.path, self.committed(), checksum(read_small(self.path / ROOT)))
            remove_commits(self.path)
        return True

    def close(self) -> None:
        """Let other processes write."""
        self._syncing.shutdown()
        self._lock.close()


def _start(path: Path, plan: StorePlan, lock: StoreLock, *, overwrite: bool) -> None:
    """Lay out a new store, in place of an old one. Raises CorruptStoreError for chunks without a root."""
    remote = is_remote(path)
    if not overwrite and ((path / MANIFEST).exists() or any((path / COMMITS).glob("*.json"))):
        if remote and (path / ROOT).exists():
            return  # another writer has just written the root, and committed a chunk
        raise CorruptStoreError(
            f"'{path / ROOT}' is missing, but chunks of a store are there. Restore it from a copy, give another --out, or "
            "--overwrite to start anew."
        )
    _claim(path, lock, range(LAYOUT))
    if overwrite or not remote:  # another writer may just have laid the objects out
        clear(path)
    lay_out(path, plan)
    lock.release()


def _claim(path: Path, lock: StoreLock, span: range) -> None:
    if not lock.claim(span.start, span.stop):
        raise StoreBusyError(
            f"Another process is writing to the store '{path}', to this part of it. Wait until it has ended, then run the "
            "command again, or give each process a --shard of its own."
        )


BLOCK = 2**18  # values looked at at a time


def extremes(x: np.ndarray) -> tuple[float, int]:
    """The largest finite absolute value, and how many values are NaN or infinite.

    By their bits, in two passes without a copy: as integers, positive floats are in their own order, and so do negative
    ones read as unsigned; what is not finite is above the bits of infinity.
    """
    signed, unsigned = (np.int16, np.uint16) if x.dtype == np.float16 else (np.int32, np.uint32)
    infinity = int(np.array(np.inf, x.dtype).view(signed))
    sign = int(np.iinfo(signed).max) + 1
    flat = np.ascontiguousarray(x).reshape(-1)
    peak, nonfinite = 0, 0
    for start in range(0, len(flat), BLOCK):  # so that the second pass finds the block in the cache
        block = flat[start : start + BLOCK]
        top, low = int(block.view(signed).max()), int(block.view(unsigned).max()) - sign
        if max(top, low) >= infinity:
            finite = np.isfinite(block)
            nonfinite += int(block.size - np.count_nonzero(finite))
            magnitudes = block[finite].view(unsigned) & np.array(sign - 1, unsigned)
            top, low = int(magnitudes.max(initial=0)), 0
        peak = max(peak, top, low)
    return float(np.array(peak, unsigned).view(x.dtype)), nonfinite
