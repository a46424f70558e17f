"""The layout of a store: planned once, written as metadata, compared when a run resumes it, and what else may be in its folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stores import objects
from stores.documents import read_documents
from stores.errors import RESTORE, CorruptStoreError, StoreError, StoreExistsError, UsageError
from stores.format import (
    FORMAT,
    ROOT,
    LayerSpec,
    chunk_name,
    documents_of,
    head_checksum,
    parse_attributes,
    read_attributes,
)
from stores.io import Together, checksum, remove_partial, write_atomically
from stores.locks import LOCK
from stores.manifest import COMMITS, MANIFEST
from stores.paths import is_remote

log = logging.getLogger(__name__)
# What may differ when a run resumes another one's store: a head is computed, and may round differently elsewhere; paths of
# images and weights do not matter, as their digests are compared.
UNIMPORTANT = {
    "heads", "provenance.about", "provenance.batch_size", "provenance.dataset.path", "provenance.forward.channels_last",
    "provenance.weights", "provenance.weights_source",
}  # fmt: skip
OF_LAYERS = {"chunk_images", "provenance.layouts", "provenance.split"}  # other layers say all of it
# What a store's folder holds, and --overwrite deletes in this order; "ledger" is of format 2
PARTS = (ROOT, MANIFEST, "truth.safetensors", COMMITS, "layers", "images", "ledger")
TARGET_CHUNK_BYTES = 32 * 2**20  # large enough to stream at the disk's rate, small enough to hold several per writer


@dataclass(frozen=True)
class StorePlan:
    """A store to be.

    Parameters
    ----------
    layers : what is stored of each layer.
    names : the N images' names.
    n_classes : K.
    provenance : what makes it, JSON-able.
    class_names : the model's K, or None.
    dtype : float16 or float32, of activations.
    compress : none or zstd.
    chunk_images : images a chunk; None: see ``default_chunk_images``.
    heads : layer -> (A (K, C), c (K,)) float32, for layers whose head is average pooling and an affine map.
    """

    layers: Sequence[LayerSpec]
    names: Sequence[str]
    n_classes: int
    provenance: dict[str, Any]
    class_names: Sequence[str] | None = None
    dtype: str = "float16"
    compress: str = "none"
    chunk_images: int | None = None
    heads: dict[str, tuple[np.ndarray, np.ndarray]] | None = None

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes of a store that is made from this, as they come back from JSON."""
        n = len(self.names)
        rows = min(n, self.chunk_images or default_chunk_images(self.layers, np.dtype(self.dtype).itemsize, n))
        found = {
            "format": FORMAT,
            "n_images": n,
            "n_classes": self.n_classes,
            "chunk_images": rows,
            "name_bytes": max([1, *(len(name.encode("utf-8", "surrogateescape")) for name in self.names)]),
            "dtype": self.dtype,
            "compress": self.compress,
            "layers": {layer.name: layer.to_dict() for layer in self.layers},
            "class_names": list(self.class_names) if self.class_names is not None else None,
            "heads": {name: head_checksum(*head) for name, head in (self.heads or {}).items()},
            "provenance": self.provenance,
        }
        found = json.loads(json.dumps(found))
        try:
            parse_attributes(found)
        except ValueError as error:
            raise UsageError(f"There can be no such store: {error}.") from error
        return dict(found)

    @property
    def n_chunks(self) -> int:
        return -(-self.attributes["n_images"] // self.attributes["chunk_images"])

    def files(self, attributes: dict[str, Any]) -> dict[str, bytes]:
        """All that is laid out of a store with these attributes: its metadata, the root's last, and the heads' arrays."""
        heads = {
            name: np.ascontiguousarray(value, "<f4").tobytes()
            for layer, head in (self.heads or {}).items()
            for name, value in zip(_head_names(layer), head, strict=True)
        }
        return heads | documents_of(attributes)


def default_chunk_images(layers: Sequence[LayerSpec], itemsize: int, n_images: int) -> int:
    """Images per chunk: the power of two that brings the largest layer's chunk nearest below 32 MiB."""
    per_image = max(layer.positions * layer.channels * itemsize for layer in layers)
    rows = max(1, TARGET_CHUNK_BYTES // per_image)
    return max(1, min(1 << (int(rows).bit_length() - 1), 4096, n_images))


def shard_chunks(shard: tuple[int, int] | None, n_chunks: int) -> range:
    """The chunks of shard (i, n): consecutive, as many as in any other but for one; None: all chunks.

    Raises UsageError unless 0 <= i < n.
    """
    i, n = shard or (0, 1)
    if not 0 <= i < n:
        raise UsageError(f"'shard' must be i/n with 0 <= i < n, got {i}/{n}.")
    return range(i * n_chunks // n, (i + 1) * n_chunks // n)


def lay_out(path: Path, plan: StorePlan) -> None:
    """Write all metadata of a new store, the root's last: without it the folder is no store yet.

    Of several writers that start a remote store at once, which no lock excludes, one writes the root.
    """
    files = plan.files(plan.attributes)
    root = files.pop(ROOT)
    with Together() as together:
        for name, data in files.items():
            together.add(path / name, data)
        together.publish()
    if is_remote(path):
        objects.put_new(path / ROOT, root)
    else:
        write_atomically(path / ROOT, root)


def changed_files(path: Path, attributes: dict[str, Any]) -> list[str]:
    """What was laid out and is missing or changed."""
    documents, heads = documents_of(attributes), attributes["heads"]
    names = [*documents, *(name for layer in heads for name in _head_names(layer))]
    found = dict(zip(names, read_documents([path / name for name in names]), strict=True))
    changed = [name for name, data in documents.items() if found[name] != data]
    for layer, crc in heads.items():
        if checksum(b"".join(found[name] or b"" for name in _head_names(layer))) != crc:
            changed += _head_names(layer)
    return changed


def repair(path: Path, plan: StorePlan) -> dict[str, Any]:
    """Write again what was laid out of an unfinished store and has changed since, and where images and weights were moved to.

    Returns the store's attributes. Raises CorruptStoreError where the plan does not give the same bytes (a head rounds
    differently elsewhere).
    """
    stored = read_attributes(path)
    changed = changed_files(path, stored)
    other_heads = stored["heads"] != plan.attributes["heads"]
    if lost := [name for name in changed if name == ROOT or (other_heads and "/head_" in name)]:
        raise CorruptStoreError(f"'{path / lost[0]}' is missing or was changed since the store was laid out. {RESTORE}")
    made = {
        key: value for key, value in stored["provenance"].items() if key in ("batch_size", "code_version", "forward")
    }
    provenance = plan.attributes["provenance"] | made
    attributes = plan.attributes | {"heads": stored["heads"], "provenance": provenance}
    files = plan.files(attributes)
    with Together() as together:
        for name in [*changed, *([ROOT] if attributes != stored else [])]:
            together.add(path / name, files[name])
        together.publish()
    if changed:
        listed = ", ".join(changed)
        log.warning("%d files of '%s' were missing or changed, and are written again: %s", len(changed), path, listed)
    return attributes


def _head_names(layer: str) -> list[str]:
    return [f"layers/{layer}/head_weight/{chunk_name(0, 2)}", f"layers/{layer}/head_bias/{chunk_name(0, 1)}"]


def refuse_another(path: Path, plan: StorePlan) -> None:
    """Raise StoreExistsError when the store at ``path`` was made from something else than the plan."""
    stored, wanted = read_attributes(path), plan.attributes
    ignored = UNIMPORTANT if set(stored["layers"]) == set(wanted["layers"]) else UNIMPORTANT | OF_LAYERS
    if different := _differences(stored, wanted, ignored):
        found = f"'{path}' already holds a store made from something else ({'; '.join(different)})"
        raise StoreExistsError(f"{found}. Give another --out, or --overwrite to replace it.")


def _differences(a: dict[str, Any], b: dict[str, Any], ignored: set[str], prefix: str = "") -> list[str]:
    """The entries in which two plans differ, with both values where short: ``old → new``."""
    found: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if left == right or f"{prefix}{key}" in ignored:
            continue
        if key == "code_version" and str(left).partition("+")[0] == str(right).partition("+")[0]:
            continue  # two commits of one version compute the same
        if f"{prefix}{key}" == "layers" and set(left or ()) != set(right or ()):
            found.append(f"layers: {_plain(left)} → {_plain(right)}")
        elif f"{prefix}{key}" == "provenance.dataset.digest":
            found.append(
                "the images are others, or were changed or copied: their names, sizes, times of change or bytes differ"
            )
        elif isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, ignored, f"{prefix}{key}.")
        elif not isinstance(left or right, dict) and len(old := _plain(left)) + len(new := _plain(right)) < 120:
            found.append(f"{prefix}{key}: {old} → {new}")
        else:
            found.append(f"{prefix}{key} differs")
    return found


def _plain(value: Any) -> str:
    """A value for people: no brackets and quotes."""
    if isinstance(value, dict | list):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


def refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Raise StoreExistsError unless there is nothing at ``path``, or a store of ours, finished or not."""
    for above in path.absolute().parents:
        if _is_store(above / ROOT):
            raise StoreExistsError(f"'{path}' is within the store '{above}'. Give another --out.")
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreExistsError(f"'{path}' is a file, not a store. Give another --out.")
    try:
        there = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise StoreError(f"The folder '{path}' cannot be listed: {error.strerror or error}.") from error
    foreign = [name for name in there if name not in (*PARTS, LOCK) and not name.endswith(".partial")]
    # only the lock answers where the attributes are damaged, or not written yet
    if there and not (LOCK in there or _is_store(path / ROOT)):
        foreign = there
    elif not overwrite:
        return
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise StoreExistsError(
            f"'{path}' holds other things than a store of eddp ({shown}); they are not changed, also with --overwrite. "
            "Move them, or give another --out."
        )


def _is_store(file: Path) -> bool:
    """Whether a zarr.json is of a store of eddp."""
    try:
        return isinstance(json.loads(file.read_bytes())["attributes"]["eddp"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def clear(path: Path) -> None:
    """Delete a store but for its lock; its attributes first, so that the rest is never mistaken for one."""
    if is_remote(path):
        objects.remove([path / ROOT])
        objects.remove([path / name for name in objects.sizes_below(path) if name.partition("/")[0] in PARTS])
        return
    try:
        for part in PARTS:
            if (path / part).is_dir():
                shutil.rmtree(path / part)
            else:
                (path / part).unlink(missing_ok=True)
        remove_partial([path])
    except OSError as error:
        raise StoreError(f"The old store at '{path}' cannot be deleted: {error.strerror or error}.") from error
