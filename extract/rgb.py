"""The one way in which an image becomes RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

_BAND = 2**20  # pixels of wide grey that are converted at a time


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a PIL image of any mode (grey, palette, alpha, CMYK, 16 bits) into 8-bit RGB.

    Alpha is dropped, not blended. 16-bit and wider grey is scaled down when it exceeds 255, never clipped.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return _grey_to_rgb(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Wide grey, in bands of rows: as float64 a large image would take eight bytes a pixel several times over."""
    width, height = image.size
    rows = max(1, _BAND // max(1, width))
    tops = range(0, height, rows)

    def band(top: int) -> np.ndarray:
        part = image.crop((0, top, width, min(top + rows, height)))
        return np.nan_to_num(np.asarray(part, dtype=np.float64))

    scale = 255 / 65535 if any(band(top).max(initial=0) > 255 for top in tops) else 1.0
    rgb = Image.new("RGB", image.size)
    for top in tops:
        grey = np.clip(np.rint(band(top) * scale), 0, 255).astype(np.uint8)
        rgb.paste(Image.fromarray(grey).convert("RGB"), (0, top))
    return rgb
