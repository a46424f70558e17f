"""How the values of each channel are distributed: a quantile sketch, streamed once and cached with the store.

Values are counted in bins of fixed relative width, as in DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable
quantile sketch with relative-error guarantees", VLDB 2019, arXiv:1908.10693). A bin here is a float32's sign, exponent and
first 5 mantissa bits, so that finding it takes a shift. Counts are integers and the bins always the same ones: the sketch of
two parts is the sum of theirs, and neither order, tiles nor device change a digit of it.

**Guarantee.** For finite data, ``quantiles(q)`` differs from the exact order statistic ``x`` that ``np.quantile(...,
method="inverted_cdf")`` gives by at most |x|/64 where 2^-24 ≤ |x| < 2^40, and by less than 2^-24 where |x| < 2^-24 (float16
has no smaller values but 0). Larger values are counted in the outermost bins; minimum and maximum are exact always.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

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
_MAGNITUDES = (torch.arange(_BELOW + 1, _BELOW + MAGNITUDES + 2, dtype=torch.int32) << _SHIFT).view(torch.float32)
EDGES = np.concatenate([-_MAGNITUDES.double().numpy()[::-1], _MAGNITUDES.double().numpy()])
"""(BINS + 1,) float64: bin k is between EDGES[k] and EDGES[k + 1]; the edge nearer to 0 belongs to it."""

ROWS, COLUMNS = 4096, 64  # of a tile: 1 MiB of float32, which stays in a core's cache through all that is done to it
RUNS = 64  # chunks that a quick look takes its images from


class Sketch:
    """The distribution of each of C channels; empty until ``update`` or ``merge``.

    Attributes, all on ``device``: ``counts`` (C, BINS) int64 of finite values, ``minimum`` and ``maximum`` (C,) float32 of
    them (inf and -inf where there are none), ``zeros``, ``nan``, ``infinite`` (C,) int64: how many values are exactly 0, NaN,
    and ±infinity. ``images`` is how many images were looked at.
    """

    def __init__(self, channels: int, device: str | torch.device = "cpu") -> None:
        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.counts = integers(channels, BINS)
        self.zeros, self.nan, self.infinite = integers(channels), integers(channels), integers(channels)
        self.minimum = torch.full((channels,), torch.inf, device=device)
        self.maximum = torch.full((channels,), -torch.inf, device=device)
        self.images = 0

    @property
    def channels(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> torch.Tensor:
        """(C,) int64: values seen, those that are not finite included."""
        return self.counts.sum(1) + self.nan + self.infinite

    def update(self, x: torch.Tensor) -> None:
        """Count the values of ``x`` (n, C), float16, bfloat16 or float32, on any device."""
        x = x.to(self.counts.device)
        for first in range(0, self.channels, COLUMNS):
            columns = slice(first, min(first + COLUMNS, self.channels))
            for rows in x[:, columns].split(ROWS * max(1, COLUMNS // self.channels)):
                if len(rows):
                    self._count(rows, columns)

    def merge(self, other: Sketch) -> None:
        """Add what another sketch of as many channels has seen."""
        device = self.counts.device
        for name in ("counts", "zeros", "nan", "infinite"):
            getattr(self, name).add_(getattr(other, name).to(device))
        self.minimum = torch.minimum(self.minimum, other.minimum.to(device))
        self.maximum = torch.maximum(self.maximum, other.maximum.to(device))
        self.images += other.images

    def pooled(self) -> Sketch:
        """The distribution of all channels' values together: a sketch of one channel."""
        out = Sketch(1, self.counts.device)
        out.counts = self.counts.sum(0, keepdim=True)
        for name in ("zeros", "nan", "infinite"):
            setattr(out, name, getattr(self, name).sum(0, keepdim=True))
        out.minimum, out.maximum = self.minimum.amin(0, keepdim=True), self.maximum.amax(0, keepdim=True)
        out.images = self.images
        return out

    def quantiles(self, q: Sequence[float] | np.ndarray) -> np.ndarray:
        """(len(q), C) float64 estimates of the quantiles ``q`` in [0, 1] of each channel's finite values, NaN without any.

        How near they are to the exact ones is stated at the top of this file; q = 0 and q = 1 are exact.
        """
        q = np.asarray(q, np.float64)
        middle = (EDGES[:-1] + EDGES[1:]) / 2
        low, high = self.minimum.double().cpu().numpy(), self.maximum.double().cpu().numpy()
        out = np.full((len(q), self.channels), np.nan)
        for channel in range(self.channels):  # one at a time: all of them would need the counts' memory once more
            below = self.counts[channel].cumsum(0).cpu().numpy()
            if below[-1]:
                rank = np.clip(np.ceil(below[-1] * q - 1), 0, below[-1] - 1)  # from 0
                out[:, channel] = np.clip(middle[np.searchsorted(below, rank, "right")], low[channel], high[channel])
                out[rank == 0, channel] = low[channel]
                out[rank == below[-1] - 1, channel] = high[channel]
        return out

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sketch as arrays; of the counts only the bins that some channel uses."""
        used = self.counts.any(0).nonzero()[:, 0]
        found = {"bins": used.int(), "counts": self.counts[:, used]}
        found |= {name: getattr(self, name) for name in ("minimum", "maximum", "zeros", "nan", "infinite")}
        return {name: value.cpu().numpy() for name, value in found.items()}

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], *, images: int, channels: int | None = None, device: str = "cpu"
    ) -> Sketch:
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
        out = cls(c, device)
        out.counts[:, torch.from_numpy(bins).long().to(device)] = torch.from_numpy(counts).to(device)
        for name, value in vectors.items():
            setattr(out, name, torch.from_numpy(value).to(device))
        out.images = images
        return out

    def _count(self, rows: torch.Tensor, columns: slice) -> None:
        x = rows.float()
        low, high = x.amin(0), x.amax(0)
        finite = None
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):  # rare: all of the following once more
            finite = torch.isfinite(x)
            self.nan[columns] += torch.isnan(x).sum(0)
            self.infinite[columns] += torch.isinf(x).sum(0)
            low, high = x.where(finite, torch.inf).amin(0), x.where(finite, -torch.inf).amax(0)
            x = x.where(finite, 0.0)
            if not bool(finite.any()):
                return
        self.minimum[columns] = torch.minimum(self.minimum[columns], low)
        self.maximum[columns] = torch.maximum(self.maximum[columns], high)
        if rows.dtype == torch.float16 and finite is None:
            zeros = None  # no other value has their bin
        else:
            zeros = ((x == 0) if finite is None else (x == 0) & finite).sum(0)
        # the tile's own range of bins: so narrow a table stays in the cache, too
        first, last = int(_bins(low[low < torch.inf]).min()), int(_bins(high[high > -torch.inf]).max())
        width = last - first + 1
        index = _bins(x).add_(torch.arange(x.shape[1], dtype=torch.int32, device=x.device) * width - first)
        flat = index.reshape(-1) if finite is None else index[finite]
        table = torch.bincount(flat, minlength=x.shape[1] * width).view(-1, width)
        self.counts[columns, ZERO + first : ZERO + last + 1] += table
        if zeros is None and first <= 0 <= last:
            zeros = table[:, -first]
        if zeros is not None:
            self.zeros[columns] += zeros


def _bins(x: torch.Tensor) -> torch.Tensor:
    """Bin of finite float32 values, int32, counted from the zero bin: negative for negative values."""
    bits = x.view(torch.int32)
    magnitude = ((bits & 0x7FFFFFFF) >> _SHIFT).sub_(_BELOW).clamp_(0, MAGNITUDES)
    sign = bits >> 31  # 0 or -1
    return magnitude.bitwise_xor_(sign).sub_(sign)  # two's complement: negated where the sign is set


def quantile_sketch(
    reader: LayerReader,
    *,
    images: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    cache: bool = True,
) -> Sketch:
    """The sketch of a layer of a store.

    Parameters
    ----------
    images : look at about so many images alone, in up to 64 chunks spread evenly over the store: a quick look, which is
        never cached. None: look at all, and cache the sketch with the store.
    cache : take a sketch of all images from the store where one is cached, also when fewer were asked for.

    NaN and infinite activations are counted, and no error. Raises CorruptStoreError for a chunk that cannot be read.
    """
    file = reader.store.path / "layers" / reader.spec.name / "sketch.safetensors"
    key = {"store": reader.store.fingerprint, "layer": reader.spec.name, "prefix": reader.positions, "version": 1}
    cache = cache and reader.part is None
    if cache and (cached := read_cache(file, key)) is not None:
        try:
            return Sketch.from_arrays(cached[0], channels=reader.channels, images=cached[1]["images"], device=device)
        except (KeyError, ValueError) as error:
            log.warning("Computed again: '%s' holds no sketch of the layer: %s", file, error)
    result = sketch_chunks(
        lambda chunk: _Unread(reader, chunk) if is_remote(reader.store.path) else reader.chunk(chunk)[1],
        range(reader.store.n_chunks),
        reader.channels,
        images=images if images is not None and images < reader.n_images else None,
        device=device,
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
    device: str = "cpu",
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
    sketch = Sketch(channels, device)
    for done, chunk in enumerate(reversed(chosen)):  # the last chunk is a short one: the others make up for it
        block: Any = read(chunk)
        if images is not None:
            quota = -(-(images - sketch.images) // (len(chosen) - done))
            if quota < len(block):
                block = block[(2 * np.arange(quota) + 1) * len(block) // (2 * quota)]
        if len(block):
            block = block[:]
            sketch.update(torch.from_numpy(block).reshape(-1, channels))
            sketch.images += len(block)
        progress("sketch", done + 1, len(chosen))
    return sketch
