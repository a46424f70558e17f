"""The pictures of a site, image by image or clip by clip: each is read once, whatever the number of directions and classes that show it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluate.detector_bank import Bank
from evaluate.image_tiles import FRAME, at_steps, contact_sheet, region_tile, shown_steps, square
from evaluate.top_images import on_grid, peak_step
from stores.errors import EDDPError
from stores.progress import Progress, silent
from stores.readers import LayerReader

TILE, EXAMPLE = 192, 112  # pixels: of a direction's images, of a class's examples
STRIP, SMALL, GAP = 5, 128, 3  # images in a direction's strip, pixels of each, clear pixels between two
QUALITY, EFFORT = 70, 2  # of WebP: small files; more effort costs twice the time for a few per cent
AT_ONCE = 64  # images: what waits in memory does not grow with the store

Frames = Callable[[int], Sequence[Image.Image]]


def draw_pictures(
    reader: LayerReader,
    bank: Bank,
    top: np.ndarray,
    strip: int,
    examples: Sequence[Sequence[int]],
    folder: Path,
    shared: Path,
    frames: Frames,
    progress: Progress = silent,
) -> set[int]:
    """Write ``t/<direction>-<rank>.webp``, images with the detected region, ``s/<direction>.webp``, the first of them side by side, and
    in the folder ``shared`` ``e/<class>-<rank>.webp``; returns the rows that are missing.

    Of a clip ``t/`` shows the frame of its largest logit, ``e/`` the middle one, and ``f/<direction>-<rank>.webp`` is a contact
    sheet with a frame for each step of the layer; where it has several, of the first ``strip`` clips.

    Parameters
    ----------
    top : (images, J) rows of each of the bank's detectors, −1 for none; the first ``strip`` of them may be in its strip. examples : of each class, rows of images predicted as it.
    frames : from a store row to the image, or the frames of the clip, as the network saw them; raises an EDDPError where there are none.
    """
    tiles: dict[int, list[tuple[int, int]]] = {}
    for rank, rows in enumerate(top):
        for j, row in enumerate(rows.tolist()):
            if row >= 0:
                tiles.setdefault(row, []).append((j, rank))
    small: dict[int, list[tuple[int, int]]] = {}
    for k, mine in enumerate(examples):
        for rank, row in enumerate(mine):
            small.setdefault(row, []).append((k, rank))
    several = reader.time > 1
    for place in (folder / "t", folder / "s", shared / "e", *([folder / "f"] if several else [])):
        place.mkdir(parents=True, exist_ok=True)
    wanted = np.array(sorted({*tiles, *small}), np.int64)
    filters, thresholds = bank.filters.cpu(), bank.thresholds.cpu()
    missing: set[int] = set()

    def draw(row: int, x: np.ndarray) -> int:
        try:
            seen = frames(row)
        except EDDPError:
            return row
        if mine := tiles.get(row, []):
            columns = [j for j, _ in mine]
            z = (torch.from_numpy(x).float() @ filters[:, columns] - thresholds[columns]).numpy()
            shrunk = at_steps([square(image, TILE) for image in seen], reader.time)
            for c, (j, rank) in enumerate(mine):
                maps, peak = on_grid(reader, row, z[:, c]), peak_step(reader, row, z[:, c])
                _save(folder / tile_file(j, rank), region_tile(shrunk[peak], maps[peak], TILE))
                if several and rank < strip:
                    steps = shown_steps(reader.time, peak)
                    sheet = contact_sheet([region_tile(shrunk[t], maps[t], FRAME) for t in steps], steps.index(peak))
                    _save(folder / frames_file(j, rank), sheet)
        for k, rank in small.get(row, []):
            _save(shared / example_file(k, rank), square(at_steps(seen, 1)[0], EXAMPLE))
        return -1

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="draw") as pool:
        done = 0
        for rows in _parts(wanted, reader.store.chunk_images):
            blocks = reader.images(rows)
            missing |= {row for row in pool.map(draw, rows.tolist(), blocks) if row >= 0}
            done += len(rows)
            progress("pictures", done, len(wanted))
        shown = [
            [rank for rank, row in enumerate(mine) if row not in missing][:STRIP] for mine in top[:strip].T.tolist()
        ]
        for _ in pool.map(lambda j: _draw_strip(folder, j, shown[j]), range(len(shown))):
            pass
    return missing


def tile_file(direction: int, rank: int) -> str:
    return f"t/{direction:05d}-{rank}.webp"


def frames_file(direction: int, rank: int) -> str:
    return f"f/{direction:05d}-{rank}.webp"


def strip_file(direction: int) -> str:
    return f"s/{direction:05d}.webp"


def example_file(number: int, rank: int) -> str:
    return f"e/{number:04d}-{rank}.webp"


def _parts(rows: np.ndarray, chunk_images: int) -> list[np.ndarray]:
    """Rows in order, a chunk of the store at a time and few at once: a compressed chunk is unpacked a few times at most."""
    parts = []
    for k in np.unique(rows // chunk_images):
        mine = rows[rows // chunk_images == k]
        parts += np.array_split(mine, -(-len(mine) // AT_ONCE))
    return parts


def _draw_strip(folder: Path, direction: int, ranks: Sequence[int]) -> None:
    """The first pictures of a direction that are there, side by side: one file to fetch for a card that shows several."""
    if not ranks:
        return
    strip = Image.new("RGBA", (len(ranks) * (SMALL + GAP) - GAP, SMALL))
    for place, rank in enumerate(ranks):
        with Image.open(folder / tile_file(direction, rank)) as tile:
            strip.paste(tile.resize((SMALL, SMALL), Image.Resampling.BICUBIC), (place * (SMALL + GAP), 0))
    _save(folder / strip_file(direction), strip)


def _save(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=EFFORT)
    path.write_bytes(buffer.getbuffer())
