"""A store's folder: laid out, repaired, cleared, or left alone because it is not a store."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np

from stores import objects
from stores.documents import read_documents
from stores.errors import CorruptStoreError, StoreError, StoreExistsError
from stores.format import ROOT, chunk_name, documents_of, read_attributes
from stores.io import Together, checksum, remove_partial, write_atomically
from stores.locks import LOCK
from stores.manifest import COMMITS, MANIFEST
from stores.paths import is_remote
from stores.plan import StorePlan

log = logging.getLogger(__name__)
FOLDERS = (COMMITS, "layers", "images", "ledger")  # the last of format 2
PARTS = {ROOT, MANIFEST, LOCK, "truth.safetensors", *FOLDERS}  # what a store's folder holds, and --overwrite deletes


def lay_out(path: Path, plan: StorePlan) -> None:
    """Write all metadata of a new store, the root's last: without it the folder is no store yet.

    Of several writers that begin a remote store at once, which no lock keeps apart, one lays down the root.
    """
    files = documents_of(plan.attributes)
    root = files.pop(ROOT)
    with Together() as together:
        for name, data in {**files, **head_files(plan)}.items():
            together.add(path / name, data)
        together.publish()
    if is_remote(path):
        objects.put_new(path / ROOT, root)
    else:
        write_atomically(path / ROOT, root)


def head_files(plan: StorePlan) -> dict[str, bytes]:
    """The chunks of the heads' arrays."""
    return {
        name: np.ascontiguousarray(value, "<f4").tobytes()
        for layer, head in (plan.heads or {}).items()
        for name, value in zip(_head_names(layer), head, strict=True)
    }


def _head_names(layer: str) -> list[str]:
    return [f"layers/{layer}/head_weight/{chunk_name(0, 2)}", f"layers/{layer}/head_bias/{chunk_name(0, 1)}"]


def changed_files(path: Path) -> list[str]:
    """What was laid out and is missing or changed."""
    attributes = read_attributes(path)
    documents, heads = documents_of(attributes), attributes["heads"]
    names = [*documents, *(name for layer in heads for name in _head_names(layer))]
    found = dict(zip(names, read_documents([path / name for name in names]), strict=True))
    changed = [name for name, data in documents.items() if found[name] != data]
    for layer, crc in heads.items():
        if checksum(b"".join(found[name] or b"" for name in _head_names(layer))) != crc:
            changed += _head_names(layer)
    return changed


def repair(path: Path, plan: StorePlan) -> None:
    """Write again what was laid out and has changed since, in a store that is not sealed.

    Raises CorruptStoreError where this run's plan does not give the same bytes (a head rounds differently elsewhere).
    """
    if not (changed := changed_files(path)):
        return
    attributes = read_attributes(path)
    lost = [
        name
        for layer, crc in attributes["heads"].items()
        for name in _head_names(layer)
        if crc != plan.attributes["heads"].get(layer)
    ]
    if wrong := [name for name in changed if name in (ROOT, *lost)]:
        raise CorruptStoreError(
            f"'{path / wrong[0]}' is missing or was changed since the store was laid out. Restore it from a copy, or "
            "extract again with --overwrite."
        )
    files = {**documents_of(attributes), **head_files(plan)}
    with Together() as together:
        for name in changed:
            together.add(path / name, files[name])
        together.publish()
    log.warning(
        "%d files of '%s' were missing or changed, and are written again: %s", len(changed), path, ", ".join(changed)
    )


def refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Raise StoreExistsError unless there is nothing at ``path``, or a store of ours, finished or not."""
    for above in path.absolute().parents:
        if _says_eddp(above / ROOT):
            raise StoreExistsError(f"'{path}' is within the store '{above}'. Give another --out.")
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
    """Whether a folder is a store: by its attributes, or, where these are damaged or missing yet, by its lock."""
    return LOCK in there or _says_eddp(path / ROOT)


def _says_eddp(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes())["attributes"]["eddp"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def clear(path: Path) -> None:
    """Delete a store but for its lock; its attributes first, so that the rest is never mistaken for one."""
    files = [path / name for name in (ROOT, MANIFEST, "truth.safetensors")]
    if is_remote(path):
        objects.remove(files)
        for folder in FOLDERS:
            objects.remove([path / folder / name for name in objects.sizes_below(path / folder)])
        return
    try:
        for file in files:
            file.unlink(missing_ok=True)
        for folder in FOLDERS:
            if (path / folder).exists():
                shutil.rmtree(path / folder)
        remove_partial([path])
    except OSError as error:
        raise StoreError(f"The old store at '{path}' cannot be deleted: {error.strerror or error}.") from error
