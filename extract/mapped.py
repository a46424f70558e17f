"""Concept datasets whose label maps are PNG files called like the images: what their readers have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from extract.concepts import ConceptLabel
from extract.images import digest_files, files_below, read_image
from extract.items import Names
from extract.label_maps import map_values, opened_map
from extract.reading import formats_of, open_regular, quiet_pillow, reason, shown
from stores.errors import DatasetError, EDDPError, ImageError, NoImagesError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VALUES = 65536  # that a pixel of 16 bits, or R + 256·G, can have


class MapSource(ABC):
    """Images with a PNG or more each; a reader fills this in and says by ``map_files`` where the PNGs are.

    Parameters
    ----------
    names : paths of the images relative to ``root``.
    splits : (N,) number of each image's split in ``SPLITS``.
    labels : all labels; their numbers are those that ``masks`` gives, which need not be the pixels' values.
    number_of : pixel value -> label number, 0 for unlabelled. Values that are not in it are refused.
    unknown : what is wrong with such a value, for a sentence.
    listing : where images and splits stand, for a sentence.
    """

    kind: str
    class_names: list[str] | None = None
    colour = False  # whether a PNG may be RGB

    def __init__(
        self,
        root: Path,
        names: Iterable[str],
        splits: Sequence[int],
        labels: list[ConceptLabel],
        number_of: dict[int, int],
        *,
        unknown: str,
        listing: str,
    ) -> None:
        self.root = root
        self.names = Names(names)
        self.labels = labels
        self.categories = list(dict.fromkeys(label.category for label in labels))
        self.by_number = {label.number: label for label in labels}
        self.listing = listing
        self._splits = np.array(splits, np.uint8)
        self._number_of = np.full(VALUES, -1, np.int32)
        for value, number in number_of.items():
            self._number_of[value] = number
        self._unknown = unknown
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def path(self, i: int) -> Path:
        return self.root / self.names[i]

    def label(self, i: int) -> int:
        return -1

    def split(self, i: int) -> str:
        """``train``, ``val`` or ``test``."""
        return SPLITS[self._splits[i]]

    def image(self, i: int) -> Image.Image:
        return read_image(self.path(i), self.name(i))

    @property
    def digest(self) -> str:
        """SHA-256 over the names and sizes in bytes of all images in order; the maps are not in it."""
        if self._digest is None:
            self._digest = digest_files(self.root, ((name, -1) for name in self.names))
        return self._digest

    def image_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image, from the beginning of its file. Raises ImageError."""
        quiet_pillow()
        try:
            with (
                open_regular(self.path(i)) as raw,
                BufferedReader(raw) as file,
                Image.open(file, formats=formats_of(self.names[i])) as image,
            ):
                return image.height, image.width
        except UnidentifiedImageError as error:
            raise ImageError(
                f"'{shown(self.path(i))}' is no image file (its content is of no known format). Mend it, or take it "
                "out."
            ) from error
        except Exception as error:  # decoders of damaged files raise whatever they like
            raise ImageError(
                f"'{shown(self.path(i))}' cannot be read: {reason(error)}. Mend it, or take it out."
            ) from error

    @abstractmethod
    def map_files(self, i: int) -> dict[str, Path]:
        """Category -> the PNG that holds the image's labels of it; at least one."""

    def mask_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image's (first) label map, from the beginning of its file."""
        path = next(iter(self.map_files(i).values()))
        with opened_map(path, f"The mask '{shown(path)}'") as image:
            return image.height, image.width

    def masks(self, i: int) -> dict[str, np.ndarray]:
        """Category -> (1, h, w) int32 label map; a category of which the image shows no label is left out."""
        maps = {category: self.numbers(path) for category, path in self.map_files(i).items()}
        return {category: labels[None] for category, labels in maps.items() if labels.any()}

    def numbers(self, path: Path) -> np.ndarray:
        """(h, w) int32 label numbers of a PNG. Raises DatasetError naming it."""
        what = f"The mask '{shown(path)}'"
        with opened_map(path, what) as image:
            values = map_values(image, what, colour=self.colour)
        numbers = self._number_of[values]
        wrong = numbers < 0
        if wrong.any():
            raise DatasetError(f"{what} holds the value {int(values[wrong].min())}, {self._unknown}.")
        return numbers


def stem(name: str) -> str:
    """A path without its ending: what an image and its map have in common."""
    return name.rpartition(".")[0]


def stems_below(folder: Path) -> set[str]:
    """The paths, without ``.png``, of all PNGs below a folder; none where there is no such folder."""
    if not folder.is_dir():
        return set()
    return {stem(name) for name in files_below(folder, (".png",)) if name.endswith(".png")}


def images_below(folder: Path) -> dict[str, str]:
    """Path without ending -> path of all images below a folder, sorted. Raises DatasetError where two share a map."""
    found: dict[str, str] = {}
    for name in sorted(files_below(folder)) if folder.is_dir() else []:
        if stem(name) in found:
            raise DatasetError(
                f"'{shown(folder / name)}' and '{shown(found[stem(name)])}' differ in their endings only, so it cannot be told "
                "which of them the mask is of. Rename one, and its mask."
            )
        found[stem(name)] = name
    return found


def paired(images: dict[str, str], masks: set[str], folder: Path) -> list[str]:
    """The images that have a map, in order; what has no counterpart is left out, and counted in the log."""
    kept = [name for key, name in images.items() if key in masks]
    left = len(images) - len(kept), len(masks) - len(kept)
    if any(left):
        log.warning("'%s': left out %d images without a mask and %d masks without an image", shown(folder), *left)
    return kept


class TwinSource(MapSource):
    """``images/FOLDER/NAME`` has ``annotations/FOLDER/NAME.png``, with a folder a split."""

    def map_files(self, i: int) -> dict[str, Path]:
        return {"object": self.root / "annotations" / f"{stem(self.names[i].removeprefix('images/'))}.png"}


def twins(root: Path, folders: dict[str, str]) -> tuple[list[str], list[int]]:
    """Names below ``root`` and split numbers of all images of such folders, given by split; of those with a map only.

    Raises NoImagesError where there are none.
    """
    names: list[str] = []
    splits: list[int] = []
    for split, folder in folders.items():
        below = root / "images" / folder
        found = paired(images_below(below), stems_below(root / "annotations" / folder), below)
        names += [f"images/{folder}/{name}" for name in found]
        splits += [SPLITS.index(split)] * len(found)
    if not names:
        train, val = folders.values()
        raise no_images(root, f"images/{train}/NAME.jpg with annotations/{train}/NAME.png, and in {val}/")
    return names, splits


def no_images(root: Path, looked_for: str) -> EDDPError:
    """For a dataset in which no image has a map."""
    return NoImagesError(f"There is no image with a mask in '{shown(root)}': looked for {looked_for}.")
