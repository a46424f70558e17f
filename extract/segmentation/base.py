"""Datasets with label maps: the contract, exact values of PNG maps, and maps that are named like their images.

In all of them label 0 is "unlabelled", and an image counts for a category only where it is annotated in it. A name in a
table may not lead out of the dataset (no ``..``, no absolute path); links on the disk are followed, wherever they lead.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from extract.file_list import at, integer
from extract.folder_listing import Listing, list_files
from extract.image_io import LARGEST, formats_of, open_regular, orientation_of, quiet_pillow, reason, shown
from extract.image_source import ImageSource, PathSource
from stores.errors import DatasetError, EDDPError, ImageError, NoImagesError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VALUES = 65536  # that a pixel of 16 bits, or R + 256·G, can have
# How Pillow names the pixels of a PNG before it makes them its own: other greys it would scale or clip.
_INDICES = ("L", "P", "P;1", "P;2", "P;4", "I;16B")
RGB = "RGB is read as label = R + 256·G"


@dataclass(frozen=True)
class ConceptLabel:
    """One label: its number in the masks, its name and its (most frequent) category."""

    number: int
    name: str
    category: str


class ConceptSource(ImageSource, Protocol):
    """Images with label maps: all that labelling, scoring and supervised methods use of a concept dataset.

    ``categories`` in the dataset's order, ``labels`` all that may occur, ``by_number`` the same by their numbers;
    ``listing`` names the files that list images and splits. ``split`` is ``train`` (to label or learn on), ``val`` (to score
    on) or anything else (not used). ``image_size`` and ``mask_size`` are (height, width); maps cover the complete image,
    whatever their size.

    ``masks``: category -> (layers, h, w) int32 label maps, 0 where unlabelled, only for the categories that the image is
    annotated in; raises DatasetError naming the file for one that is missing, unreadable or holds an unknown label.
    """

    labels: list[ConceptLabel]
    categories: list[str]
    by_number: dict[int, ConceptLabel]
    listing: str

    def split(self, i: int) -> str: ...
    def image_size(self, i: int) -> tuple[int, int]: ...
    def mask_size(self, i: int) -> tuple[int, int]: ...
    def masks(self, i: int) -> dict[str, np.ndarray]: ...


def holds(*marks: str) -> Callable[[Path], bool]:
    """A test whether a folder holds all of some files or folders."""
    return lambda root: all((root / mark).exists() for mark in marks)


def read_labels(
    table: Path,
    rows: Iterable[tuple[int, dict[str, str]]],
    category: Callable[[dict[str, str]], str],
    *,
    columns: tuple[str, str] = ("number", "name"),
    most: int = VALUES - 1,
    skip: int = -1,
) -> list[ConceptLabel]:
    """Labels of a table's rows, but for the number ``skip``; raises DatasetError naming the first line at fault."""
    labels: dict[int, ConceptLabel] = {}
    lines: dict[int, int] = {}
    for line, row in rows:
        try:
            number = integer(row, columns[0], 0, most)
            if number in lines:
                raise ValueError(f"number {number} is already taken by line {lines[number]}")
            labels[number] = ConceptLabel(number, row[columns[1]].strip(), category(row))
        except ValueError as error:
            raise DatasetError(f"{at(table, line)}: {error}.") from error
        lines[number] = line
    labels.pop(skip, None)
    if not labels:
        raise DatasetError(f"'{shown(table)}' lists no label.")
    return list(labels.values())


@contextmanager
def opened_map(path: Path, what: str) -> Iterator[ImageFile.ImageFile]:
    """A PNG, opened and not yet decoded. Whatever goes wrong with it within the block is a DatasetError.

    ``what`` begins the message, such as "The mask 'a.png'". No other format is read, whatever the file's name; what has
    more pixels than twice ``PIL.Image.MAX_IMAGE_PIXELS`` is refused before it is decoded.
    """
    quiet_pillow()
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise DatasetError(f"{what} is refused: it is larger than {LARGEST} bytes. Write it again, compressed.")
            data = file.readall()
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            yield image
    except EDDPError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they like
        why = "cannot identify it as a PNG" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise DatasetError(f"{what} cannot be read: {why}. Unpack or write it again.") from error


