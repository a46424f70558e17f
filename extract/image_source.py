"""Ordered lists of images with labels: the contract, lists of files, and the registry of readers."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from extract.image_io import OPEN_FLAGS, read_image, read_range, reason, shown
from extract.string_array import Names
from extract.video import Clip, is_video
from stores.errors import EDDPError, UsageError

SAMPLE = 256  # bytes at the start, in the middle and at the end of a file
Entry = tuple[str, int, int, int, bytes]
NO_FILE = (-1, -1, b"")  # the fingerprint of a folder, a device, a link to nothing


class ImageSource(Protocol):
    """N images in a fixed order. A source is pickled to every decoding process: flat arrays, no open files.

    ``name`` is unique and stable, ``path`` the file that holds the image, ``label`` the class number or -1. ``image`` is in
    the mode of its file, and a ``Clip`` for a video; it raises ImageError for a bad image and EDDPError for a disk that cannot
    be read now.
    ``digest`` identifies the list and its content. ``left_out`` counts the files that were found and are not read, by ending
    (also "_seg.png" and "masks/" for label maps next to images).
    """

    kind: str
    root: Path
    class_names: list[str] | None
    left_out: dict[str, int]

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def path(self, i: int) -> Path: ...
    def label(self, i: int) -> int: ...
    def image(self, i: int) -> Any: ...
    @property
    def digest(self) -> str: ...


class PathSource:
    """Images that are files: pairs of (path, label), in flat arrays.

    Parameters
    ----------
    root : the dataset's folder.
    items : pairs of path, relative to ``root`` (or to ``folder`` in it), and class number, -1 for none.
    class_names, kind : of the source; a subclass may set its own kind.
    left_out : number of files that were found and are not read, by ending.
    empty_classes : those of ``class_names`` that have a folder, but no image in it.
    """

    kind: str

    def __init__(
        self,
        root: Path,
        items: Iterable[tuple[str, int]],
        class_names: list[str] | None = None,
        kind: str = "",
        *,
        left_out: Mapping[str, int] | None = None,
        empty_classes: Sequence[str] = (),
        folder: str = "",
    ) -> None:
        labels = array("i")

        def names() -> Iterator[str]:
            for name, label in items:
                labels.append(label)
                yield name

        self.root = root
        self.names = Names(names())
        self._labels = np.array(labels)
        self.class_names = class_names
        self.kind = kind or self.kind
        self.left_out = dict(left_out or {})
        self.empty_classes = list(empty_classes)
        self._folder = root / folder
        self._missing: set[str] | None = None  # broken links at the time of the digest

    def __len__(self) -> int:
        return len(self.names)

    @property
    def items(self) -> Iterable[tuple[str, int]]:
        """Name and label of each image."""
        return zip(self.names, self._labels.tolist(), strict=True)

    def name(self, i: int) -> str:
        return self.names[i]

    def path(self, i: int) -> Path:
        return self._folder / self.names[i]

    def label(self, i: int) -> int:
        return int(self._labels[i])

    def image(self, i: int) -> Any:
        """The image in its file's mode, or a video. Raises ImageError if it cannot be decoded, EDDPError if its file cannot be read."""
        name = self.name(i)
        known_broken = None if self._missing is None else name in self._missing
        if is_video(name):
            return Clip(self.path(i), name, known_broken=known_broken)
        return read_image(self.path(i), name, known_broken=known_broken)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name, label, size, modification time and sampled bytes of each image, in order."""
        above = f"{self._folder}{os.sep}"
        missing: set[str] = set()

        def entries() -> Iterator[Entry]:
            for name, label in self.items:
                found = fingerprint(above + name)
                if found is None:
                    missing.add(name)
                yield (name, label, *(found or NO_FILE))

        digest = digest_items(entries())
        self._missing = missing
        return digest


class PackedSource(PathSource):
    """Images within files: entries of (name, label, number of the file, offset, bytes). ``path`` is the file."""

    def __init__(self, root: Path, files: list[str], entries: Iterable[tuple[str, int, int, int, int]]) -> None:
        self.files = files
        file, offset, size = array("i"), array("q"), array("q")

        def items() -> Iterator[tuple[str, int]]:
            for name, label, *place in entries:
                for column, value in zip((file, offset, size), place, strict=True):
                    column.append(value)
                yield name, label

        super().__init__(root, items())
        self._file, self._offset, self._size = np.array(file), np.array(offset), np.array(size)

    def path(self, i: int) -> Path:
        return self.root / self.files[int(self._file[i])]

    def read(self, i: int) -> bytes:
        """The image's bytes. Raises EDDPError when its file is missing or has become shorter."""
        return read_range(self.path(i), int(self._offset[i]), int(self._size[i]), shown(self.name(i)))


