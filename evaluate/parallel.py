"""Where a pass over images runs: here, in threads, or on the workers of a dask cluster.

A pass is a function of some chunks whose results add up to that of all. To a dask worker goes what it needs to open everything
itself: the paths of the store and of the concept dataset, the detectors, and which images. What comes back are sums. Nothing of dask is
imported before it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from evaluate.detector_bank import Bank
from evaluate.dissection_batches import Material, Resolution
from extract.crop_geometry import Box
from extract.dask import settled, workers_of
from extract.labels import Alignment
from extract.segmentation.base import ConceptSource
from extract.worker_processes import cores
from stores.errors import CorruptStoreError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore

Scheduler = Literal["here", "threads"] | Any | None  # Any: a distributed.Client, not imported before it is asked for
T = TypeVar("T")
PARTS = 4  # per worker: enough to even out, few enough that their results are no burden
FAN = 8  # results added up at a time


def spread(
    work: Callable[..., T],
    material: Material,
    scheduler: Scheduler,
    *arguments: Any,
    progress: Progress = silent,
    stage: str = "",
    labelled: bool = True,
) -> T:
    """``work(material, chunks, *arguments)`` summed over all chunks of the store.

    Parameters
    ----------
    scheduler : "here" for one chunk after the other, where torch has all cores; "threads" for a thread a core, each with one
        thread of torch; a ``distributed.Client`` for its workers. None takes threads, and "here" on a GPU: that is faster.
    labelled : whether the work is only about labelled images: these are counted then.

    Raises EDDPError when the workers have ended, and whatever the work raises.
    """
    chunks = material.reader.store.n_chunks
    if scheduler is None:
        scheduler = "threads" if material.device.type == "cpu" and min(cores(), chunks) > 1 else "here"
    if isinstance(scheduler, str) and scheduler not in ("here", "threads"):
        raise UsageError(f"'scheduler' must be 'here', 'threads', None or a distributed.Client, got '{scheduler}'.")
    if scheduler == "here":
        return work(material, range(chunks), *arguments, progress)
    if scheduler == "threads":
        return _in_threads(work, material, ranges(chunks, 2 * cores()), arguments, progress, labelled)
    return on_cluster(work, material, scheduler, arguments, progress, stage, labelled)


def ranges(chunks: int, parts: int) -> list[range]:
    """At most ``parts`` ranges of chunks, as equal as can be, none empty."""
    edges = np.linspace(0, chunks, min(parts, chunks) + 1).round().astype(int).tolist()
    return [range(a, b) for a, b in pairwise(edges)]


class _Shared:
    """One progress for many parts, each of which counts its own; it also ends those that are still at work."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.done = 0
        self.lock = Lock()
        self.ended = False

    def part(self) -> Progress:
        before = 0

        def report(stage: str, done: int, total: int | None = None, note: str = "") -> None:
            nonlocal before
            with self.lock:
                if self.ended:
                    raise CancelledError
                self.done += done - before
                before = done
                self.progress(stage, self.done, self.total, note)

        return report


def _in_threads(
    work: Callable[..., T],
    material: Material,
    parts: list[range],
    arguments: tuple[Any, ...],
    progress: Progress,
    labelled: bool,
) -> T:
    shared = _Shared(progress, len(material.rows(range(material.reader.store.n_chunks), labelled)))
    before = torch.get_num_threads()
    total: T | None = None
    with ThreadPoolExecutor(cores(), "dissection", torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(work, material, part, *arguments, shared.part()) for part in parts}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                while finished:  # each is let go once it is added: at no time are there more than there are threads
                    result: Any = finished.pop().result()
                    total = result if total is None else total + result
                    del result
        finally:
            shared.ended = True
            for future in running:
                future.cancel()
            torch.set_num_threads(before)
    assert total is not None
    return total