def map_values(image: ImageFile.ImageFile, what: str, *, colour: bool) -> np.ndarray:
    """(h, w) integers of a PNG with one channel of 8 or 16 bits or a palette (its indices), as they are in the file.

    With ``colour`` RGB is accepted too, as R + 256·G with B = 0. Raises DatasetError for any other PNG.
    """
    (tile,) = image.tile
    pixels = str(tile.args)
    if pixels in _INDICES:
        return np.asarray(image)
    if colour and pixels in ("RGB", "RGBA"):
        return rgb_labels(np.asarray(image), what)
    allowed = "a palette or one channel of 8 or 16 bits" + (", or RGB (label = R + 256·G)" if colour else "")
    raise DatasetError(f"{what} has pixels of the kind {pixels}: a label map has {allowed}. Write it again.")


def rgb_labels(rgb: np.ndarray, what: str) -> np.ndarray:
    """Labels (h, w) of RGB or RGBA pixels: R + 256·G. Raises DatasetError where B is not 0: those are colours, not labels."""
    if (wrong := rgb[..., 2] > 0).any():
        example = tuple(rgb[wrong][0, :3].tolist())
        then = "Write it again with label numbers instead of colours, one channel of 8 or 16 bits"
        raise DatasetError(f"{what} has the colour {example}: {RGB}, and B must be 0. {then}.")
    return rgb[..., 0] + 256 * rgb[..., 1].astype(np.int32)


