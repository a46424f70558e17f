"""The activation store (``FORMAT.md``): a Zarr v3 hierarchy on a file system or in an object store, complete or refused.

::

    acts.zarr/                       attributes["eddp"]: format, n_images, chunk_images, provenance, …
      images/names (N, L) uint8      UTF-8, zero-padded      images/labels (N,) int64, -1: none
      images/valid (N,) uint8        0: the image could not be read (its activations are NaN)
      images/logits (N, K) float32   the model's own
      layers/<layer>/activations     (N, P, C) float16 or float32, channel-last
      layers/<layer>/positions       (N, P) int32, only when positions are sampled
      layers/<layer>/head_weight, head_bias   (K, C), (K,): when the head is average pooling followed by an affine map
      manifest.jsonl                 which chunks there are, with the checksums of their files (``stores.manifest``)

All arrays along images have chunks of the same ``chunk_images`` rows; such a range of images is the unit of commit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stores import objects
from stores.attachments import attachment_problem
from stores.cache import ChunkCache, cache_of
from stores.chunks import ChunkedArray
from stores.documents import read_documents, read_small
from stores.errors import RESTORE, RESUME, CorruptStoreError, MismatchError, UnknownNameError, UnsealedStoreError
from stores.format import (
    ROOT,
    LayerSpec,
    arrays_of,
    attributes_of,
    documents_of,
    head_checksum,
    parse_attributes,
    read_attributes,
)
from stores.io import checksum
from stores.locks import LOCK, LOCK_BYTES
from stores.manifest import (
    MANIFEST,
    MOST_BYTES,
    Manifest,
    Record,
    gaps,
    in_words,
    parse_manifest,
    read_commits,
    read_manifest,
)
from stores.notebook import html_table
from stores.paths import as_path, is_remote
from stores.prefetch import prefetch
from stores.progress import Progress, readable, silent
from stores.remote import RemoteArray


class StoreBase:
    """What readers and writers of a store share: its metadata, arrays and records."""

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        try:
            checked = parse_attributes(attributes)
        except ValueError as error:
            raise CorruptStoreError(f"'{path / ROOT}' is damaged ({error}). {RESTORE}") from error
        self.layers: dict[str, LayerSpec] = checked.layers
        self.n_images, self.chunk_images, self.n_chunks = checked.n_images, checked.chunk_images, checked.n_chunks
        self.specs = arrays_of(checked)
        self.records: dict[int, Record] = {}  # known ones: their chunks are checked when they are first read
        self.cache: ChunkCache | None = None
        self.given_class_names: list[str] | None = None
        self._arrays: dict[str, ChunkedArray] = {}

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the store: model, digest of the weights, transform, dataset, code version."""
        return dict(self.attributes["provenance"])

    @property
    def class_names(self) -> list[str] | None:
        """The names of the model's classes: those that the store was opened with, or else its own."""
        return self.given_class_names or self.attributes.get("class_names")

    @property
    def sealed(self) -> bool:
        """Whether the store is complete. Raises CorruptStoreError for a damaged manifest."""
        manifest = read_manifest(self.path)
        return manifest is not None and len(manifest.records) == self.n_chunks

    def image_arrays(self) -> list[str]:
        """Paths of all arrays that have a row an image: these make up a chunk."""
        return [path for path in self.specs if not path.endswith(("/head_weight", "/head_bias"))]

    def array(self, path: str) -> ChunkedArray:
        """One array of the store, by its path."""
        if path not in self._arrays:
            array = (RemoteArray if is_remote(self.path) else ChunkedArray)(self.path, path, self.specs[path])
            if path in self.image_arrays():
                array.records = self.records
                if isinstance(array, RemoteArray):
                    array.cache = self.cache
            self._arrays[path] = array
        return self._arrays[path]

    def read_records(self) -> tuple[dict[int, Record], dict[str, str]]:
        """The records of all committed chunks, and what is wrong with damaged ones by the name of their file.

        Raises CorruptStoreError for a damaged manifest.
        """
        commits, bad = read_commits(self.path)  # first: whoever seals the store writes the manifest, then deletes them
        manifest = read_manifest(self.path)
        found = {**(manifest.records if manifest else {}), **commits}
        bad |= {f"{k:08d}": problem for k, record in found.items() if (problem := self._misfit(record))}
        return {k: found[k] for k in sorted(found) if f"{k:08d}" not in bad}, bad

    def committed(self) -> dict[int, Record]:
        """The records of all committed chunks by number. Raises CorruptStoreError naming every one that is damaged."""
        found, bad = self.read_records()
        if bad:
            listed = ", ".join(f"{name} ({reason})" for name, reason in bad.items())
            then = "Delete those files and run the same extract command again: it redoes just these chunks."
            raise CorruptStoreError(f"'{self.path}' has damaged records of chunks in commits/: {listed}. {then}")
        return found

    def _misfit(self, record: Record) -> str | None:
        """Why a record is not one of this store's, or None."""
        if record.chunk >= self.n_chunks:
            return f"the store has {self.n_chunks} chunks only"
        first = record.chunk * self.chunk_images
        if record.first != first or record.rows != min(self.chunk_images, self.n_images - first):
            return f"it has {record.rows} images from {record.first} on, which is no chunk of the store"
        if record.arrays.keys() != set(self.image_arrays()):
            return "it is not of the store's arrays"
        if record.max_abs.keys() != self.layers.keys() or record.nonfinite.keys() != self.layers.keys():
            return "it is not of the store's layers"
        return None

    def sizes(self) -> dict[str, int] | None:
        """Bytes of all chunks of a remote store by name, listed at once; None for a local one, whose files are asked for singly."""
        if not is_remote(self.path):
            return None
        arrays = self.image_arrays()
        listed = prefetch(objects.sizes_below, [self.path / name for name in arrays], threads=8, depth=16)
        return {
            f"{name}/{key}": size for name, found in zip(arrays, listed, strict=True) for key, size in found.items()
        }

    def is_there(self, record: Record, sizes: dict[str, int] | None = None) -> bool:
        """Whether the files of a record's chunk are there in full size; ``sizes`` as ``sizes()`` gives them."""
        return self._misfit(record) is None and not any(
            self.array(path).check(record.chunk, entry, every_byte=False, sizes=sizes)
            for path, entry in record.arrays.items()
        )

    def check_chunks(
        self,
        records: dict[int, Record],
        *,
        every_byte: bool,
        progress: Progress = silent,
    ) -> list[str]:
        """What is wrong with the files of committed chunks; with ``every_byte`` each is read, several at a time."""
        arrays = [self.array(path) for path in self.image_arrays()]
        pairs = [(array, record) for array in arrays for record in records.values()]
        total = sum(record.arrays[array.path]["bytes"] for array, record in pairs) if every_byte else 0
        sizes = self.sizes() if pairs else None

        def check(pair: tuple[ChunkedArray, Record]) -> str | None:
            array, record = pair
            return array.check(record.chunk, record.arrays[array.path], every_byte=every_byte, sizes=sizes)

        found, done = [], 0
        results = (
            prefetch(check, pairs, threads=min(8, os.cpu_count() or 1), depth=16) if every_byte else map(check, pairs)
        )
        for (array, record), problem in zip(pairs, results, strict=True):
            if problem:
                found.append(problem)
            if every_byte:
                done += record.arrays[array.path]["bytes"]
                progress("verifying", done >> 20, total >> 20, "MiB")
        return found

    def layer(self, name: str | None = None) -> LayerSpec:
        """A layer by name; without a name the only one. Raises UnknownNameError listing the layers there are."""
        if name is None and len(self.layers) == 1:
            return next(iter(self.layers.values()))
        if name is None:
            raise UnknownNameError(f"'{self.path}' has several layers ({', '.join(self.layers)}): name one by --layer.")
        if name not in self.layers:
            raise UnknownNameError(f"'{self.path}' has no layer '{name}'. It holds: {', '.join(self.layers)}.")
        return self.layers[name]


