"""Files that are whole or absent: written under another name, synced, then renamed."""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from stores.errors import StoreError


def write_atomically(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write bytes so that ``path`` afterwards holds all of them or what it held before, also after a power cut.

    Raises StoreError when the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"'{path}' could not be written: {error.strerror or error}. Nothing committed before is lost; "
            "free some space or fix the folder, then run the same command again."
        ) from error
    finally:
        with suppress(OSError):  # already renamed, unless something (an interruption, too) came between
            temporary.unlink()
    for folder in {path.parent, *(folder.parent for folder in made)}:
        sync_folder(folder)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically, keys in their order, readable by people.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) become JSON escapes, and come back by reading.
    """
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable (POSIX asks for it; elsewhere there is nothing to do)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
