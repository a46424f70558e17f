"""Embeddings of what detectors fire on, in memory that does not grow with their number: they are on the disk, and some are read at a time.

They are also stored with the store, in files of ``PART`` crops with a digest each, so that a stopped run resumes and another one need not embed
them again. None is of another encoder, store or cut.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.image_crops import BLUR, LARGEST, MARGIN, crop_picture
from evaluate.image_tiles import at_steps
from extract.image_text import ImageTextEncoder
from stores.attachments import read_cache, write_cache
from stores.errors import EDDPError, ImageError, StoreError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader

log = logging.getLogger(__name__)
BATCH = 64  # pictures at a time
AHEAD = 256  # crops that are cut ahead of the encoder, and those of one image
PART = 4096  # crops in a file
SPARE = 16  # files beyond twice what a run needs, before they are written anew; and as many of other encoders
STAGE = "embeddings"

Frames = Callable[[int], Sequence[Image.Image]]


class Embeddings:
    """Embeddings (D,) float32 of U crops, in a temporary file. ``known`` : (U,) bool, False for images that cannot be read."""

    def __init__(self, count: int) -> None:
        self.width = 0
        self._slot = np.full(count, -1)  # where in the file
        self._written = 0
        with _writing():
            self._file = tempfile.TemporaryFile(prefix="eddp-", buffering=0)  # noqa: SIM115 (closed with the last reference)
        weakref.finalize(self, self._file.close)

    @property
    def known(self) -> np.ndarray:
        return self._slot >= 0

    def add(self, crops: np.ndarray, values: np.ndarray) -> None:
        """Of the crops (n,) the embeddings (n, D). Raises StoreError where the disk is full, UsageError for another D than before."""
        self.width = self.width or values.shape[1]
        if not 0 < values.shape[1] == self.width:
            raise UsageError(
                f"The encoder gave {values.shape[1]} numbers for an image, and {self.width} before. Where it was changed, delete the folder 'crops' of the store's layer."
            )
        data = memoryview(np.asarray(values, np.float32).tobytes())
        with _writing():
            while data:
                data = data[self._file.write(data) :]
        self._slot[crops] = self._written + np.arange(len(values))
        self._written += len(values)

    def __getitem__(self, crops: np.ndarray) -> np.ndarray:
        """(n, D) of those of the crops that are known, in their order."""
        slots = self._slot[crops]
        if not self._written:
            return np.empty((0, self.width), np.float32)
        # mapped anew each time: pages of a map that stays would count as memory
        mapped = np.memmap(self._file, np.float32, "r", shape=(self._written, self.width))
        return np.asarray(mapped[slots[slots >= 0]])


def embed_crops(
    reader: LayerReader,
    places: np.ndarray,
    frames: Frames,
    encoder: ImageTextEncoder,
    images: str,
    progress: Progress = silent,
) -> Embeddings:
    """Embeddings of the crops at ``places`` (U, 6), sorted, each image read once; those that an earlier run made are read from the store.

    ``frames`` : from a row to the image, or the frames of the clip, as the network saw them. ``images`` : digest of the images' source. Images
    that cannot be read are not known, and a warning counts them; raises ImageError where none can.
    """
    key = {
        "store": reader.store.fingerprint, "layer": reader.spec.name, "images": images, "encoder": encoder.digest,
        "crops": [MARGIN, LARGEST, BLUR, *reader.grid], "version": 2,
    }  # fmt: skip
    prefix, folder = _hash(json.dumps(key, sort_keys=True).encode()), layer_folder(reader) / "crops"
    found, asked = Embeddings(len(places)), _rows(places)
    own: list[Path] = []
    other: list[Path] = []
    useless: list[Path] = []
    for file in sorted(folder.glob("*.safetensors"), key=lambda one: one.name):
        if not file.name.startswith(prefix):
            other.append(file)
            continue
        theirs, embeddings = _sound(read_cache(file, key))
        (own if len(theirs) else useless).append(file)
        _, at, of = np.intersect1d(asked, _rows(theirs), return_indices=True)
        fresh = ~found.known[at]
        if fresh.any():
            found.add(at[fresh], embeddings[of[fresh]])

    def keep(crops: np.ndarray) -> str:
        name = f"{prefix}-{_hash(places[crops].tobytes())}.safetensors"
        write_cache(folder / name, key, {"places": places[crops], "embeddings": found[crops]}, {})
        return name

    wanted, waiting = np.flatnonzero(~found.known), np.empty(0, np.int64)
    try:
        for read, made in _embedded(reader, places[wanted], frames, encoder, progress):
            found.add(wanted[read], made)
            waiting = np.concatenate([waiting, wanted[read]])
            if len(waiting) >= PART:
                keep(waiting)
                waiting = waiting[:0]
    finally:
        if len(waiting):
            keep(waiting)
    known = np.flatnonzero(found.known)
    if not len(known):
        raise ImageError(
            f"None of the images of '{reader.store.path}' can be read any more. Put them back where they were."
        )
    parts = -(-len(known) // PART)
    if len(own) > 2 * parts + SPARE:
        written = {keep(part) for part in np.array_split(known, parts)}
        useless += [file for file in own if file.name not in written]
    for file in (*useless, *other[SPARE:]):
        with suppress(OSError, StoreError):
            file.unlink(missing_ok=True)
    return found


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Embeddings cannot be written to a temporary file ({error.strerror}). Free some space in '{tempfile.gettempdir()}', or set TMPDIR to another folder."
        ) from error


def layer_folder(reader: LayerReader) -> Path:
    """Where embeddings are stored, next to a layer's activations."""
    return reader.store.path / "layers" / reader.spec.name


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _rows(places: np.ndarray) -> np.ndarray:
    """(U,) each row (U, 6) as one value, in the rows' order."""
    return np.ascontiguousarray(places, np.int64).view([(f"{k}", np.int64) for k in range(6)])[:, 0]


