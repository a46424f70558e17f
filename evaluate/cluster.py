"""A pass over images on the workers of a dask cluster.

To a worker goes what it needs to open everything by itself: the paths of the store and of the concept dataset, the
detectors, and which images. What comes back are sums. Nothing of dask is imported before it is asked for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from evaluate.detectors import Bank
from evaluate.material import SPLITS, Material, Resolution
from evaluate.parallel import cores, ranges
from extract.concepts import ConceptSource
from extract.geometry import Box
from extract.labels import Alignment
from stores.activations import ActivationStore
from stores.errors import CorruptStoreError, EDDPError
from stores.progress import Progress
from stores.readers import LayerReader

T = TypeVar("T")
PARTS = 4  # per worker: enough to even out, few enough that their results are no burden
PATIENCE = 10.0  # seconds without any worker after which there will be none


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


def pack(material: Material, chunks: range) -> Parcel:
    """What a worker needs for the images of some chunks."""
    reader, source, bank = material.reader, material.alignment.source, material.bank
    size = reader.store.chunk_images
    rows = material.wanted(SPLITS, [row for row in material.alignment.rows if row // size in chunks])
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


def on_cluster(
    work: Callable[..., T], material: Material, client: Any, arguments: tuple[Any, ...], progress: Progress, stage: str
) -> T:
    from distributed import CancelledError as Lost
    from distributed import KilledWorker, wait
    from distributed.comm import CommClosedError

    workers = sum(client.nthreads().values())
    parts = ranges(material.reader.store.n_chunks, PARTS * max(workers, 1))
    total: T | None = None
    done, images = 0, len(material.wanted(SPLITS))
    sizes: dict[str, int] = {}
    pending = set()
    try:
        for part in parts:
            parcel = pack(material, part)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the detectors' size: they are sent to be used, not looked up
                future = client.submit(_unpacked, work, parcel, part, arguments, pure=False)
            sizes[future.key] = len(parcel.rows)
            pending.add(future)
        while pending:
            try:
                with client.as_current():
                    finished, pending = wait(pending, timeout=PATIENCE, return_when="FIRST_COMPLETED")
            except TimeoutError:
                if client.status != "running" or not client.nthreads():
                    raise EDDPError("All dask workers are gone (--dask). Start some and run the same again.") from None
                continue
            for future in finished:
                result: Any = future.result()
                total = result if total is None else total + result
                done += sizes[future.key]
                progress(stage, done, images)
    except KilledWorker as error:
        raise EDDPError(
            "The dask workers that were given a part of the images died of it, several in a row (--dask): they may have "
            "been out of memory. Give them more, or run without --dask."
        ) from error
    except (CommClosedError, Lost) as error:
        raise EDDPError("The dask scheduler is gone (--dask). Start it and run the same again.") from error
    finally:
        client.cancel(list(pending))
    assert total is not None
    return total


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """A ``distributed.Client`` of the scheduler at an address, or, for ``local``, of a process a core on this machine.

    Raises EDDPError when nobody answers there, or when there is no worker.
    """
    from distributed import Client

    _quiet()
    with ExitStack() as opened:
        try:
            scheduler = opened.enter_context(_local_cluster()) if address == "local" else address
            client = opened.enter_context(Client(scheduler, timeout=PATIENCE, set_as_default=False))
        except (OSError, ValueError, TimeoutError, RuntimeError) as error:
            if address == "local":
                raise EDDPError(f"No workers could be started here (--dask local): {error}.") from error
            raise EDDPError(
                f"No dask scheduler answers at '{address}' (--dask). Start one with: dask scheduler, and workers with: "
                "dask worker ADDRESS; or use --dask local."
            ) from error
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise EDDPError(
                f"The dask scheduler at '{address}' (--dask) has no worker. Start some with: dask worker {address}"
            ) from error
        yield client


def _local_cluster() -> Any:
    """A process a core. Files mapped into memory count as used there: without a limit they are no reason to end one."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=cores(), threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )  # fmt: skip


def _quiet() -> None:
    """What goes wrong is said in one sentence, not in many: dask's own are not shown."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
