"""A pass over images on the workers of a dask cluster.

To a worker goes what it needs to open everything by itself: the paths of the store and of the concept dataset, the
detectors, and which images. What comes back are sums. Nothing of dask is imported before it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from evaluate.detectors import Bank
from evaluate.material import Material, Resolution
from evaluate.parallel import ranges
from extract.crop_geometry import Box
from extract.dask import settled, workers_of
from extract.labels import Alignment
from extract.segmentation.base import ConceptSource
from stores.errors import CorruptStoreError
from stores.progress import Progress
from stores.readers import LayerReader
from stores.store import ActivationStore

T = TypeVar("T")
PARTS = 4  # per worker: enough to even out, few enough that their results are no burden
FAN = 8  # results added up at a time


@dataclass(frozen=True)
class Parcel:
    """A ``Material`` as it is sent: for the images of a range of chunks, with nothing open."""

    store: str
    layer: str
    fingerprint: str
    concepts: tuple[type, str]
    rows: dict[int, int]
    boxes: dict[int, Box]
    filters: np.ndarray
    thresholds: np.ndarray
    slices: dict[str, slice]
    device: str
    resolution: Resolution
    raster: tuple[int, int]

    def open(self) -> Material:
        """Raises CorruptStoreError when another store lies where the one that is meant did."""
        store = ActivationStore.open(self.store)
        if store.fingerprint != self.fingerprint:
            raise CorruptStoreError(f"Workers find another store at '{self.store}'. Give them the same file system.")
        to = torch.device(self.device)
        bank = Bank(torch.from_numpy(self.filters).to(to), torch.from_numpy(self.thresholds).to(to), self.slices)
        alignment = Alignment(_concepts(*self.concepts), self.rows, self.boxes.__getitem__)
        return Material(LayerReader(store, self.layer), bank, alignment, self.resolution, self.raster)


@lru_cache(maxsize=2)
def _concepts(kind: type, root: str) -> ConceptSource:
    """Its tables are read once a worker."""
    opened: ConceptSource = kind(Path(root))
    return opened


def pack(material: Material, chunks: range, labelled: bool = True) -> Parcel:
    """What a worker needs for the images of some chunks; of the concept dataset nothing, unless it is about labels."""
    reader, source, bank = material.reader, material.alignment.source, material.bank
    rows = {row: material.alignment.rows[row] for row in material.rows(chunks)} if labelled else {}
    return Parcel(
        store=str(reader.store.path.resolve()),
        layer=reader.spec.name,
        fingerprint=reader.store.fingerprint,
        concepts=(type(source), str(source.root.resolve())),
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
    """``evaluate.parallel.spread`` on a cluster. Parts are added up there, so that one result comes here, however many workers.

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
