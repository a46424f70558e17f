"""Where a store lies: a folder, or a URL of an object store. Both are used as a ``pathlib.Path`` is.

``place`` is what every path of a store goes through that a user gives. A URL becomes an ``ObjectPath``: of ``pathlib.Path``
it has what a store needs, in as few requests as that takes, and its text stays the URL (``Path`` makes one slash of two).
Nothing of fsspec is imported before there is a URL.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, TypeGuard, cast

from stores import objects
from stores.errors import MissingPathError, UsageError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?(.*)", re.S)
MOST_BYTES = 2**40  # of an object that is read whole


def place(path: str | Path) -> Path:
    """A path, or an ``ObjectPath`` for a URL such as ``s3://bucket/acts.zarr``; ``file:`` URLs are paths.

    Raises UsageError for a URL without a name, or of several protocols.
    """
    if isinstance(path, ObjectPath):
        return cast(Path, path)
    text = str(path)
    if re.match(r"[a-z0-9+.-]+::", text) and "://" in text:
        raise UsageError(f"'{text}' names several protocols. Give the plain URL, and --cache DIR for a local copy.")
    found = _URL.fullmatch(text)
    if found is None or not (text.startswith(found[1] + "://") or _is_collapsed(path, found[1])):
        return Path(path)
    protocol, rest = found[1].lower(), found[2]
    if protocol in ("file", "local"):
        return Path(text[len(found[1]) + 1 :].removeprefix("//"))
    parts = [part for part in rest.split("/") if part]
    if not parts or {".", ".."} & set(parts):
        raise UsageError(f"'{text}' is no URL of a store: it must be like s3://bucket/acts.zarr.")
    return cast(Path, ObjectPath(protocol, tuple(parts)))


def is_remote(path: object) -> TypeGuard[Any]:  # an ObjectPath then, and still what a Path is asked for
    """Whether a path is of an object store."""
    return isinstance(path, ObjectPath)


def is_url(text: str | Path) -> bool:
    """Whether what a user gave would be a URL of an object store."""
    return is_remote(place(text))


def _is_collapsed(path: str | Path, protocol: str) -> bool:
    """Whether a ``Path`` was made of a URL, which took one of its slashes."""
    if not isinstance(path, Path) or path.is_absolute() or Path(f"{protocol}:").exists():
        return False
    from fsspec.registry import known_implementations

    return protocol in known_implementations


@total_ordering
class ObjectPath:
    """An object, or the prefix of objects that is a folder's place: the part of ``pathlib.Path`` that stores use.

    Parameters
    ----------
    protocol : such as ``s3``.
    parts : names between the slashes, the bucket first.

    Whatever asks the object store raises StoreError, in one sentence, when it refuses or cannot be reached.
    """

    def __init__(self, protocol: str, parts: tuple[str, ...]) -> None:
        self.protocol = protocol
        self.parts = parts

    def __str__(self) -> str:
        return f"{self.protocol}://{'/'.join(self.parts)}"

    def __repr__(self) -> str:
        return f"ObjectPath('{self}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self.protocol, self.parts) == (other.protocol, other.parts)

    def __lt__(self, other: ObjectPath) -> bool:
        return (self.protocol, self.parts) < (other.protocol, other.parts)

    def __hash__(self) -> int:
        return hash((self.protocol, self.parts))

    def __truediv__(self, other: str | PurePosixPath) -> ObjectPath:
        return ObjectPath(self.protocol, (*self.parts, *(part for part in str(other).split("/") if part)))

    @property
    def bucket(self) -> str:
        return self.parts[0] if self.parts else ""

    @property
    def name(self) -> str:
        """The last part; empty for a bucket, as for the root of a disk."""
        return self.parts[-1] if len(self.parts) > (self.protocol != "memory") else ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.protocol, self.parts[:-1] or self.parts)

    @property
    def parents(self) -> list[ObjectPath]:
        """What is above, the nearest first, down to the bucket."""
        return [ObjectPath(self.protocol, self.parts[:k]) for k in range(len(self.parts) - 1, 0, -1)]

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def absolute(self) -> ObjectPath:
        return self

    def resolve(self) -> ObjectPath:
        return self

    def exists(self) -> bool:
        """Whether there is an object by that name, or below it."""
        return objects.info(self) is not None

    def is_file(self) -> bool:
        return objects.size_of(self) is not None

    def is_dir(self) -> bool:
        found = objects.info(self)
        return found is not None and found["type"] == "directory"

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> Any:
        """``st_size`` and ``st_mode``. Raises FileNotFoundError."""
        found = objects.info(self)
        if found is None:
            raise FileNotFoundError(2, "No such object", str(self))
        kind = stat.S_IFDIR if found["type"] == "directory" else stat.S_IFREG
        return SimpleNamespace(st_size=int(found["size"] or 0), st_mode=kind)

    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError."""
        try:
            return objects.fetch(self, MOST_BYTES)
        except MissingPathError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(2, "No such object", str(self)) from error

    def iterdir(self) -> Iterator[ObjectPath]:
        return (self / name for name in objects.children(self))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects and prefixes as many parts below as the pattern has, each part of which matches."""
        wanted = pattern.split("/")
        names = (
            objects.children(self)
            if len(wanted) == 1
            else sorted({"/".join(name.split("/")[: len(wanted)]) for name in objects.sizes_below(self)})
        )
        for name in names:
            parts = name.split("/")
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
                yield self / name

    def unlink(self, missing_ok: bool = False) -> None:
        objects.remove([self])
