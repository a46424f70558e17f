"""Which part of the original image the network sees.

Transforms resize, crop and pad; a detector's map must be laid over the part of the image that is left. Two ramps are sent
through the transform: where they start and stop gives the box, whatever library it is of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from extract.probe import random_state_kept, run_twice
from stores.errors import UsageError

Box = tuple[float, float, float, float]
_TOLERANCE = 0.01  # of the image's width or height


def visible_box(transform: Callable[[Image.Image], Any], size: tuple[int, int]) -> Box:
    """Find which part of an image of ``size`` a deterministic transform shows to the network.

    Parameters
    ----------
    transform : callable
        RGB PIL image -> float tensor (3, h, w); resizing, cropping, padding and anything affine in the intensities.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    (float, float, float, float)
        Left, top, right, bottom as fractions of the image's width and height. Outside [0, 1] where it is padded.

    Raises
    ------
    UsageError
        The transform is random, mirrors or turns the image, or does more than stretch, cut and pad it.
    """
    height, width = size
    if min(height, width) < 2:
        raise UsageError(f"'size' must be at least 2 x 2, got {size}.")
    black = _run(transform, np.zeros((height, width)))  # (3, h, w)
    gain = _run(transform, np.ones((height, width))) - black
    channel = int(np.abs(gain).max(axis=(1, 2)).argmax())
    if not np.abs(gain[channel]).max() > 0:
        raise _refusal(size, "black and white images come out the same")
    inside = np.abs(gain[channel]) > 0.999 * np.abs(gain[channel]).max()  # padding is the same in black and in white
    across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    seen_x = _unramp(transform, np.broadcast_to(across, (height, width)), black, gain, channel)
    seen_y = _unramp(transform, np.broadcast_to(down[:, None], (height, width)), black, gain, channel)
    left, right = _extent(seen_x, inside, width, size)
    top, bottom = _extent(seen_y.T, inside.T, height, size)
    return left, top, right, bottom


def _extent(seen: np.ndarray, inside: np.ndarray, pixels: int, size: tuple[int, int]) -> tuple[float, float]:
    """Fit the line from columns of the input to fractions of the image; give its ends. ``seen``: (rows, columns)."""
    margin = min(0.1, 3 / pixels)  # resampling flattens a ramp at the image's border
    use = inside & (seen > margin) & (seen < 1 - margin)
    if use.any(axis=0).sum() < 2:
        use = inside
    columns = np.flatnonzero(use.any(axis=0))
    if len(columns) < 2:
        raise _refusal(size, "too little of the image is left")
    means = np.where(use, seen, 0).sum(axis=0)[columns] / use.sum(axis=0)[columns]
    slope, start = np.polyfit(columns + 0.5, means, 1)
    line = start + slope * (np.arange(seen.shape[1]) + 0.5)
    residual = np.abs(np.where(use, seen - line, 0)).max()
    if residual > max(_TOLERANCE, 1 / pixels):
        raise _refusal(size, f"a straight ramp comes out bent or turned, by {residual:.2f} of the image")
    if slope <= 0:
        raise _refusal(size, "the image comes out mirrored")
    return float(start), float(start + slope * seen.shape[1])


def _unramp(
    transform: Callable[[Image.Image], Any], ramp: np.ndarray, black: np.ndarray, gain: np.ndarray, channel: int
) -> np.ndarray:
    """Send a ramp through and undo the normalisation: intensities in [0, 1], (h, w)."""
    out = _run(transform, ramp)
    if out.shape != black.shape:
        raise _refusal(ramp.shape, "the output's size depends on the image's content")
    scale = np.where(gain[channel] == 0, 1.0, gain[channel])
    return (out[channel] - black[channel]) / scale


def _run(transform: Callable[[Image.Image], Any], grey: np.ndarray) -> np.ndarray:
    """Transform a grey image (h, w) in [0, 1] twice, leaving the global generators as they were: (3, h, w)."""
    pixels = np.rint(grey * 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(pixels[:, :, None], 3, axis=2)).convert(getattr(transform, "mode", "RGB"))
    with random_state_kept():
        found, drawn = run_twice(transform, image)
    first = torch.as_tensor(found).detach().cpu().double().numpy()
    if first.ndim == 4:  # a clip, of one frame repeated
        first = first[:, 0]
    if drawn:
        raise _refusal(grey.shape, "it draws random numbers")
    if first.ndim != 3:
        raise _refusal(grey.shape, f"it gives an array of shape {first.shape} instead of (3, h, w)")
    return first


def _refusal(size: tuple[int, ...], reason: str) -> UsageError:
    return UsageError(
        f"Cannot tell which part of an image of {size[0]} x {size[1]} pixels the transform shows: {reason}. "
        "Use a transform that only resizes, crops, pads and normalises."
    )
