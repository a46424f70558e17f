"""The plan of a store: made once, written into its attributes, and compared when a run resumes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stores.errors import StoreExistsError, UsageError
from stores.format import FORMAT, ROOT, LayerSpec, documents_of, head_checksum, parse_attributes, read_attributes
from stores.io import write_atomically

# What may differ when a run resumes another one's store: a head is computed, and may round differently elsewhere; paths of
# images and weights do not matter, as their digests are compared.
PLACES = {"provenance.dataset.path", "provenance.weights", "provenance.weights_source", "provenance.about"}
UNIMPORTANT = PLACES | {"heads", "provenance.batch_size"}
TARGET_CHUNK_BYTES = 32 * 2**20  # large enough to stream at the disk's rate, small enough to hold several per writer


@dataclass(frozen=True)
class StorePlan:
    """A store to be.

    Parameters
    ----------
    layers : what is kept of each layer.
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


def default_chunk_images(layers: Sequence[LayerSpec], itemsize: int, n_images: int) -> int:
    """Images per chunk: the power of two that brings the largest layer's chunk nearest below 32 MiB."""
    per_image = max(layer.positions * layer.channels * itemsize for layer in layers)
    rows = max(1, TARGET_CHUNK_BYTES // per_image)
    return max(1, min(1 << (int(rows).bit_length() - 1), 4096, n_images))


def shard_chunks(shard: tuple[int, int] | None, n_chunks: int) -> range:
    """The chunks of shard (i, n): consecutive, as many as in any other but for one; all shards make up all chunks.

    None stands for the whole.

    Raises UsageError unless 0 <= i < n.
    """
    i, n = shard or (0, 1)
    if not 0 <= i < n:
        raise UsageError(f"'shard' must be i/n with 0 <= i < n, got {i}/{n}.")
    return range(i * n_chunks // n, (i + 1) * n_chunks // n)


def follow(path: Path, plan: StorePlan) -> dict[str, Any]:
    """Update the paths of images and weights, if they were moved since an unfinished store was started; returns its attributes."""
    attributes, changed = read_attributes(path), False
    for place in PLACES:
        *above, key = place.split(".")
        there, here = attributes, plan.attributes
        for part in above:
            there, here = there.get(part, {}), here.get(part, {})
        if key in there and key in here and there[key] != here[key]:
            there[key], changed = here[key], True
    if changed:
        write_atomically(path / ROOT, documents_of(attributes)[ROOT])
    return attributes


def refuse_another(path: Path, plan: StorePlan) -> None:
    """Raise StoreExistsError when the store at ``path`` was made from something else than the plan."""
    different = _differences(read_attributes(path), plan.attributes)
    if different:
        raise StoreExistsError(
            f"'{path}' already holds a store made from something else ({'; '.join(different)}). "
            "Give another --out, or --overwrite to replace it."
        )


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the entries in which two plans differ, with both values where short."""
    found: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if left == right or f"{prefix}{key}" in UNIMPORTANT:
            continue
        if key == "code_version" and str(left).partition("+")[0] == str(right).partition("+")[0]:
            continue  # two commits of one version compute the same
        if f"{prefix}{key}" == "provenance.dataset.digest":
            found.append(
                "the images are others, or were changed or copied: their names, sizes, times of change or bytes differ"
            )
        elif isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif len(str(left)) + len(str(right)) < 120:
            found.append(f"{prefix}{key}: {left} there, {right} asked for")
        else:
            found.append(f"{prefix}{key} differs")
    return found
