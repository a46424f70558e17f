"""Tensors and a JSON header as one safetensors file with a digest: directions, corrections, checkpoints, attachments of stores.

The header is one entry of the file's metadata: safetensors writes several in an order that changes from run to run. In it, ``digest``
is the SHA-256 of the file with zeros in place of the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stores.documents import UNREADABLE, brief, check, parse_json
from stores.errors import EDDPError, StoreError
from stores.io import write_atomically
from stores.paths import is_remote

FORMAT = 1
_ZEROS = b"0" * 64


class _Common(Struct):
    """What every header has."""

    format: Annotated[int, Meta(ge=1, le=2**31)]
    digest: str | None = None


def write_tensors(path: Path, key: str, tensors: Mapping[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write tensors, and ``header`` under ``key`` of the metadata. The names "digest" and "format" are taken."""
    text = json.dumps({"digest": _ZEROS.decode(), "format": FORMAT, **header})
    data = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, {key: text})
    write_atomically(path, data.replace(_ZEROS, _digest(data), 1))


def read_tensors(path: Path, key: str, kind: Any = dict) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the header of a file, within ``reading``; the header is validated as ``kind``.

    Raises StoreError for a newer format.
    """
    data = _bytes(path)
    tensors = load(data)
    header = parse_json(_metadata(data).get(key, "{}"))
    if (version := check(header, _Common).format) > FORMAT:
        raise StoreError(f"'{path}' has format {version}; this eddp reads up to {FORMAT}. Update eddp.")
    digest = header.pop("digest", None)
    if digest is None:
        raise ValueError("it has no digest: an older eddp wrote it")
    if _digest(data.replace(digest.encode(), _ZEROS, 1)) != digest.encode():
        raise ValueError("its bytes do not match its digest")
    check(header, kind)
    return {name: value.copy() for name, value in tensors.items()}, header  # a copy: it may be written to


def key_of(path: Path) -> str:
    """The key of a file's header, within ``reading``."""
    return str(next(iter(_metadata(_bytes(path))), ""))


@contextmanager
def reading(path: Path, what: str, again: str, kind: type[EDDPError]) -> Iterator[None]:
    """Raise ``kind`` for whatever reading a damaged file ends in: it is no ``what``, and how to make it ``again``."""
    try:
        yield
    except (StoreError, MemoryError):  # a shortage is no damage
        raise
    except (SafetensorError, OSError, *UNREADABLE) as error:
        raise kind(f"'{path}' is damaged or no {what} ({brief(error)}). {again}") from error


def _bytes(path: Path) -> bytes:
    if is_remote(path):
        return path.read_bytes()
    if not path.is_file():  # a pipe would wait
        raise ValueError("it is no file")
    return path.read_bytes()


def _metadata(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
