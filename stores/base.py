"""What readers and writers of a store share: its plan, arrays and ledger, on a disk or in an object store."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from stores import objects
from stores.cache import ChunkCache
from stores.chunks import ChunkedArray
from stores.documents import MOST_JSON_BYTES, UNREADABLE, array_problem, plan_problem, read_small, shown, small_object
from stores.errors import (
    CorruptStoreError,
    MissingPathError,
    StoreError,
    UnknownNameError,
)
from stores.io import checksum
from stores.layers import LayerSpec
from stores.ledger import Ledger, Record
from stores.paths import is_remote
from stores.prefetch import prefetch
from stores.progress import Progress, silent
from stores.remote import RemoteArray

FORMAT = 2  # see FORMAT.md; others are refused


class StoreBase:
    """What readers and writers of a store share: its metadata, arrays and ledger."""

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        if problem := plan_problem(attributes):
            raise CorruptStoreError(
                f"'{path / 'zarr.json'}' is damaged ({problem}). Restore it from a copy, or extract again with --overwrite."
            )
        self.layers: dict[str, LayerSpec] = {
            name: LayerSpec.from_dict(spec) for name, spec in attributes["layers"].items()
        }
        self.n_images: int = attributes["n_images"]
        self.chunk_images: int = attributes["chunk_images"]
        self._image_arrays = frozenset(self.image_arrays())
        self.ledger = Ledger(path / "ledger", self._misfit)
        self.records: dict[int, Record] = {}  # known ones: their chunks are checked when they are first read
        self._arrays: dict[str, ChunkedArray] = {}
        self._documents: dict[str, bytes] = {}  # zarr.json of a remote store's arrays, fetched together
        self.cache: ChunkCache | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the store: model, digest of the weights, transform, dataset, code version."""
        return dict(self.attributes["provenance"])

    @property
    def class_names(self) -> list[str] | None:
        return self.attributes.get("class_names")

    @property
    def n_chunks(self) -> int:
        return -(-self.n_images // self.chunk_images)

    def array(self, path: str) -> ChunkedArray:
        """One array of the store, by its path.

        Raises CorruptStoreError when its metadata cannot be read, or say other than the plan does.
        """
        if path not in self._arrays:
            try:
                opened = self._open_array(path)
                problem = array_problem(path, opened, self.attributes, self.layers)
                if problem is None:
                    self._arrays[path] = self._chunked(path, opened)
                    return self._arrays[path]
            except Exception as error:
                if isinstance(error, StoreError):  # the store of objects does not answer
                    raise
                raise CorruptStoreError(
                    f"'{path}' in the store '{self.path}' cannot be opened: its zarr.json is missing or damaged ({error})."
                ) from error
            raise CorruptStoreError(
                f"'{path}' in the store '{self.path}' is not what the store's plan says: {problem}. "
                "Restore the store from a copy, or extract it again with --overwrite."
            )
        return self._arrays[path]

    def _open_array(self, path: str) -> zarr.Array:
        """An array by its metadata. Raises anything where they are none."""
        if not is_remote(self.path):
            read_small(self.path / path / "zarr.json")  # no pipe, no device: Zarr would wait for it
            return zarr.open_array(self.path / path, mode="r", zarr_format=3)
        if path not in self._documents:
            self.metadata()
        data = self._documents.get(path)
        document = small_object(self.path / path / "zarr.json", data)
        memory = MemoryStore(store_dict={"zarr.json": Buffer.from_bytes(document)})
        return zarr.open_array(memory, mode="r", zarr_format=3)

    def _chunked(self, path: str, opened: zarr.Array) -> ChunkedArray:
        array = (RemoteArray if is_remote(self.path) else ChunkedArray)(self.path, path, opened)
        if path in self._image_arrays:
            array.records = self.records
            if isinstance(array, RemoteArray):
                array.cache = self.cache
        return array

    def image_arrays(self) -> list[str]:
        """Paths of all arrays that have a row an image: these make up a chunk."""
        paths = [f"images/{name}" for name in ("names", "labels", "valid", "logits")]
        for name, layer in self.layers.items():
            paths.append(f"layers/{name}/activations")
            if layer.sampled:
                paths.append(f"layers/{name}/positions")
        return paths

    def metadata(self) -> dict[str, int]:
        """CRC-32C of each group's and array's zarr.json but the root's; -1 where there is none."""
        groups = ["images", "layers", *(f"layers/{name}" for name in self.layers), "ledger"]
        heads = [f"layers/{name}/{part}" for name in self.attributes["heads"] for part in ("head_weight", "head_bias")]
        paths = [*groups, *self.image_arrays(), *heads]
        if is_remote(self.path):
            read = objects.fetch_all([self.path / path / "zarr.json" for path in paths], MOST_JSON_BYTES)
            self._documents = {path: data for path, data in zip(paths, read, strict=True) if data is not None}
            return {path: checksum(self._documents.get(path, b"")) if path in self._documents else -1 for path in paths}
        found = {}
        for path in paths:
            try:
                found[path] = checksum(memoryview(read_small(self.path / path / "zarr.json")))
            except OSError:
                found[path] = -1
        return found

    def _misfit(self, record: Record) -> str | None:
        """What keeps a record from being one of this store's, or None."""
        if record.chunk >= self.n_chunks:
            return f"the store has {self.n_chunks} chunks only"
        first = record.chunk * self.chunk_images
        if record.first != first or record.rows != min(self.chunk_images, self.n_images - first):
            return f"it says {record.rows} images from {record.first} on, which is no chunk of the store"
        if record.arrays.keys() != self._image_arrays:
            return "it is not of the store's arrays"
        if record.max_abs.keys() != self.layers.keys() or record.nonfinite.keys() != self.layers.keys():
            return "it is not of the store's layers"
        return None

    def sizes(self) -> dict[str, int] | None:
        """Bytes of all objects of a remote store but the ledger's, by their names, to be asked for once for many chunks.

        None for a local one: there each file is asked for by itself.
        """
        if not is_remote(self.path):
            return None
        arrays = self.image_arrays()
        listed = prefetch(objects.sizes_below, [self.path / name for name in arrays], threads=8, depth=16)
        return {
            f"{name}/{key}": size for name, found in zip(arrays, listed, strict=True) for key, size in found.items()
        }

    def is_there(self, record: Record, sizes: dict[str, int] | None = None) -> bool:
        """Whether a record is of a chunk of this store, and its files are there in full size; ``sizes`` as ``sizes()`` gives them."""
        return self._misfit(record) is None and not any(
            self.array(path).check(record.chunk, entry, every_byte=False, sizes=sizes)
            for path, entry in record.arrays.items()
        )

    def array_problems(self) -> dict[str, str]:
        """What is wrong with the metadata of arrays along images, by path; their chunks cannot be checked."""
        found = {}
        for path in self.image_arrays():
            try:
                self.array(path)
            except CorruptStoreError as error:
                found[path] = f"{str(error).partition('. ')[0].rstrip('.')}; its chunks were not checked"
        return found

    def check_chunks(
        self,
        records: dict[int, Record],
        *,
        every_byte: bool,
        leave_out: Collection[str] = (),
        progress: Progress = silent,
    ) -> list[str]:
        """What is wrong with the files of committed chunks; with ``every_byte`` each is read whole, several at a time."""
        arrays = [self.array(path) for path in self.image_arrays() if path not in leave_out]
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
            raise UnknownNameError(
                f"The store '{self.path}' holds several layers ({', '.join(self.layers)}): name one with --layer."
            )
        if name not in self.layers:
            raise UnknownNameError(
                f"The store '{self.path}' has no layer '{name}'. It holds: {', '.join(self.layers)}."
            )
        return self.layers[name]


def read_attributes(path: Path) -> dict[str, Any]:
    """The ``eddp`` attributes of a store's root group.

    Raises MissingPathError when there is no store, CorruptStoreError when its metadata cannot be read or is newer.
    """
    file = path / "zarr.json"
    data = objects.fetch_all([file], MOST_JSON_BYTES)[0] if is_remote(file) else None
    if data is None and not path.exists():
        raise MissingPathError(f"There is no store at '{path}'. Make one with: extract --model … --out {path}")
    if data is None and not file.is_file():
        raise MissingPathError(
            f"'{path}' is no activation store: it holds no zarr.json. Give the folder that extract wrote."
        )
    try:
        attributes = json.loads(read_small(file) if data is None else small_object(file, data))["attributes"]["eddp"]
        version = attributes["format"]
        other = type(version) is int and version != FORMAT
        problem = None if other else plan_problem(attributes)
    except OSError as error:
        raise StoreError(f"'{file}' cannot be read: {error.strerror or error}.") from error
    except UNREADABLE as error:
        raise CorruptStoreError(
            f"'{file}' is damaged or belongs to another program's Zarr store ({type(error).__name__}: {error})."
        ) from error
    if other:
        remedy = "Update eddp." if version > FORMAT else "Extract it again with --overwrite."
        raise StoreError(f"The store '{path}' has format {shown(version)}; this eddp reads format {FORMAT}. {remedy}")
    if problem:
        raise CorruptStoreError(f"'{file}' is damaged or belongs to another program's Zarr store ({problem}).")
    return dict(attributes)
