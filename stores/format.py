"""What a store's metadata say (``FORMAT.md``): the schema of its attributes, and every zarr.json, which follow from them.

The limits keep hostile numbers from memory and from overflow; no store comes near them.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Meta, Struct

from stores.documents import MOST_IMAGES, MOST_PER_IMAGE, UNREADABLE, brief, check, parse_json, read_documents
from stores.errors import CorruptStoreError, MissingPathError, StoreError, UsageError
from stores.io import checksum, json_bytes

FORMAT = 3
ROOT = "zarr.json"
MOST_CHUNKS = 10**6  # all their records are read to open a store
MOST_PER_CHUNK = 2**40
MOST_NUMBERS = 2**60  # of one layer in all
ZSTD_LEVEL = 1  # post-ReLU activations shrink 1.6-4.4 times already there; higher levels cost time and gain little
NAN = float("nan")

Count = Annotated[int, Meta(ge=1, le=MOST_PER_IMAGE)]
Crc = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Images = Annotated[int, Meta(ge=1, le=MOST_IMAGES)]


@dataclass(frozen=True)
class LayerSpec:
    """Shape of one layer's activations, (N, P, C) channel-last.

    Parameters
    ----------
    name : dotted module name, such as ``features.18``.
    grid : (height, width) of the positions on the image.
    channels : C.
    prefix : positions before the grid without a place on the image (class token, registers).
    stored_positions : positions stored per image when they are sampled, None for all of them.
    layout : the layer's own tensor layout, for the network that made it.
    time : steps in time, each with a grid of positions; 1 for images.
    """

    name: str
    grid: tuple[Count, Count]
    channels: Count
    prefix: Annotated[int, Meta(ge=0, le=MOST_PER_IMAGE)] = 0
    stored_positions: Count | None = None
    layout: str = "nchw"
    time: Count = 1

    @property
    def grid_positions(self) -> int:
        """Positions on the image, or on all steps of the clip."""
        return self.time * self.grid[0] * self.grid[1]

    @property
    def all_positions(self) -> int:
        """Positions of the layer, those of the prefix included."""
        return self.prefix + self.grid_positions

    @property
    def positions(self) -> int:
        """P: positions stored per image."""
        return self.all_positions if self.stored_positions is None else self.stored_positions

    @property
    def sampled(self) -> bool:
        return self.stored_positions is not None

    @property
    def shown_grid(self) -> str:
        """The grid for people: ``7 × 7``, or ``2 × 7 × 7`` with steps in time."""
        return " × ".join(map(str, (self.time, *self.grid) if self.time > 1 else self.grid))

    def to_dict(self) -> dict[str, Any]:
        """As it is stored; without ``time`` for images."""
        found = asdict(self)
        return found if self.time > 1 else {key: value for key, value in found.items() if key != "time"}


def check_name(name: Any) -> None:
    """Raise UsageError unless a layer can be called so: its name is the name of one folder within the store's ``layers``."""
    if not isinstance(name, str) or name in ("", ".", "..", ROOT) or any(c in name for c in "/\\\0"):
        raise UsageError(f"A layer's name must be a dotted module name without slashes, got {str(name)[:60]!r}.")
    try:
        long = len(os.fsencode(name)) > 255
    except UnicodeEncodeError:
        raise UsageError(f"A layer's name must be text that a file can be called by, got {name[:60]!r}.") from None
    if long:
        raise UsageError(f"A layer's name must have at most 255 bytes, got {name[:60]!r}...")


class Dataset(Struct, frozen=True):
    """The entries of ``provenance.dataset`` that are read; others may be anything."""

    path: str | None = None


class Provenance(Struct, frozen=True):
    """The entries of ``provenance`` that are read; others may be anything."""

    model: str | None = None
    weights: str | None = None
    weights_source: str | None = None
    weights_digest: str | None = None
    code_version: str | None = None
    seed: int | None = None
    batch_size: int | None = None
    dataset: Dataset = Dataset()


