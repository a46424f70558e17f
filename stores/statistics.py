"""Mean and covariance of a layer, streamed once and kept with the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stores.derived import keep_cache, read_cache
from stores.errors import NonFiniteError
from stores.progress import Progress, silent
from stores.readers import LayerReader

TILE = 8192  # rows per product: float32 is exact enough within a tile, float64 carries the sums


@dataclass(frozen=True)
class Statistics:
    """First and second moments over all N·P activation vectors: ``mean`` (C,), ``covariance`` (C, C), float64."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def statistics(
    reader: LayerReader, *, device: str = "cpu", progress: Progress = silent, cache: bool = True
) -> Statistics:
    """The layer's mean and covariance, read from the store if they are kept there, computed and kept otherwise.

    Raises NonFiniteError naming the first image with a NaN or infinite activation.
    """
    folder = reader.store.path / "layers" / reader.spec.name / "statistics"
    key = {"store": reader.store.fingerprint, "layer": reader.spec.name, "prefix": reader.positions, "version": 1}
    cache = cache and reader.part is None  # what is kept with a store is about all of it
    if cache and (kept := read_cache(folder, key)) is not None and (found := _sound(*kept, reader.channels)):
        return found
    result = compute(reader, device=device, progress=progress)
    if cache:
        keep_cache(folder, key, {"mean": result.mean, "covariance": result.covariance}, {"count": result.count})
    return result


def _sound(arrays: dict[str, np.ndarray], attributes: dict[str, Any], channels: int) -> Statistics | None:
    """What was kept, or None where it is whole but makes no sense: then it is another's, and computed anew."""
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


def compute(reader: LayerReader, *, device: str = "cpu", progress: Progress = silent) -> Statistics:
    """Stream all activations once: ``mean = E[x]``, ``covariance = E[(x-mean)(x-mean)ᵀ]``.

    Sums are taken about the first block's mean, so that a large common offset costs no digits.
    """
    c = reader.channels
    shift: torch.Tensor | None = None
    total = torch.zeros(c, dtype=torch.float64)
    outer = torch.zeros(c, c, dtype=torch.float64)
    count, done = 0, 0
    for index, block in reader.blocks(images=max(1, TILE // reader.positions)):
        if not len(index):
            continue
        x = torch.from_numpy(block).to(device).float().reshape(-1, c)
        if shift is None:
            shift = x.mean(0)
        x = x - shift
        sums = x.sum(0).double().cpu()
        if not bool(torch.isfinite(sums).all()):
            _name_the_image(reader, index, block)
        total += sums
        outer += (x.T @ x).double().cpu()
        count += len(x)
        done += len(index)
        progress("statistics", done, reader.n_images)
    if shift is None or count == 0:
        raise NonFiniteError(f"The store '{reader.store.path}' holds no readable image, so it has no statistics.")
    offset = total / count
    covariance = outer / count - torch.outer(offset, offset)
    mean = shift.double().cpu() + offset
    if not bool(torch.isfinite(covariance).all()):
        raise NonFiniteError(
            f"The activations of layer '{reader.spec.name}' in '{reader.store.path}' are too large: their covariance "
            "overflows float32. Look at the model's weights."
        )
    return Statistics(mean.numpy(), ((covariance + covariance.T) / 2).numpy(), count)


def _name_the_image(reader: LayerReader, index: np.ndarray, block: np.ndarray) -> None:
    finite = np.isfinite(block.astype(np.float32)).all(axis=(1, 2))
    if finite.all():
        return
    bad = int(index[~finite][0])
    raise NonFiniteError(
        f"Layer '{reader.spec.name}' of the store '{reader.store.path}' holds NaN or infinite activations, first for image "
        f"'{reader.store.names[bad]}'. Extract again with --dtype float32, and look at that image and the model."
    )
