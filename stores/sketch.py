"""How the values of each channel are distributed: a quantile sketch, streamed once and cached with the store.

Values are counted in bins of fixed relative width, as in DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable
quantile sketch with relative-error guarantees", VLDB 2019, arXiv:1908.10693). A bin here is a float32's sign, exponent and
first 5 mantissa bits, so that finding it takes a shift. Counts are integers and the bins always the same ones: the sketch of
two parts is the sum of theirs, and neither order nor tiles change a digit of it.

**Guarantee.** For finite data, ``quantiles(q)`` differs from the exact order statistic ``x`` that ``np.quantile(...,
method="inverted_cdf")`` gives by at most |x|/64 where 2^-24 ≤ |x| < 2^40, and by less than 2^-24 where |x| < 2^-24 (float16
has no smaller values but 0). Larger values are counted in the outermost bins; minimum and maximum are exact always.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from stores.attachments import read_cache, write_cache
from stores.paths import is_remote
from stores.progress import Progress, silent
from stores.readers import LayerReader

log = logging.getLogger(__name__)

MANTISSA_BITS = 5
LOWEST, HIGHEST = -24, 40  # magnitudes from 2^-24 up to below 2^40 have bins: 64 octaves of 32
MAGNITUDES = (HIGHEST - LOWEST) << MANTISSA_BITS
ZERO = MAGNITUDES  # the bin in the middle: magnitudes below 2^-24
BINS = 2 * MAGNITUDES + 1
_SHIFT = 23 - MANTISSA_BITS
_BELOW = ((LOWEST + 127) << MANTISSA_BITS) - 1  # what shifted bits of magnitudes below 2^-24 do not exceed
_MAGNITUDES = (np.arange(_BELOW + 1, _BELOW + MAGNITUDES + 2, dtype=np.int32) << _SHIFT).view(np.float32).astype(float)
EDGES = np.concatenate([-_MAGNITUDES[::-1], _MAGNITUDES])
"""(BINS + 1,) float64: bin k is between EDGES[k] and EDGES[k + 1]; the edge nearer to 0 belongs to it."""

ROWS, COLUMNS = 4096, 64  # of a tile: 1 MiB of float32, which stays in a core's cache through all that is done to it
RUNS = 64  # chunks that a quick look takes its images from


class Sketch:
    """The distribution of each of C channels; empty until ``update`` or ``merge``.

    Attributes: ``counts`` (C, BINS) int64 of finite values, ``minimum`` and ``maximum`` (C,) float32 of them (inf and -inf
    where there are none), ``zeros``, ``nan``, ``infinite`` (C,) int64: how many values are exactly 0, NaN, and ±infinity.
    ``images`` is how many images were looked at.
    """

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, BINS), np.int64)
        self.zeros, self.nan, self.infinite = np.zeros((3, channels), np.int64)
        self.minimum = np.full(channels, np.inf, np.float32)
        self.maximum = np.full(channels, -np.inf, np.float32)
        self.images = 0

    @property
    def channels(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> np.ndarray:
        """(C,) int64: values seen, those that are not finite included."""
        return np.asarray(self.counts.sum(1) + self.nan + self.infinite)

    def update(self, x: np.ndarray) -> None:
        """Count the values of ``x`` (n, C), float16 or float32."""
        step = ROWS * max(1, COLUMNS // self.channels)
        for first in range(0, self.channels, COLUMNS):
            columns = slice(first, min(first + COLUMNS, self.channels))
            for start in range(0, len(x), step):
                self._count(x[start : start + step, columns], columns)

    def merge(self, other: Sketch) -> None:
        """Add what another sketch of as many channels has seen."""
        for name in ("counts", "zeros", "nan", "infinite"):
            getattr(self, name)[...] += getattr(other, name)
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.images += other.images

    def pooled(self) -> Sketch:
        """The distribution of all channels' values together: a sketch of one channel."""
        out = Sketch(1)
        for name in ("counts", "zeros", "nan", "infinite"):
            setattr(out, name, getattr(self, name).sum(0, keepdims=True))
        out.minimum, out.maximum = self.minimum.min(keepdims=True), self.maximum.max(keepdims=True)
        out.images = self.images
        return out

    def quantiles(self, q: Sequence[float] | np.ndarray) -> np.ndarray:
        """(len(q), C) float64 estimates of the quantiles ``q`` in [0, 1] of each channel's finite values, NaN without any.

        How near they are to the exact ones is stated at the top of this file; q = 0 and q = 1 are exact.
        """
        q = np.asarray(q, np.float64)
        middle = (EDGES[:-1] + EDGES[1:]) / 2
        low, high = self.minimum.astype(float), self.maximum.astype(float)
        out = np.full((len(q), self.channels), np.nan)
        for channel in range(self.channels):  # one at a time: all of them would need the counts' memory once more
            below = self.counts[channel].cumsum()
            if below[-1]:
                rank = np.clip(np.ceil(below[-1] * q - 1), 0, below[-1] - 1)  # from 0
                out[:, channel] = np.clip(middle[np.searchsorted(below, rank, "right")], low[channel], high[channel])
                out[rank == 0, channel] = low[channel]
                out[rank == below[-1] - 1, channel] = high[channel]
        return out

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sketch as arrays; of the counts only the bins that some channel uses."""
        used = np.flatnonzero(self.counts.any(0))
        found: dict[str, np.ndarray] = {"bins": used.astype(np.int32), "counts": self.counts[:, used]}
        return found | {name: getattr(self, name) for name in ("minimum", "maximum", "zeros", "nan", "infinite")}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], *, images: int, channels: int | None = None) -> Sketch:
        """The sketch that ``to_arrays`` was called on. Raises KeyError or ValueError where there was none of ``channels``."""
        c = len(arrays["minimum"]) if channels is None else channels
        bins, counts = arrays["bins"], arrays["counts"]
        vectors = {name: arrays[name] for name in ("minimum", "maximum", "zeros", "nan", "infinite")}
        kinds = {"minimum": "float32", "maximum": "float32"}
        if (
            any(v.shape != (c,) or v.dtype != kinds.get(name, "int64") for name, v in vectors.items())
            or (bins.dtype, counts.dtype) != (np.int32, np.int64)
            or counts.shape != (c, *bins.shape)
            or bins.ndim != 1
            or (bins.size and not 0 <= bins.min() <= bins.max() < BINS)
            or min(counts.min(initial=0), *(vectors[name].min(initial=0) for name in ("zeros", "nan", "infinite"))) < 0
            or type(images) is not int
            or images < 0
        ):
            raise ValueError("shapes, kinds or values are none of a sketch")
        out = cls(c)
        out.counts[:, bins] = counts
        for name, value in vectors.items():
            setattr(out, name, value)
        out.images = images
        return out

    def _count(self, x: np.ndarray, columns: slice) -> None:
        low, high = _extremes(x)
        finite = None
        if not (np.isfinite(low) & np.isfinite(high)).all():  # rare: all of the following once more
            x = x.astype(np.float32)
            finite = np.isfinite(x)
            self.nan[columns] += np.isnan(x).sum(0)
            self.infinite[columns] += np.isinf(x).sum(0)
            if not finite.any():
                return
            low, high = x.min(0, where=finite, initial=np.inf), x.max(0, where=finite, initial=-np.inf)
            x[~finite] = 0
        self.minimum[columns] = np.minimum(self.minimum[columns], low)
        self.maximum[columns] = np.maximum(self.maximum[columns], high)
        # the tile's own range of bins: so narrow a table stays in the cache, too
        first, last = int(_bins(low[low < np.inf]).min()), int(_bins(high[high > -np.inf]).max())
        width = last - first + 1
        index = _bins(x)
        index += np.arange(x.shape[1], dtype=np.int32) * width - first
        flat = index.ravel() if finite is None else index[finite]
        table = np.bincount(flat, minlength=x.shape[1] * width).reshape(-1, width)
        self.counts[columns, ZERO + first : ZERO + last + 1] += table
        if x.dtype != np.float16:
            self.zeros[columns] += ((x == 0) if finite is None else (x == 0) & finite).sum(0)
        elif first <= 0 <= last:  # no other value has their bin
            self.zeros[columns] += table[:, -first]


def _extremes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value (C,) float32 of each column; NaN or infinite where one of its values is.

    float16 is compared as integers, which processors do many at a time: the bits of a negative number, all but its sign,
    are inverted, so that the order is that of the numbers.
    """
    if x.dtype != np.float16:
        return x.min(0) + 0, x.max(0) + 0  # + 0: no -0
    bits = x.view(np.int16)
    order = bits ^ ((bits >> 15) & 0x7FFF)
    low, high = (bits ^ ((bits >> 15) & 0x7FFF) for bits in (order.min(0), order.max(0)))
    return low.view(np.float16).astype(np.float32) + 0, high.view(np.float16).astype(np.float32) + 0


