"""Extraction on the workers of a dask cluster, and the cluster itself: connected to or started, its tasks waited for.

The store is laid out by the client, filled by the workers, a range of chunks a task, and sealed by the last one. Committed
chunks of a lost worker stay; dask gives its task to another one, which resumes there. Nothing of dask is imported before it
is needed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from extract.checkpoints import find_file, spelled
from extract.config import ExtractConfig
from extract.datasets import open_source, scheme_of
from extract.image_source import ImageSource
from extract.plan import TRIED, Forecast, Plan, announce_and_check, forecast, plan_extraction
from extract.stream import ExtractSummary, batch_size_of, fill, images_of, summary_of
from extract.worker_processes import cores, signals_blocked
from stores.errors import EDDPError, StoreBusyError, StoreError, StoreExistsError, UsageError
from stores.format import read_attributes
from stores.layout import shard_chunks
from stores.paths import as_path
from stores.progress import Progress, silent
from stores.writer import StoreWriter

PATIENCE = 10.0  # seconds without any worker after which there will be none
PAUSE = 0.05  # seconds between two looks at what is done
BUSY_PATIENCE, BUSY_PAUSE = 120.0, 1.0  # seconds to wait for chunks that another process holds, and between two tries
PARTS, LEAST = 4, 32  # parts a worker, and in all: enough to even out, and workers may join
SAME_FILES = "Give all workers the same file system"
NOTHING = (0, 2**62)  # a shard without a chunk: lays out and seals, and holds nothing against the workers


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """A ``distributed.Client`` of the scheduler at an address, or, for ``local``, of a process a core on this machine.

    Raises EDDPError when there is no scheduler, or no worker.
    """
    from distributed import Client

    for name in list(logging.root.manager.loggerDict):  # errors are reported once, in one message
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as opened:
        try:
            scheduler = opened.enter_context(_local_cluster()) if address == "local" else address
            client = opened.enter_context(Client(scheduler, timeout=PATIENCE, set_as_default=False))
        except (OSError, ValueError, TimeoutError, RuntimeError) as error:
            if address == "local":
                raise EDDPError(f"No workers could be started here (--dask local): {error}.") from error
            start = "Start one with: dask scheduler, and workers with: dask worker ADDRESS; or use --dask local"
            raise EDDPError(f"No dask scheduler answers at '{address}' (--dask). {start}.") from error
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            start = f"Start some with: dask worker {address}"
            raise EDDPError(f"The dask scheduler at '{address}' (--dask) has no worker. {start}") from error
        yield client


@contextmanager
def _local_cluster() -> Iterator[Any]:
    """A process a core, each with one thread of torch.

    Files mapped into memory count as used there: without a limit they are no reason to end one. And they are spawned: a
    fork after torch or Zarr was used hangs.
    """
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        with signals_blocked(signal.SIGINT):
            started = LocalCluster(
                n_workers=cores(), threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL, env={"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        with started:
            yield started


def workers_of(client: Any) -> int:
    """Tasks that the workers of a cluster run at once, at least 1: some may be on their way."""
    return max(1, sum(client.nthreads().values()))


def settled(client: Any, futures: set[Any]) -> Iterator[Any]:
    """Give futures in the order in which they are done. Their results stay on the workers.

    ``futures`` is emptied, and each is released once it is given: it is not computed again when its worker is lost.

    Raises what a task raised, once the others are cancelled; EDDPError when workers die of a task or the cluster is lost.
    """
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    lost = "The dask scheduler is lost (--dask). Start it and run the same again."
    pending = set(futures)
    futures.clear()
    alone: float | None = None  # since when there has been no worker
    try:
        while pending:
            # Asked, and not waited for: distributed.wait needs a current client, which sets dask's scheduler for all
            # threads; where two do so at once it stays set.
            finished = {future for future in pending if future.done()}
            pending -= finished
            if not finished:
                time.sleep(PAUSE)
                connected = client.status == "running"
                alone = None if connected and client.nthreads() else alone or time.monotonic()
                if alone is not None and time.monotonic() - alone > PATIENCE:
                    none = "All dask workers are lost (--dask). Start some and run the same again."
                    raise EDDPError(none if connected else lost)
                continue
            alone = None
            while finished:
                future = finished.pop()
                if future.status in ("error", "cancelled"):
                    future.result()  # raises
                yield future
                del future
    except KilledWorker as error:
        raise EDDPError(
            "Several dask workers died of one part of the images (--dask), perhaps for lack of memory, or with another version "
            "of eddp. Give them more, or the same, or run without --dask."
        ) from error
    except (CommClosedError, CancelledError) as error:
        raise EDDPError(lost) from error
    except RuntimeError as error:
        if "deserialization" not in str(error):
            raise
        raise EDDPError(
            "The dask scheduler has other versions of eddp or dask (--dask). Give both the same."
        ) from error
    finally:
        client.cancel(list(pending))


@dataclass(frozen=True)
class Order:
    """What workers are asked to extract, in plain values.

    Parameters
    ----------
    run : identifies the run: what workers have open for another run is not used.
    data, out : as the commands take them, absolute.
    config : with the store's images a chunk and a batch. ``device`` may be ``auto``.
    code_version : of the client.
    folder : where the command was started: the user's own models are imported from there.
    """

    run: str
    data: str
    out: str
    config: ExtractConfig
    code_version: str = ""
    folder: str = ""


def extract_on(
    client: Any,
    source: ImageSource,
    data: str,
    out: str | Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    code_version: str = "",
    progress: Progress = silent,
    announce: Callable[[Forecast], None] | None = None,
) -> ExtractSummary:
    """``extract.stream.extract`` on a cluster: the same store to the byte, however many workers are lost.

    Parameters
    ----------
    client : a ``distributed.Client``; its workers see the same files.
    source, data : the images, and what ``open_source`` was given for them: workers open them on their own.
    config : ``device`` may be ``auto``, what each worker has.

    Raises what ``extract`` raises, here or on a worker, EDDPError when the cluster is lost or sees other files. Committed
    chunks stay; the same call, or ``extract``, resumes from there.
    """
    if config.shard is not None:
        raise UsageError("'shard' cannot go with a cluster: its workers share out the store.")
    out = as_path(out)
    progress("loading the model", 0)
    order = _order(data, out, config, code_version)
    if config.batch_size is None and config.device != "cpu":  # what suits the workers' devices
        config = replace(config, batch_size=_first_result(client, batch_size, order))
    here = replace(config, device="cpu" if config.device == "cpu" else "auto")  # nothing is run here
    plan = plan_extraction(source, here, code_version=code_version)
    ahead = forecast(plan, out, overwrite=overwrite)
    announce_and_check(ahead, out, announce)
    shard = None if overwrite else NOTHING
    with closing(StoreWriter.open(out, plan.store, shard=shard, overwrite=overwrite)) as writer:
        size = batch_size_of(writer, plan.config)
        missing = set(writer.missing(anywhere=True))
    order = replace(order, config=replace(order.config, batch_size=size, chunk_images=writer.chunk_images))
    futures, images = set(), {}
    for part in parts_of(missing, writer.n_chunks, workers_of(client)):
        futures.add(future := client.submit(fill_part, order, part, key=f"{order.run}-{part[0]}", pure=False))
        chunks = shard_chunks(part, writer.n_chunks)
        images[future.key] = sum(len(images_of(k, writer)) for k in chunks if k in missing)
    total, done, start = ahead.total_images, ahead.total_images - ahead.images, (0.0, 0)
    progress("extraction", done, total)
    for future in settled(client, futures):
        done += images[future.key]
        progress("extraction", done, total)
        now = time.monotonic()
        if announce is not None and start[1] and done - start[1] >= TRIED * size * workers_of(client):
            announce(ahead.at((done - start[1]) / (now - start[0])))
            announce = None
        start = start if start[1] else (now, done)
    with closing(StoreWriter.open(out, plan.store, shard=NOTHING)) as writer:
        if not writer.seal_if_complete():
            lost = f"{len(writer.missing(anywhere=True))} of {writer.n_chunks} chunks are missing at '{out}'"
            raise EDDPError(f"The workers are done, but {lost} (--dask). {SAME_FILES}, then run the same again.")
        return summary_of(plan, writer, range(writer.n_chunks), ahead.images, size, 0)


def forecast_on(
    client: Any, data: str, out: str | Path, config: ExtractConfig, *, overwrite: bool = False, code_version: str = ""
) -> Forecast:
    """``extract.plan.forecast`` as one worker measures it, times the number of workers."""
    found: Forecast = _first_result(client, look_ahead, _order(data, as_path(out), config, code_version), overwrite)
    return found.at(found.rate and found.rate * workers_of(client))


def parts_of(missing: set[int], n_chunks: int, workers: int) -> list[tuple[int, int]]:
    """Parts (i, n) of the chunks, even, of which something is missing: a few a worker, none without a chunk."""
    if not missing:
        return []
    wanted = max(PARTS * workers, LEAST)
    n = min(n_chunks, -(-wanted * n_chunks // len(missing)))  # more, and smaller ones, where little is missing
    return [(i, n) for i in range(n) if any(k in missing for k in shard_chunks((i, n), n_chunks))]


def _order(data: str, out: Path, config: ExtractConfig, code_version: str) -> Order:
    """Everything by its full path: workers are started in folders of their own."""
    scheme, root = scheme_of(data)
    data = str(root.absolute()) if scheme is None else f"{scheme}:{root.absolute()}"
    if (weights := find_file(config.weights)) is not None:
        config = replace(config, weights=spelled(*weights))
    return Order(f"eddp-extract-{uuid4().hex}", data, str(out.absolute()), config, code_version, str(Path.cwd()))


def _first_result(client: Any, work: Callable[..., Any], *arguments: Any) -> Any:
    return next(settled(client, {client.submit(work, *arguments, pure=False)})).result()


# What a worker runs. One extraction runs at a time in a process; what it has opened serves all parts of a run.

_alone = threading.Lock()
_opened: dict[str, Plan] = {}  # of one run


class Unwanted(EDDPError):
    """The part is cancelled."""


def fill_part(order: Order, part: tuple[int, int]) -> None:
    """Fill what is missing of part (i, n) of the store, and seal the store if nothing else is.

    May run twice, late, or on several workers at once: the second one finds the chunks locked, and waits, or committed.
    Raises what an extraction raises; EDDPError where this worker does not see what the command sees.
    """
    with _alone:
        check = _cancellation_check()
        plan = _open(order)
        with closing(_writer(order, plan, part, check)) as writer:
            fill(plan, writer, progress=check)


def batch_size(order: Order) -> int:
    """Images a pass that suit this worker's device."""
    with _alone:
        return _open(order).batch_size


