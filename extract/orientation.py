"""EXIF orientation and label maps: images are read as they are stored, so a map drawn on the turned picture is turned back."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def orientation_of(image: Image.Image) -> int:
    """1 to 8 from an image that is opened and not decoded; 1 where its pixels are read as viewers show them."""
    if image.format == "TIFF":  # Pillow turns it itself, its size as well
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode all of it to look behind the pixels
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  (broken metadata next to sound pixels changes nothing that is read)
        return 1
    return value if value in range(1, 9) else 1


def is_turned(orientation: int) -> bool:
    """Whether viewers show the picture with width and height exchanged."""
    return orientation >= 5


def turned_back(values_hw: np.ndarray, orientation: int) -> np.ndarray:
    """An array drawn on the picture as viewers show it, as the image's pixels are stored. For orientations 5 to 8."""
    if orientation in (5, 7):
        return values_hw.T if orientation == 5 else values_hw[::-1, ::-1].T
    return np.rot90(values_hw, 1 if orientation == 6 else -1)


def same_shape(map_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether two sizes (h, w) are of one aspect ratio, up to rounding each side of the smaller to a whole pixel."""
    (h, w), (height, width) = map_size, image_size
    return abs(h * width - w * height) <= max(h + w, height + width)