@dataclass(frozen=True)
class Reader:
    """One layout of images: how it is recognised and opened."""

    detect: Callable[[Path], bool]
    open: Callable[[Path], Any]
    files: bool = False  # whether it may be a file, or several
    maps: str = ""  # for images with label maps: what they are recognised by
    needs: tuple[str, ...] = ()  # tables without which only the images are read ...
    images: str = "images"  # ... of this subfolder


READERS: dict[str, Reader] = {}  # by name, in the order in which they are tried
Opener = TypeVar("Opener", bound=Callable[..., ImageSource])


def register(name: str, detect: Callable[[Path], bool], **options: Any) -> Callable[[Opener], Opener]:
    """Register what is decorated, ``Path -> ImageSource``, as the reader of ``NAME:PATH`` (options: see ``Reader``)."""

    def add(opener: Opener) -> Opener:
        READERS[name] = Reader(detect, opener, **options)
        return opener

    return add


def scheme_of(data: str | Path) -> tuple[str | None, Path]:
    """Split ``NAME:PATH`` into the reader's name and the path; the name is None for a path without one."""
    text = str(data)
    scheme, colon, place = text.partition(":")
    # one letter is a drive of Windows, and a path that exists is a path, whatever its name
    if not colon or not re.fullmatch(r"[A-Za-z][\w+.-]+", scheme) or os.path.exists(text):  # noqa: PTH110
        return None, Path(text)
    if scheme.lower() not in READERS:
        none = f"There is no reader '{shown(scheme)}' for '{shown(text)}' (--data), nor a folder of that name"
        raise UsageError(f"{none}. The readers are {', '.join(READERS)}: give folder:DIR, say, or only DIR.")
    if not place:
        raise UsageError(f"'{text}' (--data) names no folder: give {scheme}:DIR.")
    path = Path(place)
    return scheme.lower(), path.expanduser() if place.startswith("~") else path  # no shell does it after ":"


def digest_items(entries: Iterable[Entry]) -> str:
    """SHA-256 over (name, label, size in bytes, modification time in seconds, sampled bytes) of images, in order."""
    hasher = hashlib.sha256()
    for name, label, size, changed, sampled in entries:
        hasher.update(f"{name}\0{label}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape") + sampled)
    return "sha256:" + hasher.hexdigest()


def sample(handle: int, start: int, size: int) -> bytes:
    """A few bytes of the ``size`` that begin at ``start`` in an open file."""
    if size <= 3 * SAMPLE:
        return os.pread(handle, max(size, 0), start)
    places = (start, start + (size - SAMPLE) // 2, start + size - SAMPLE)
    return b"".join(os.pread(handle, SAMPLE, place) for place in places)


def fingerprint(path: str) -> tuple[int, int, bytes] | None:
    """(size, modification time, sampled bytes) of a file; None for a link to nothing.

    Raises EDDPError for a file that cannot be read: a disk that is away is not another set of images.
    """
    try:
        handle = os.open(path, OPEN_FLAGS)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):  # a bad image, when it is read
                return NO_FILE
            return found.st_size, int(found.st_mtime), sample(handle, 0, found.st_size)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path):  # noqa: PTH114
            return None
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):  # a socket
            return NO_FILE
        then = "Fix its permissions, or run again once the disk is back; if it is missing, remove it from the list"
        raise EDDPError(f"'{shown(path)}' cannot be read: {reason(error)}. {then}.") from error
