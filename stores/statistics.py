"""Mean and covariance of a layer, streamed once and cached with the store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from stores.attachments import read_cache, write_cache
from stores.errors import NonFiniteError
from stores.progress import Progress, silent
from stores.ranks import ALONE, Ranks, part_of
from stores.readers import LayerReader

TILE = 8192  # rows per product: float32 is exact enough within a tile, float64 carries the sums


@dataclass(frozen=True)
class Statistics:
    """First and second moments over all N·P activation vectors: ``mean`` (C,), ``covariance`` (C, C), float64."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @cached_property
    def root(self) -> np.ndarray:
        """(C, C) R with ``RᵀR = Σ``: the cosine of ``R w`` and ``R v`` is the correlation of their logits."""
        values, vectors = np.linalg.eigh(self.covariance)
        floor = values[-1] * np.finfo(np.float32).eps  # below: rounding of the sums, no variance
        return np.asarray((vectors * np.sqrt(np.where(values > floor, values, 0))).T)


def statistics(
    reader: LayerReader,
    *,
    device: str = "cpu",
    progress: Progress = silent,
    cache: bool = True,
    ranks: Ranks = ALONE,
) -> Statistics:
    """The layer's mean and covariance: from the cache in the store, else computed and cached.

    Of several ranks each reads its part; only rank 0 reads and writes the cache. Raises NonFiniteError naming the
    first image (of the rank's part) with a NaN or infinite activation.
    """
    file = reader.store.path / "layers" / reader.spec.name / "statistics.safetensors"
    key = {"store": reader.store.fingerprint, "layer": reader.spec.name, "prefix": reader.positions, "version": 1}
    cache = cache and reader.part is None  # which is about all images
    found: Statistics | None = None
    if cache and ranks.rank == 0 and (cached := read_cache(file, key)) is not None:
        found = _sound(*cached, reader.channels)
    if ranks.size > 1:  # on a shared disk the others may see it or not
        given = None if found is None else {"mean": found.mean, "covariance": found.covariance, "count": found.count}
        shared = ranks.share({name: torch.as_tensor(value) for name, value in (given or {}).items()})
        found = (
            Statistics(shared["mean"].numpy(), shared["covariance"].numpy(), int(shared["count"])) if shared else None
        )
    if found is not None:
        return found
    result = compute(reader, device=device, progress=progress, ranks=ranks)
    if cache and ranks.rank == 0:
        write_cache(file, key, {"mean": result.mean, "covariance": result.covariance}, {"count": result.count})
    return result


def _sound(arrays: dict[str, np.ndarray], attributes: dict[str, Any], channels: int) -> Statistics | None:
    """The cached statistics, or None where they are not of this layer: then they are computed again."""
    mean, covariance, count = arrays.get("mean"), arrays.get("covariance"), attributes.get("count")
    if mean is None or covariance is None or not isinstance(count, int) or count < 1:
        return None
    if (
        mean.shape != (channels,)
        or covariance.shape != (channels, channels)
        or {mean.dtype, covariance.dtype} != {np.dtype("f8")}
    ):
        return None
    return Statistics(mean, covariance, count)


def compute(
    reader: LayerReader, *, device: str = "cpu", progress: Progress = silent, ranks: Ranks = ALONE
) -> Statistics:
    """Stream all activations once: ``mean = E[x]``, ``covariance = E[(x-mean)(x-mean)ᵀ]``.

    Sums are taken about the first block's mean, so that a large common offset costs no digits. Of several ranks each takes
    the blocks that begin in its part of the images: the blocks are those of one process, and their float64 sums, too, but
    for the order of addition.
    """
    c = reader.channels
    if reader.n_images == 0:
        raise NonFiniteError(f"The store '{reader.store.path}' holds no readable image, so it has no statistics.")
    images, own = max(1, TILE // reader.positions), part_of(reader.n_images, ranks)
    shift = torch.zeros(c, device=device)
    if ranks.rank == 0:
        _, block = next(reader.blocks(images, of=range(1)))
        shift = torch.from_numpy(block).to(device).float().reshape(-1, c).mean(0)
    ranks.sum(shift)
    total = torch.zeros(c, dtype=torch.float64)
    outer = torch.zeros(c, c, dtype=torch.float64)
    count, done = torch.zeros((), dtype=torch.float64), 0
    for index, block in reader.blocks(images, of=own):
        if np.searchsorted(reader.image_indices, index[0]) < own.start:
            continue  # it began in the part of the rank before
        x = torch.from_numpy(block).to(device).float().reshape(-1, c) - shift
        sums = x.sum(0).double().cpu()
        if not bool(torch.isfinite(sums).all()):
            _name_the_image(reader, index, block)
        total += sums
        outer += (x.T @ x).double().cpu()
        count += len(x)
        done += len(index)
        progress("statistics", min(done, len(own)), len(own))
    ranks.sum(total, outer, count)
    offset = total / count
    covariance = outer / count - torch.outer(offset, offset)
    mean = shift.double().cpu() + offset
    if not bool(torch.isfinite(covariance).all()):
        raise NonFiniteError(
            f"The activations of layer '{reader.spec.name}' in '{reader.store.path}' are too large: their covariance "
            "overflows float32. Look at the model's weights."
        )
    return Statistics(mean.numpy(), ((covariance + covariance.T) / 2).numpy(), int(count))


def _name_the_image(reader: LayerReader, index: np.ndarray, block: np.ndarray) -> None:
    finite = np.isfinite(block.astype(np.float32)).all(axis=(1, 2))
    if finite.all():
        return
    bad = int(index[~finite][0])
    raise NonFiniteError(
        f"Layer '{reader.spec.name}' of the store '{reader.store.path}' holds NaN or infinite activations, first for image "
        f"'{reader.store.names[bad]}'. Extract again with --dtype float32, and look at that image and the model."
    )