def same_shape(map_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether two sizes (h, w) are of one aspect ratio, up to rounding each side of the smaller to a full pixel."""
    (h, w), (height, width) = map_size, image_size
    return abs(h * width - w * height) <= max(h + w, height + width)


def as_stored(values_hw: np.ndarray, orientation: int) -> np.ndarray:
    """An array drawn on the picture as viewers show it, turned to the pixels as stored. For EXIF orientations 5 to 8."""
    if orientation in (5, 7):
        return values_hw.T if orientation == 5 else values_hw[::-1, ::-1].T
    return np.rot90(values_hw, 1 if orientation == 6 else -1)


class MapSource(PathSource):
    """Images with a PNG or more each; a reader fills this in and says by ``map_files`` where the PNGs are.

    Parameters
    ----------
    names : paths of the images relative to ``root``.
    splits : (N,) number of each image's split in ``SPLITS``.
    labels : all labels; their numbers are those that ``masks`` gives, which need not be the pixels' values.
    number_of : pixel value -> label number, 0 for unlabelled. Values that are not in it are refused.
    unknown : what is wrong with such a value, for a message.
    listing : the files that list images and splits, for a message.
    left_out : number of files next to the images that are not read, by ending.
    """

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
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(root, ((name, -1) for name in names), left_out=left_out)
        self.labels = labels
        self.categories = list(dict.fromkeys(label.category for label in labels))
        self.by_number = {label.number: label for label in labels}
        self.listing = listing
        self._splits = np.array(splits, np.uint8)
        self._number_of = np.full(VALUES, -1, np.int32)
        self._number_of[list(number_of)] = list(number_of.values())
        self._unknown = unknown
        self._shapes: dict[int, tuple[int, int, int]] = {}  # height, width, EXIF orientation of the images looked at
        self._logged: set[str] = set()

    def split(self, i: int) -> str:
        """``train``, ``val`` or ``test``."""
        return SPLITS[self._splits[i]]

    def image_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image as it is stored, from the beginning of its file. Raises ImageError."""
        height, width, _ = self._shape(i)
        return height, width

    def _shape(self, i: int) -> tuple[int, int, int]:
        """Height, width and EXIF orientation of an image, whose file is opened once."""
        if i not in self._shapes:
            self._shapes[i] = _read_shape(self.path(i))
        return self._shapes[i]

    @abstractmethod
    def map_files(self, i: int) -> dict[str, Path]:
        """Category -> the PNG that holds the image's labels of it; at least one."""

    def mask_size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image's (first) label map, from the beginning of its file."""
        path = next(iter(self.map_files(i).values()))
        with opened_map(path, f"The mask '{shown(path)}'") as image:
            size = image.height, image.width
        return size if self._turn(i, size, path) == 1 else size[::-1]

    def masks(self, i: int) -> dict[str, np.ndarray]:
        """Category -> (1, h, w) int32 label map; a category of which the image shows no label is left out."""
        maps = {category: self.numbers(i, path) for category, path in self.map_files(i).items()}
        return {category: labels[None] for category, labels in maps.items() if labels.any()}

    def numbers(self, i: int, path: Path) -> np.ndarray:
        """(h, w) int32 label numbers of a PNG of image i, as the image is stored. Raises DatasetError naming it."""
        what = f"The mask '{shown(path)}'"
        with opened_map(path, what) as image:
            values = map_values(image, what, colour=self.colour)
            coloured = image.mode in ("RGB", "RGBA")
        if coloured:
            self._log_once(logging.INFO, "'%s' is RGB, and other masks may be: read as label = R + 256·G", shown(path))
        numbers = self._number_of[values]
        if (wrong := numbers < 0).any():
            hint = f" ({RGB}: write label numbers, not colours)" * coloured
            raise DatasetError(f"{what} holds the value {int(values[wrong].min())}{hint}, {self._unknown}.")
        turn = self._turn(i, numbers.shape, path)
        return numbers if turn == 1 else as_stored(numbers, turn)

    def _turn(self, i: int, size: tuple[int, ...], path: Path) -> int:
        """The EXIF orientation in which a mask of a size was drawn on image i: 1, or the image's own.

        Raises DatasetError where the shapes do not fit.
        """
        height, width, orientation = self._shape(i)
        h, w = size
        turned = orientation >= 5 and same_shape((h, w), (width, height))
        if same_shape((h, w), (height, width)):
            if turned or orientation in (2, 3, 4):
                self._log_once(
                    logging.WARNING,
                    "the image '%s' has EXIF orientation %d, and so may others: the mask's shape does not show whether it was "
                    "drawn on the turned picture; assumed to be drawn on the pixels as they are stored, as the network sees them",
                    shown(self.name(i)),
                    orientation,
                )
            return 1
        if turned:
            return orientation
        sizes = (
            f"The mask '{shown(path)}' has {w} × {h} pixels, but its image '{shown(self.name(i))}' {width} × {height}"
        )
        raise DatasetError(f"{sizes}, another aspect ratio. Write it again in the image's size.")

    def _log_once(self, level: int, message: str, *values: object) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log.log(level, message, *values)


def _read_shape(path: Path) -> tuple[int, int, int]:
    quiet_pillow()
    try:
        with (
            open_regular(path) as raw,
            BufferedReader(raw) as file,
            Image.open(file, formats=formats_of(path.name)) as image,
        ):
            return image.height, image.width, orientation_of(image)
    except Exception as error:  # decoders of damaged files raise whatever they like
        unknown = isinstance(error, UnidentifiedImageError)
        what = "is no image file (its content is of no known format)" if unknown else f"cannot be read: {reason(error)}"
        raise ImageError(f"'{shown(path)}' {what}. Fix or remove it.") from error


def stem(name: str) -> str:
    """A path without its ending: what an image and its map have in common."""
    return name.rpartition(".")[0]


def stems_below(folder: Path) -> set[str]:
    """The paths, without ``.png``, of all PNGs below a folder; none where there is no such folder."""
    files = list_files(folder, (".png",)).files if folder.is_dir() else ()
    return {stem(name) for name in files if name.endswith((".png", ".PNG"))}


def png(base: Path, name: str) -> Path:
    """The file below a folder with this name and the ending .png or .PNG."""
    path = base / f"{name}.png"
    capital = path.with_suffix(".PNG")
    return capital if not os.path.isfile(path) and os.path.isfile(capital) else path  # noqa: PTH113


def images_below(folder: Path) -> tuple[dict[str, str], Counter[str]]:
    """Path without ending -> path of all images below a folder, sorted, and the number of files left out by ending.

    Raises DatasetError where two share a map.
    """
    found: dict[str, str] = {}
    listing = list_files(folder) if folder.is_dir() else Listing()
    for name in listing.files:
        if stem(name) in found:
            both = f"'{shown(folder / name)}' and '{shown(found[stem(name)])}'"
            raise DatasetError(f"{both} differ in their endings only: which is the mask of? Rename one, and its mask.")
        found[stem(name)] = name
    return found, listing.left_out


def paired(images: dict[str, str], masks: set[str], folder: Path) -> list[str]:
    """The images that have a map, in order; what has no counterpart is left out, and counted in the log."""
    kept = [name for key, name in images.items() if key in masks]
    left = len(images) - len(kept), len(masks) - len(kept)
    if any(left):
        log.warning("'%s': left out %d images without a mask and %d masks without an image", shown(folder), *left)
    return kept


def no_masks(root: Path, looked_for: str) -> NoImagesError:
    """The error for a dataset in which no image has a map."""
    return NoImagesError(f"There is no image with a mask in '{shown(root)}': looked for {looked_for}.")
