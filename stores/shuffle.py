"""All rows of a layer once, in a random order, as torch tensors: what stochastic fitting reads.

The order of chunks is drawn by the seed and the epoch; then windows of several chunks are mixed row by row. A store no
larger than a window is shuffled perfectly; in a larger one a batch mixes the images of a window's chunks, which were drawn
from all over the store, and the disk reads complete chunks. An uncompressed store's rows stay where they are mapped; of a
compressed one up to three windows are in memory: the one that is mixed, the next one, and what is left of the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from stores.errors import UsageError
from stores.prefetch import prefetch
from stores.readers import LayerReader

WINDOW_BYTES = 2**30


@dataclass(frozen=True)
class Rows:
    """A batch: ``x`` (B, C) and the numbers of its rows (B,) (see ``stores.readers``)."""

    x: torch.Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class Shuffle:
    """How to shuffle.

    Parameters
    ----------
    batch_rows : rows a batch; the last one may be smaller, unless ``drop_last``.
    seed, epoch : give the order: the same for the same numbers, another for each epoch.
    window_bytes : memory for rows that are mixed with each other; at least two chunks are.
    dtype : of the tensors; None: as stored.
    device : where they are wanted; for a GPU they go through pinned memory, while it works.
    share : (k, n): of each batch only row k and every n-th one after it, so that n readers have the batches of one. Of a
        compressed store each of them decodes every chunk.
    """

    batch_rows: int = 4096
    seed: int = 0
    epoch: int = 0
    window_bytes: int = WINDOW_BYTES
    drop_last: bool = False
    dtype: torch.dtype | None = None
    device: str = "cpu"
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for name, least in (("batch_rows", 1), ("seed", 0), ("epoch", 0), ("window_bytes", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"'{name}' must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.share[0] < self.share[1]:
            raise UsageError(f"'share' must be (k, n) with k from 0 to n - 1, got {self.share}.")


@dataclass(frozen=True)
class _Window:
    """Rows to be mixed: their numbers, and the vectors themselves unless the layer is mapped."""

    numbers: np.ndarray
    vectors: np.ndarray | None


def shuffled(reader: LayerReader, how: Shuffle | None = None) -> Iterator[Rows]:
    """Every row of the layer exactly once, in batches of random rows; the next ones are gathered meanwhile."""
    how = how or Shuffle()
    pin = how.device.startswith("cuda")
    stored = torch.from_numpy(np.empty(0, reader.array.dtype)).dtype
    # room is made here and filled there: memory that threads ask for themselves is new, and costs as much as the rows
    jobs = (
        (window, places, torch.empty((len(places), reader.channels), dtype=stored, pin_memory=pin))
        for window, places in ((window, batch[how.share[0] :: how.share[1]]) for window, batch in _draws(reader, how))
    )
    yield from prefetch(lambda job: _gather(reader, how, *job), jobs, threads=1, depth=2)


def _draws(reader: LayerReader, how: Shuffle) -> Iterator[tuple[_Window, np.ndarray]]:
    """Windows with the places in them that make up one batch."""
    generator = np.random.default_rng([how.seed, how.epoch, 0x5F])
    chunks = generator.permutation(reader.store.n_chunks)
    size = max(2, how.window_bytes // reader.array.chunk_bytes)
    groups = [chunks[i : i + size] for i in range(0, len(chunks), size)]
    left: _Window | None = None
    for k, window in enumerate(prefetch(lambda group: _load(reader, group), groups, threads=1, depth=1)):
        mixed = window if left is None else _joined(left, window)
        places = generator.permutation(len(mixed.numbers))
        last = k == len(groups) - 1
        whole = len(places) - len(places) % how.batch_rows
        for start in range(0, whole, how.batch_rows):
            yield mixed, places[start : start + how.batch_rows]
        rest = places[whole:]  # goes into the next window: no batch is short but the last
        if last and len(rest) and not how.drop_last:
            yield mixed, rest
        left = _Window(mixed.numbers[rest], None if mixed.vectors is None else mixed.vectors[rest])


def _load(reader: LayerReader, chunks: np.ndarray) -> _Window:
    if reader.mapping is not None:
        for k in chunks:
            reader.mapping.will_need(int(k))
        return _Window(np.concatenate([_numbers(reader, int(k)) for k in chunks]), None)
    blocks = [block.reshape(-1, reader.channels) for _, block in prefetch(reader.chunk, [int(k) for k in chunks])]
    return _Window(np.concatenate([_numbers(reader, int(k)) for k in chunks]), np.concatenate(blocks))


def _numbers(reader: LayerReader, chunk: int) -> np.ndarray:
    """Numbers of a chunk's rows."""
    step = reader.store.chunk_images
    first, stop = np.searchsorted(reader.image_indices, [chunk * step, (chunk + 1) * step])
    return np.arange(first * reader.positions, stop * reader.positions)


def _joined(a: _Window, b: _Window) -> _Window:
    vectors = None if a.vectors is None or b.vectors is None else np.concatenate([a.vectors, b.vectors])
    return _Window(np.concatenate([a.numbers, b.numbers]), vectors)


def _gather(reader: LayerReader, how: Shuffle, window: _Window, places: np.ndarray, x: torch.Tensor) -> Rows:
    numbers = window.numbers[places]
    if window.vectors is None:
        reader.rows(numbers, out=x.numpy())
    else:
        np.take(window.vectors, places, axis=0, out=x.numpy(), mode="clip")
    x = x.to(how.device, non_blocking=x.is_pinned())
    return Rows(x if how.dtype is None else x.to(how.dtype), numbers)
