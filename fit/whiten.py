"""Whitened coordinates ``y = T (x − μ)``: the space in which directions are clustered and refined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from extract.memory import is_out_of_memory
from fit.config import FitterConfig
from stores.errors import FitError, OutOfMemoryError
from stores.progress import Progress, silent
from stores.ranks import ALONE, Ranks, part_of
from stores.readers import LayerReader
from stores.statistics import Statistics

GAP = 10.0  # of neighbouring eigenvalues, from where the smaller one is noise
NO_VARIANCE = (
    "The activations do not vary: every position of every image has the same vector, so there is nothing to find. Look at the layer "
    "and the images with `eddp inspect`."
)


@dataclass(frozen=True)
class Whitening:
    """T (r, C), its pseudo-inverse T⁺ (C, r) and μ (C,), float32; ``kept`` the share of the variance in the r axes."""

    forward: torch.Tensor
    backward: torch.Tensor
    mean: torch.Tensor
    kept: float

    @property
    def rank(self) -> int:
        return int(self.forward.shape[0])

    def to(self, device: str) -> Whitening:
        return Whitening(self.forward.to(device), self.backward.to(device), self.mean.to(device), self.kept)

    def with_power(self, power: float) -> tuple[Whitening, torch.Tensor]:
        """Partial whitening ``Λ^{-power/2} Vᵀ``, scaled to a mean variance of 1, and the factors (r,) that turn y into its coordinates.

        1 is full whitening, 0 rotates the centred activations.
        """
        deviation = 1 / self.forward.double().norm(dim=1)  # √λ of each axis
        partial = deviation**power * (deviation ** (2 - 2 * power)).mean().sqrt()
        factors = (deviation / partial).to(self.forward)
        return Whitening(self.forward * factors[:, None], self.backward / factors, self.mean, self.kept), factors

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(…, C) activations -> (…, r) whitened coordinates, float32."""
        return (x.float() - self.mean) @ self.forward.T


def check_varies(statistics: Statistics) -> None:
    """Raise FitError when all positions have the same vector."""
    if statistics.covariance.diagonal().max() <= 1e-12 * max(float(np.abs(statistics.mean).max()) ** 2, 1e-30):
        raise FitError(NO_VARIANCE)


def rank_by_gap(statistics: Statistics, n_directions: int) -> int | None:
    """How many axes are in front of the largest gap ``λ_k / λ_{k+1}`` of the eigenvalues with k >= n_directions, behind which there is
    noise; None where no ratio is above ``GAP``, as in layers of real networks.
    """
    values = np.linalg.eigvalsh(statistics.covariance)[::-1].clip(0)
    ratios = values[n_directions - 1 : -1] / np.maximum(values[n_directions:], 1e-12 * values[0] + 1e-300)
    return n_directions + int(ratios.argmax()) if len(ratios) and ratios.max() > GAP else None


