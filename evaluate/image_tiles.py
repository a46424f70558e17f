"""Thumbnails: an image as a square, the region where a detector fires, a clip as a contact sheet of its frames."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter

from stores.errors import UsageError

DIM = 0.45  # brightness left outside the region
COLOUR = 0.35  # share of the colour left outside the region; the rest is grey
LINE = (255, 214, 10)  # yellow: light against the dimmed outside, distinct from natural colours
EDGE = (20, 20, 20)  # one dark pixel around the line, for yellow and white surroundings
MARK = (236, 72, 153)  # pink: around one frame of a sheet, never within a picture
FRAME, GAP = 112, 3  # pixels of a sheet's frames, and between them
STEPS, COLUMNS = 8, 4  # frames of a sheet at most, and in a row
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def region(logits: np.ndarray, size: int) -> np.ndarray:
    """Where a detector fires in a picture: the logits (h, w), upsampled bilinearly, are above 0. Bool (size, size).

    The cells of the grid tile the picture evenly (``align_corners=False``). Raises UsageError for an empty or
    not two-dimensional ``logits`` and a ``size`` below 1.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise UsageError(f"'logits' must be a non-empty (h, w) array, got the shape {logits.shape}.")
    if size < 1:
        raise UsageError(f"'size' must be at least 1 pixel, got {size}.")
    grid = Image.fromarray(np.ascontiguousarray(logits, dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR)) > 0


def region_tile(image: Image.Image, logits: np.ndarray, size: int) -> Image.Image:
    """An image with the region of positive logits as it is, the rest dimmed, and a line around the region.

    ``image`` of any size and mode, ``logits`` (h, w) over it, ``size`` the side of the square result in pixels.
    Pixels of the region are those of the resized image, untouched: the two-pixel line and its dark edge are outside it.
    """
    inside = region(logits, size)
    picture = square(image, size)
    mixed = DIM * (COLOUR * np.eye(3) + (1 - COLOUR) * LUMA)  # of each colour outside, from those of the image
    dimmed = picture.convert("RGB", [*mixed[0], 0, *mixed[1], 0, *mixed[2], 0])
    return _outlined(np.where(inside[..., None], np.asarray(picture), np.asarray(dimmed)), inside)


def outline(image: Image.Image, logits: np.ndarray) -> Image.Image:
    """A square image with a line around where a detector fires: its logits (h, w), upsampled bilinearly, are above 0."""
    return _outlined(np.array(image), region(logits, image.width))


def square(image: Image.Image, size: int) -> Image.Image:
    """An image as a square of ``size`` pixels."""
    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)


def at_steps(frames: Sequence[Image.Image], steps: int) -> list[Image.Image]:
    """For each step of a layer the frame in the middle of its share of a clip; a still image is that of all steps."""
    return [frames[(2 * t + 1) * len(frames) // (2 * steps)] for t in range(steps)]


def shown_steps(steps: int, peak: int) -> list[int]:
    """The steps of a clip that are shown: all, or eight spread evenly of which the nearest gives way to ``peak``."""
    shown = np.linspace(0, steps - 1, min(steps, STEPS)).round().astype(int)
    shown[np.abs(shown - peak).argmin()] = peak
    return shown.tolist()


def sheet_size(frames: int) -> tuple[int, int]:
    """Columns and rows of a contact sheet."""
    rows = -(-frames // COLUMNS)
    return -(-frames // rows), rows


def contact_sheet(frames: Sequence[Image.Image], marked: int | None = None) -> Image.Image:
    """Square frames in the order of time, row by row on a dark ground, one of them marked; a single one is left as it is."""
    if len(frames) == 1:
        return frames[0]
    columns, rows = sheet_size(len(frames))
    step = frames[0].width + GAP
    sheet = Image.new("RGB", (columns * step + GAP, rows * step + GAP), EDGE)
    for k, frame in enumerate(frames):
        top, left = (GAP + step * n for n in divmod(k, columns))
        if k == marked:
            sheet.paste(MARK, (left - GAP, top - GAP, left + step, top + step))
        sheet.paste(frame, (left, top))
    return sheet


def jpeg(image: Image.Image, quality: int = 88) -> bytes:
    """The bytes of a JPEG file; colour has full resolution, for the lines."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def _outlined(pixels: np.ndarray, inside: np.ndarray) -> Image.Image:
    """Draw the line around a region (h, w) into pixels (h, w, 3)."""
    line = maximum_filter(inside, 5)
    pixels[maximum_filter(line, 3) & ~line] = EDGE
    pixels[line & ~inside] = LINE
    return Image.fromarray(pixels)
