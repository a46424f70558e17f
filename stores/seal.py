"""The seal: what the root's zarr.json says once a store is complete, and how any later change of it is found.

It holds the digest of the ledger and a checksum of every other zarr.json, and a checksum of the root document itself, taken
before that last number is entered. Documents are written in one form (``stores.io.json_bytes``), so that a file which
says the same in other bytes was touched as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stores.io import checksum, json_bytes


def seal_document(document: dict[str, Any], sealed: dict[str, Any]) -> dict[str, Any]:
    """The root's document with its seal, checksum included."""
    document["attributes"]["eddp"]["sealed"] = sealed
    document["attributes"]["eddp"]["sealed"]["crc32c"] = checksum(memoryview(json_bytes(document)))
    return document


def seal_problem(path: Path) -> str | None:
    """What is wrong with the root document of a sealed store, or None. Raises OSError or ValueError if it is no JSON."""
    data = path.read_bytes()
    document = json.loads(data)
    if json_bytes(document) != data:
        return "zarr.json: changed since the store was sealed"
    expected = document["attributes"]["eddp"]["sealed"].pop("crc32c", None)
    if checksum(memoryview(json_bytes(document))) != expected:
        return "zarr.json: does not match its checksum"
    return None