def _bins(x: np.ndarray) -> np.ndarray:
    """Bin of finite values, int32, counted from the zero bin: negative for negative values."""
    if x.dtype == np.float16:
        return np.asarray(_of_float16()[x.view(np.uint16)])
    bits = x.view(np.int32)
    magnitude = bits & 0x7FFFFFFF
    magnitude >>= _SHIFT
    magnitude -= _BELOW
    np.clip(magnitude, 0, MAGNITUDES, out=magnitude)
    sign = bits >> 31  # 0 or -1
    magnitude ^= sign
    magnitude -= sign  # two's complement: negated where the sign is set
    return np.asarray(magnitude)


@cache
def _of_float16() -> np.ndarray:
    """(65536,) the bin of each float16, by its bits; a look-up is faster than a conversion."""
    with np.errstate(invalid="ignore"):
        return _bins(np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32))


def quantile_sketch(
    reader: LayerReader,
    *,
    images: int | None = None,
    progress: Progress = silent,
    cache: bool = True,
) -> Sketch:
    """The sketch of a layer of a store.

    Parameters
    ----------
    images : look only at about so many images, in up to 64 chunks spread evenly over the store: a quick look, which is
        never cached. None: look at all, and cache the sketch with the store.
    cache : take a sketch of all images from the store where one is cached, also when fewer were asked for.

    NaN and infinite activations are counted, and no error. Raises CorruptStoreError for a chunk that cannot be read.
    """
    file = reader.store.path / "layers" / reader.spec.name / "sketch.safetensors"
    key = {"store": reader.store.fingerprint, "layer": reader.spec.name, "prefix": reader.positions, "version": 1}
    cache = cache and reader.part is None
    if cache and (cached := read_cache(file, key)) is not None:
        try:
            return Sketch.from_arrays(cached[0], channels=reader.channels, images=cached[1]["images"])
        except (KeyError, ValueError) as error:
            log.warning("Computed again: '%s' holds no sketch of the layer: %s", file, error)
    result = sketch_chunks(
        lambda chunk: _Unread(reader, chunk) if is_remote(reader.store.path) else reader.chunk(chunk)[1],
        range(reader.store.n_chunks),
        reader.channels,
        images=images if images is not None and images < reader.n_images else None,
        progress=progress,
    )
    if cache and images is None:
        write_cache(file, key, result.to_arrays(), {"images": result.images})
    return result


