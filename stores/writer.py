"""Writing an activation store: laid out once, filled range by range, sealed when every range is in."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stores.activations import FORMAT, StoreBase, head_checksum, read_attributes
from stores.chunks import ZSTD_LEVEL
from stores.errors import CorruptStoreError, StoreError, StoreExistsError, UnsealedStoreError
from stores.files import write_json
from stores.layers import LayerSpec
from stores.ledger import MARK, Record, digest

log = logging.getLogger(__name__)

PARTS = {"zarr.json", "images", "layers", "ledger", "truth"}  # what a store's folder holds, and --overwrite deletes
TARGET_CHUNK_BYTES = 32 * 2**20  # large enough to stream at the disk's rate, small enough to hold several per writer


def default_chunk_images(layers: Sequence[LayerSpec], itemsize: int, n_images: int) -> int:
    """Images per chunk: the power of two that brings the largest layer's chunk nearest below 32 MiB."""
    per_image = max(layer.positions * layer.channels * itemsize for layer in layers)
    rows = max(1, TARGET_CHUNK_BYTES // per_image)
    return max(1, min(1 << (int(rows).bit_length() - 1), 4096, n_images))


class StoreWriter(StoreBase):
    """An unfinished store, open for writing by one process. Use ``create_or_resume``."""

    _lock: Any = None

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
        overwrite: bool = False,
    ) -> StoreWriter:
        """Lay out a new store, or go on with an unfinished one that was made from exactly the same.

        Raises StoreExistsError when something else is there (it is touched only with ``overwrite``), StoreError when
        another process is writing to it.
        """
        path = Path(path)
        _refuse_foreign(path, overwrite=overwrite)
        plan: dict[str, Any] = {
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
        plan = json.loads(json.dumps(plan))
        lock = _lock(path)  # before anything is compared, deleted or laid out
        try:
            if overwrite or not (path / "zarr.json").exists():
                if not overwrite and any((path / "ledger").glob("*/zarr.json")):
                    raise CorruptStoreError(
                        f"'{path / 'zarr.json'}' is gone, but chunks of a store are there. Restore it from a copy, give "
                        "another --out, or --overwrite to begin anew."
                    )
                _clear(path)
                _lay_out(path, plan, list(layers), list(names), heads or {})
            existing = {k: v for k, v in read_attributes(path).items() if k != "sealed"}
            different = _differences(existing, plan)
            if different:
                raise StoreExistsError(
                    f"'{path}' already holds a store made from something else ({'; '.join(different)}). "
                    "Give another --out, or --overwrite to replace it."
                )
            writer = cls(path, read_attributes(path))
            writer._name_bytes = writer.array("images/names").shape[1]
            if writer.sealed and (gone := writer.missing()):
                log.warning("%d chunks of the sealed store '%s' are gone or cut short; redoing them", len(gone), path)
                writer._mark_sealed(None)
        except BaseException:
            lock.close()
            raise
        writer._lock = lock
        return writer

    _name_bytes: int

    @property
    def sealed(self) -> bool:
        return bool(self.attributes.get("sealed"))

    def missing(self) -> list[int]:
        """Chunks that are not committed yet, or whose files are gone or cut short since, in order."""
        done = self.ledger.records()
        return [k for k in range(self.n_chunks) if k not in done or not self._is_there(done[k])]

    def _is_there(self, record: Record) -> bool:
        arrays = {path: self.array(path) for path in self.image_arrays()}
        return set(record.arrays) == set(arrays) and not any(
            array.check(record.chunk, record.arrays[path], every_byte=False) for path, array in arrays.items()
        )

    def commit(
        self,
        chunk: int,
        *,
        names: Sequence[str],
        labels: np.ndarray,
        valid: np.ndarray,
        logits: np.ndarray,
        activations: dict[str, np.ndarray],
        max_abs: dict[str, float],
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
        max_abs : layer name -> largest absolute activation of the valid images.
        """
        valid, nonfinite = np.asarray(valid, bool), {}
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
            nonfinite[layer] = _count_nonfinite(x if valid.all() else x[valid])
        for layer, index in (positions or {}).items():
            blocks[f"layers/{layer}/positions"] = np.asarray(index, np.int32)
        if set(blocks) != set(self.image_arrays()):
            raise ValueError(f"a commit needs {sorted(self.image_arrays())}, got {sorted(blocks)}")
        entries = {path: self.array(path).write(chunk, block) for path, block in blocks.items()}
        self.ledger.commit(
            Record(
                chunk=chunk,
                first=chunk * self.chunk_images,
                rows=len(names),
                arrays=entries,
                max_abs={k: float(v) for k, v in max_abs.items()},
                nonfinite=nonfinite,
                skipped=list(skipped or []),
            )
        )

    def seal(self) -> None:
        """Declare the store complete. Raises UnsealedStoreError when chunks are missing."""
        missing = self.missing()
        if missing:
            raise UnsealedStoreError(
                f"The store '{self.path}' cannot be sealed: {len(missing)} of {self.n_chunks} chunks are missing "
                f"(the first is chunk {missing[0]}). Run the same extract command again."
            )
        for left in self.path.rglob(".*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        self._mark_sealed(
            {
                "ledger": digest(self.ledger.records()),
                "metadata": self.metadata(),
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )

    def _mark_sealed(self, sealed: dict[str, Any] | None) -> None:
        document = json.loads((self.path / "zarr.json").read_bytes())
        document["attributes"]["eddp"].pop("sealed", None)
        if sealed:
            document["attributes"]["eddp"]["sealed"] = sealed
        write_json(self.path / "zarr.json", document)
        self.attributes = document["attributes"]["eddp"]

    def close(self) -> None:
        """Let other processes write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _count_nonfinite(x: np.ndarray) -> int:
    """How many values are NaN or infinite; for float16 by their bits, which is many times faster."""
    if x.dtype == np.float16:
        return int(np.count_nonzero((x.view(np.uint16) & 0x7C00) == 0x7C00))
    return int(x.size - np.count_nonzero(np.isfinite(x)))


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
        for left in (*path.glob(".*.partial"), *path.glob("ledger/.*.partial")):
            left.unlink()
    except OSError as error:
        raise StoreError(f"The old store at '{path}' cannot be deleted: {error.strerror or error}.") from error


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the entries in which two plans differ, with both values where short."""
    found: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if left == right or key in ("created", "heads"):  # a head is computed, and may round differently elsewhere
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


def _lock(path: Path) -> Any:
    """Hold a store for writing, making its folder. The operating system lets go when the process ends, however it does."""
    file = path / "ledger" / "zarr.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle: Any = file.open("a+b")  # writable: NFS locks no other files
        except OSError:
            handle = file.open("rb")  # a finished store on a read-only disk
    except OSError as error:
        raise StoreError(f"No store can be made at '{path}': {error.strerror or error}.") from error
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system: two writers are then the user's care
        pass
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            handle.close()
            raise StoreError(
                f"Another process is writing to the store '{path}'. Wait until it has ended, then run the command again."
            ) from error
        log.warning("'%s' lies on a disk without locks (%s): let no two processes write to it", path, error.strerror)
    try:
        if os.fstat(handle.fileno()).st_size == 0:
            handle.write(json.dumps(MARK).encode())
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        handle.close()
        raise StoreError(f"'{file}' could not be written: {error.strerror or error}.") from error
    return handle
