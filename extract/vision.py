"""The one door to torchvision. It takes seconds to load: only who runs a network comes through here.

Everything in this project imports torchvision from here: a torchvision built for another torch (a CUDA wheel beside a
CPU torch, say) fails to import because two operators were never declared. Declaring them is all it needs for models,
weights and transforms; only the operators themselves and its image decoders stay unusable, and neither is used here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from extract.image_io import GreyRange, to_mode
from stores.errors import ImageError

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
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


@dataclass(frozen=True)
class Preprocess:
    """Image to network input: converted to the mode that the network takes, then its own transform; picklable when that is.

    Parameters
    ----------
    inner : callable
        PIL image -> tensor or array (C, h, w).
    mode : {"RGB", "L", "RGBA"}
        What ``inner`` is given. "RGBA" stands for any image with four channels, as it is.
    grey_range : (float, float), optional
        The values that are black and white in grey images of more than 8 bits; None: by the depth of their file.
    """

    inner: Callable[[Image.Image], Any]
    mode: str = "RGB"
    grey_range: GreyRange | None = None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Give the network's input for one PIL image: float32 tensor (C, h, w)."""
        return torch.as_tensor(self.inner(self.image(image))).to(torch.float32)

    def image(self, image: Image.Image) -> Image.Image:
        """What the network's own transform is given. Raises ImageError for an image that lacks the network's channels."""
        if self.mode != "RGBA":
            return to_mode(image, self.mode, self.grey_range)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if len(image.getbands()) != 4:
            raise ImageError(f"it has {len(image.getbands())} channels (mode {image.mode}), and the network takes 4")
        return image

    def picture(self, image: Image.Image) -> Image.Image:
        """The image as RGB, for people to look at."""
        return to_mode(image, "RGB", self.grey_range)

    def __repr__(self) -> str:
        return " ".join(repr(self.inner).split())
