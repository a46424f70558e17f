"""Images decoded and transformed ahead of the network, in threads or in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from extract.image_io import KEPT, out_of_memory, reason, shown
from extract.image_source import ImageSource
from extract.worker_processes import end_with_parent, signals_blocked
from stores.errors import EDDPError, ImageError, UsageError
from stores.prefetch import prefetch

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass
class Batch:
    """Decoded images of one range of rows: ``images`` (g, 3, h, w) of the good ones, ``reasons`` of the bad ones."""

    rows: list[int]
    good: list[int]
    images: torch.Tensor | None
    reasons: dict[int, str]
    failure: EDDPError | None = None


class Decode(Dataset[Batch]):
    """Decodes one list of rows at a time; picklable, so that spawned workers can take it."""

    def __init__(self, source: ImageSource, transform: Transform, batches: Sequence[Sequence[int]]) -> None:
        self.source = source
        self.transform = transform
        # runs of rows as ranges: as lists, those of a million images would be larger in each worker than all their names
        self.batches: list[Sequence[int]] = []
        for rows in batches:
            run = range(rows[0], rows[0] + len(rows)) if rows else rows
            self.batches.append(run if list(run) == list(rows) else rows)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Batch:
        try:
            return self.join(k, [self.one(row) for row in self.batches[k]])
        except EDDPError as error:  # as a value: raised in a worker it would come back as a traceback's text
            return Batch(list(self.batches[k]), [], None, {}, error)

    def one(self, row: int) -> torch.Tensor | str:
        """The transformed image, or the reason why it is a bad one. Raises as ``transformed`` does, and for a missing disk."""
        try:
            return self.transformed(row, self.source.image(row))
        except ImageError as error:
            return str(error)

    def transformed(self, row: int, image: Image.Image) -> torch.Tensor | str:
        """What the transform makes of an image, or the reason why it is a bad one.

        Raises UsageError where the transform fails, OutOfMemoryError for lack of memory.
        """
        name = shown(self.source.name(row))
        try:
            return self.transform(image)
        except MemoryError as error:
            raise out_of_memory(name) from error
        except ImageError as error:
            return f"'{name}' cannot be used: {error}."
        except UsageError as error:
            raise UsageError(f"'{name}' cannot be used: {error}.") from error
        except Exception as error:
            what = f"{type(error).__name__}: {reason(error)}"
            raise UsageError(f"The model's transform fails on image '{name}': {what}.") from error

    def join(self, k: int, results: Sequence[torch.Tensor | str]) -> Batch:
        """One batch of its rows' results."""
        rows = list(self.batches[k])
        tensors = {row: result for row, result in zip(rows, results, strict=True) if not isinstance(result, str)}
        reasons = {row: result for row, result in zip(rows, results, strict=True) if isinstance(result, str)}
        first = next(iter(tensors), -1)
        for row, tensor in tensors.items():
            if tensor.shape != tensors[first].shape:
                sizes = [f"'{shown(self.source.name(k))}' becomes {tuple(tensors[k].shape)}" for k in (first, row)]
                raise UsageError(f"The model's transform must give tensors of one size; {', '.join(sizes)}.")
        try:
            images = torch.stack(list(tensors.values())) if tensors else None
        except MemoryError as error:
            raise out_of_memory(shown(self.source.name(first))) from error
        return Batch(rows, list(tensors), images, reasons)


def decoded(decode: Decode, *, workers: int, pin: bool = False) -> Generator[Batch, None, None]:
    """All batches in order, decoded ahead in a bounded window.

    ``workers`` 0 decodes in two threads of this process (Pillow lets go of the interpreter's lock while it decodes and
    resizes); more start that many processes by *spawn*: a fork after Zarr or FAISS was used can hang.
    """
    if not workers:
        depth = 3 * max(map(len, decode.batches), default=1)
        with closing(prefetch(decode.one, chain.from_iterable(decode.batches), threads=2, depth=depth)) as results:
            for k, rows in enumerate(decode.batches):
                yield decode.join(k, list(islice(results, len(rows))))
        return
    loader: Any = DataLoader(
        decode,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=end_with_parent,  # torch's own watch misses a parent that ends while workers import torch
    )
    try:
        with signals_blocked(signal.SIGTERM, signal.SIGINT):
            batches = iter(loader)
        for batch in batches:
            if batch.failure is not None:
                raise batch.failure
            if pin and batch.images is not None:
                batch.images = batch.images.pin_memory()
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        then = f"{KEPT}, with fewer --workers or --workers 0"
        raise EDDPError(f"A decoding process ended unexpectedly, perhaps for lack of memory. {then}.") from error
