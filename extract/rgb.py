"""How an image of any mode becomes 8-bit RGB or grey: which values of deep grey are black and white."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from stores.errors import UsageError

GreyRange = tuple[float, float]  # the values that stand for black and for white
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_MIN_IS_WHITE, _UNSIGNED, _SIGNED = 0, 1, 2
_BAND = 2**20  # pixels of deep grey that are converted at a time


def _tag(image: Image.Image, number: int) -> int | None:
    """A tag of a TIFF, the first of several values."""
    value: Any = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def grey_values(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """(h, w) float64 values of a deep grey image, or of a part of it, as they are in its file."""
    values = np.asarray(image if box is None else image.crop(box))
    if image.mode == "I" and _tag(image, _BITS) == 32 and _tag(image, _SAMPLE_FORMAT) in (None, _UNSIGNED):
        values = values.view(np.uint32)  # Pillow has no mode for them
    return values.astype(np.float64)


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits, or of floating point."""
    return image.mode.startswith(("I", "F"))


def range_of_depth(image: Image.Image) -> GreyRange | None:
    """Black and white of a deep grey image by the depth of its file; None where the file does not say: 32 bits, signed, float."""
    if image.mode.startswith("I;16"):
        white = 2 ** (_tag(image, _BITS) or 16) - 1
        return (white, 0) if _tag(image, _PHOTOMETRIC) == _MIN_IS_WHITE else (0, white)
    # Pillow scales portable grey maps to 16 bits, and some versions open PNGs of 16 bits as I
    return (0, 65535) if image.mode == "I" and image.format in ("PNG", "PPM") else None


def to_mode(image: Image.Image, mode: str = "RGB", grey_range: GreyRange | None = None) -> Image.Image:
    """Turn a PIL image of any mode into 8-bit "RGB" or "L".

    Alpha is dropped, not blended. Grey of more than 8 bits is scaled by ``grey_range``, else by the depth of its file: by the
    same rule for every image, whatever values it holds.

    Raises
    ------
    UsageError
        The file's depth does not say which values are black and white, and no range is given.
    """
    if _tag(image, _SAMPLE_FORMAT) == _SIGNED and not is_deep(image):
        raise UsageError("a TIFF of signed values of 8 bits is not read: save it as unsigned, or as floating point")
    if image.mode == mode:
        return image
    if is_deep(image):
        if grey_range is not None and _tag(image, _PHOTOMETRIC) == _MIN_IS_WHITE:
            grey_range = grey_range[::-1]
        grey_range = grey_range or range_of_depth(image)
        if grey_range is None:
            raise UsageError(
                f"a {image.format or 'grey'} image of mode {image.mode} does not say which values are black and white. Give "
                "--grey-range LOW,HIGH (such as 0,1 or 0,255)"
            )
        image = _scaled(image, *grey_range)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _scaled(image: Image.Image, black: float, white: float) -> Image.Image:
    """Deep grey as "L", in bands of rows: as float64 a large image would take eight bytes a pixel several times over."""
    width, height = image.size
    rows = max(1, _BAND // max(1, width))
    grey = Image.new("L", image.size)
    for top in range(0, height, rows):
        band = np.nan_to_num(grey_values(image, (0, top, width, min(top + rows, height))), nan=black)
        levels = np.clip(np.rint((band - black) * (255 / (white - black))), 0, 255)
        grey.paste(Image.fromarray(levels.astype(np.uint8)), (0, top))
    return grey
