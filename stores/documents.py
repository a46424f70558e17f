"""What a plan and a record must look like, whoever wrote them: nothing of a store is used before it was looked at here.

The limits keep hostile numbers from memory and from overflow; no store comes near them.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stores import objects
from stores.errors import UsageError
from stores.layers import LayerSpec, check_name
from stores.paths import is_remote

MOST_IMAGES = 2**40
MOST_CHUNKS = 10**8  # a record's folder is named by 8 digits
MOST_PER_IMAGE = 2**31  # numbers of one layer, names' bytes, logits
MOST_PER_CHUNK = 2**40
MOST_NUMBERS = 2**60  # of one layer in all
MOST_JSON_BYTES = 2**28
MOST_NUMBER = 1e30  # of a measure or a setting: a hundred times as much is still finite
MOST_DEPTH = 32  # of objects and lists within one another
MOST_QUOTED = 150  # characters of an error's text
MOST_TEXT = 4096  # characters of a name or a path
DTYPES, CODECS = ("float16", "float32"), ("none", "zstd")
_CRC = 2**32 - 1
_TEXTS = ("model", "weights", "weights_source", "weights_digest", "code_version")  # of the provenance
_OPTIONAL = {"prefix": 0, "stored_positions": None, "layout": "nchw"}
_KNOWN = {"name", "grid", "channels", *_OPTIONAL}
# What reading a document of any content may end in, apart from OSError: nested too deeply, numbers beyond all bounds
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


def read_small(path: Path) -> bytes:
    """The bytes of a regular file that holds one document. Raises OSError, also for a pipe, a device, a huge file."""
    if is_remote(path):
        return small_object(path, objects.fetch_all([path], MOST_JSON_BYTES)[0])
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(21, "Is a directory", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "It is no regular file", str(path))
        if found.st_size > MOST_JSON_BYTES:
            raise OSError(27, f"It has {found.st_size} bytes, too many for a document", str(path))
        data = os.read(handle, found.st_size + 1)
        while len(data) < found.st_size and (more := os.read(handle, found.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def small_object(path: Path, data: bytes | None) -> bytes:
    """What was fetched of an object that holds one document. Raises OSError where it is not there, or huge."""
    if data is None:
        raise FileNotFoundError(2, "No such object", str(path))
    if len(data) > MOST_JSON_BYTES:
        raise OSError(27, f"It has more than {MOST_JSON_BYTES} bytes, too many for a document", str(path))
    return data


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document of bounded depth. Raises ValueError, in few words."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [found]
    for _ in range(MOST_DEPTH):
        level = [
            v for one in level if isinstance(one, dict | list) for v in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise ValueError("it is nested too deeply")
    return found


def plan_problem(plan: Any) -> str | None:
    """What is wrong with a plan (``attributes["eddp"]`` of a store's root, see FORMAT.md), or None."""
    if not isinstance(plan, dict):
        return "it holds no plan"
    wanted = (
        "format",
        "n_images",
        "chunk_images",
        "n_classes",
        "dtype",
        "compress",
        "layers",
        "heads",
        "provenance",
        "files",
    )
    if missing := [key for key in wanted if key not in plan]:
        return f"it has no entry {', '.join(missing)}"
    for key, low, most in (
        ("format", 1, _CRC),
        ("n_images", 1, MOST_IMAGES),
        ("chunk_images", 1, MOST_IMAGES),
        ("n_classes", 0, MOST_PER_IMAGE),
    ):
        if not whole(plan[key], low, most):
            return f"{key} must be a whole number from {low} to {most}, it is {shown(plan[key])}"
    n, rows = plan["n_images"], min(plan["chunk_images"], plan["n_images"])
    if -(-n // rows) > MOST_CHUNKS:
        return f"{n} images in chunks of {rows} are more than {MOST_CHUNKS} chunks"
    if rows * plan["n_classes"] > MOST_PER_CHUNK:
        return f"a chunk of {rows} images of {plan['n_classes']} classes is too large"
    for key, allowed in (("dtype", DTYPES), ("compress", CODECS)):
        if not isinstance(plan[key], str) or plan[key] not in allowed:
            return f"{key} must be {' or '.join(allowed)}, it is {shown(plan[key])}"
    layers = plan["layers"]
    if not isinstance(layers, dict) or not layers:
        return f"layers must name at least one layer, it is {shown(layers)}"
    for name, values in layers.items():
        if problem := _layer_problem(name, values, n, rows):
            return f"layer {shown(name)}: {problem}"
    return (
        _heads_problem(plan["heads"], layers)
        or _names_problem(plan.get("class_names"))
        or provenance_problem(plan["provenance"])
        or _files_problem(plan["files"])
        or ("sealed" in plan and _seal_problem(plan["sealed"]))
        or None
    )


def _layer_problem(name: str, values: Any, n: int, rows: int) -> str | None:
    try:
        check_name(name)
    except UsageError as error:
        return str(error).rstrip(".")
    if not isinstance(values, dict) or not {"name", "grid", "channels"} <= set(values) <= _KNOWN:
        return f"its entries must be {', '.join(sorted(_KNOWN))}"
    values = {**_OPTIONAL, **values}
    if values["name"] != name:
        return f"it calls itself {shown(values['name'])}"
    grid, stored = values["grid"], values["stored_positions"]
    if not isinstance(grid, list | tuple) or len(grid) != 2 or not all(whole(k, 1, MOST_PER_IMAGE) for k in grid):
        return f"grid must be two positive numbers, it is {shown(grid)}"
    if not whole(values["channels"], 1, MOST_PER_IMAGE):
        return f"channels must be a positive number, it is {shown(values['channels'])}"
    if not whole(values["prefix"], 0, MOST_PER_IMAGE):
        return f"prefix must be a number of at least 0, it is {shown(values['prefix'])}"
    if not isinstance(values["layout"], str):
        return f"layout must be a text, it is {shown(values['layout'])}"
    positions = values["prefix"] + grid[0] * grid[1]
    if positions > MOST_PER_IMAGE:
        return f"{positions} positions are too many"
    if stored is not None and not whole(stored, 1, positions):
        return f"stored_positions must be null or a number from 1 to {positions}, it is {shown(stored)}"
    per_image = (positions if stored is None else stored) * values["channels"]
    if per_image > MOST_PER_IMAGE or rows * per_image > MOST_PER_CHUNK or n * per_image > MOST_NUMBERS:
        return f"{n} images of {per_image} numbers, {rows} a chunk, are too many"
    return None


def _heads_problem(heads: Any, layers: dict[str, Any]) -> str | None:
    if not isinstance(heads, dict) or not all(k in layers and whole(v, 0, _CRC) for k, v in heads.items()):
        return f"heads must map layers to checksums, it is {shown(heads)}"
    return None


def _names_problem(names: Any) -> str | None:
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "class_names must be null or a list of texts"
    return None


def provenance_problem(made: Any) -> str | None:
    """What is wrong with a provenance, or None: the entries that are used must be of their kind, others may be anything."""
    if not isinstance(made, dict):
        return f"provenance must be an object, it is {shown(made)}"
    for key in _TEXTS:
        if not isinstance(made.get(key), str | None):
            return f"provenance.{key} must be a text, it is {shown(made[key])}"
    for key in ("seed", "batch_size"):
        if made.get(key) is not None and not whole(made[key], -(2**63), 2**64):
            return f"provenance.{key} must be a whole number, it is {shown(made[key])}"
    dataset = made.get("dataset", {})
    if not isinstance(dataset, dict):
        return f"provenance.dataset must be an object, it is {shown(dataset)}"
    if not isinstance(dataset.get("path"), str | None):
        return f"provenance.dataset.path must be a text, it is {shown(dataset['path'])}"
    return None


def _files_problem(files: Any) -> str | None:
    if not isinstance(files, dict) or not all(is_plain(k) and whole(v, 0, _CRC) for k, v in files.items()):
        return f"files must map paths within the store to checksums, it is {shown(files)}"
    return None


def is_plain(path: str) -> bool:
    """Whether a path in a document names something below the folder that it belongs to, links aside, and in one way only."""
    parts = path.split("/")
    return not {"", ".", ".."} & set(parts) and not any(c in path for c in "\\\0")


def _seal_problem(sealed: Any) -> str | None:
    if not isinstance(sealed, dict) or not isinstance(sealed.get("ledger"), str):
        return f"sealed must hold the ledger's digest, it is {shown(sealed)}"
    if not whole(sealed.get("crc32c", 0), 0, _CRC):
        return "sealed must hold a checksum"
    metadata = sealed.get("metadata")
    if not isinstance(metadata, dict) or not all(whole(v, -1, _CRC) for v in metadata.values()):
        return f"sealed.metadata must map paths to checksums, it is {shown(metadata)}"
    return None


def record_problem(values: Any) -> str | None:
    """What is wrong with a record's attributes (see FORMAT.md), or None."""
    if not isinstance(values, dict):
        return "it holds no record"
    for key, low in (("chunk", 0), ("first", 0), ("rows", 1)):
        if not whole(values.get(key), low, MOST_IMAGES):
            return f"{key} must be a whole number from {low} on"
    arrays, peaks, bad, skipped = (values.get(key) for key in ("arrays", "max_abs", "nonfinite", "skipped"))
    if not isinstance(arrays, dict):
        return "arrays must be an object"
    for path, entry in arrays.items():
        if type(entry) is not dict or len(entry) != 2:
            return f"arrays: {shown(path)} must have crc32c and bytes"
        crc, size = entry.get("crc32c"), entry.get("bytes")
        if type(crc) is not int or not 0 <= crc <= _CRC or type(size) is not int or not 0 < size < 2**62:
            return f"arrays: {shown(path)} must have crc32c and bytes"
    if not isinstance(peaks, dict) or not all(_peak(value) for value in peaks.values()):
        return "max_abs must map layers to numbers"
    if not isinstance(bad, dict) or not all(whole(value, 0, MOST_NUMBERS) for value in bad.values()):
        return "nonfinite must map layers to whole numbers"
    if not isinstance(skipped, list) or not all(_skip(entry) for entry in skipped):
        return "skipped must list row, name and reason of images"
    return None


def array_problem(path: str, array: zarr.Array, plan: dict[str, Any], layers: dict[str, LayerSpec]) -> str | None:
    """In what an array's metadata differ from the plan and from FORMAT.md, or None. Raises anything for odd metadata."""
    n, classes = plan["n_images"], plan["n_classes"]
    where, kind = path.rsplit("/", 1)
    along, codecs = not kind.startswith("head_"), ["bytes"]
    rest: tuple[int, ...]
    fill: float | None = None
    if where == "images":
        longest = array.shape[1] if len(array.shape) == 2 else 1
        rest, dtype, fill = {
            "names": ((longest,), "uint8", 0),
            "labels": ((), "int64", -1),
            "valid": ((), "uint8", 0),
            "logits": ((classes,), "float32", math.nan),
        }[kind]
    else:
        spec = layers[where.removeprefix("layers/")]
        if kind == "activations":
            rest, dtype, fill = (spec.positions, spec.channels), plan["dtype"], math.nan
            codecs += ["zstd"] * (plan["compress"] == "zstd")
        elif kind == "positions":
            rest, dtype, fill = (spec.positions,), "int32", -1
        else:
            rest, dtype = {"head_weight": (classes, spec.channels), "head_bias": (classes,)}[kind], "float32"
    shape = (n, *rest) if along else rest
    if array.shape != shape:
        return f"its shape is {array.shape} instead of {shape}"
    if array.dtype != np.dtype(dtype):
        return f"its values are {array.dtype} instead of {dtype}"
    document = json.loads(json.dumps(array.metadata.to_dict(), default=str))
    chunks = (min(plan["chunk_images"], n), *rest)
    # of a single chunk the file may be longer than all images
    whole = (plan["chunk_images"], *rest) if plan["chunk_images"] > n else chunks
    if along and (document["chunk_grid"]["name"] != "regular" or array.chunks not in (chunks, whole)):
        return f"its chunks are {array.chunks} instead of {chunks}"
    if math.prod(array.chunks if along else shape) > MOST_PER_CHUNK:
        return f"its chunks of {chunks} are too large"
    found = [codec["name"] for codec in document["codecs"]]
    if found != codecs:
        return f"its codecs are {', '.join(found)} instead of {', '.join(codecs)}"
    if array.dtype.itemsize > 1 and document["codecs"][0]["configuration"]["endian"] != "little":
        return "its bytes are not little-endian"
    if document["chunk_key_encoding"]["name"] != "default":
        return f"its chunk keys are {document['chunk_key_encoding']['name']} instead of default"
    same = fill is None or array.fill_value == fill or (math.isnan(fill) and math.isnan(float(array.fill_value)))
    return None if same else f"its fill value is {array.fill_value} instead of {fill}"


def _peak(value: Any) -> bool:
    return value >= 0 if type(value) is float else whole(value, 0, 2**128)


def _skip(entry: Any) -> bool:
    return (
        type(entry) is dict
        and whole(entry.get("row"), 0, MOST_IMAGES)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("reason"), str)
    )


Entries = Mapping[str, tuple[Callable[[Any], bool], str]]


def entries_problem(values: Any, kinds: Entries, where: str = "") -> str | None:
    """Which entry of an object is missing or not as it must be, or None. ``kinds``: per entry a test, and what passes it in words."""
    if not isinstance(values, dict):
        return f"{where or 'it'} must be an object, it is {shown(values)}"
    for key, (passes, kind) in kinds.items():
        name = f"{where}.{key}" if where else key
        if key not in values:
            return f"it has no entry {name}"
        if not passes(values[key]):
            return f"{name} must be {kind}, it is {shown(values[key])}"
    return None


def whole(value: Any, low: int, most: int) -> bool:
    """Whether a value is a whole number within limits."""
    return type(value) is int and low <= value <= most  # True is no number


def finite(value: Any, low: float = -MOST_NUMBER, most: float = MOST_NUMBER) -> bool:
    """Whether a value is a number within limits, no NaN."""
    return type(value) in (int, float) and low <= value <= most


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be a name or a path."""
    return isinstance(value, str) and 0 < len(value) <= MOST_TEXT and "\0" not in value


def brief(error: object) -> str:
    """The text of a library's error, which may quote any part of a file, on one line and cut."""
    text = " ".join(str(error).split())
    return text[:MOST_QUOTED] + ("..." if len(text) > MOST_QUOTED else "")


def shown(value: Any) -> str:
    """A value in few words, of whatever size and depth it is."""
    if isinstance(value, str):
        return repr(value[:60]) + ("..." if len(value) > 60 else "")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a huge number"
    return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
