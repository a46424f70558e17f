"""What there is to know of an activation store: how it was made, what is in, and how its values are distributed.

An unfinished store can be looked at as well: what is said of it is of the chunks that are committed.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stores.errors import UnsealedStoreError
from stores.format import LayerSpec, read_attributes
from stores.manifest import gaps
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.sketch import EDGES, ZERO, Sketch, quantile_sketch, sketch_chunks
from stores.store import ActivationStore, StoreBase

QUANTILES = {"1": 0.01, "25": 0.25, "50": 0.5, "75": 0.75, "99": 0.99, "99.9": 0.999}
BARS = 14  # of a histogram, at most, and two more for the tails
CROWDED = 0.8  # a linear histogram with so large a share in two of its bars tells little


class Inspection:
    """A store, finished or not, and what can be said of it.

    Raises what ``ActivationStore.open`` raises, but no UnsealedStoreError: of an unfinished store ``missing`` lists the
    chunks that are not there yet, as ranges, first and last each.
    """

    def __init__(self, path: Path) -> None:
        self.sealed: ActivationStore | None = None
        self.missing: list[list[int]] = []
        try:
            self.sealed = ActivationStore.open(path)
            self.store: StoreBase = self.sealed
            self.records = self.sealed.records
        except UnsealedStoreError:
            self.store = StoreBase(path, read_attributes(path))
            self.records = {k: r for k, r in self.store.committed().items() if self.store.is_there(r)}
            self.store.records.update(self.records)
            self.missing = gaps(self.records, self.store.n_chunks)

    @cached_property
    def valid(self) -> np.ndarray:
        """(n,) bool: of the images that are there, those that could be read."""
        return self._column("valid").astype(bool)

    def _column(self, name: str) -> np.ndarray:
        array = self.store.array(f"images/{name}")
        return np.concatenate([np.zeros(0, array.dtype), *array.each(self.records)])

    def facts(self) -> dict[str, Any]:
        """How the store was made and what is in, as values for JSON."""
        made, attributes = self.store.provenance, self.store.attributes
        facts = {
            "model": made.get("model"),
            "weights": made.get("weights_source", made.get("weights")),
            "weights digest": made.get("weights_digest"),
            "dataset": made.get("dataset", {}).get("path", "synthetic"),
            "images": int(self.valid.sum()),
            "skipped": int((~self.valid).sum()),
            "labelled": int((self._column("labels") >= 0).sum()),
            "classes": attributes["n_classes"],
            "dtype": attributes["dtype"],
            "compression": attributes["compress"],
            "chunks": f"{self.store.n_chunks} of {self.store.chunk_images} images",
            "bytes": sum(self._bytes(path) for path in self.store.image_arrays()),
            "sealed": bool(self.sealed),
            "code version": made.get("code_version"),
            "layers": {name: self._layer(name, spec) for name, spec in self.store.layers.items()},
            "at extraction": dict(made.get("about", {}).get("rows", [])),
        }
        if self.sealed is None:
            facts["unfinished"] = self._unfinished()
        return facts

    def _bytes(self, path: str) -> int:
        return sum(record.arrays[path]["bytes"] for record in self.records.values())

    def _largest(self, name: str) -> float:
        return max((record.max_abs[name] for record in self.records.values()), default=math.nan)

    def _layer(self, name: str, spec: LayerSpec) -> str:
        return (
            f"{self.store.n_images} × {spec.positions} × {spec.channels}, grid {spec.shown_grid}"
            + (f", prefix {spec.prefix}" if spec.prefix else "")
            + (f", sampled from {spec.all_positions} positions" if spec.sampled else "")
            + (f", largest |x| {self._largest(name):.4g}" if self.records else "")
            + (", pooled-affine head" if name in self.store.attributes["heads"] else "")
        )

    def _unfinished(self) -> dict[str, Any]:
        """What is missing, as ranges of chunks and of images (first and last), and how to continue."""
        rows, n = self.store.chunk_images, self.store.n_images
        synthetic = self.store.provenance.get("model") == "synthetic"
        return {
            "committed chunks": len(self.records),
            "committed images": sum(record.rows for record in self.records.values()),
            "missing chunks": self.missing,
            "missing images": [[first * rows, min(n, (last + 1) * rows) - 1] for first, last in self.missing],
            "next": f"Run the same {'eddp synthetic' if synthetic else 'extract'} command again: it resumes where it stopped.",
        }

    def values(self, name: str, *, images: int | None, progress: Progress = silent) -> dict[str, Any] | None:
        """How a layer's values are distributed, as values for JSON; None when no chunk is there yet.

        ``images``: look at about so many, spread evenly over the store; None: at all, and keep the sketch with the store.
        The positions of the layer's prefix are left out, as they are in fits.
        """
        spec = self.store.layers[name]
        if not self.records:
            return None

        def shown(stage: str, done: int, total: int | None = None, note: str = "") -> None:
            progress(f"values of {name}", done, total, note)

        if self.sealed is not None:
            sketch = quantile_sketch(LayerReader(self.sealed, name), images=images, progress=shown)
        else:
            sketch = sketch_chunks(
                lambda k: self._committed(name, k), list(self.records), spec.channels, images=images, progress=shown
            )
        found = distribution(sketch)
        return {
            "shape": [self.store.n_images, spec.positions, spec.channels],
            "prefix": spec.prefix if not spec.sampled else 0,
            "bytes": self._bytes(f"layers/{name}/activations"),
            "images": sketch.images,
            "of images": int(self.valid.sum()),
            **found,
            "largest |x| in ledger": _number(self._largest(name)),
            "not finite in ledger": sum(record.nonfinite[name] for record in self.records.values()),
        }

    def _committed(self, name: str, chunk: int) -> np.ndarray:
        spec = self.store.layers[name]
        block = self.store.array(f"layers/{name}/activations").read(chunk)
        valid = self.store.array("images/valid").read(chunk).astype(bool)
        return block[valid, 0 if spec.sampled else spec.prefix :]


def distribution(sketch: Sketch) -> dict[str, Any]:
    """Quantiles, histogram and odd channels of a sketch, as values for JSON: no NaN, but None."""
    pooled, total = sketch.pooled(), sketch.total
    finite = int(pooled.counts.sum())
    never = (sketch.zeros == total) & (total > 0)
    constant = (sketch.minimum == sketch.maximum) & (sketch.nan + sketch.infinite == 0) & ~never & (total > 1)
    return {
        "channels": sketch.channels,
        "values": pooled.total.item(),
        "nan": pooled.nan.item(),
        "infinite": pooled.infinite.item(),
        "channels not finite": _channels(sketch.nan + sketch.infinite > 0),
        "zeros": pooled.zeros.item(),
        "minimum": _number(pooled.minimum.item()),
        "maximum": _number(pooled.maximum.item()),
        "quantiles": {
            name: _number(v)
            for name, v in zip(QUANTILES, pooled.quantiles(list(QUANTILES.values()))[:, 0], strict=True)
        },
        "dead channels": _channels(never),
        "constant channels": _channels(constant),
        "histogram": histogram(pooled) if finite > pooled.zeros.item() else None,
    }


def histogram(sketch: Sketch) -> dict[str, Any]:
    """Counts of the values but exact zeros of a sketch of one channel: ``scale``, ``edges`` (n + 1) and ``counts`` (n).

    The first and the last edge are the smallest and the largest value. All others are edges of the sketch's bins, so the
    counts are exact; and they are round in base 2: multiples of 2^k or 3·2^k, or, where these would crowd most values into
    two bars, powers of two. (Of magnitudes below 2^-24 the sketch knows no sign: at an edge of 0 they count as below.)
    """
    counts = sketch.counts[0].copy()
    counts[ZERO] -= sketch.zeros.item()
    low, high = sketch.minimum.item(), sketch.maximum.item()
    edges, scale = _exact(_linear(counts)), "linear"
    if (
        np.sort(_between(counts, edges))[-2:].sum() > CROWDED * counts.sum()
        and len(powers := _exact(_powers(counts))) > 1
    ):
        edges, scale = powers, "logarithmic"
    edges = edges[(edges > low) & (edges < high)]
    return {
        "scale": scale,
        "edges": [low, *edges.tolist(), high],
        "counts": _between(counts, edges).tolist(),
    }


def _exact(edges: np.ndarray) -> np.ndarray:
    """Of some edges those between two bins of the sketch (the outermost bins hold all that is beyond them), and 0."""
    return edges[(edges == 0) | np.isin(edges, EDGES[1:-1])]


def _linear(counts: np.ndarray) -> np.ndarray:
    """At most BARS + 1 multiples of 2^k or 3·2^k round all but a thousandth of the values on either side."""
    low, high = _bulk(counts)
    a, b = float(EDGES[low]), float(EDGES[high + 1])
    k = math.floor(math.log2((b - a) / BARS)) - 1
    while True:
        for step, unit in ((2.0**k, 2.0**k), (1.5 * 2.0**k, 0.5 * 2.0**k)):
            first, last = math.floor(a / step), math.ceil(b / step)
            # multiples up to 64 of a power of two have no more mantissa bits than the sketch
            if last - first <= BARS and max(abs(first), abs(last)) * step <= 64 * unit:
                return step * np.arange(first, last + 1)
        k += 1


def _powers(counts: np.ndarray) -> np.ndarray:
    """At most BARS + 1 edges ±2^k, for an even spacing of k, round all but a thousandth of the magnitudes."""
    positive, negative = counts[ZERO + 1 :], counts[:ZERO][::-1]
    magnitudes = positive + negative
    if not magnitudes.any():
        return np.zeros(0)
    low, high = (k + ZERO + 1 for k in _bulk(magnitudes))
    first, last = math.floor(math.log2(EDGES[low])), math.ceil(math.log2(EDGES[high + 1]))
    sides = bool(positive.any()) + bool(negative.any())
    step = max(1, math.ceil((last - first) * sides / (BARS - 1)))
    edges = np.exp2(np.arange(first, last + 1, step, dtype=np.float64))
    return np.concatenate([-edges[::-1] if negative.any() else edges[:0], edges if positive.any() else edges[:0]])


def _bulk(counts: np.ndarray) -> tuple[int, int]:
    """First and last bin of all but a thousandth of the values at either end."""
    below = counts.cumsum()
    low, high = np.searchsorted(below, [0.001 * below[-1], 0.999 * below[-1]], "right")
    return int(low), int(min(high, np.flatnonzero(counts)[-1]))


def _between(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n + 1,) values below, between and above n edges, each of which is an edge of the sketch."""
    below = np.concatenate([[0], counts.cumsum()])
    at = below[np.searchsorted(EDGES, edges)]  # for 0 that is the upper edge of the zero bin
    return np.diff(np.concatenate([[0], at, below[-1:]]))


def _channels(mask: np.ndarray) -> list[int]:
    return [int(channel) for channel in np.flatnonzero(mask)]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