@dataclass(frozen=True)
class Parcel:
    """A ``Material`` as it is sent: for the images of a range of chunks, with nothing open."""

    store: str
    layer: str
    fingerprint: str
    concepts: tuple[type, str] | None
    rows: dict[int, int]
    boxes: dict[int, Box]
    filters: np.ndarray
    thresholds: np.ndarray
    slices: dict[str, slice]
    device: str
    resolution: Resolution
    raster: tuple[int, int]

    def open(self) -> Material:
        """Raises CorruptStoreError when another store is at the path."""
        store = ActivationStore.open(self.store)
        if store.fingerprint != self.fingerprint:
            raise CorruptStoreError(f"Workers find another store at '{self.store}'. Give them the same file system.")
        to = torch.device(self.device)
        bank = Bank(torch.from_numpy(self.filters).to(to), torch.from_numpy(self.thresholds).to(to), self.slices)
        alignment = self.concepts and Alignment(_concepts(*self.concepts), self.rows, self.boxes.__getitem__)
        return Material(LayerReader(store, self.layer), bank, alignment, self.resolution, self.raster)


@lru_cache(maxsize=2)
def _concepts(kind: type, root: str) -> ConceptSource:
    """Its tables are read once a worker."""
    opened: ConceptSource = kind(Path(root))
    return opened


def pack(material: Material, chunks: range, labelled: bool = True) -> Parcel:
    """What a worker needs for the images of some chunks; of the concept dataset nothing, unless it is about labels."""
    reader, bank = material.reader, material.bank
    source = material.alignment.source if labelled else None
    rows = {row: material.alignment.rows[row] for row in material.rows(chunks)} if labelled else {}
    return Parcel(
        store=str(reader.store.path.resolve()),
        layer=reader.spec.name,
        fingerprint=reader.store.fingerprint,
        concepts=None if source is None else (type(source), str(source.root.resolve())),
        rows=rows,
        boxes={image: material.alignment.box_of(image) for image in rows.values()},
        filters=bank.filters.cpu().numpy(),
        thresholds=bank.thresholds.cpu().numpy(),
        slices=bank.slices,
        device=bank.filters.device.type,
        resolution=material.resolution,
        raster=material.raster,
    )


def _unpacked(work: Callable[..., T], parcel: Parcel, chunks: range, arguments: tuple[Any, ...]) -> T:
    """What a worker runs."""
    return work(parcel.open(), chunks, *arguments)


def _added(*parts: Any) -> Any:
    """What a worker runs on the results of some workers, which come to it from there."""
    return reduce(add, parts)


def added_up(submit: Callable[..., T], parts: Sequence[T], fan: int = FAN) -> tuple[T, list[T]]:
    """The sum of parts as a tree, in their order: what ``submit(add, *some)`` gives for a few at a time, until one is left.

    Returns that one, and all that was submitted.
    """
    submitted: list[T] = []
    while len(parts) > 1:
        groups = [parts[k : k + fan] for k in range(0, len(parts), fan)]
        parts = [submit(_added, *group) if len(group) > 1 else group[0] for group in groups]
        submitted += [part for part, group in zip(parts, groups, strict=True) if len(group) > 1]
    return parts[0], submitted


def on_cluster(
    work: Callable[..., T],
    material: Material,
    client: Any,
    arguments: tuple[Any, ...],
    progress: Progress,
    stage: str,
    labelled: bool = True,
) -> T:
    """``spread`` on a cluster. Parts are added up there, so that one result comes here, however many workers.

    A lost worker's parts are done again, those excepted that somebody has added to others already.
    """
    chunks = range(material.reader.store.n_chunks)
    submit = partial(client.submit, pure=False)
    futures: list[Any] = []
    sizes: dict[str, int] = {}
    for part in ranges(len(chunks), PARTS * workers_of(client)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the detectors' size: they are sent to be used, not looked up
            futures.append(submit(_unpacked, work, pack(material, part, labelled), part, arguments))
        sizes[futures[-1].key] = len(material.rows(part, labelled))
    root, sums = added_up(submit, futures)
    everything = {*futures, *sums}
    del futures, sums
    done = 0
    for future in settled(client, everything):
        if future.key in sizes:
            done += sizes[future.key]
            progress(stage, done, sum(sizes.values()))
    total: T = root.result()
    return total
