"""Objects of an object store, through fsspec: many of them in one call, and one clear message for what goes wrong.

Every request that eddp makes to an object store is made here. An object is written completely or not at all: that is what the
file systems behind these URLs promise, and all that the order of a store's writing needs.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

from stores.errors import EDDPError, MissingPathError, StoreError, UnknownNameError, UsageError

AT_ONCE = 64  # requests of one call that are under way together
MOST_BYTES = 2**40  # of an object
# s3fs retries as well; botocore's own retries within each of these would make minutes of a silent endpoint
_S3 = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 0}, "max_pool_connections": AT_ONCE}
TRIES = 3  # of s3fs, squared where it reads
_NO_BUCKET = re.compile(r"NoSuchBucket|bucket does ?n[o']t exist|bucket not found", re.IGNORECASE)
_systems: dict[tuple[str, int], Any] = {}
_opening = threading.Lock()


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or the prefix of objects that stands for a folder: the part of ``pathlib.Path`` that stores use.

    ``protocol`` is such as ``s3``; ``parts`` are the names between the slashes, the bucket first. Whatever asks the object store raises
    StoreError when it refuses or cannot be reached.
    """

    protocol: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.protocol}://{'/'.join(self.parts)}"

    def __truediv__(self, other: str) -> ObjectPath:
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
        return info(self) is not None

    def is_file(self) -> bool:
        found = info(self)
        return found is not None and found["type"] != "directory"

    def is_dir(self) -> bool:
        found = info(self)
        return found is not None and found["type"] == "directory"

    def stat(self) -> Any:
        """``st_size`` and ``st_mode``. Raises FileNotFoundError."""
        found = info(self)
        if found is None:
            raise FileNotFoundError(2, "No such object", str(self))
        kind = stat.S_IFDIR if found["type"] == "directory" else stat.S_IFREG
        return SimpleNamespace(st_size=int(found["size"] or 0), st_mode=kind)

    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError."""
        (data,) = fetch_all([self], MOST_BYTES)
        if data is None:
            raise FileNotFoundError(2, "No such object", str(self))
        return data

    def iterdir(self) -> Iterator[ObjectPath]:
        return (self / name for name in children(self))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects and prefixes directly below whose name matches."""
        return (self / name for name in children(self) if fnmatchcase(name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        remove([self])


def filesystem(protocol: str) -> Any:
    """The fsspec file system of a protocol, one a process, without its caches of listings: other writers come and go.

    Raises UnknownNameError for a protocol that fsspec does not know, UsageError naming the package that is missing.
    """
    import fsspec

    with _opening:
        key = (protocol, os.getpid())
        if key not in _systems:
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            s3 = protocol in ("s3", "s3a")
            if s3:
                options["config_kwargs"] = {**_S3, **fsspec.config.conf.get("s3", {}).get("config_kwargs", {})}
            try:
                _systems[key] = fsspec.filesystem(protocol, **options)
            except ImportError as error:
                how = "pip install 'eddp[s3]'" if s3 else _first_line(error)
                raise UsageError(f"{protocol}:// needs a package that is not installed here: {how}.") from error
            except ValueError as error:
                raise UnknownNameError(
                    f"There is no protocol '{protocol}://'. Known are s3, gs, az and the others of fsspec."
                ) from error
            except Exception as error:
                raise StoreError(f"{protocol}:// cannot be used: {_first_line(error)}.") from error
            if s3:
                _systems[key].retries = TRIES
        return _systems[key]


def info(path: ObjectPath) -> dict[str, Any] | None:
    """The file system's entry of an object or a prefix of objects; None where there is neither."""
    with translated(path):
        try:
            return dict(filesystem(path.protocol).info(_key(path)))
        except FileNotFoundError:
            return None


def fetch_all(paths: Sequence[Any], most: int) -> list[bytes | None]:
    """The bytes of objects, no more than ``most`` + 1 of each, many at once; None for those that are missing."""
    if not paths:
        return []
    with translated(paths[0]):
        found = _ranges(paths, [0] * len(paths), [most + 1] * len(paths), on_error="return")
    for path, data in zip(paths, found, strict=True):
        if isinstance(data, Exception) and not _is_missing(data):
            with translated(path):
                raise data
    return [None if isinstance(data, Exception) else bytes(data) for data in found]


def fetch_ranges(paths: Sequence[Any], starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """Bytes ``start`` up to ``stop`` of each object, many at once. Raises FileNotFoundError, StoreError."""
    with translated(paths[0]):
        return _ranges(paths, starts, stops, on_error="raise")


def _ranges(paths: Sequence[ObjectPath], starts: Sequence[int], stops: Sequence[int], on_error: str) -> list[Any]:
    system = filesystem(paths[0].protocol)
    more = {"batch_size": AT_ONCE} if getattr(system, "async_impl", False) else {}
    keys = [_key(path) for path in paths]
    return list(system.cat_ranges(keys, list(starts), list(stops), on_error=on_error, **more))


def put(objects: Mapping[ObjectPath, bytes]) -> None:
    """Write objects, many at once, and check that they have arrived in full size."""
    if not objects:
        return
    first = next(iter(objects))
    system = filesystem(first.protocol)
    with translated(first, "written"):
        system.pipe({_key(path): data for path, data in objects.items()})
        found = system.sizes([_key(path) for path in objects])
    for (path, data), size in zip(objects.items(), found, strict=True):
        if size != len(data):
            raise StoreError(f"'{path}' could not be written: only {size} of {len(data)} bytes arrived. Run it again.")


def put_new(path: ObjectPath, data: bytes) -> bool:
    """Write an object unless there is one by that name, as one step where the object store can do that; whether it was written."""
    if info(path) is not None:
        return False
    with translated(path, "written"):
        try:
            filesystem(path.protocol).pipe_file(_key(path), data, mode="create")
            return True
        except FileExistsError:
            return False
        except (OSError, NotImplementedError, TypeError, ValueError) as error:
            text = f"{error} {error.__cause__}".lower()
            if "precondition" in text or "pre-condition" in text:
                return False
            if isinstance(error, OSError) and "implemented" not in text:
                raise
    put({path: data})  # one that knows no such condition
    return True


def sizes_below(folder: ObjectPath) -> dict[str, int]:
    """Bytes of every object below a prefix, by its name from there on: a request a thousand objects."""
    base = _key(folder).rstrip("/") + "/"
    with translated(folder):
        try:
            found = filesystem(folder.protocol).find(_key(folder), detail=True)
        except FileNotFoundError:
            return {}
    return {
        name.removeprefix(base): int(entry["size"])
        for name, entry in found.items()
        if name.startswith(base) and not name.endswith("/") and entry.get("type") != "directory"
    }


def children(folder: ObjectPath) -> list[str]:
    """Names of the objects and prefixes directly below a prefix, in order."""
    base = _key(folder).rstrip("/") + "/"
    with translated(folder):
        try:
            found = filesystem(folder.protocol).ls(_key(folder), detail=False)
        except FileNotFoundError:
            return []
    names = {name.removeprefix(base).strip("/") for name in found if name.startswith(base)}
    return sorted(name for name in names if name)


def remove(paths: Sequence[Any]) -> None:
    """Delete objects, also where some are missing already."""
    if not paths:
        return
    system = filesystem(paths[0].protocol)
    keys = [_key(path) for path in paths]
    with translated(paths[0], "deleted"):
        if hasattr(system, "bulk_delete") and not re.search(r"[*?\[\]]", "".join(keys)):  # rm would expand these
            for start in range(0, len(keys), 1000):
                system.rm(keys[start : start + 1000])
            return
        for key in keys:
            try:
                system.rm_file(key)
            except FileNotFoundError:
                continue


def _key(path: ObjectPath) -> str:
    """An object's name as its file system takes it."""
    return str(filesystem(path.protocol)._strip_protocol(str(path)))


@contextmanager
def translated(path: ObjectPath, what: str = "read") -> Iterator[None]:
    """Raise what an object store, or the way to it, refuses as one message; FileNotFoundError stays one.

    Raises MissingPathError for a bucket that does not exist, StoreError for all else.
    """
    try:
        yield
    except EDDPError:
        raise
    except Exception as error:
        name, text = type(error).__name__, _first_line(error)
        if _NO_BUCKET.search(f"{text} {error.__cause__}"):
            raise MissingPathError(f"There is no bucket '{path.bucket}' for '{path}'. Make it first.") from error
        if isinstance(error, FileNotFoundError) and what == "read":
            raise
        if "Credentials" in name or "Unable to locate credentials" in text:
            reason = f"there are no credentials for it ({text}). " + (
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
                if path.protocol in ("s3", "s3a")
                else "Log in as the package for it says."
            )
        elif isinstance(error, PermissionError):
            reason = f"access is refused ({text}). Check the credentials, and what they allow in '{path.bucket}'."
        elif isinstance(error, ConnectionError | TimeoutError) or re.search(
            "Connect|Timeout|Endpoint|HTTPClient", name
        ):
            reason = f"could not connect to the endpoint ({text}). Check the network and AWS_ENDPOINT_URL."
        else:
            reason = f"{text}. What was committed before is not lost; run the same command again."
        raise StoreError(f"'{path}' cannot be {what}: {reason}") from error


def _is_missing(error: Exception) -> bool:
    """Whether an object is missing, while its bucket is there."""
    return isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(f"{error} {error.__cause__}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")
    return text[:300] or type(error).__name__
