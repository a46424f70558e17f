"""What a place offers: an ordered, addressable list of images with their labels, whatever their layout on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from extract.items import Items, Names
from extract.reading import ENDINGS, read_image, reason, shown
from stores.errors import EDDPError, MissingPathError, NoImagesError, UsageError

log = logging.getLogger(__name__)

__all__ = [
    "ENDINGS",
    "SCHEMES",
    "ImageSource",
    "PathSource",
    "digest_files",
    "digest_items",
    "files_below",
    "guarded",
    "is_folder",
    "open_folder",
    "open_source",
    "read_image",
    "scheme_of",
]

SPLITS = {"train", "training", "val", "validation", "valid", "test"}
SCHEMES = ("folder", "broden", "imagenet", "places365", "cifar10", "webdataset")
LABELLED = ("voc", "ade20k", "cocostuff", "masks")  # concept datasets besides Broden: ``extract.concepts``


class ImageSource(Protocol):
    """N images in a fixed order. ``name`` is unique and stable, ``path`` the file that holds the image.

    ``label`` is the class number or -1; ``image`` is RGB, or raises ImageError for a bad image (which calls it by its name,
    that of no place on a disk) and EDDPError for a disk that cannot be read now; ``digest`` identifies the content list.
    A source is pickled to every decoding process: it holds flat arrays (see ``Items``), and no open file.
    """

    kind: str
    root: Path
    class_names: list[str] | None
    left_out: dict[str, int]

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def path(self, i: int) -> Path: ...
    def label(self, i: int) -> int: ...
    def image(self, i: int) -> Image.Image: ...
    @property
    def digest(self) -> str: ...


Source = TypeVar("Source", bound=ImageSource)


class PathSource:
    """Images that are files: pairs of (path relative to the root, label), kept as ``Items``."""

    def __init__(self, root: Path, items: Iterable[tuple[str, int]], class_names: list[str] | None, kind: str) -> None:
        self.root = root
        self.items = items if isinstance(items, Items) else Items(items)
        self.class_names = class_names
        self.kind = kind
        self._digest: str | None = None
        self._gone: set[str] | None = None  # what could not be looked at when the digest was taken

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> Names:
        """All names, each decoded when it is asked for."""
        return self.items.names

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32 class numbers, -1 for none."""
        return self.items.labels

    def name(self, i: int) -> str:
        return self.items.names[i]

    def path(self, i: int) -> Path:
        return self.root / self.items.names[i]

    def label(self, i: int) -> int:
        return int(self.items.labels[i])

    def image(self, i: int) -> Image.Image:
        """The image as RGB. Raises ImageError when it cannot be decoded, EDDPError when its file cannot be read."""
        name = self.items.names[i]
        return read_image(self.root / name, name, known_gone=None if self._gone is None else name in self._gone)

    @property
    def digest(self) -> str:
        """SHA-256 over the names, labels and sizes in bytes of all images in order."""
        if self._digest is None:
            gone: set[str] = set()
            self._digest = digest_files(self.root, self.items, gone)
            self._gone = gone
        return self._digest


def digest_files(root: Path, items: Iterable[tuple[str, int]], gone: set[str] | None = None) -> str:
    """SHA-256 over (name, label, size in bytes) of files, in order; the size of one that is gone is -1.

    The names of those that are gone are put into ``gone``.
    """

    def size(name: str) -> int:
        try:
            return (root / name).stat().st_size
        except OSError:
            if gone is not None:
                gone.add(name)
            return -1

    return digest_items((name, label, size(name)) for name, label in items)


