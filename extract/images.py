"""What a folder offers: an ordered, addressable list of images with their labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from extract.vision import to_rgb
from stores.errors import ImageError, MissingPathError, NoImagesError, UsageError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train", "training", "val", "validation", "valid", "test"}


class ImageSource(Protocol):
    """N images in a fixed order. ``label`` is the class number or -1; ``digest`` identifies the content list."""

    kind: str
    root: Path
    class_names: list[str] | None

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def path(self, i: int) -> Path: ...
    def label(self, i: int) -> int: ...
    def image(self, i: int) -> Image.Image: ...
    @property
    def digest(self) -> str: ...


class PathSource:
    """Images that are files: a list of (path relative to the root, label)."""

    kind = "files"

    def __init__(self, root: Path, items: list[tuple[str, int]], class_names: list[str] | None, kind: str) -> None:
        self.root = root
        self.items = items
        self.class_names = class_names
        self.kind = kind
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        return self.items[i][0]

    def path(self, i: int) -> Path:
        return self.root / self.items[i][0]

    def label(self, i: int) -> int:
        return self.items[i][1]

    def image(self, i: int) -> Image.Image:
        """The image as RGB. Raises ImageError when it cannot be read whole."""
        return read_image(self.path(i))

    @property
    def digest(self) -> str:
        """SHA-256 over the names, labels and sizes in bytes of all images in order."""
        if self._digest is None:
            self._digest = digest_files(self.root, self.items)
        return self._digest


def digest_files(root: Path, items: list[tuple[str, int]]) -> str:
    """SHA-256 over (name, label, size in bytes) of files, in order."""
    hasher = hashlib.sha256()
    for name, label in items:
        try:
            size = (root / name).stat().st_size
        except OSError:
            size = -1
        hasher.update(f"{name}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
    return "sha256:" + hasher.hexdigest()


def read_image(path: Path) -> Image.Image:
    """Decode an image file to RGB. Raises ImageError with one sentence for anything that cannot be decoded whole."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(f"'{path}' is no image file (its content is of no known format).") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"'{path}' is refused: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
        raise ImageError(f"'{path}' cannot be decoded: {reason.rstrip('.')}.") from error


def open_source(data: str | Path) -> ImageSource:
    """Find out what a folder is and open it: a Broden folder, class subfolders, or a flat folder of images.

    Raises MissingPathError, NoImagesError, or DatasetError for a Broden folder whose tables contradict each other.
    """
    root = Path(data)
    if not root.exists():
        raise MissingPathError(f"There is no folder '{root}' (--data). Give a folder of images.")
    if not root.is_dir():
        raise UsageError(f"'{root}' (--data) is a file. Give a folder of images.")
    if (root / "index.csv").is_file() and (root / "images").is_dir():
        from extract.broden import BrodenSource

        return BrodenSource(root)
    return open_folder(root)


def open_folder(root: Path) -> PathSource:
    """Open a folder of images: flat, one subfolder a class, or such class folders below ``train/``, ``val/``, ..."""
    files = sorted(_images_below(root))
    if not files:
        raise NoImagesError(
            f"There is no image in '{root}' (--data). Looked in it and all its subfolders for files ending in "
            f"{', '.join(ENDINGS)}."
        )
    # ImageNet's own root holds train/ and val/: those are splits of the data, not two classes
    folders = {file.split("/")[0].lower() for file in files if "/" in file}
    depth = 1 if folders and folders <= SPLITS else 0
    classes = sorted({parts[depth] for f in files if len(parts := f.split("/")) > depth + 1})
    number = {name: k for k, name in enumerate(classes)}
    items = []
    for file in files:
        parts = file.split("/")
        items.append((file, number[parts[depth]] if len(parts) > depth + 1 else -1))
    return PathSource(root, items, classes or None, "class folders" if classes else "flat folder")


def _images_below(root: Path) -> Iterator[str]:
    """Relative paths of all image files below a folder; links that lead back up are not followed."""
    stack: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", ())]
    while stack:
        folder, prefix, above = stack.pop()
        real = os.path.realpath(folder)
        if any(f"{other}/".startswith(f"{real.rstrip('/')}/") for other in above):
            continue
        try:
            with os.scandir(folder) as listed:
                entries = [entry for entry in listed if not entry.name.startswith(".")]
        except OSError as error:
            raise UsageError(
                f"The folder '{folder}' cannot be listed: {error.strerror}. Fix its permissions."
            ) from error
        for entry in entries:
            if os.path.isdir(entry.path):  # noqa: PTH112  (a link to itself is none; entry.is_dir() would raise)
                stack.append((entry.path, f"{prefix}{entry.name}/", (*above, real)))
            elif entry.name.lower().endswith(ENDINGS):
                yield f"{prefix}{entry.name}"
