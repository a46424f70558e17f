"""What a place offers: an ordered, addressable list of images with their labels, whatever their layout on disk."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from extract.class_folders import find_class_folders
from extract.digest import digest_files
from extract.items import Items, Names
from extract.listing import Listing, files_below, holds_maps
from extract.reading import ENDINGS, read_image, reason, shown
from stores.errors import EDDPError, MissingPathError, NoImagesError, UsageError

log = logging.getLogger(__name__)

__all__ = [
    "ENDINGS",
    "SCHEMES",
    "ImageSource",
    "PathSource",
    "files_below",
    "guarded",
    "no_images",
    "open_folder",
    "open_source",
    "read_image",
    "scheme_of",
]

SCHEMES = ("folder", "broden", "imagenet", "tiny-imagenet", "places365", "cifar10", "webdataset")
LABELLED = ("voc", "ade20k", "cocostuff", "masks")  # concept datasets besides Broden: ``extract.concepts``


class ImageSource(Protocol):
    """N images in a fixed order. ``name`` is unique and stable, ``path`` the file that holds the image.

    ``label`` is the class number or -1; ``image`` is in the mode of its file, or raises ImageError for a bad image (which calls it by its name,
    that of no place on a disk) and EDDPError for a disk that cannot be read now; ``digest`` identifies the content list.
    ``left_out`` counts the files that were found and are not read, by ending ("no ending", or "_seg.png" and "masks/" for label
    maps next to images); {} where a list says which images there are.
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
    """Images that are files: pairs of (path relative to the root, label), kept as ``Items``.

    ``empty_classes`` are those of ``class_names`` that have a folder, but no image in it.
    """

    def __init__(
        self,
        root: Path,
        items: Iterable[tuple[str, int]],
        class_names: list[str] | None,
        kind: str,
        *,
        left_out: Mapping[str, int] | None = None,
        empty_classes: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.items = items if isinstance(items, Items) else Items(items)
        self.class_names = class_names
        self.kind = kind
        self.left_out = dict(left_out or {})
        self.empty_classes = list(empty_classes)
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
        """SHA-256 over name, label, size, modification time and a few bytes of each image, in order (``extract.digest``)."""
        if self._digest is None:
            gone: set[str] = set()
            self._digest = digest_files(self.root, self.items, gone)
            self._gone = gone
        return self._digest


def open_source(data: str | Path) -> ImageSource:
    """Find out what a place holds and open it; ``SCHEME:PLACE`` (one of ``SCHEMES`` or ``LABELLED``) says what it holds.

    Looked for in this order, by a few marker files: concept datasets (Broden, Pascal VOC, ADE20K, COCO-Stuff, images/ with
    masks/: ``extract.concepts``), of which the images with label maps are taken, or all in the images' folder where the
    tables are missing; CIFAR-10 (its batch files), Places365 (its image folders, or its categories), Tiny ImageNet
    (wnids.txt), ImageNet (wnid folders, or ILSVRC2012_val_... files), WebDataset (one .tar, ``shard-{000..012}.tar``, or a
    folder of .tar files without images); everything else is a folder of images, flat or with a subfolder a class
    (``open_folder``).

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
    from extract import cifar10, concepts, imagenet, places365, tiny_imagenet, webdataset

    if webdataset.is_pattern(root) or webdataset.is_shard(root):
        return webdataset.open_webdataset(root)
    if kind := concepts.kind_of(root):
        if not (lacks := concepts.lacking(root, kind)):
            return concepts.openers()[kind](root)
        part = concepts.images_of(kind)
        if (root / part).is_dir():
            log.warning(
                "'%s' looks like a concept dataset (%s) but lacks %s: only the images in %s/ are read, without label maps. "
                "Put that there to read both",
                shown(root),
                kind,
                ", ".join(lacks),
                part,
            )
            return open_folder(root, part)
    if cifar10.is_cifar10(root):
        return cifar10.open_cifar10(root)
    _check_folder(root)
    if places365.is_places365(root):
        return places365.open_places365(root)
    if tiny_imagenet.is_tiny_imagenet(root):
        return tiny_imagenet.open_tiny_imagenet(root)
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
    from extract.tiny_imagenet import open_tiny_imagenet
    from extract.webdataset import open_webdataset

    return {
        "folder": open_folder,
        "imagenet": open_imagenet,
        "tiny-imagenet": open_tiny_imagenet,
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


def open_folder(root: Path, part: str = "") -> PathSource:
    """Open a folder of images: flat, one subfolder a class, or such class folders below ``train/``, ``val/``, ``images/``, ...

    ``part`` is a subfolder: only that is read, and names stay relative to ``root``. Classes are numbered in the order of
    their sorted names, or by their numbers where these are 0 to K - 1 (``extract.class_folders``). Label maps next to images
    are left out (``extract.listing``). Raises NoImagesError, and UsageError for a folder that cannot be listed.
    """
    found = Listing()
    prefix = f"{part}/" if part else ""
    files = sorted(prefix + file for file in files_below(root / part, found=found))
    if not files:
        raise no_images(root, found)
    if holds_maps(root.name) or holds_maps(os.path.basename(os.path.realpath(root))):  # noqa: PTH119
        log.warning("'%s' is called like a folder of label maps; they are read as images", shown(root))
    classes = find_class_folders(root, files, [part] * bool(part) + [prefix + folder for folder in found.folders])
    return PathSource(
        root,
        zip(files, classes.labels(files), strict=True),
        classes.names or None,
        "class folders" if classes.names else "flat folder",
        left_out=found.left_out,
        empty_classes=classes.empty,
    )


def no_images(root: Path, found: Listing) -> NoImagesError:
    """For a folder in which no file is read."""
    other = ", ".join(f"{ending} ({count})" for ending, count in found.left_out.most_common(8))
    return NoImagesError(
        f"There is no image in '{shown(root)}' (--data) or its subfolders"
        + (f", only other files: {other}" if other else "")
        + ". Give a folder of image files such as .jpg, .png or .tif; archives must be unpacked."
    )
