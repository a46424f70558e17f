"""The one door to torchvision, and the one way in which an image becomes RGB.

Everything in this project imports torchvision from here: a torchvision built for another torch (a CUDA wheel beside a
CPU torch, say) fails to import because two operators were never declared. Declaring them is all it needs for models,
weights and transforms; only the operators themselves and its image decoders stay unusable, and neither is used here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_BAND = 2**20  # pixels of wide grey that are converted at a time
_declared: list[torch.library.Library] = []  # a library that is collected takes its schemas with it


def load_torchvision() -> Any:
    """Import torchvision; declare its missing operators, and import again, on exactly the error that calls for it.

    Returns
    -------
    module
        ``torchvision``.

    Raises
    ------
    RuntimeError, ImportError
        Whatever else is wrong with the installation.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return importlib.import_module("torchvision")


torchvision: Any = load_torchvision()
transforms: Any = importlib.import_module("torchvision.transforms")


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


@dataclass(frozen=True)
class Preprocess:
    """Image to network input: ``to_rgb``, then the weights' own transform; picklable when that is.

    Parameters
    ----------
    inner : callable
        RGB PIL image -> float tensor (3, h, w).
    """

    inner: Callable[[Image.Image], Any]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Give the network's input for one PIL image: float32 tensor (3, h, w)."""
        return torch.as_tensor(self.inner(to_rgb(image))).to(torch.float32)

    def __repr__(self) -> str:
        return " ".join(repr(self.inner).split())
