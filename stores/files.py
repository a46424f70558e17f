"""Files that are whole or absent: written under another name, synced, then renamed."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from stores.errors import StoreError


def write_atomically(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write bytes so that ``path`` afterwards holds all of them or what it held before.

    Raises StoreError when the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"'{path}' could not be written: {error.strerror or error}. Nothing committed before is lost; "
            "free some space or fix the folder, then run the same command again."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically, keys in their order, readable by people."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable (POSIX asks for it; elsewhere there is nothing to do)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