def digest_items(entries: Iterable[tuple[str, int, int]]) -> str:
    """SHA-256 over (name, label, size in bytes), in order."""
    hasher = hashlib.sha256()
    for name, label, size in entries:
        hasher.update(f"{name}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
    return "sha256:" + hasher.hexdigest()


def open_source(data: str | Path) -> ImageSource:
    """Find out what a place holds and open it; ``SCHEME:PLACE`` (one of ``SCHEMES`` or ``LABELLED``) says what it holds.

    Looked for in this order, by a few marker files: concept datasets (Broden, Pascal VOC, ADE20K, COCO-Stuff, images/ with
    masks/: ``extract.concepts``), of which the images with label maps are taken; CIFAR-10 (its batch files), Places365 (its
    image folders, or its categories), ImageNet (wnid folders, or ILSVRC2012_val_... files), WebDataset (one .tar,
    ``shard-{000..012}.tar``, or a folder of .tar files without images); everything else is a folder of images, flat or
    with a subfolder a class (``open_folder``).

    Raises MissingPathError, NoImagesError, UsageError for an unknown scheme, and DatasetError, naming file and line, for
    tables and lists that contradict themselves or the images.
    """
    scheme, root = scheme_of(data)
    return guarded(_open_whatever if scheme is None else partial(_open_as, scheme), root)


def scheme_of(data: str | Path) -> tuple[str | None, Path]:
    """``SCHEME:PLACE`` -> what the place is said to hold, and the place; None where nothing is said."""
    text = str(data)
    scheme, colon, place = text.partition(":")
    # one letter is a drive of Windows; and a path that is there is a path, whatever its name
    if not colon or not re.fullmatch(r"[A-Za-z][\w+.-]+", scheme) or _is_there(Path(text)):
        return None, Path(text)
    if scheme.lower() not in SCHEMES + LABELLED:
        raise UsageError(
            f"There is no reader '{shown(scheme)}' for '{shown(text)}' (--data), nor a folder of that name. "
            f"The readers are {', '.join(SCHEMES)}: give {SCHEMES[0]}:DIR, say, or only DIR. Images "
            f"with label maps may also be {', '.join(LABELLED)}."
        )
    if not place:
        raise UsageError(f"'{text}' (--data) names no folder: give {scheme}:DIR.")
    # no shell does it after a colon
    return scheme.lower(), Path(place).expanduser() if place.startswith("~") else Path(place)


def guarded(opener: Callable[[Path], Source], root: Path) -> Source:
    """What an opener gives; what the disk answers to its many looks is a sentence."""
    try:
        return opener(root)
    except EDDPError:
        raise
    except OSError as error:  # from any of the many looks at what is there
        raise UsageError(
            f"'{shown(root)}' cannot be read: {reason(error)}. Mend it, or fix its permissions."
        ) from error


def _open_as(scheme: str, root: Path) -> ImageSource:
    if scheme not in ("cifar10", "webdataset"):  # those may be a file, or several
        _check_folder(root)
    return _openers()[scheme](root)


def _open_whatever(root: Path) -> ImageSource:
    from extract import cifar10, concepts, imagenet, places365, webdataset

    if webdataset.is_pattern(root) or webdataset.is_shard(root):
        return webdataset.open_webdataset(root)
    if kind := concepts.kind_of(root):
        if not (lacks := concepts.lacking(root, kind)):
            return concepts.openers()[kind](root)
        log.warning(
            "'%s' looks like a concept dataset (%s) but lacks %s: its label maps, if any, are taken for images",
            shown(root),
            kind,
            ", ".join(lacks),
        )
    if cifar10.is_cifar10(root):
        return cifar10.open_cifar10(root)
    _check_folder(root)
    if places365.is_places365(root):
        return places365.open_places365(root)
    if imagenet.is_imagenet(root):
        return imagenet.open_imagenet(root)
    try:
        return open_folder(root)
    except NoImagesError:
        if not webdataset.holds_shards(root):
            raise
        return webdataset.open_webdataset(root)


def _openers() -> dict[str, Callable[[Path], ImageSource]]:
    """The readers by scheme, imported when they are asked for: they are built on this module."""
    from extract.cifar10 import open_cifar10
    from extract.concepts import openers
    from extract.imagenet import open_imagenet
    from extract.places365 import open_places365
    from extract.webdataset import open_webdataset

    return {
        "folder": open_folder,
        "imagenet": open_imagenet,
        "places365": open_places365,
        "cifar10": open_cifar10,
        "webdataset": open_webdataset,
        **openers(),
    }


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long to be one, or a folder that may not be entered
        return False


def _check_folder(root: Path) -> None:
    if not root.exists():
        raise MissingPathError(f"There is no folder '{shown(root)}' (--data). Give a folder of images.")
    if not root.is_dir():
        raise UsageError(
            f"'{shown(root)}' (--data) is a file. Give a folder of images, a .tar file of a WebDataset or a batch file of "
            "CIFAR-10."
        )


def open_folder(root: Path) -> PathSource:
    """Open a folder of images: flat, one subfolder a class, or such class folders below ``train/``, ``val/``, ...

    Classes are numbered in the order of their sorted names. Raises NoImagesError.
    """
    files = sorted(files_below(root))
    if not files:
        raise NoImagesError(
            f"There is no image in '{shown(root)}' (--data). Looked in it and all its subfolders for files ending in "
            f"{', '.join(ENDINGS)}."
        )
    # ImageNet's own root holds train/ and val/: those are splits of the data, not two classes
    folders = {file.split("/", 1)[0].lower() for file in files if "/" in file}
    depth = 1 if folders and folders <= SPLITS else 0
    classes = sorted({parts[depth] for f in files if len(parts := f.split("/")) > depth + 1})
    number = {name: k for k, name in enumerate(classes)}
    items = ((f, number[parts[depth]] if len(parts := f.split("/")) > depth + 1 else -1) for f in files)
    return PathSource(root, items, classes or None, "class folders" if classes else "flat folder")


def files_below(root: Path, endings: tuple[str, ...] = ENDINGS) -> Iterator[str]:
    """Relative paths of all files with an ending below a folder.

    Links to folders are followed, after all folders that are none and in the order of their names; but no folder is listed
    twice, and links that lead back up are not followed. How many are left out for that is logged.
    """
    listed: set[object] = set()
    # a heap: (whether it is a link, path, prefix of names, the real folders on the way)
    ahead: list[tuple[bool, str, str, tuple[str, ...]]] = [(False, str(root), "", ())]
    left_out = 0
    while ahead:
        _, path, prefix, above = heappop(ahead)
        real = os.path.realpath(path)
        leads_up = any(f"{other}/".startswith(f"{real.rstrip('/')}/") for other in above)
        if leads_up or (identity := _identity(path, real)) in listed:
            left_out += 1
            continue
        listed.add(identity)
        try:
            with os.scandir(path) as scanned:
                entries = [entry for entry in scanned if not entry.name.startswith(".")]
        except OSError as error:
            raise UsageError(
                f"The folder '{shown(path)}' cannot be listed: {reason(error)}. Fix its permissions."
            ) from error
        for entry in entries:
            if is_folder(entry):
                heappush(ahead, (entry.is_symlink(), entry.path, f"{prefix}{entry.name}/", (*above, real)))
            elif entry.name.lower().endswith(endings):
                yield f"{prefix}{entry.name}"
    if left_out:
        log.warning(
            "'%s' holds %d links to folders that are listed already or that lead back up; left out",
            shown(root),
            left_out,
        )


def _identity(path: str, real: str) -> object:
    """What a folder is, whatever way led to it."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # told when it is listed
        return real
    return (found.st_dev, found.st_ino) if found.st_ino else real


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a listing is a folder, or a link to one."""
    try:
        return entry.is_dir()  # told by the listing itself, without another look at the disk for each file
    except OSError:  # a link to itself
        return False
