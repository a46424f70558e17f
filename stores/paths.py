"""The path of a store: a folder, or a URL of an object store. Both are used as a ``pathlib.Path`` is.

``as_path`` is what every path of a store goes through that a user gives. A URL becomes an ``ObjectPath``: of ``pathlib.Path``
it has what a store needs, in as few requests as that takes, and its text stays the URL (``Path`` makes one slash of two).
Nothing of fsspec is imported before there is a URL.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeGuard, cast

from stores.errors import UsageError
from stores.objects import ObjectPath

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?(.*)", re.S)


def as_path(path: str | Path) -> Path:
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
    return is_remote(as_path(text))


def _is_collapsed(path: str | Path, protocol: str) -> bool:
    """Whether a ``Path`` was made of a URL, which took one of its slashes."""
    if not isinstance(path, Path) or path.is_absolute() or Path(f"{protocol}:").exists():
        return False
    from fsspec.registry import known_implementations

    return protocol in known_implementations
