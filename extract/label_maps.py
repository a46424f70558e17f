"""Label maps in PNG files: what every pixel holds, exactly, or one sentence why that cannot be told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from extract.reading import LARGEST, open_regular, quiet_pillow, reason
from stores.errors import DatasetError, EDDPError

# How Pillow names the pixels of a PNG before it makes them its own: other greys it would scale or clip.
_INDICES = ("L", "P", "P;1", "P;2", "P;4", "I;16B")
_COLOURS = ("RGB", "RGBA")
RGB = "RGB is read as label = R + 256·G"


@contextmanager
def opened_map(path: Path, what: str) -> Iterator[ImageFile.ImageFile]:
    """A PNG, opened and not yet decoded. Whatever goes wrong with it within the block is a DatasetError.

    ``what`` is the beginning of the sentence, such as "The mask 'a.png'". No other format is read, whatever the file is
    called; and what has more pixels than twice ``PIL.Image.MAX_IMAGE_PIXELS`` is refused before it is decoded.
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
    except UnidentifiedImageError as error:
        raise DatasetError(f"{what} cannot be read: cannot identify it as a PNG. Unpack or write it again.") from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise DatasetError(f"{what} cannot be read: {reason(error)}. Unpack or write it again.") from error


def map_values(image: ImageFile.ImageFile, what: str, *, colour: bool) -> np.ndarray:
    """(h, w) integers of a PNG with one channel of 8 or 16 bits or a palette (its indices), as they are in the file.

    With ``colour`` RGB is taken too, as R + 256·G with B = 0. Raises DatasetError for any other PNG.
    """
    (tile,) = image.tile
    pixels = str(tile.args)
    if pixels in _INDICES:
        return np.asarray(image)
    if colour and pixels in _COLOURS:
        return rgb_labels(np.asarray(image), what)
    allowed = "a palette or one channel of 8 or 16 bits" + (", or RGB (label = R + 256·G)" if colour else "")
    raise DatasetError(f"{what} has pixels of the kind {pixels}: a label map has {allowed}. Write it again.")


def rgb_labels(rgb: np.ndarray, what: str) -> np.ndarray:
    """Labels (h, w) of RGB or RGBA pixels: R + 256·G. Raises DatasetError where B is not 0: those are colours, not labels."""
    if (wrong := rgb[..., 2] > 0).any():
        example = tuple(rgb[wrong][0, :3].tolist())
        raise DatasetError(
            f"{what} has the colour {example}: {RGB}, and B must be 0. Write it again with label numbers instead of colours, "
            "one channel of 8 or 16 bits."
        )
    return rgb[..., 0] + 256 * rgb[..., 1].astype(np.int32)