class _Unread:
    """A remote chunk's readable images, of which those are fetched that are chosen."""

    def __init__(self, reader: LayerReader, chunk: int) -> None:
        size = reader.store.chunk_images
        start, stop = np.searchsorted(reader.image_indices, [chunk * size, (chunk + 1) * size])
        self.reader, self.images = reader, reader.image_indices[start:stop]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        return self.reader.images(self.images[chosen])


def sketch_chunks(
    read: Callable[[int], Any],
    chunks: Sequence[int],
    channels: int,
    *,
    images: int | None = None,
    progress: Progress = silent,
) -> Sketch:
    """The sketch of the activations (n, P, C) that ``read`` gives for each of ``chunks``: an array, or what is one once indexed.

    With ``images``, of about so many images: as many from each of up to 64 chunks, evenly spread. Neighbours in a store are
    often of one class, so a few complete chunks would show a few classes.
    """
    chosen = list(chunks)
    if images is not None:
        runs = min(len(chunks), RUNS, images)
        chosen = [chunks[(2 * k + 1) * len(chunks) // (2 * runs)] for k in range(runs)]
    sketch = Sketch(channels)
    for done, chunk in enumerate(reversed(chosen)):  # the last chunk is a short one: the others make up for it
        block: Any = read(chunk)
        if images is not None:
            quota = -(-(images - sketch.images) // (len(chosen) - done))
            if quota < len(block):
                block = block[(2 * np.arange(quota) + 1) * len(block) // (2 * quota)]
        if len(block):
            block = block[:]
            sketch.update(block.reshape(-1, channels))
            sketch.images += len(block)
        progress("sketch", done + 1, len(chosen))
    return sketch
