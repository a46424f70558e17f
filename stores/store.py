"""The activation store: a Zarr v3 hierarchy on a file system or in an object store, complete or refused.

::

    acts.zarr/                       attributes["eddp"]: format, n_images, chunk_images, provenance, sealed
      images/names (N, L) uint8      UTF-8, zero-padded      images/labels (N,) int64, -1: none
      images/valid (N,) uint8        0: the image could not be read (its activations are NaN)
      images/logits (N, K) float32   the model's own
      layers/<layer>/activations     (N, P, C) float16 or float32, channel-last
      layers/<layer>/positions       (N, P) int32, only when positions are sampled
      layers/<layer>/head_weight, head_bias   (K, C), (K,): when the head is average pooling followed by an affine map
      ledger/<chunk>                 what was committed (see ``stores.ledger``)

``sealed`` holds the digest of the ledger and the checksums of all zarr.json; FORMAT.md specifies the rest. All arrays along
images have chunks of the same ``chunk_images`` rows; such a range of images is the unit of commit.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stores import objects
from stores.attachments import attachment_problem, exists
from stores.base import FORMAT, StoreBase, read_attributes
from stores.cache import ChunkCache, cache_of
from stores.chunks import ChunkedArray
from stores.documents import UNREADABLE
from stores.errors import (
    CorruptStoreError,
    MismatchError,
    StoreError,
    UnsealedStoreError,
)
from stores.io import checksum
from stores.ledger import Record, digest, gaps, ranges_in_words
from stores.paths import as_path, is_remote
from stores.progress import Progress, silent
from stores.remote import RemoteArray
from stores.seal import seal_problem

__all__ = ["FORMAT", "ActivationStore", "StoreBase", "head_checksum", "read_attributes"]


class ActivationStore(StoreBase):
    """A sealed store, open for reading. Make one with ``ActivationStore.open(path)``."""

    trusted_model: str | None = None  # the ``model`` that it was opened with

    @classmethod
    def open(cls, path: str | Path, *, model: str | None = None) -> ActivationStore:
        """Open a complete store.

        Parameters
        ----------
        path : str or Path
            Folder or URL of the store.
        model : str, optional
            The model that the store names, where you trust it: ``module:callable`` is code, and is not run without this.

        Raises
        ------
        MissingPathError : nothing there, or no eddp store.
        UnsealedStoreError : extraction has not finished; says how much is missing and how to go on.
        CorruptStoreError : the ledger, the metadata and the chunk files contradict each other.
        MismatchError : the store names another model than ``model``.
        """
        path = as_path(path)
        attributes = read_attributes(path)
        store = cls(path, attributes)
        if model not in (None, named := store.provenance.get("model")):
            raise MismatchError(f"The store '{path}' names the model {named!r}, not {model!r} (--model).")
        store.trusted_model = model
        sealed = attributes.get("sealed")
        cache = cache_of(sealed["ledger"]) if sealed and is_remote(path) else None
        kept = cache.ledger(sealed["ledger"]) if cache and sealed else None
        records = store.ledger.records() if kept is None else kept
        if not sealed:
            raise UnsealedStoreError(
                f"The store '{path}' is unfinished: {len(records)} of {store.n_chunks} chunks are committed, "
                f"{ranges_in_words(gaps(records, store.n_chunks)) or 'none'} are missing. "
                "Run the same extract command again: it goes on where it stopped."
            )
        if len(records) != store.n_chunks:
            raise CorruptStoreError(
                f"The store '{path}' was sealed with {store.n_chunks} chunks, but its ledger now holds {len(records)}. "
                "Restore it from a copy, or run the same extract command again: it redoes what is gone."
            )
        if digest(records) != sealed["ledger"]:
            raise CorruptStoreError(
                f"The ledger of the store '{path}' was changed after the store was sealed. Restore it from a copy, or "
                "extract it again with --overwrite."
            )
        store.records.update(records)
        if problems := store._root_problems() or store._problems(records, every_byte=False):
            raise CorruptStoreError(_list_problems(path, problems))
        if cache is not None:
            store._use(cache, known=kept is not None)
        return store

    def _use(self, cache: ChunkCache, *, known: bool) -> None:
        """Keep what is read in ``cache``; ``known``: it knows the ledger already."""
        cache.records = self.records
        if not known:
            cache.keep_ledger(self.records)
        self.cache = cache
        for path, array in self._arrays.items():
            if isinstance(array, RemoteArray) and path in self._image_arrays:
                array.cache = cache

    @classmethod
    def examine(cls, path: str | Path) -> ActivationStore:
        """A sealed store however damaged it is, for ``verify`` alone: nothing but its plan was looked at.

        Raises MissingPathError, UnsealedStoreError, and CorruptStoreError where there is no telling what it should hold.
        """
        path = as_path(path)
        store = cls(path, read_attributes(path))
        if not store.attributes.get("sealed"):
            raise UnsealedStoreError(f"The store '{path}' is unfinished. Run the same extract command again.")
        return store

    @property
    def fingerprint(self) -> str:
        """Identity of the store's content: the digest of its ledger."""
        return str(self.attributes["sealed"]["ledger"])

    def verify(self, progress: Progress = silent) -> list[str]:
        """Check every byte against the ledger; returns one sentence for everything that is wrong, none for a sound store."""
        records, bad = self.ledger.examine()
        found = self._root_problems()
        found += [f"ledger/{name}/zarr.json: {reason}" for name, reason in bad.items()]
        missing = gaps(sorted({*records, *(int(name) for name in bad if name.isdecimal())}), self.n_chunks)
        found += [f"ledger: the {_records(first, last)} missing" for first, last in missing]
        if not bad and not missing and digest(records) != self.fingerprint:
            found.append("ledger: changed since the store was sealed")
        found += self._problems(records, every_byte=True, progress=progress)
        for layer in self.attributes["heads"]:
            try:
                self.affine_head(layer)
            except CorruptStoreError as error:
                found.append(str(error))
        for file in self.attachments():
            if problem := attachment_problem(file):
                cache = file.name != "truth.safetensors"
                found.append(problem + (f"; it is computed again when '{file}' is deleted" if cache else ""))
        if self.provenance.get("model") == "synthetic" and not exists(self.path / "truth.safetensors"):
            found.append("truth: missing, although the store is a synthetic one")
        return found

    def attachments(self) -> list[Path]:
        """Files stored with the store outside its ledger, whether there or not (see ``stores.attachments``)."""
        caches = [
            self.path / "layers" / name / f"{what}.safetensors"
            for name in self.layers
            for what in ("statistics", "sketch")
        ]
        return [*caches, self.path / "truth.safetensors"]

    def _problems(self, records: dict[int, Record], *, every_byte: bool, progress: Progress = silent) -> list[str]:
        """What is wrong with all metadata but the root's, and with the files of these chunks."""
        now = self.metadata()
        then = self.attributes["sealed"].get("metadata", now)
        changed = [path for path in sorted({*now, *then}) if now.get(path) != then.get(path)]
        unusable = self.array_problems()
        found = [
            f"{path}/zarr.json".lstrip("/")
            + ": missing, or changed since the store was sealed"
            + ("; its chunks were not checked" if path in unusable else "")
            for path in changed
        ]
        found += [problem for path, problem in unusable.items() if path not in changed]
        return found + self.check_chunks(records, leave_out=unusable, every_byte=every_byte, progress=progress)

    def _root_problems(self) -> list[str]:
        """What is wrong with the root's metadata, if anything."""
        try:
            problem = seal_problem(self.path / "zarr.json")
        except (OSError, *UNREADABLE) as error:
            problem = f"zarr.json: {error}"
        return [problem] if problem else []

    def column(self, name: str) -> np.ndarray:
        """A whole per-image array of ``images/``: ``labels`` (N,), ``valid`` (N,), ``logits`` (N, K)."""
        return np.concatenate(list(self.array(f"images/{name}").each(range(self.n_chunks))))

    def rows(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Chosen rows of an array of ``images/``, in the order given, without reading the others."""
        return self.array(f"images/{name}").take(indices)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class of each image, -1 where there is none."""
        return self.column("labels")

    @property
    def valid(self) -> np.ndarray:
        """(N,) bool: False for images that could not be read."""
        return self.column("valid").astype(bool)

    @property
    def logits(self) -> np.ndarray:
        """(N, K) float32 logits of the model that made the store."""
        return self.column("logits")

    @property
    def names(self) -> list[str]:
        """Name of each image, relative to the dataset's folder."""
        rows = self.column("names")
        return [bytes(row).rstrip(b"\0").decode("utf-8", "surrogateescape") for row in rows]

    def affine_head(self, layer: str) -> tuple[np.ndarray, np.ndarray] | None:
        """``(A (K, C), c (K,))`` float32 when the layer's head is ``A · mean_p(x) + c``, else None."""
        expected = self.attributes.get("heads", {}).get(layer)
        if expected is None:
            return None
        weight, bias = (self._whole(f"layers/{layer}/{name}") for name in ("head_weight", "head_bias"))
        if head_checksum(weight, bias) != expected:
            raise CorruptStoreError(
                f"The head of layer '{layer}' in the store '{self.path}' does not match its checksum. "
                "Restore it from a copy, or extract again with --overwrite."
            )
        return weight, bias

    def _whole(self, path: str) -> np.ndarray:
        try:
            return self.array(path).whole()
        except StoreError:
            raise
        except (OSError, RuntimeError, *UNREADABLE) as error:
            raise CorruptStoreError(
                f"'{path}' in the store '{self.path}' cannot be read ({error}). "
                "Restore it from a copy, or extract again with --overwrite."
            ) from error

    def dask(self, layer: str | None = None) -> Any:
        """The layer's activations as a lazy dask array (N, P, C), one block a chunk; skipped images are NaN."""
        import dask.array

        array = self.array(f"layers/{self.layer(layer).name}/activations")
        rows = tuple(array.rows(k) for k in range(self.n_chunks))
        return dask.array.map_blocks(
            _read_block, str(self.path.resolve()), array.path, self.fingerprint,
            chunks=(rows, *((size,) for size in array.shape[1:])), dtype=array.dtype,
            meta=np.empty((0, 0, 0), array.dtype), name=f"{array.path}-{self.fingerprint[7:23]}",
        )  # fmt: skip


def _read_block(path: str, array: str, fingerprint: str, block_id: tuple[int, ...] = (0,)) -> np.ndarray:
    """One chunk of the store of this fingerprint, wherever dask runs: memory-mapped where it can be.

    Raises CorruptStoreError when another store lies there by now.
    """
    root = as_path(path) / "zarr.json"
    version: tuple[object, ...]
    try:
        if is_remote(root):
            version = (objects.version_of(root),)
        else:
            found = root.stat()
            version = (found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise CorruptStoreError(f"The store '{path}' cannot be read any more: {error.strerror or error}.") from error
    opened = _open_chunked(path, array, fingerprint, version)
    return np.asarray(opened.read(block_id[0]))  # whose shape is the plan's, and so what was declared


@lru_cache(maxsize=64)
def _open_chunked(path: str, array: str, fingerprint: str, root: tuple[object, ...]) -> ChunkedArray:
    """``root`` is what the file system says of the root's zarr.json: when that was written again, it is read again."""
    attributes = read_attributes(as_path(path))
    if (attributes.get("sealed") or {}).get("ledger") != fingerprint:
        raise CorruptStoreError(f"The store '{path}' was replaced after it was opened. Open it again.")
    store = StoreBase(as_path(path), attributes)
    store.records.update(store.ledger.records())
    return store.array(array)


def _records(first: int, last: int) -> str:
    return f"record of chunk {first} is" if first == last else f"records of chunks {first}-{last} are"


def _list_problems(path: Path, problems: list[str]) -> str:
    shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    return (
        f"The store '{path}' is damaged: {shown}. `eddp verify {path}` lists everything; "
        "restore it from a copy, or run the same extract command again, which redoes chunks that are gone or cut short "
        "(with --overwrite everything)."
    )


def head_checksum(weight: np.ndarray, bias: np.ndarray) -> int:
    """CRC-32C of an affine head's float32 bytes."""
    parts = [np.ascontiguousarray(part, "<f4").tobytes() for part in (weight, bias)]
    return checksum(memoryview(b"".join(parts)))
