"""A store's folder: laid out anew, cleared, or left alone because it is somebody else's."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from stores import objects
from stores.chunks import ZSTD_LEVEL
from stores.documents import MOST_JSON_BYTES
from stores.errors import CorruptStoreError, StoreError, StoreExistsError
from stores.io import Together, checksum, file_checksum, json_bytes, remove_partial, write_json
from stores.ledger import MARK_BYTES
from stores.objects import ObjectPath
from stores.paths import is_remote
from stores.plan import StorePlan
from stores.store import read_attributes

log = logging.getLogger(__name__)

PARTS = {
    "zarr.json",
    "images",
    "layers",
    "ledger",
    "truth.safetensors",
}  # what a store's folder holds, and --overwrite deletes
KEYS: Any = {"name": "default", "separator": "."}  # c.3.0.0: a folder an array, none a chunk


def lay_out(path: Path, plan: StorePlan) -> None:
    """Write all metadata of a new store, the root's attributes last: without them the folder is no store yet.

    Of several writers that begin a remote store at once, which no lock keeps apart, one lays down the root.
    """
    files = laid_out(plan)
    attributes = {**plan.attributes, "files": {name: checksum(data) for name, data in files.items()}}
    with Together() as together:
        for name, data in files.items():
            together.add(path / name, data)
        together.publish()
    root = path / "zarr.json"
    if is_remote(root):
        objects.put_new(root, json_bytes(_group({"eddp": attributes})))
    else:
        write_json(root, _group({"eddp": attributes}))


def mend(path: Path, plan: StorePlan) -> None:
    """Write again what was laid out and has changed since, in a store that is not sealed.

    Raises CorruptStoreError where this run's plan does not give the same bytes (a head rounds differently elsewhere).
    """
    changed = changed_files(path)
    if not changed:
        return
    recorded, files = read_attributes(path)["files"], laid_out(plan)
    with Together() as together:
        for name in changed:
            if checksum(files.get(name, b"")) != recorded[name]:
                raise CorruptStoreError(
                    f"'{path / name}' is gone or was changed since the store was laid out. Restore it from a copy, or "
                    "extract again with --overwrite."
                )
            together.add(path / name, files[name])
        together.publish()
    log.warning("%d files of '%s' were gone or changed, and are mended: %s", len(changed), path, ", ".join(changed[:3]))


def changed_files(path: Path) -> list[str]:
    """What was laid out, is recorded in the root's attributes, and is gone or says something else now."""
    recorded = read_attributes(path)["files"]
    if is_remote(path):
        read = objects.fetch_all([path / name for name in recorded], MOST_JSON_BYTES)
        return [
            name for name, data in zip(recorded, read, strict=True) if data is None or checksum(data) != recorded[name]
        ]
    return [name for name, crc in recorded.items() if not _is(path / name, crc)]


def laid_out(plan: StorePlan) -> dict[str, bytes]:
    """The files that a store begins with, but for the root's and the ledger's: all metadata, and the heads."""
    attributes = plan.attributes
    n, rows = attributes["n_images"], attributes["chunk_images"]
    longest = max((len(name.encode("utf-8", "surrogateescape")) for name in plan.names), default=1)
    files: dict[str, bytes] = {}

    def array(where: str, shape: tuple[int, ...], dtype: str, fill: float, codec: Any = None) -> None:
        files[f"{where}/zarr.json"] = array_metadata(shape, (rows, *shape[1:]), dtype, fill, codec)

    for group in ("images", "layers"):
        files[f"{group}/zarr.json"] = json_bytes(_group({}))
    array("images/names", (n, max(1, longest)), "uint8", 0)
    array("images/labels", (n,), "int64", -1)
    array("images/valid", (n,), "uint8", 0)
    array("images/logits", (n, plan.n_classes), "float32", float("nan"))
    for layer in plan.layers:
        where = f"layers/{layer.name}"
        files[f"{where}/zarr.json"] = json_bytes(_group({"eddp": layer.to_dict()}))
        # NaN, not 0: a chunk that is not there must never read as zeros, whatever program reads it
        codec = ZstdCodec(level=ZSTD_LEVEL) if plan.compress == "zstd" else None
        array(f"{where}/activations", (n, layer.positions, layer.channels), plan.dtype, float("nan"), codec)
        if layer.sampled:
            array(f"{where}/positions", (n, layer.positions), "int32", -1)
        for name, value in zip(("head_weight", "head_bias"), (plan.heads or {}).get(layer.name, ()), strict=False):
            head = np.ascontiguousarray(value, "<f4")
            files[f"{where}/{name}/zarr.json"] = array_metadata(head.shape, head.shape, "float32", 0)
            files[f"{where}/{name}/{'.'.join(['c', *['0'] * head.ndim])}"] = head.tobytes()
    return files


def array_metadata(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, fill: float, codec: Any = None
) -> bytes:
    """The zarr.json of an array, as Zarr itself writes it."""
    made: dict[str, Any] = {}
    zarr.create_array(
        store=MemoryStore(store_dict=made),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        compressors=codec,
        chunk_key_encoding=KEYS,
    )
    return bytes(made["zarr.json"].to_bytes())


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def _is(path: Path, crc: int) -> bool:
    try:
        return file_checksum(path) == crc
    except OSError:
        return False


def refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Raise StoreExistsError unless there is nothing at ``path``, or a store of ours, finished or not."""
    for above in path.absolute().parents:
        if _says_eddp(above / "zarr.json", dict):
            raise StoreExistsError(f"'{path}' lies within the store '{above}'. Give another --out.")
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
    if _says_eddp(path / "zarr.json", dict) or _says_eddp(path / "ledger" / "zarr.json", str):
        return True
    # stopped before the mark was written whole: nothing but the file for it
    if there != ["ledger"] or not {entry.name for entry in (path / "ledger").glob("*")} <= {"zarr.json"}:
        return False
    mark = path / "ledger" / "zarr.json"
    return not mark.exists() or MARK_BYTES.startswith(mark.read_bytes())


def _says_eddp(file: Path, wanted: type) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes())["attributes"]["eddp"], wanted)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def clear(path: Path) -> None:
    """Delete a store but for the file that is locked; its attributes first, so that the rest is never taken for one."""
    if is_remote(path):
        _clear_objects(path)
        return
    try:
        (path / "zarr.json").unlink(missing_ok=True)
        (path / "truth.safetensors").unlink(missing_ok=True)
        for part in ("layers", "images"):
            if (path / part).exists():
                shutil.rmtree(path / part)
        for record in (path / "ledger").iterdir():
            if record.is_dir():
                shutil.rmtree(record)
        remove_partial((path, path / "ledger"))
    except OSError as error:
        raise StoreError(f"The old store at '{path}' cannot be deleted: {error.strerror or error}.") from error


def _clear_objects(path: ObjectPath) -> None:
    objects.remove([path / "zarr.json", path / "truth.safetensors"])
    for part in ("ledger", "layers", "images"):
        objects.remove(
            [path / part / name for name in objects.sizes_below(path / part) if (part, name) != ("ledger", "zarr.json")]
        )