class Attributes(Struct, frozen=True):
    """``attributes["eddp"]`` of a store's root."""

    n_images: Images
    n_classes: Annotated[int, Meta(ge=0, le=MOST_PER_IMAGE)]
    chunk_images: Images
    name_bytes: Count
    dtype: Literal["float16", "float32"]
    compress: Literal["none", "zstd"]
    layers: Annotated[dict[str, LayerSpec], Meta(min_length=1)]
    class_names: list[str] | None
    heads: dict[str, Crc]
    provenance: Provenance

    @property
    def n_chunks(self) -> int:
        return -(-self.n_images // self.chunk_images)

    def __post_init__(self) -> None:
        if self.n_chunks > MOST_CHUNKS:
            raise ValueError(f"{self.n_images} images by {self.chunk_images} are more than {MOST_CHUNKS} chunks")
        for name, layer in self.layers.items():
            try:
                check_name(name)
            except UsageError as error:
                raise ValueError(f"layer {name!r}: {error}") from None
            if layer.name != name:
                raise ValueError(f"layer {name!r}: its name is {layer.name!r}")
            if layer.positions > layer.all_positions:
                raise ValueError(f"layer {name!r}: {layer.positions} of {layer.all_positions} positions stored")
        if self.heads and not (self.n_classes and self.heads.keys() <= self.layers.keys()):
            raise ValueError("heads: each must be of a layer, and of at least one class")
        for path, array in arrays_of(self).items():
            per_image = math.prod(array.shape[1:])
            if (
                per_image > MOST_PER_IMAGE
                or math.prod(array.chunks) > MOST_PER_CHUNK
                or math.prod(array.shape) > MOST_NUMBERS
            ):
                raise ValueError(f"{path!r}: {array.shape} numbers in chunks of {array.chunks} are too many")


class ArraySpec(NamedTuple):
    """A Zarr array that is cut into chunks along its first axis."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: float
    zstd: bool = False


def arrays_of(attributes: Attributes) -> dict[str, ArraySpec]:
    """All arrays of a store by path; those along images first."""
    n, rows, classes = attributes.n_images, attributes.chunk_images, attributes.n_classes
    found: dict[str, ArraySpec] = {}

    def along(path: str, rest: tuple[int, ...], dtype: str, fill: float, zstd: bool = False) -> None:
        found[path] = ArraySpec((n, *rest), (rows, *rest), dtype, fill, zstd)

    along("images/names", (attributes.name_bytes,), "uint8", 0)
    along("images/labels", (), "int64", -1)
    along("images/valid", (), "uint8", 0)
    along("images/logits", (classes,), "float32", NAN)
    for name, layer in attributes.layers.items():
        # NaN, not 0: a chunk that is missing never reads as zeros, whatever program reads it
        shape = (layer.positions, layer.channels)
        along(f"layers/{name}/activations", shape, attributes.dtype, NAN, attributes.compress == "zstd")
        if layer.sampled:
            along(f"layers/{name}/positions", (layer.positions,), "int32", -1)
    for name in attributes.heads:
        for part, head in (("head_weight", (classes, attributes.layers[name].channels)), ("head_bias", (classes,))):
            found[f"layers/{name}/{part}"] = ArraySpec(head, head, "float32", 0)
    return found


def chunk_name(chunk: int, axes: int) -> str:
    """The file of a chunk within its array's folder: ``c.3.0.0``. A folder an array, none a chunk."""
    return ".".join(["c", str(chunk), *["0"] * (axes - 1)])


def documents_of(attributes: dict[str, Any]) -> dict[str, bytes]:
    """Every zarr.json of a store by its path within it, to the byte; the root, which repeats all others, is the last."""
    checked = parse_attributes(attributes)
    nodes: dict[str, Any] = {group: group_document({}) for group in ("images", "layers")}
    nodes |= {f"layers/{name}": group_document({"eddp": attributes["layers"][name]}) for name in checked.layers}
    nodes |= {path: array_document(spec) for path, spec in arrays_of(checked).items()}
    nodes = {
        path: nodes[path] for path in sorted(nodes, key=lambda path: (path.count("/"), path))
    }  # as zarr-python wants
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    root = {**group_document({"eddp": attributes}), "consolidated_metadata": consolidated}
    return {f"{path}/zarr.json": json_bytes(node) for path, node in nodes.items()} | {ROOT: json_bytes(root)}


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """The zarr.json of a group."""
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def array_document(spec: ArraySpec) -> dict[str, Any]:
    """The zarr.json of an array."""
    endian = {"configuration": {"endian": "little"}} if spec.dtype != "uint8" else {}
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    floating = spec.dtype.startswith("float")
    return {
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": ("NaN" if math.isnan(spec.fill) else float(spec.fill)) if floating else int(spec.fill),
        "codecs": [{"name": "bytes", **endian}, *([zstd] if spec.zstd else [])],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def head_checksum(weight: np.ndarray, bias: np.ndarray) -> int:
    """CRC-32C of an affine head's float32 bytes."""
    return checksum(b"".join(np.ascontiguousarray(part, "<f4").tobytes() for part in (weight, bias)))


def parse_attributes(attributes: Any) -> Attributes:
    """Validate the attributes of a store. Raises ValueError, naming the entry that is wrong."""
    return check(attributes, Attributes)


def attributes_of(path: Path, data: bytes | None) -> dict[str, Any]:
    """The ``eddp`` attributes of the store at ``path``, from the bytes of its zarr.json.

    Raises MissingPathError when there is no store, StoreError for another format, CorruptStoreError for other metadata.
    """
    if data is None and not path.exists():
        raise MissingPathError(f"There is no store at '{path}'. Make one with: extract --model … --out {path}")
    if data is None:
        raise MissingPathError(f"'{path}' is no activation store: it holds no zarr.json. Give what extract wrote.")
    try:
        found = parse_json(data)["attributes"]["eddp"]
        version = found["format"]
        if type(version) is int and version in range(2**31) and version != FORMAT:
            remedy = "Update eddp." if version > FORMAT else "Extract it again with --overwrite."
            raise StoreError(f"The store '{path}' has format {version}; this eddp reads format {FORMAT}. {remedy}")
        if version != FORMAT:
            raise ValueError(f"format is {version!r}")
        parse_attributes(found)
    except StoreError:
        raise
    except UNREADABLE as error:
        raise CorruptStoreError(
            f"'{path / ROOT}' is damaged or belongs to another program's Zarr store ({type(error).__name__}: {brief(error)})."
        ) from error
    return dict(found)


def read_attributes(path: Path) -> dict[str, Any]:
    """The ``eddp`` attributes of a store, finished or not. Raises as ``attributes_of``."""
    (data,) = read_documents([path / ROOT])
    return attributes_of(path, data)
