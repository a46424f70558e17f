"""Writing an activation store: laid out once, filled range by range by any number of writers, sealed when all are in."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stores.activations import FORMAT, StoreBase, head_checksum, read_attributes
from stores.chunks import ZSTD_LEVEL
from stores.errors import CorruptStoreError, StoreError, StoreExistsError, UnsealedStoreError, UsageError
from stores.files import Together, remove_partial, sync_tree, write_json
from stores.layers import LayerSpec
from stores.ledger import Record, digest, in_words
from stores.locks import StoreLock
from stores.seal import seal_document

log = logging.getLogger(__name__)

PARTS = {"zarr.json", "images", "layers", "ledger", "truth"}  # what a store's folder holds, and --overwrite deletes
# What may differ between runs that go on with each other: a head is computed, and may round differently elsewhere; where
# images and weights lie says nothing, as their digests are compared; an older format is gone on with as it is.
PLACES = {"provenance.dataset.path", "provenance.weights", "provenance.weights_source"}
UNIMPORTANT = PLACES | {"heads", "format", "provenance.batch_size"}
KEYS: Any = {"name": "default", "separator": "."}  # c.3.0.0: a folder an array, none a chunk
BLOCK = 2**18  # values looked at at a time
TARGET_CHUNK_BYTES = 32 * 2**20  # large enough to stream at the disk's rate, small enough to hold several per writer


def default_chunk_images(layers: Sequence[LayerSpec], itemsize: int, n_images: int) -> int:
    """Images per chunk: the power of two that brings the largest layer's chunk nearest below 32 MiB."""
    per_image = max(layer.positions * layer.channels * itemsize for layer in layers)
    rows = max(1, TARGET_CHUNK_BYTES // per_image)
    return max(1, min(1 << (int(rows).bit_length() - 1), 4096, n_images))


def shard_chunks(shard: tuple[int, int], n_chunks: int) -> range:
    """The chunks of shard i of n: consecutive, as many as in any other but for one; all shards make up all chunks.

    Raises UsageError unless 0 <= i < n.
    """
    i, n = shard
    if not 0 <= i < n:
        raise UsageError(f"'shard' must be i/n with 0 <= i < n, got {i}/{n}.")
    return range(i * n_chunks // n, (i + 1) * n_chunks // n)


class StoreWriter(StoreBase):
    """An unfinished store, open for writing by one process. Use ``create_or_resume``.

    ``span`` is the range of chunks that are this writer's to fill: all of them, or a shard. ``commit`` may be called by
    several threads, for different chunks.
    """

    span: range
    _syncing: ThreadPoolExecutor
    _lock: StoreLock
    _name_bytes: int

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        *,
        layers: Sequence[LayerSpec],
        names: Sequence[str],
        n_classes: int,
        provenance: dict[str, Any],
        class_names: Sequence[str] | None = None,
        dtype: str = "float16",
        compress: str = "none",
        chunk_images: int | None = None,
        heads: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
        shard: tuple[int, int] | None = None,
        overwrite: bool = False,
    ) -> StoreWriter:
        """Lay out a new store, or go on with an unfinished one that was made from exactly the same.

        ``shard`` (i, n) takes the i-th of n parts of the chunks; the others are left to other writers, now or later.

        Raises StoreExistsError when something else is there (it is touched only with ``overwrite``), StoreError when
        another process is writing to one of the chunks.
        """
        path = Path(path)
        if shard is not None and overwrite:
            raise UsageError(
                "'overwrite' cannot go with 'shard': each shard would delete the others' work. Delete the old store first."
            )
        _refuse_foreign(path, overwrite=overwrite)
        plan = _plan(
            layers=layers, names=names, n_classes=n_classes, provenance=provenance, class_names=class_names, dtype=dtype,
            compress=compress, chunk_images=chunk_images, heads=heads,
        )  # fmt: skip
        n_chunks = -(-plan["n_images"] // plan["chunk_images"])
        span = range(n_chunks) if shard is None else shard_chunks(shard, n_chunks)
        lock = StoreLock(path)  # before anything is compared, deleted or laid out
        try:
            with lock.layout():
                lock.mark()
                if overwrite or not (path / "zarr.json").exists():
                    if not overwrite and any((path / "ledger").glob("*/zarr.json")):
                        raise CorruptStoreError(
                            f"'{path / 'zarr.json'}' is gone, but chunks of a store are there. Restore it from a copy, "
                            "give another --out, or --overwrite to begin anew."
                        )
                    if not lock.claim_all():
                        raise _taken(path)
                    _clear(path)
                    _lay_out(path, plan, list(layers), list(names), heads or {})
                    lock.release()
                _refuse_another(path, plan)
                _follow(path, plan)
                if not lock.claim(span.start, span.stop):
                    raise _taken(path)
                writer = cls(path, read_attributes(path))
                writer._lock, writer.span = lock, span
                writer._name_bytes = writer.array("images/names").shape[1]
                writer._syncing = ThreadPoolExecutor(4, thread_name_prefix="sync")
                if writer.sealed and (gone := writer.missing()):
                    log.warning(
                        "%d chunks of the sealed store '%s' are gone or cut short; redoing them", len(gone), path
                    )
                    writer._mark_sealed(None)
        except BaseException:
            lock.close()
            raise
        return writer

    @classmethod
    def preview(
        cls, path: str | Path, *, shard: tuple[int, int] | None = None, overwrite: bool = False, **options: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """What ``create_or_resume`` with these options would find: the store's attributes, and the chunks to be filled.

        Nothing is written. Raises StoreExistsError as that does.
        """
        path = Path(path)
        _refuse_foreign(path, overwrite=overwrite)
        attributes = _plan(**options)
        done: set[int] = set()
        if (path / "zarr.json").exists() and not overwrite:
            _refuse_another(path, attributes)
            attributes = read_attributes(path)
            done = set(StoreBase(path, attributes).ledger.records())
        n_chunks = -(-attributes["n_images"] // attributes["chunk_images"])
        span = range(n_chunks) if shard is None else shard_chunks(shard, n_chunks)
        return attributes, [k for k in span if k not in done]

    @property
    def sealed(self) -> bool:
        return bool(self.attributes.get("sealed"))

    def missing(self, *, anywhere: bool = False) -> list[int]:
        """Chunks of this writer that are not committed yet, or whose files are gone or cut short since, in order.

        With ``anywhere`` those of all writers.
        """
        done = self.ledger.records()
        return [
            k for k in (range(self.n_chunks) if anywhere else self.span) if k not in done or not self.is_there(done[k])
        ]

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
        skipped: list[dict[str, Any]] | None = None,
    ) -> None:
        """Write one range of images and, when all its bytes are on disk, enter it in the ledger.

        Parameters
        ----------
        chunk : number of the range; its images are ``chunk * chunk_images`` onwards.
        names, labels, valid, logits : (n,), (n,) int, (n,) bool, (n, K) float of the images.
        activations : layer name -> (n, P, C); rows of invalid images must be NaN.
        positions : layer name -> (n, P) int, for layers whose positions are sampled.
        skipped : row, name and reason of each image that could not be read.
        """
        valid = np.asarray(valid, bool)
        encoded = np.zeros((len(names), self._name_bytes), np.uint8)
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
        self.ledger.forget(chunk)  # of a chunk that was lost: its record must not vouch for what is written now
        with Together(self._syncing) as files:
            entries = {path: self.array(path).write(chunk, blocks[path], files) for path in largest}
            extremes = {layer: _extremes(x if valid.all() else x[valid]) for layer, x in activations.items()}
            files.publish()
        self.ledger.commit(
            Record(
                chunk=chunk,
                first=chunk * self.chunk_images,
                rows=len(names),
                arrays={path: entries[path] for path in blocks},
                max_abs={layer: found[0] for layer, found in extremes.items()},
                nonfinite={layer: found[1] for layer, found in extremes.items()},
                skipped=list(skipped or []),
            )
        )

    def seal(self) -> None:
        """Declare the store complete. Raises UnsealedStoreError when chunks are missing."""
        if not self.seal_if_complete():
            missing = self.missing(anywhere=True)
            raise UnsealedStoreError(
                f"The store '{self.path}' cannot be sealed: {len(missing)} of {self.n_chunks} chunks are missing "
                f"({in_words(missing)}). Run the same extract command again."
            )

    def seal_if_complete(self) -> bool:
        """Seal the store if the chunks of all writers are in; whoever finishes last does."""
        with self._lock.layout():
            self.attributes = read_attributes(self.path)
            if self.sealed:
                return True
            if self.missing(anywhere=True):
                return False
            remove_partial(
                {self.path, self.path / "ledger", *(self.array(path).folder for path in self.image_arrays())}
            )
            remove_partial(self.ledger.path(k).parent for k in range(self.n_chunks))
            self._mark_sealed({"ledger": digest(self.ledger.records()), "metadata": self.metadata()})
        return True

    def _mark_sealed(self, sealed: dict[str, Any] | None) -> None:
        document = json.loads((self.path / "zarr.json").read_bytes())
        document["attributes"]["eddp"].pop("sealed", None)
        if sealed:
            document = seal_document(document, sealed)
        write_json(self.path / "zarr.json", document)
        self.attributes = document["attributes"]["eddp"]

    def close(self) -> None:
        """Let other processes write."""
        self._syncing.shutdown()
        self._lock.close()


def _extremes(x: np.ndarray) -> tuple[float, int]:
    """The largest finite absolute value, and how many values are NaN or infinite.

    By their bits, in two passes without a copy: as integers, positive floats lie in their own order, and so do negative
    ones read as unsigned; what is not finite lies above the bits of infinity.
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


def _taken(path: Path) -> StoreError:
    return StoreError(
        f"Another process is writing to the store '{path}', to this part of it. Wait until it has ended, then run the command "
        "again, or give each process a --shard of its own."
    )


def _plan(
    *,
    layers: Sequence[LayerSpec],
    names: Sequence[str],
    n_classes: int,
    provenance: dict[str, Any],
    class_names: Sequence[str] | None = None,
    dtype: str = "float16",
    compress: str = "none",
    chunk_images: int | None = None,
    heads: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """The attributes of a store that is made from these."""
    plan = {
        "format": FORMAT,
        "n_images": len(names),
        "n_classes": n_classes,
        "chunk_images": chunk_images or default_chunk_images(layers, np.dtype(dtype).itemsize, len(names)),
        "dtype": dtype,
        "compress": compress,
        "layers": {layer.name: layer.to_dict() for layer in layers},
        "class_names": list(class_names) if class_names is not None else None,
        "heads": {name: head_checksum(*head) for name, head in (heads or {}).items()},
        "provenance": provenance,
    }
    return dict(json.loads(json.dumps(plan)))


def _follow(path: Path, plan: dict[str, Any]) -> None:
    """Where images or weights lie elsewhere than when an unfinished store was begun, let it say where."""
    document = json.loads((path / "zarr.json").read_bytes())
    attributes, changed = document["attributes"]["eddp"], False
    for place in PLACES if not attributes.get("sealed") else ():
        *above, key = place.split(".")
        there, here = attributes, plan
        for part in above:
            there, here = there.get(part, {}), here.get(part, {})
        if key in there and key in here and there[key] != here[key]:
            there[key], changed = here[key], True
    if changed:
        write_json(path / "zarr.json", document)


def _refuse_another(path: Path, plan: dict[str, Any]) -> None:
    """Raise StoreExistsError when the store at ``path`` was made from something else than the plan says."""
    existing = {k: v for k, v in read_attributes(path).items() if k != "sealed"}
    different = _differences(existing, plan)
    if different:
        raise StoreExistsError(
            f"'{path}' already holds a store made from something else ({'; '.join(different)}). "
            "Give another --out, or --overwrite to replace it."
        )


def _lay_out(
    path: Path,
    plan: dict[str, Any],
    layers: list[LayerSpec],
    names: list[str],
    heads: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Write all metadata of a new store, the root's attributes last: without them the folder is no store yet."""
    n, rows = plan["n_images"], plan["chunk_images"]
    longest = max((len(name.encode("utf-8", "surrogateescape")) for name in names), default=1)
    from zarr.codecs import ZstdCodec

    compressors = ZstdCodec(level=ZSTD_LEVEL) if plan["compress"] == "zstd" else None

    def array(where: str, shape: tuple[int, ...], dtype: str, fill: float, codec: Any = None) -> None:
        zarr.create_array(
            store=path / where,
            shape=shape,
            chunks=(min(rows, n), *shape[1:]),
            dtype=dtype,
            fill_value=fill,
            compressors=codec,
            chunk_key_encoding=KEYS,
            overwrite=True,
        )

    try:
        for group in ("images", "layers"):
            write_json(path / group / "zarr.json", {"attributes": {}, "zarr_format": 3, "node_type": "group"})
        array("images/names", (n, max(1, longest)), "uint8", 0)
        array("images/labels", (n,), "int64", -1)
        array("images/valid", (n,), "uint8", 0)
        array("images/logits", (n, plan["n_classes"]), "float32", float("nan"))
        for layer in layers:
            where = f"layers/{layer.name}"
            write_json(
                path / where / "zarr.json",
                {"attributes": {"eddp": layer.to_dict()}, "zarr_format": 3, "node_type": "group"},
            )
            # NaN, not 0: a chunk that is not there must never read as zeros, whatever program reads it
            shape = (n, layer.positions, layer.channels)
            array(f"{where}/activations", shape, plan["dtype"], float("nan"), compressors)
            if layer.sampled:
                array(f"{where}/positions", (n, layer.positions), "int32", -1)
            if layer.name in heads:
                for name, value in zip(("head_weight", "head_bias"), heads[layer.name], strict=True):
                    data = np.ascontiguousarray(value, np.float32)
                    zarr.create_array(store=path / where / name, data=data, compressors=None, overwrite=True)
        sync_tree(path)
        write_json(path / "zarr.json", {"attributes": {"eddp": plan}, "zarr_format": 3, "node_type": "group"})
    except OSError as error:
        raise StoreError(f"No store can be made at '{path}': {error.strerror or error}.") from error


def _refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Raise StoreExistsError unless there is nothing at ``path``, or a store of ours, finished or not."""
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreExistsError(f"'{path}' is a file, not a store. Give another --out.")
    try:
        there = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise StoreError(f"The folder '{path}' cannot be listed: {error.strerror or error}.") from error
    foreign = [name for name in there if name not in PARTS and not name.endswith(".partial")]
    if there and not _is_ours(path, there):
        foreign = there
    elif not overwrite:
        return
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise StoreExistsError(
            f"'{path}' holds other things than a store of eddp ({shown}); they are left alone, also with --overwrite. "
            "Move them, or give another --out."
        )


def _is_ours(path: Path, there: list[str]) -> bool:
    """Whether a folder is a store: by its attributes, or, where these are damaged or missing yet, by its ledger's mark."""
    for file, wanted in ((path / "zarr.json", dict), (path / "ledger" / "zarr.json", str)):
        try:
            if isinstance(json.loads(file.read_bytes())["attributes"]["eddp"], wanted):
                return True
        except (OSError, ValueError, KeyError, TypeError):
            continue
    # stopped before the mark was written: nothing but the file for it
    return there == ["ledger"] and {entry.name for entry in (path / "ledger").glob("*")} <= {"zarr.json"}


def _clear(path: Path) -> None:
    """Delete a store but for the file that is locked; its attributes first, so that the rest is never taken for one."""
    try:
        (path / "zarr.json").unlink(missing_ok=True)
        for part in ("layers", "images", "truth"):
            if (path / part).exists():
                shutil.rmtree(path / part)
        for record in (path / "ledger").iterdir():
            if record.is_dir():
                shutil.rmtree(record)
        remove_partial((path, path / "ledger"))
    except OSError as error:
        raise StoreError(f"The old store at '{path}' cannot be deleted: {error.strerror or error}.") from error


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the entries in which two plans differ, with both values where short."""
    found: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if left == right or f"{prefix}{key}" in UNIMPORTANT:
            continue
        if key == "code_version" and str(left).partition("+")[0] == str(right).partition("+")[0]:
            continue  # two commits of one version compute the same
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif len(str(left)) + len(str(right)) < 120:
            found.append(f"{prefix}{key}: {left} there, {right} asked for")
        else:
            found.append(f"{prefix}{key} differs")
    return found
