"""From pixels to what the network takes: its transform's own normalisation, found by sending plain colours through it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from extract.crop_geometry import visible_box
from stores.errors import UsageError

Transform = Callable[[Image.Image], Any]
QUALITY = 88
_TOLERANCE = 2e-3  # of the largest difference that colours make


@dataclass(frozen=True)
class Normalisation:
    """``gain`` (3, 3, h, w) and ``offset`` (3, h, w): the network's input is gain · RGB + offset, at each pixel.

    A matrix for each pixel holds what transforms do to colours (mean and deviation, BGR, grey) and where they pad.
    """

    gain: torch.Tensor
    offset: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return int(self.offset.shape[1]), int(self.offset.shape[2])

    def to(self, device: torch.device) -> Normalisation:
        return Normalisation(self.gain.to(device), self.offset.to(device))

    def __call__(self, rgb: torch.Tensor) -> torch.Tensor:
        """RGB (n, 3, h, w) in [0, 1] -> the network's input (n, 3, h, w), differentiably."""
        out = self.offset
        for r in range(3):
            out = out + self.gain[:, r] * rgb[:, r : r + 1]  # (3, h, w) · (n, 1, h, w)
        return out


def normalisation(transform: Transform, size: tuple[int, int]) -> Normalisation:
    """Find what a transform does to colours: black, the three primaries, then grey, white and a mixture as a proof.

    Parameters
    ----------
    transform : RGB PIL image -> float tensor (3, h, w); geometry is no matter, for the images sent through are plain.
    size : (h, w) of the network's input.

    Raises UsageError when the output has another size, or is no affine function of the colours.
    """
    plain = {rgb: _through(transform, rgb, size) for rgb in _COLOURS}
    black = plain[0, 0, 0]
    gain = torch.stack([plain[rgb] - black for rgb in ((255, 0, 0), (0, 255, 0), (0, 0, 255))], 1)  # (3, 3, h, w)
    if not (black.isfinite().all() and gain.isfinite().all()):
        raise UsageError("The network's transform gives NaN or infinite values for plain colours.")
    found = Normalisation(gain, black)
    for rgb, wanted in plain.items():
        given = (torch.tensor(rgb) / 255)[None, :, None, None].expand(1, 3, *size)
        off = float((found(given)[0] - wanted).abs().max())
        if not off <= _TOLERANCE * float(gain.abs().max()):
            raise UsageError(
                f"The network's transform does more to colours than scale and shift them (off by {off:.3g} for {rgb}): what "
                "it shows the network cannot be drawn. Use a transform that resizes, crops, pads and normalises."
            )
    return found


_COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255), (51, 204, 102))


def _through(transform: Transform, rgb: tuple[int, int, int], size: tuple[int, int]) -> torch.Tensor:
    out = torch.as_tensor(transform(Image.new("RGB", (size[1], size[0]), rgb))).detach().cpu().float()
    if out.shape != (3, *size):
        raise UsageError(f"The network's transform must give (3, {size[0]}, {size[1]}), got {tuple(out.shape)}.")
    return out


def to_jpeg(rgb: torch.Tensor) -> bytes:
    """One picture (3, h, w) in [0, 1] as a JPEG file, colours at full resolution."""
    pixels = (rgb.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


class Eyes:
    """What a network sees of pictures made for it.

    Attributes
    ----------
    transform : the network's: RGB PIL image -> float tensor (3, h, w).
    size : (h, w) of the network's input.
    normalise : what the transform does to colours, for pictures that are still being made.
    """

    def __init__(self, transform: Transform, size: tuple[int, int]) -> None:
        self.transform, self.size = transform, size
        self.normalise = normalisation(transform, size)
        left, top, right, bottom = visible_box(transform, size)
        self._rows, self._columns = _places(size[0], top, bottom), _places(size[1], left, right)

    def framed(self, picture: Image.Image) -> Image.Image:
        """Put a picture where the transform's crop will cut it out again, so that the network sees all of it and no more.

        The frame repeats the picture's edge; where the transform pads instead, what would be covered is cut off.
        """
        height, width = self.size
        pixels = picture.convert("RGB")
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
        return Image.fromarray(np.asarray(pixels)[self._rows][:, self._columns])

    def see(self, file: bytes) -> torch.Tensor:
        """The network's input (3, h, w) for a picture as it was saved, through the transform itself."""
        with Image.open(io.BytesIO(file)) as picture:
            return torch.as_tensor(self.transform(self.framed(picture))).float()


def _places(pixels: int, start: float, stop: float) -> np.ndarray:
    """For each pixel of the framed picture along one axis: which of the picture's it shows."""
    whole = round(pixels / (stop - start))
    return (np.arange(whole) - round(start * whole)).clip(0, pixels - 1)
