"""Whitened coordinates ``y = T (x − μ)``: the space in which directions are clustered and refined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from extract.memory import is_out_of_memory
from stores.errors import FitError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.statistics import Statistics


@dataclass(frozen=True)
class Whitening:
    """T (r, C), its pseudo-inverse T⁺ (C, r) and μ (C,), float32; ``kept`` is the share of the variance in the r axes."""

    forward: torch.Tensor
    backward: torch.Tensor
    mean: torch.Tensor
    kept: float

    @property
    def rank(self) -> int:
        return int(self.forward.shape[0])

    def to(self, device: str) -> Whitening:
        return Whitening(self.forward.to(device), self.backward.to(device), self.mean.to(device), self.kept)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(…, C) activations -> (…, r) whitened coordinates, float32."""
        return (x.float() - self.mean) @ self.forward.T


def whitening(statistics: Statistics, *, rank: int, shrinkage: float = 0.0, whiten: bool = True) -> Whitening:
    """Truncated inverse square root of the covariance: ``T = (Λ + εI)^{-1/2} Vᵀ`` of the ``rank`` largest eigenvalues.

    With ``whiten`` False all kept axes are divided by one number instead, so that their mean variance is 1: centred
    activations, rotated. It is there to show what whitening is worth.

    Parameters
    ----------
    rank : axes to keep at most; axes without variance (below 1e-7 of the largest eigenvalue) are never kept.
    shrinkage : ε as a multiple of the kept eigenvalues' mean: damps axes of little variance.

    Raises FitError when the activations do not vary at all.
    """
    values, vectors = np.linalg.eigh(statistics.covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    scale = float(np.abs(statistics.mean).max()) ** 2 + float(max(values[0], 0))
    if values[0] <= 1e-12 * max(scale, 1e-30):
        raise FitError(
            "The activations do not vary: every position of every image has the same vector, so there is nothing to "
            "find. Look at the layer and the images with `eddp inspect`."
        )
    keep = int(min(rank, (values > 1e-7 * values[0]).sum()))
    kept, axes = values[:keep], vectors[:, :keep]
    # an eigenvector's sign is arbitrary and differs between LAPACKs: fix it, so that fits are the same everywhere
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(keep)])
    deviation = np.sqrt(kept + shrinkage * kept.mean())
    if not whiten:
        deviation = np.full_like(deviation, np.sqrt(kept.mean()))
    return Whitening(
        forward=torch.from_numpy(np.ascontiguousarray((axes / deviation).T, np.float32)),
        backward=torch.from_numpy(np.ascontiguousarray(axes * deviation, np.float32)),
        mean=torch.from_numpy(np.ascontiguousarray(statistics.mean, np.float32)),
        kept=float(kept.sum() / values.clip(0).sum()),
    )


@dataclass(frozen=True)
class WhitenedRows:
    """The data of a fit: ``rows`` (m, r) whitened vectors, and ``pooled`` (n, r), each image's mean over positions."""

    rows: torch.Tensor
    pooled: torch.Tensor
    images: np.ndarray


def whiten_store(
    reader: LayerReader,
    transform: Whitening,
    *,
    max_rows: int,
    seed: int,
    device: str,
    pooled: bool = True,
    progress: Progress = silent,
) -> WhitenedRows:
    """Read the layer once and keep its whitened coordinates: r numbers a position instead of C.

    At most ``max_rows`` positions are kept (a seeded sample of all positions); pooled vectors are those of all images, if they are wanted.
    """
    total, r = reader.n_rows, transform.rank
    take = min(total, max_rows)
    chosen = None
    if take < total:
        chosen = np.sort(np.random.default_rng([seed, 0x77]).choice(total, take, replace=False))
    transform = transform.to(device)
    try:
        rows = torch.empty(take, r, device=device)
        means = torch.empty(reader.n_images if pooled else 0, r, device=device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise FitError(
            f"Memory does not take {take} positions of {r} numbers ({4 * take * r / 2**30:.1f} GiB): use fewer with "
            f"--set max_rows={take // 4}, or read them from the store at every step with --set rows=store."
        ) from error
    done, images, filled = 0, 0, 0
    for index, block in reader.blocks(images=max(1, 32768 // reader.positions)):
        if not len(index):
            continue
        y = transform(torch.from_numpy(block).to(device).reshape(-1, reader.channels))
        if pooled:
            means[images : images + len(index)] = y.view(len(index), reader.positions, r).mean(1)
        if chosen is None:
            rows[filled : filled + len(y)] = y
            filled += len(y)
        else:
            last = int(np.searchsorted(chosen, done + len(y)))
            rows[filled:last] = y[torch.from_numpy(chosen[filled:last] - done).to(device)]
            filled = last
        done += len(y)
        images += len(index)
        progress("whitening", images, reader.n_images)
    return WhitenedRows(rows, means, reader.image_indices)