def look_ahead(order: Order, overwrite: bool) -> Forecast:
    """The forecast with the rate of this one worker."""
    with _alone:
        return forecast(_open(order), as_path(order.out), overwrite=overwrite, measure=True)


def _open(order: Order) -> Plan:
    """Source and model, for the next part of the same run too."""
    device = order.config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: {_here()} has {torch.cuda.device_count()} GPUs. Use --device auto.")
    config = replace(order.config, device=device)
    plan = _opened.get(order.run)
    if plan is None:
        _opened.clear()
        with suppress(PackageNotFoundError):
            mine, theirs = version("eddp"), order.code_version.partition("+")[0]
            if theirs not in ("", "unknown", mine):
                raise EDDPError(f"{_here()} runs eddp {mine}, this command {theirs} (--dask). Give both the same.")
        if order.folder and order.folder not in sys.path:
            sys.path.append(order.folder)
        try:
            plan = plan_extraction(open_source(order.data), config, code_version=order.code_version)
        except EDDPError as error:
            raise EDDPError(f"{_here()} does not see what this command sees (--dask): {error}") from error
    if plan.config != config:  # the same, by what the store was laid out with meanwhile
        plan = replace(plan, config=config)
    _opened[order.run] = plan
    return plan


def _writer(order: Order, plan: Plan, part: tuple[int, int], check: Callable[..., None]) -> StoreWriter:
    """A writer of a part of the store that the client has laid out."""
    out = as_path(order.out)
    if not (out / "zarr.json").exists():
        raise EDDPError(f"{_here()} finds no store at '{out}' (--dask). {SAME_FILES}.")
    # paths as the store names them: a worker that reaches images by another one changes nothing in it
    stored, made = read_attributes(out)["provenance"], plan.store.provenance
    made = {**made, "dataset": {**made["dataset"], "path": stored["dataset"]["path"]}}
    store = replace(plan.store, provenance={**made, **{k: stored[k] for k in ("weights", "weights_source")}})
    until = time.monotonic() + BUSY_PATIENCE
    while True:
        try:
            return StoreWriter.open(out, store, shard=part)
        except StoreExistsError as error:
            other = f"{_here()} sees other images, another model or another store than this command (--dask)"
            raise EDDPError(f"{other}. {SAME_FILES}. {error}") from error
        except StoreBusyError as error:
            if time.monotonic() > until:
                busy = f"Another process has been writing to a part of the store '{out}' for {BUSY_PATIENCE:.0f} s"
                raise StoreError(f"{busy}. Wait until it has ended, then run the same command again.") from error
            check()
            time.sleep(BUSY_PAUSE)


def _cancellation_check() -> Callable[..., None]:
    """A Progress that raises Unwanted once the task is cancelled or the worker is closing: locks must not outlive that."""
    worker = _worker()
    key = None if worker is None else worker.get_current_task()

    def check(*_: Any) -> None:
        task = None if worker is None else worker.state.tasks.get(key)
        closing = worker is not None and worker.status.name in ("closing", "closed", "failed")
        if worker is not None and (task is None or task.state == "cancelled" or closing):
            raise Unwanted("This part of the extraction is cancelled.")

    return check


def _worker() -> Any:
    """The dask worker that runs this, if one does."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _here() -> str:
    worker = _worker()
    return "This process" if worker is None else f"The dask worker at {worker.address} (process {os.getpid()})"
