"""From an image or a clip to a network's input."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from extract.image_io import GreyRange, to_mode
from stores.errors import ImageError, UsageError

if TYPE_CHECKING:
    from extract.video import Clip

Picture: TypeAlias = "Image.Image | Sequence[Image.Image] | Clip"


@dataclass(frozen=True)
class Preprocess:
    """Image or clip to network input: converted to the mode that the network takes, then transformed; picklable when ``inner`` is.

    Parameters
    ----------
    inner : callable
        PIL image -> tensor or array (C, h, w); of networks that take clips uint8 tensor (T, C, h, w) -> tensor (C, T, h, w).
    mode : {"RGB", "L", "RGBA"}
        What ``inner`` is given. "RGBA" stands for any image with four channels, unchanged.
    grey_range : (float, float), optional
        The values that are black and white in grey images of more than 8 bits; None: by the depth of their file.
    frames, rate : int, float, optional
        T frames a clip, and how many a second, of a network that takes clips; None for a network that takes images.
    """

    inner: Callable[[Any], Any]
    mode: str = "RGB"
    grey_range: GreyRange | None = None
    frames: int | None = None
    rate: float | None = None

    def __call__(self, image: Picture) -> torch.Tensor:
        """Give the network's input for one PIL image or clip: float32 tensor (C, h, w), or (C, T, h, w)."""
        return torch.as_tensor(self.inner(self.given(image))).to(torch.float32)

    def given(self, image: Picture) -> Any:
        """Give what ``inner`` is given: a PIL image, or uint8 (T, C, h, w), for which a still image is repeated.

        Raises ImageError for an image that lacks the network's channels, and for a video where the network takes images.
        """
        if self.frames is None:
            if not isinstance(image, Image.Image):
                raise ImageError("it is a video, and the network takes single images: --frames N takes N of each clip")
            return self.image(image)
        frames = [torch.from_numpy(np.array(self.image(frame))) for frame in self.taken(image)]
        clip = torch.stack([frame[:, :, None] if frame.ndim == 2 else frame for frame in frames]).permute(0, 3, 1, 2)
        return clip.expand(self.frames, -1, -1, -1).contiguous()

    def taken(self, image: Picture) -> Sequence[Image.Image]:
        """The frames that the network sees, as they are in the file: T of a clip, one of a still image."""
        if isinstance(image, Image.Image):
            return [image]
        if isinstance(image, Sequence):
            return image
        return image.frames(self.frames or 1, self.rate)

    def image(self, image: Image.Image) -> Image.Image:
        """Give one image or frame in the network's mode. Raises ImageError for one that lacks the network's channels."""
        if self.mode != "RGBA":
            return to_mode(image, self.mode, self.grey_range)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if len(image.getbands()) != 4:
            raise ImageError(f"it has {len(image.getbands())} channels (mode {image.mode}), and the network takes 4")
        return image

    def picture(self, image: Image.Image) -> Image.Image:
        """Give the image as RGB, for display."""
        return to_mode(image, "RGB", self.grey_range)

    def __repr__(self) -> str:
        clip = f" of {self.frames} frames, {self.rate:g} a second" if self.frames and self.rate else ""
        return " ".join(repr(self.inner).split()) + clip


def squashing(transform: Any, model: str) -> Any:
    """A transform that resizes to the size that one of torchvision's crops to. Raises UsageError for any other."""
    size, mean, std = (getattr(transform, name, None) for name in ("crop_size", "mean", "std"))
    if not size or mean is None or std is None:
        raise UsageError(
            f"--resize squash needs one of torchvision's transforms with a crop; {model} has {type(transform).__name__}. "
            "Return the transform that you want from a callable of your own."
        )
    size = list(size) * 2 if len(size) == 1 else list(size)
    if type(transform).__name__ == "VideoClassification":
        return type(transform)(
            crop_size=size, resize_size=size, mean=mean, std=std, interpolation=transform.interpolation
        )
    transforms: Any = importlib.import_module("torchvision.transforms")
    resize = transforms.Resize(size, interpolation=transform.interpolation, antialias=transform.antialias)
    return transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(mean, std)])
