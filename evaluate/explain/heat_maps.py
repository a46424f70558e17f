"""What an explanation shows of an image: heat maps over it, and the figure that has everything on one sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from evaluate.figure_style import FAINT, INK, bare_axes, png
from evaluate.image_tiles import LUMA
from evaluate.number_format import signed

FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # distinct with every kind of colour vision
HEAT = (220, 30, 60)  # of Grad-CAM
STRONGEST = 0.85  # share of the colour where a map is largest
REST = "#8a9099"
WIDTH, SIDE, COLUMNS, DPI = 9.6, 2.28, 4, 150  # inches of a sheet and of its pictures; pixels an inch


def heat(image: Image.Image, values: np.ndarray, *, both: bool = True, largest: float | None = None) -> Image.Image:
    """A square image in grey under a map (h, w): orange where it is positive, blue where it is negative, or only red (``both`` is off).

    The colour is fullest at ``largest``, the map's own largest absolute value by default.
    """
    size = image.width
    pixels = np.asarray(image, np.float32)
    grid = Image.fromarray(np.ascontiguousarray(values, np.float32))
    spread = np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR))
    top = float(np.abs(values).max()) if largest is None else largest
    share = np.clip(np.abs(spread) / top, 0, 1)[..., None] * STRONGEST if top > 0 else np.zeros((size, size, 1))
    grey = 0.25 * pixels + 0.75 * (pixels @ LUMA)[..., None]
    colour = np.where(spread[..., None] > 0, FOR if both else HEAT, AGAINST)
    return Image.fromarray(np.rint((1 - share) * grey + share * colour).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Step:
    """One row of a sum: what it is, its value, and whether it is a concept (or base, rest, residual, total)."""

    name: str
    value: float
    kind: str = "concept"


def bars(steps: Sequence[Step]) -> list[tuple[float, float]]:
    """Where each step's bar begins and ends: base and total begin at 0, every other where the one before ended."""
    out, at = [], 0.0
    for step in steps:
        start = 0.0 if step.kind in ("base", "total") else at
        at = step.value if step.kind in ("base", "total") else at + step.value
        out.append((start, at))
    return out


def sheet(
    picture: Image.Image,
    cam: Image.Image | None,
    maps: Sequence[tuple[str, Image.Image]],
    steps: Sequence[Step],
    *,
    title: str,
    subtitle: str,
    what: str,
    cam_title: str,
) -> bytes:
    """One sheet with all of it, as PNG bytes: the image, Grad-CAM, the sum as a waterfall, and the concepts' maps with their names.

    Parameters
    ----------
    picture, cam : square images, or sheets of frames; no Grad-CAM where there is none to show.
    maps : (title, image) of each concept shown.
    steps : of the sum, base first, total last; none where there is no sum to show. ``what`` it sums to.
    title, subtitle : a line each, at the top.
    """
    rows, tall = -(-len(maps) // COLUMNS), SIDE * picture.height / picture.width
    lines = textwrap.wrap(subtitle, 118)
    height = 0.42 + SIDE + 0.3 + rows * (tall + 0.3) + 0.19 * len(lines) + 0.1
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")

    def write(text: str, left: float, top: float, size: float, weight: str = "normal") -> None:
        """A line of text, its left upper corner in inches from the sheet's."""
        figure.text(
            left / WIDTH,
            1 - top / height,
            text,
            va="top",
            fontsize=size,
            fontweight=weight,
            color=INK,
            parse_math=False,
        )

    def tile(image: Image.Image, name: str, column: int, row: int) -> None:
        left, top = 0.1 + column * (SIDE + 0.1), 0.42 + (SIDE + 0.3 + (row - 1) * (tall + 0.3) if row else 0)
        write(shortened(name, 40), left, top + 0.06, 8.5)
        pixels = ImageOps.contain(image, (round(SIDE * DPI),) * 2, Image.Resampling.BICUBIC)
        figure.figimage(np.asarray(pixels), round(left * DPI), round((height - top - 0.24) * DPI) - pixels.height)

    write(shortened(title, 90), 0.1, 0.12, 12, "bold")
    tile(picture, "what the network saw", 0, 0)
    if cam is not None:
        tile(cam, cam_title, 1, 0)
    left = 0.3 + 2 * SIDE + 1.65  # room for the steps' names
    if steps:
        write(shortened(what, 60), left, 0.42 + 0.06, 8.5)
        box = (left / WIDTH, 1 - (0.42 + SIDE) / height, 1 - (left + 0.1) / WIDTH, (SIDE - 0.24) / height)
        _waterfall(figure.add_axes(box), steps)
    for j, (name, image) in enumerate(maps):
        tile(image, name, j % COLUMNS, 1 + j // COLUMNS)
    for k, line in enumerate(lines):
        y = (0.1 + 0.19 * (len(lines) - 1 - k)) / height
        figure.text(0.1 / WIDTH, y, line, va="bottom", fontsize=8.5, color=INK, parse_math=False)
    return png(figure)


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _waterfall(axes: Axes, steps: Sequence[Step]) -> None:
    spans = bars(steps)
    low, high = min(0.0, *(min(s) for s in spans)), max(0.0, *(max(s) for s in spans))
    room = 0.14 * ((high - low) or 1)
    colours = {"base": REST, "total": INK}
    positive, negative = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in (FOR, AGAINST))
    for y, (step, (start, end)) in enumerate(zip(steps, spans, strict=True)):
        colour = colours.get(step.kind, positive if step.value >= 0 else negative)
        axes.barh(y, end - start, left=start, height=0.62, color=colour, alpha=1 if step.kind != "rest" else 0.45)
        if y + 1 < len(steps):
            axes.plot([end, end], [y - 0.31, y + 1.31], color=FAINT, lw=0.7, zorder=0)
        right = max(start, end)
        text = signed(step.value)
        axes.text(right + 0.08 * room, y, text, va="center", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(steps)), [shortened(s.name, 30) for s in steps], fontsize=8, color=INK, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(low - 0.2 * room, high + 1.6 * room)
    axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    bare_axes(axes, "left")
    axes.tick_params(axis="y", length=0)