class ActivationStore(StoreBase):
    """A sealed store, open for reading. Make one with ``ActivationStore.open(path)``."""

    trusted_model: str | None = None  # the ``model`` that it was opened with
    fingerprint: str  # identity of the content: the digest of all records

    @classmethod
    def open(
        cls, path: str | Path, *, model: str | None = None, class_names: Sequence[str] | None = None
    ) -> ActivationStore:
        """Open a complete store.

        Parameters
        ----------
        path : str or Path
            Folder or URL of the store.
        model : str, optional
            The model that the store names, where you trust it: ``module:callable`` is code, and is not run without this.
        class_names : sequence of str, optional
            Names of the model's classes, in place of the store's own.

        Raises
        ------
        MissingPathError : nothing there, or no eddp store.
        UnsealedStoreError : extraction has not finished; says how much is missing and how to resume.
        CorruptStoreError : the manifest, the metadata and the chunk files contradict each other.
        MismatchError : the store names another model than ``model``, or its model has another number of classes.
        """
        path = as_path(path)
        root, data = read_documents([path / ROOT, path / MANIFEST], MOST_BYTES)
        store = cls(path, attributes_of(path, root))
        if model not in (None, named := store.provenance.get("model")):
            raise MismatchError(f"The store '{path}' names the model {named!r}, not {model!r} (--model).")
        store.trusted_model = model
        if class_names is not None and len(class_names) != (classes := store.attributes["n_classes"]):
            names = f"There are {len(class_names)} class names, and the model of '{path}' has {classes} classes"
            raise MismatchError(f"{names}. Give a name for every class, in its order.")
        store.given_class_names = None if class_names is None else list(class_names)
        manifest = None if data is None else parse_manifest(path, data)
        if manifest is None or len(manifest.records) < store.n_chunks:
            records = store.committed()
            done = f"{len(records)} of {store.n_chunks} chunks are committed"
            missing = in_words(gaps(records, store.n_chunks)) or "none"
            raise UnsealedStoreError(f"The store '{path}' is unfinished: {done}, {missing} are missing. {RESUME}")
        problems = store._use(manifest, root or b"")
        if not is_remote(path):  # elsewhere a chunk that is missing is found when it is read
            problems = problems or store.check_chunks(store.records, every_byte=False)
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CorruptStoreError(
                f"The store '{path}' is damaged: {shown}. `eddp verify {path}` lists everything; restore it from a copy, or run "
                "the same extract command again, which redoes chunks that are missing or cut short (with --overwrite everything)."
            )
        if is_remote(path):
            store.cache = cache_of(manifest.header.fingerprint)
        return store

    def __repr__(self) -> str:
        layers = ", ".join(repr(name) for name in self.layers)
        return f"ActivationStore({str(self.path)!r}: {self.n_images} images, layers {layers})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the network, the images, and each layer's shape and size."""
        made = self.provenance
        rows = [
            ("store", str(self.path)),
            ("network", f"{made.get('model', 'unknown')}, weights {made.get('weights', 'unknown')}"),
            ("images", f"{int(self.valid.sum())} of {self.n_images} can be read"),
        ]
        for name in self.layers:
            spec, array = self.layer(name), self.array(f"layers/{name}/activations")
            size = readable(int(np.prod(array.shape)) * array.dtype.itemsize)
            rows.append(
                (f"layer {name}", f"{spec.shown_grid} positions × {spec.channels} channels, {array.dtype}, {size}")
            )
        return html_table(rows)

    @classmethod
    def examine(cls, path: str | Path) -> ActivationStore:
        """A sealed store however damaged it is, only for ``verify``: nothing but its attributes was looked at.

        Raises MissingPathError, UnsealedStoreError, and CorruptStoreError where its attributes are damaged.
        """
        path = as_path(path)
        store = cls(path, read_attributes(path))
        if not (path / MANIFEST).exists():
            raise UnsealedStoreError(f"The store '{path}' is unfinished. {RESUME}")
        return store

    def _use(self, manifest: Manifest, root: bytes) -> list[str]:
        """Take over the records of a manifest; returns what contradicts it."""
        problems = [f"chunk {k}: {why}" for k, record in manifest.records.items() if (why := self._misfit(record))]
        if checksum(root) != manifest.header.root:
            problems.append(f"{ROOT}: changed since the store was sealed")
        self.fingerprint = manifest.header.fingerprint
        self.records.update(manifest.records)
        return problems

    def verify(self, progress: Progress = silent) -> list[str]:
        """Check every byte against the manifest; returns a message for each problem, none for a sound store."""
        found: list[str] = []
        expected = {**documents_of(self.attributes), LOCK: LOCK_BYTES}
        for name in expected:
            try:
                if read_small(self.path / name) != expected[name]:
                    found.append(f"{name}: changed since it was written")
            except OSError as error:
                found.append(f"{name}: {error.strerror or error}")
        try:
            manifest = read_manifest(self.path)
            if manifest is None:
                raise UnsealedStoreError(f"{MANIFEST}: missing")
            problems = self._use(manifest, read_small(self.path / ROOT))
            missing = in_words(gaps(self.records, self.n_chunks))
            problems += [f"{MANIFEST}: records of chunks {missing} are missing"] if missing else []
            found += problems or self.check_chunks(self.records, every_byte=True, progress=progress)
        except (OSError, CorruptStoreError) as error:
            found.append(f"{str(error).rstrip('.')}; no chunks were checked")
        for layer in self.attributes["heads"]:
            try:
                self.affine_head(layer)
            except CorruptStoreError as error:
                found.append(str(error))
        for file in self.attachments():
            if problem := attachment_problem(file):
                cache = file.name != "truth.safetensors"
                found.append(problem + (f"; it is computed again when '{file}' is deleted" if cache else ""))
        if self.provenance.get("model") == "synthetic" and not (self.path / "truth.safetensors").exists():
            found.append("truth: missing, although the store is a synthetic one")
        return found

    def attachments(self) -> list[Path]:
        """Files stored with the store outside its manifest, whether there or not (see ``stores.attachments``), and the embeddings that are there."""
        folders = [self.path / "layers" / name for name in self.layers]
        caches = [folder / f"{what}.safetensors" for folder in folders for what in ("statistics", "sketch", "words")]
        crops = [file for folder in folders for file in (folder / "crops").glob("*.safetensors")]
        return [*caches, *crops, self.path / "truth.safetensors"]

    def column(self, name: str) -> np.ndarray:
        """A complete per-image array of ``images/``: ``labels`` (N,), ``valid`` (N,), ``logits`` (N, K)."""
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
        weight, bias = (self.array(f"layers/{layer}/{name}").read(0).copy() for name in ("head_weight", "head_bias"))
        if head_checksum(weight, bias) != expected:
            raise CorruptStoreError(f"The head of '{layer}' in '{self.path}' does not match its checksum. {RESTORE}")
        return weight, bias

    def dask(self, layer: str | None = None) -> Any:
        """The layer's activations as a lazy dask array (N, P, C), one block a chunk; skipped images are NaN.

        It is float32: dask sums and counts in an array's own type, and a mean of float16 would be 0 from 65520 values on.
        """
        import dask.array

        array = self.array(f"layers/{self.layer(layer).name}/activations")
        rows = tuple(array.rows(k) for k in range(self.n_chunks))
        return dask.array.map_blocks(
            _read_block, str(self.path.resolve()), array.path, self.fingerprint,
            chunks=(rows, *((size,) for size in array.shape[1:])), dtype=array.dtype,
            meta=np.empty((0, 0, 0), array.dtype), name=f"{array.path}-{self.fingerprint[7:23]}",
        ).astype(np.float32)  # fmt: skip


