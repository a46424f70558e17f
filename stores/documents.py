"""JSON documents of unknown origin: bounded reading, and short messages about what is wrong."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from stores import objects
from stores.errors import StoreError
from stores.paths import is_remote

MOST_IMAGES = 2**40
MOST_PER_IMAGE = 2**31  # numbers of one layer, names' bytes, logits
MOST_BYTES = 2**28  # of a document
MOST_NUMBER = 1e30  # of a measure or a setting: a hundred times as much is still finite
MOST_DEPTH = 32  # of objects and lists within one another
MOST_QUOTED = 150  # characters of an error's text
MOST_TEXT = 4096  # characters of a name or a path
Text = Annotated[str, Meta(min_length=1, max_length=MOST_TEXT, pattern=r"^[^\0]*$")]  # that can be a name or a path
Whole = Annotated[int, Meta(ge=0, le=MOST_IMAGES)]
Number = Annotated[float, Meta(ge=-MOST_NUMBER, le=MOST_NUMBER)]
T = TypeVar("T")
# What reading a document of any content may end in, apart from OSError: nested too deeply, numbers beyond all bounds
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file or an object, ``most`` at most. Raises OSError, also for a pipe, a device, a huge file."""
    if is_remote(path):
        (data,) = objects.fetch_all([path], most)
        if data is None:
            raise FileNotFoundError(2, "No such object", str(path))
        if len(data) > most:
            raise OSError(27, f"It has more than {most} bytes, too many for a document", str(path))
        return data
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "It is no regular file", str(path))
        if found.st_size > most:
            raise OSError(27, f"It has {found.st_size} bytes, too many for a document", str(path))
        with open(handle, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    finally:
        os.close(handle)


def read_documents(paths: Sequence[Path], most: int = MOST_BYTES) -> list[bytes | None]:
    """The bytes of several documents, those of an object store in one go; None for one that is missing.

    Raises StoreError for one that cannot be read.
    """
    if paths and is_remote(paths[0]):
        return objects.fetch_all(paths, most)
    found: list[bytes | None] = []
    for path in paths:
        try:
            found.append(read_small(path, most))
        except (FileNotFoundError, NotADirectoryError):
            found.append(None)
        except OSError as error:
            raise StoreError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    return found


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


def is_plain(path: str) -> bool:
    """Whether a path in a document names something below the folder that it belongs to, links aside, and in one way only."""
    parts = path.split("/")
    return not {"", ".", ".."} & set(parts) and not any(c in path for c in "\\\0")


def check(values: Any, kind: type[T]) -> T:
    """Validate the value of a document, such as an object against a ``msgspec.Struct``. Raises ValueError naming the entry that is wrong."""
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(brief(error)) from error


def brief(error: object) -> str:
    """The text of a library's error, which may quote any part of a file: on one line, printable, and cut."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: MOST_QUOTED + 1])
    return text[:MOST_QUOTED] + ("..." if len(text) > MOST_QUOTED else "")
