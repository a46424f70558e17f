"""Writing an activation store: laid out once, filled range by range, sealed when every range is in."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stores.activations import FORMAT, StoreBase, head_checksum, read_attributes
from stores.chunks import ZSTD_LEVEL
from stores.errors import StoreError, StoreExistsError, UnsealedStoreError
from stores.files import write_json
from stores.layers import LayerSpec
from stores.ledger import Ledger, Record, digest

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
        if path.exists() and overwrite:
            _remove_store(path)
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            existing = {k: v for k, v in read_attributes(path).items() if k != "sealed"}
            different = _differences(existing, plan)
            if different:
                raise StoreExistsError(
                    f"'{path}' already holds a store made from something else ({'; '.join(different)}). "
                    "Give another --out, or --overwrite to replace it."
                )
        else:
            _lay_out(path, plan, list(layers), list(names), heads or {})
        writer = cls(path, read_attributes(path))
        writer._lock = _lock(path)
        writer._name_bytes = writer.array("images/names").shape[1]
        return writer

    _name_bytes: int

    @property
    def sealed(self) -> bool:
        return bool(self.attributes.get("sealed"))

    def missing(self) -> list[int]:
        """Chunks that are not committed yet, in order."""
        done = self.ledger.records()
        return [k for k in range(self.n_chunks) if k not in done]

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
        entries = {path: self.array(path).write(chunk, block) for path, block in blocks.items()}
        self.ledger.commit(
            Record(
                chunk=chunk,
                first=chunk * self.chunk_images,
                rows=len(names),
                arrays=entries,
                max_abs={k: float(v) for k, v in max_abs.items()},
                nonfinite=dict.fromkeys(activations, 0),
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
        document = json.loads((self.path / "zarr.json").read_bytes())
        document["attributes"]["eddp"]["sealed"] = {
            "ledger": digest(self.ledger.records()),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path / "zarr.json", document)
        self.attributes = document["attributes"]["eddp"]

    def close(self) -> None:
        """Let other processes write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


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
            store=str(path / where),
            shape=shape,
            chunks=(min(rows, n), *shape[1:]),
            dtype=dtype,
            fill_value=fill,
            compressors=codec,
            overwrite=True,
        )

    try:
        path.mkdir(parents=True, exist_ok=True)
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
                    zarr.create_array(store=str(path / where / name), data=data, compressors=None, overwrite=True)
        Ledger(path / "ledger").create()
        write_json(path / "zarr.json", {"attributes": {"eddp": plan}, "zarr_format": 3, "node_type": "group"})
    except OSError as error:
        raise StoreError(f"No store can be made at '{path}': {error.strerror or error}.") from error


def _remove_store(path: Path) -> None:
    """Delete a store for ``--overwrite``; refuses to delete a folder that is none."""
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").is_file() and not (path / "ledger").is_dir():
        raise StoreExistsError(
            f"'{path}' is a folder with other things in it, so --overwrite leaves it alone. Give another --out."
        )
    if path.is_file():
        raise StoreExistsError(f"'{path}' is a file, not a store. Give another --out.")
    shutil.rmtree(path)


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the entries in which two plans differ, with both values where short."""
    found: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if left == right or key in ("created", "heads"):  # a head is computed, and may round differently elsewhere
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif len(str(left)) + len(str(right)) < 120:
            found.append(f"{prefix}{key}: {left} there, {right} asked for")
        else:
            found.append(f"{prefix}{key} differs")
    return found


_in_process = threading.Lock()


def _lock(path: Path) -> Any:
    """Hold the store for writing. The operating system lets go of it when the process ends, however it ends."""
    file = (path / "ledger" / "zarr.json").open("rb")
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two writers are then the user's care
        return file
    with _in_process:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StoreError(
                f"Another process is writing to the store '{path}'. Wait until it has ended, then run the command again."
            ) from error
    return file
