"""Readers of datasets, each a module that registers itself; ``open_source`` finds the one that fits."""

# ruff: noqa: F401, I001  (the imports register the readers, in the order in which they are tried)
from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from extract.image_io import reason, shown
from extract.image_source import READERS, ImageSource, scheme_of
from extract.segmentation.base import ConceptSource
from stores.errors import EDDPError, MissingPathError, NoImagesError, UsageError

from extract.segmentation import broden
from extract.segmentation import voc_ade_coco
from extract.segmentation import custom
from extract.datasets import cifar10
from extract.datasets import places365
from extract.datasets import tiny_imagenet
from extract.datasets import moments
from extract.datasets import imagenet
from extract.datasets import webdataset
from extract.datasets.folder import open_folder

log = logging.getLogger(__name__)


def open_source(data: str | Path) -> ImageSource:
    """Open the images at a path with the first reader that recognises it, or with that of ``READER:PATH``.

    The readers are tried in the order of their registration. Of a dataset with label maps whose tables are missing, only
    the images are read. Everything else is a folder of images, or of videos, flat or with a subfolder a class, or else of
    .tar files.

    Raises MissingPathError, NoImagesError, UsageError for an unknown reader, and DatasetError, naming file and line, for
    tables and lists that contradict themselves or the images.
    """
    scheme, root = scheme_of(data)
    with _readable(root):
        if scheme is None:
            return _detected(root)
        if not READERS[scheme].files:
            _check_folder(root)
        return READERS[scheme].open(root)


def _detected(root: Path) -> ImageSource:
    is_folder = root.is_dir()
    for name, reader in READERS.items():
        if not (is_folder or reader.files) or not reader.detect(root):
            continue
        missing = [table for table in reader.needs if not (root / table).exists()]
        if not missing:
            return reader.open(root)
        if (root / reader.images).is_dir():
            log.warning(
                f"'{shown(root)}' looks like a concept dataset ({name}) but lacks {', '.join(missing)}: only the images in "
                f"{reader.images}/ are read, without label maps. Put that there to read both"
            )
            return open_folder(root, reader.images)
    _check_folder(root)
    try:
        return open_folder(root)
    except NoImagesError:
        if not webdataset.holds_shards(root):
            raise
        return webdataset.open_webdataset(root)


def open_concepts(data: str | Path) -> ConceptSource:
    """Open a dataset with label maps with the first reader that recognises it, or with that of ``READER:PATH``.

    Only names and tables are read, no image and no mask. Raises MissingPathError listing what was looked for when no reader
    recognises it, UsageError for a reader of images without label maps, and the errors of the reader.
    """
    scheme, root = scheme_of(data)
    readers = {name: reader for name, reader in READERS.items() if reader.maps}
    if scheme is not None and scheme not in readers:
        raise UsageError(f"'{shown(data)}' is images without label maps ({scheme}). Give one of {', '.join(readers)}.")
    known = ", or ".join(reader.maps for reader in readers.values())
    with _readable(root):
        if not root.is_dir():
            raise MissingPathError(f"There is no concept dataset at '{shown(root)}'. Give a folder that holds {known}.")
        kind = scheme or next((name for name, reader in readers.items() if reader.detect(root)), None)
        if kind is None:
            raise MissingPathError(f"'{shown(root)}' holds no known kind of label maps. Give a folder with {known}.")
        return readers[kind].open(root)


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Report an OSError from any look at the disk as UsageError."""
    try:
        yield
    except EDDPError:
        raise
    except OSError as error:
        raise UsageError(f"'{shown(root)}' cannot be read: {reason(error)}. Fix it, or its permissions.") from error


def _check_folder(root: Path) -> None:
    if not root.exists():
        raise MissingPathError(f"There is no folder '{shown(root)}' (--data). Give a folder of images.")
    if not root.is_dir():
        raise UsageError(f"'{shown(root)}' (--data) is a file. Give a folder, a WebDataset's .tar or CIFAR-10's batch.")
