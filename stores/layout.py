"""A store's folder: laid out anew, cleared, or left alone because it is somebody else's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from stores.chunks import ZSTD_LEVEL
from stores.errors import StoreError, StoreExistsError
from stores.files import remove_partial, sync_tree, write_json
from stores.plan import StorePlan

PARTS = {"zarr.json", "images", "layers", "ledger", "truth"}  # what a store's folder holds, and --overwrite deletes
KEYS: Any = {"name": "default", "separator": "."}  # c.3.0.0: a folder an array, none a chunk


def lay_out(path: Path, plan: StorePlan) -> None:
    """Write all metadata of a new store, the root's attributes last: without them the folder is no store yet."""
    attributes = plan.attributes
    n, rows = attributes["n_images"], attributes["chunk_images"]
    longest = max((len(os.fsencode(name)) for name in plan.names), default=1)
    compressors = ZstdCodec(level=ZSTD_LEVEL) if plan.compress == "zstd" else None
    heads = plan.heads or {}

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
        array("images/logits", (n, plan.n_classes), "float32", float("nan"))
        for layer in plan.layers:
            where = f"layers/{layer.name}"
            write_json(
                path / where / "zarr.json",
                {"attributes": {"eddp": layer.to_dict()}, "zarr_format": 3, "node_type": "group"},
            )
            # NaN, not 0: a chunk that is not there must never read as zeros, whatever program reads it
            shape = (n, layer.positions, layer.channels)
            array(f"{where}/activations", shape, plan.dtype, float("nan"), compressors)
            if layer.sampled:
                array(f"{where}/positions", (n, layer.positions), "int32", -1)
            if layer.name in heads:
                for name, value in zip(("head_weight", "head_bias"), heads[layer.name], strict=True):
                    data = np.ascontiguousarray(value, np.float32)
                    zarr.create_array(store=path / where / name, data=data, compressors=None, overwrite=True)
        sync_tree(path)
        write_json(path / "zarr.json", {"attributes": {"eddp": attributes}, "zarr_format": 3, "node_type": "group"})
    except OSError as error:
        raise StoreError(f"No store can be made at '{path}': {error.strerror or error}.") from error


def refuse_foreign(path: Path, *, overwrite: bool) -> None:
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


def clear(path: Path) -> None:
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
