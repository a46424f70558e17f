"""One hash for a list of images, which changes with any of their files, from a few bytes of each."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from extract.reading import reason, shown
from stores.errors import EDDPError

SAMPLE = 256  # bytes at the start, in the middle and at the end
_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
Entry = tuple[str, int, int, int, bytes]


def digest_items(entries: Iterable[Entry]) -> str:
    """SHA-256 over (name, label, size in bytes, modification time in seconds, sampled bytes) of images, in order."""
    hasher = hashlib.sha256()
    for name, label, size, changed, sampled in entries:
        hasher.update(f"{name}\0{label}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape") + sampled)
    return "sha256:" + hasher.hexdigest()


def digest_files(root: Path, items: Iterable[tuple[str, int]], gone: set[str] | None = None) -> str:
    """``digest_items`` of files, given as (name, label). A link to nothing or to itself is put into ``gone``, if given.

    Raises EDDPError for a file that cannot be read: a disk that is away is not another set of images.
    """
    above = f"{root}{os.sep}"
    return digest_items((name, label, *_look(above + name, name, gone)) for name, label in items)


def sample(handle: int, start: int, size: int) -> bytes:
    """A few bytes of the ``size`` that begin at ``start`` in an open file."""
    if size <= 3 * SAMPLE:
        return os.pread(handle, max(size, 0), start)
    places = (start, start + (size - SAMPLE) // 2, start + size - SAMPLE)
    return b"".join(os.pread(handle, SAMPLE, place) for place in places)


def _look(path: str, name: str, gone: set[str] | None) -> tuple[int, int, bytes]:
    """(size, modification time, sampled bytes) of a file; (-1, -1, b"") for what is no file and never was."""
    try:
        handle = os.open(path, _FLAGS)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):  # a bad image, when it is read
                return -1, -1, b""
            return found.st_size, int(found.st_mtime), sample(handle, 0, found.st_size)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path):  # noqa: PTH114
            if gone is not None:
                gone.add(name)
        elif error.errno not in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):  # a socket
            raise EDDPError(
                f"'{shown(path)}' cannot be read: {reason(error)}. Nothing was changed. Fix its permissions, or run again once "
                "the disk is back; if the file is gone, remove it from the list."
            ) from error
        return -1, -1, b""
