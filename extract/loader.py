"""Images decoded and transformed ahead of the network, in threads or in worker processes."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from extract.image_io import out_of_memory, reason, shown
from extract.image_source import ImageSource
from extract.worker_processes import end_with_parent, held
from stores.errors import EDDPError, ImageError, UsageError

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
        self.batches = [_as_range(batch) for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Batch:
        try:
            return self.join(k, [self.one(row) for row in self.batches[k]])
        except EDDPError as error:  # as a value: raised in a worker it would come back as a traceback's text
            return Batch(list(self.batches[k]), [], None, {}, error)

    def one(self, row: int) -> torch.Tensor | str:
        """The transformed image, or the reason why it is a bad one.

        Raises UsageError where the transform fails, and EDDPError for what is not the image's fault: a disk that is away,
        or want of memory.
        """
        try:
            image = self.source.image(row)
        except ImageError as error:
            return str(error)
        return self.transformed(row, image)

    def transformed(self, row: int, image: Image.Image) -> torch.Tensor | str:
        """What the transform makes of an image, or the reason why it is a bad one. Raises as ``one`` does."""
        try:
            return self.transform(image)
        except MemoryError as error:
            raise out_of_memory(shown(self.source.name(row))) from error
        except ImageError as error:
            return f"'{shown(self.source.name(row))}' cannot be used: {error}."
        except UsageError as error:
            raise UsageError(f"'{shown(self.source.name(row))}' cannot be used: {error}.") from error
        except Exception as error:
            raise UsageError(
                f"The model's transform fails on image '{shown(self.source.name(row))}': {type(error).__name__}: "
                f"{reason(error)}."
            ) from error

    def join(self, k: int, results: Sequence[torch.Tensor | str]) -> Batch:
        rows = list(self.batches[k])
        good = [row for row, result in zip(rows, results, strict=True) if not isinstance(result, str)]
        tensors = [result for result in results if not isinstance(result, str)]
        for row, tensor in zip(good, tensors, strict=True):
            if tensor.shape != tensors[0].shape:
                raise UsageError(
                    f"The model's transform must give tensors of one size; image '{shown(self.source.name(good[0]))}' "
                    f"becomes {tuple(tensors[0].shape)}, image '{shown(self.source.name(row))}' {tuple(tensor.shape)}."
                )
        reasons = {row: result for row, result in zip(rows, results, strict=True) if isinstance(result, str)}
        try:
            images = torch.stack(tensors) if tensors else None
        except MemoryError as error:
            raise out_of_memory(shown(self.source.name(good[0]))) from error
        return Batch(rows, good, images, reasons)


def _as_range(rows: Sequence[int]) -> Sequence[int]:
    run = range(rows[0], rows[0] + len(rows)) if rows else rows
    return run if list(run) == list(rows) else rows


def decoded(decode: Decode, *, workers: int, pin: bool = False) -> Generator[Batch, None, None]:
    """All batches in order, decoded ahead in a bounded window.

    ``workers`` 0 decodes in two threads of this process (Pillow lets go of the interpreter's lock while it decodes and
    resizes); more start that many processes by *spawn*: a fork after Zarr or FAISS was used can hang.
    """
    if workers > 0:
        loader: Any = DataLoader(
            decode,
            batch_size=None,
            shuffle=False,
            num_workers=workers,
            multiprocessing_context="spawn",
            prefetch_factor=2,
            pin_memory=False,
            persistent_workers=False,
            worker_init_fn=end_with_parent,  # torch's own watch misses a parent that ends while workers import torch
        )
        for batch in _alive(loader):
            if batch.failure is not None:
                raise batch.failure
            if pin and batch.images is not None:
                batch.images = batch.images.pin_memory()
            yield batch
        return
    with ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
        window: deque[tuple[int, list[Future[torch.Tensor | str]]]] = deque()
        upcoming = iter(range(len(decode)))
        try:
            while True:
                while len(window) < 3 and (k := next(upcoming, None)) is not None:
                    window.append((k, [pool.submit(decode.one, row) for row in decode.batches[k]]))
                if not window:
                    return
                k, futures = window.popleft()
                yield decode.join(k, [future.result() for future in futures])
        finally:
            for _, futures in window:
                for future in futures:
                    future.cancel()


def _alive(loader: Any) -> Iterator[Batch]:
    try:
        with held(signal.SIGTERM, signal.SIGINT):
            batches = iter(loader)
        yield from batches
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise EDDPError(
            "A decoding process ended unexpectedly, perhaps for want of memory. What is done so far is kept: run the "
            "same command again, with fewer --workers or --workers 0."
        ) from error