def principal_axes(statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (C,) of the covariance, falling, and eigenvectors (C, C), whose largest entry is positive: LAPACKs differ in signs."""
    values, vectors = np.linalg.eigh(statistics.covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])


def whitening(statistics: Statistics, *, rank: int, shrinkage: float = 0.0, whiten: bool = True) -> Whitening:
    """Truncated inverse square root of the covariance: ``T = (Λ + εI)^{-1/2} Vᵀ`` of the ``rank`` largest eigenvalues.

    With ``whiten`` False all axes are divided by one number instead, so that their mean variance is 1: rotated, centred activations,
    for comparison.

    Parameters
    ----------
    rank : number of axes, at most; axes without variance (below 1e-7 of the largest eigenvalue) are left out.
    shrinkage : ε as a multiple of the eigenvalues' mean: damps axes of little variance.

    Raises FitError when the activations do not vary at all.
    """
    check_varies(statistics)
    values, vectors = principal_axes(statistics)
    keep = int(min(rank, (values > 1e-7 * values[0]).sum()))
    kept, axes = values[:keep], vectors[:, :keep]
    deviation = np.sqrt(kept + shrinkage * kept.mean())
    if not whiten:
        deviation = np.full_like(deviation, np.sqrt(kept.mean()))
    return Whitening(
        forward=torch.from_numpy(np.ascontiguousarray((axes / deviation).T, np.float32)),
        backward=torch.from_numpy(np.ascontiguousarray(axes * deviation, np.float32)),
        mean=torch.from_numpy(np.ascontiguousarray(statistics.mean, np.float32)),
        kept=float(kept.sum() / values.clip(0).sum()),
    )


def whitening_of_rank_0(
    statistics: Statistics, ranks: Ranks, *, rank: int, shrinkage: float = 0.0, whiten: bool = True
) -> Whitening:
    """``whitening``, by rank 0 for all ranks: two machines' LAPACKs turn axes of equal variance differently."""
    made = None
    if ranks.rank == 0:
        found = whitening(statistics, rank=rank, shrinkage=shrinkage, whiten=whiten)
        made = {**vars(found), "kept": torch.tensor(found.kept, dtype=torch.float64)}
    shared: dict[str, Any] = ranks.share(made)
    return Whitening(**{**shared, "kept": float(shared["kept"])})


@dataclass(frozen=True)
class Held:
    """The part of ``count`` rows that this rank holds: its own from ``start`` to ``stop``, and up to ``end`` to complete their tiles.

    Tiles of any size up to ``longest`` that begin with an own row are complete here, so every tile is one that a single process would
    make, and its products have the same bits. (Other tiles give sums that differ in the last digits of float32, which hundreds of
    steps of a descent amplify: measured on a real layer, to a tenth of W.)
    """

    start: int
    stop: int
    end: int
    count: int

    @classmethod
    def of(cls, count: int, ranks: Ranks, longest: int = 1) -> Held:
        """As many rows for each rank as for the others, but for one."""
        part = part_of(count, ranks)
        return cls(part.start, part.stop, min(count, part.stop + longest - 1) if part else part.stop, count)


@dataclass(frozen=True)
class WhitenedRows:
    """The data of a fit: ``rows`` (m, r) whitened vectors, and ``pooled`` (n, r), each image's mean over positions.

    On one of several ``ranks``: rows ``held.start`` to ``held.end`` of all, and the pooled vectors of its own images, from number
    ``first`` of ``images`` on.
    """

    rows: torch.Tensor
    pooled: torch.Tensor
    images: np.ndarray
    held: Held
    first: int = 0
    ranks: Ranks = ALONE

    def pooled_of(self, chosen: torch.Tensor) -> torch.Tensor:
        """(m, r) pooled vectors of chosen images (m,), numbers into ``images``; of several ranks, put together from all."""
        chosen = chosen.to(self.pooled.device)
        if self.ranks.size == 1:
            return self.pooled[chosen]
        mine = (chosen >= self.first) & (chosen < self.first + len(self.pooled))
        together = self.pooled.new_zeros(len(chosen), self.pooled.shape[1])
        together[mine] = self.pooled[chosen[mine] - self.first]
        self.ranks.sum(together)
        return together


def whiten_store(
    reader: LayerReader,
    transform: Whitening,
    config: FitterConfig,
    *,
    max_rows: int,
    pooled: bool = True,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    longest: int = 1,
) -> WhitenedRows:
    """Read the layer once into whitened coordinates: r numbers a position instead of C, on the configuration's device.

    At most ``max_rows`` positions are taken (a seeded sample of all positions); pooled vectors are those of all images, if they are
    wanted. Of several ranks each reads the images of its own rows, and what tiles of up to ``longest`` rows need beyond (``Held``).
    """
    total, r, p, device = reader.n_rows, transform.rank, reader.positions, config.device
    take = min(total, max_rows)
    chosen = np.arange(total)
    if take < total:
        chosen = np.sort(np.random.default_rng([config.seed, 0x77]).choice(total, take, replace=False))
    held = Held.of(take, ranks, longest)
    own, needed = _images_of(held, chosen // p, reader.n_images)
    transform = transform.to(device)
    try:
        rows = torch.empty(held.end - held.start, r, device=device)
        means = torch.empty(len(own) if pooled else 0, r, device=device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Memory does not take {held.end - held.start} positions of {r} numbers ({4 * (held.end - held.start) * r / 2**30:.1f} GiB): use fewer "
            f"with --set max_rows={take // 4}, or read them from the store at every step with --set rows=store."
        ) from error
    for index, block in reader.blocks(images=max(1, 32768 // p), of=needed):
        y = transform(torch.from_numpy(block).to(device).reshape(-1, reader.channels))
        image = int(np.searchsorted(reader.image_indices, index[0]))  # the block's first, of those that could be read
        if pooled:
            a, b = max(image, own.start), min(image + len(index), own.stop)
            if a < b:
                means[a - own.start : b - own.start] = y.view(len(index), p, r).mean(1)[a - image : b - image]
        edges = np.searchsorted(chosen, [image * p, (image + len(index)) * p])
        first, last = edges.clip(held.start, held.end).tolist()
        rows[first - held.start : last - held.start] = y[torch.from_numpy(chosen[first:last] - image * p).to(device)]
        progress("whitening", min(image + len(index), needed.stop) - needed.start, len(needed))
    return WhitenedRows(rows, means, reader.image_indices, held, own.start, ranks)


def _images_of(held: Held, image: np.ndarray, images: int) -> tuple[range, range]:
    """The images that are this rank's own, and those that it has to read, from the image of each sampled row; each belongs to the rank that
    holds its first."""

    def edge(row: int) -> int:
        return 0 if row == 0 else images if row >= held.count else int(image[row])

    own = range(edge(held.start), edge(held.stop))
    if held.start == held.end:
        return own, own
    first, last = image[[held.start, held.end - 1]].tolist()
    return own, range(min(own.start, first), max(own.stop, last + 1))