def _sound(cached: tuple[dict[str, np.ndarray], object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Places and embeddings of a part, none where they do not go together."""
    places, embeddings = (cached[0].get(name) for name in ("places", "embeddings")) if cached else (None, None)
    if places is None or embeddings is None or embeddings.ndim != 2 or places.shape != (len(embeddings), 6):
        return np.empty((0, 6), np.int64), np.empty((0, 0), np.float32)
    return places, embeddings


def _embedded(
    reader: LayerReader, places: np.ndarray, frames: Frames, encoder: ImageTextEncoder, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some of the places, sorted, at a time: which, of images that can be read, and the embeddings of their crops. Pictures are read and cut in threads."""

    def cut(mine: np.ndarray) -> list[Image.Image] | EDDPError:
        try:
            seen = at_steps(frames(int(mine[0, 0])), reader.time)
        except EDDPError as error:
            return error
        return [crop_picture(seen[place[1]], place[2:], reader.grid) for place in map(tuple, mine.tolist())]

    rows, starts = np.unique(places[:, 0], return_index=True)
    by_row = np.split(np.arange(len(places)), starts[1:])
    which: list[int] = []
    pictures: list[Image.Image] = []
    missing: list[EDDPError] = []
    done = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="crop") as pool:
        ends = np.flatnonzero(np.diff(starts // AHEAD)) + 1
        for first, last in pairwise([0, *ends.tolist(), len(rows)]):
            some = by_row[first:last]
            for mine, cuts in zip(some, pool.map(cut, [places[k] for k in some]), strict=True):
                if isinstance(cuts, EDDPError):
                    missing.append(cuts)
                    continue
                which += mine.tolist()
                pictures += cuts
                while len(pictures) >= BATCH:
                    yield np.array(which[:BATCH]), encoder.images(pictures[:BATCH])
                    which, pictures, done = which[BATCH:], pictures[BATCH:], done + BATCH
                    progress(STAGE, done, len(places))
        if pictures:
            yield np.array(which), encoder.images(pictures)
        if len(places):
            progress(STAGE, len(places), len(places))
    if missing:
        log.warning(
            "%d of %d images cannot be read, and are left out of what directions fire on. The first: %s",
            len(missing),
            len(rows),
            missing[0],
        )
