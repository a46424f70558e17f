"""The images and clips of a store once more, as the network saw them: what resizing and cropping left, at the picture's own resolution."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from extract.crop_geometry import Box, visible_box
from extract.datasets import open_source
from extract.image_io import to_mode
from extract.image_source import READERS, ImageSource
from extract.network import open_model
from extract.video_rows import expanded, video_of
from stores.errors import MismatchError, MissingPathError
from stores.store import ActivationStore

log = logging.getLogger(__name__)
Transform = Callable[[Image.Image], Any]


def match_rows(store: ActivationStore, source: ImageSource) -> dict[int, int]:
    """Store row -> number of the image of that name in a source. Raises MismatchError when no image is in both."""
    number = {source.name(i): i for i in range(len(source))}
    # a frame, or one of several clips, of a video that the source has as one
    names = [name if name in number else video_of(name) for name in store.names]
    rows = {row: number[name] for row, name in enumerate(names) if name in number}
    if not rows:
        raise MismatchError(f"None of the images in '{store.path}' is in '{source.root}': they are other images.")
    return rows


class StoreImages:
    """Images of a store by their row.

    Parameters
    ----------
    source : where the images are; matched with the store's rows by name.
    transform : the network's: PIL image -> tensor (3, h, w).
    store : whose rows they are.

    Raises MismatchError when no image of the store is in the source.
    """

    def __init__(self, source: ImageSource, transform: Transform, store: ActivationStore) -> None:
        self.source, self.store = source, store
        self._names = store.names
        self._place = match_rows(store, source)
        self._picture = getattr(transform, "picture", to_mode)
        self._taken = getattr(transform, "taken", lambda image: [image])
        self._box = lru_cache(maxsize=4096)(lambda size: visible_box(transform, size))

    def __contains__(self, row: int) -> bool:
        return row in self._place

    def name(self, row: int) -> str:
        return self._names[row]

    def label(self, row: int) -> int:
        """The image's class in its source, −1 for none or for an image that is not there."""
        return self.source.label(self._place[row]) if row in self._place else -1

    def frames(self, row: int) -> list[Image.Image]:
        """The frames of a clip, or one image: the part that the network saw, as RGB.

        Raises MismatchError if the source lacks it, else the errors of the source.
        """
        if row not in self._place:
            raise MismatchError(f"The image '{self.name(row)}' of '{self.store.path}' is not in '{self.source.root}'.")
        pictures = [self._picture(frame) for frame in self._taken(self.source.image(self._place[row]))]
        width, height = pictures[0].size
        return [crop(picture, self._box((height, width))) for picture in pictures]


def open_store_images(store: ActivationStore, *, data: str | Path | None = None) -> StoreImages:
    """Open the images that a store was made from, at their original path or at ``data``.

    Raises MismatchError for a synthetic store, which has none, and the errors of ``open_source`` and ``load_model``.
    """
    made = store.provenance
    if "dataset" not in made or "synthetic" in made:
        raise MismatchError(f"The store '{store.path}' was not made from images: there is nothing to show.")
    source = open_images(store, data)
    if source.digest != made["dataset"].get("digest"):
        log.warning(
            f"the images in '{source.root}' are not those that '{store.path}' was made from, or were copied without their times: "
            "names, sizes, times or bytes differ. Pictures may show something else than the network saw; extract again"
        )
    return StoreImages(source, open_model(store).transform, store)


def open_images(store: ActivationStore, data: str | Path | None = None) -> ImageSource:
    """Open what a store's rows were made from, at the original path or at ``data``. Raises the errors of ``open_source``."""
    try:
        source = open_source(place_of(store) if data is None else data)
    except MissingPathError as error:
        if data is not None:
            raise
        raise MissingPathError(
            f"The images of '{store.path}' are not in '{store.provenance['dataset']['path']}' any more. Put them back; eddp report reads them "
            "from elsewhere by --data DIR."
        ) from error
    return expanded(source, store.provenance["dataset"].get("rows") or {})


def rows_called(store: ActivationStore) -> str:
    """What a store's rows are: "images", "clips", or "frames" of videos."""
    made = store.provenance
    if "clip" in made:
        return "clips"
    return "frames" if "frames" in (made.get("dataset", {}).get("rows") or {}) else "images"


def place_of(store: ActivationStore) -> str:
    """``READER:PATH`` of a store's images, for ``open_source``: their kind is known and need not be detected again."""
    dataset = store.provenance["dataset"]
    kind = dataset["kind"] if dataset["kind"] in READERS else "folder"
    return f"{kind}:{dataset['path']}"


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The part of an image that the network saw (fractions of width and height); parts outside the image are black."""
    left, top, right, bottom = box
    w, h = image.size
    pixels = (round(left * w), round(top * h), round(right * w), round(bottom * h))
    return image if pixels == (0, 0, w, h) else image.crop(pixels)