def _read_block(path: str, array: str, fingerprint: str, block_id: tuple[int, ...] = (0,)) -> np.ndarray:
    """One chunk of the store of this fingerprint, wherever dask runs: memory-mapped where it can be.

    Raises CorruptStoreError when another store is there by now.
    """
    file = as_path(path) / MANIFEST
    version: tuple[object, ...]
    try:
        if is_remote(file):
            version = (str(objects.info(file)),)
        else:
            found = file.stat()
            version = (found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise CorruptStoreError(f"The store '{path}' cannot be read any more: {error.strerror or error}.") from error
    opened = _open_chunked(path, array, fingerprint, version)
    return np.asarray(opened.read(block_id[0]))  # whose shape is the attributes', and so what was declared


@lru_cache(maxsize=64)
def _open_chunked(path: str, array: str, fingerprint: str, version: tuple[object, ...]) -> ChunkedArray:
    """``version`` is the file system's entry of the manifest: when that was written again, it is read again."""
    manifest = read_manifest(as_path(path))
    if manifest is None or manifest.header.fingerprint != fingerprint:
        raise CorruptStoreError(f"The store '{path}' was replaced after it was opened. Open it again.")
    store = StoreBase(as_path(path), read_attributes(as_path(path)))
    store.records.update(manifest.records)
    return store.array(array)
