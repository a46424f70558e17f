"""A dask cluster as the commands use it: connected to or started, its tasks waited for, its failures one sentence each.

Nothing of dask is imported before it is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from extract.worker_processes import held
from stores.errors import EDDPError

PATIENCE = 10.0  # seconds without any worker after which there will be none
TICK = 0.5  # seconds between two looks at what goes on
NOBODY = "All dask workers are gone (--dask). Start some and run the same again."
GONE = "The dask scheduler is gone (--dask). Start it and run the same again."


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(client: Any) -> int:
    """Tasks that the workers of a cluster run at once, at least 1: some may be on their way."""
    return max(1, sum(client.nthreads().values()))


def settled(client: Any, futures: set[Any], tick: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Futures in the order in which they are done. Their results stay where they are.

    Each is let go of once it is given: what nobody needs any more is not computed again when its worker is lost.

    Parameters
    ----------
    client : a ``distributed.Client``.
    futures : of that client, held by nobody else; the set is emptied.
    tick : called twice a second, to show what the workers tell.

    Raises what a task raised, once the others are cancelled; EDDPError when workers die of a task or the cluster is gone.
    """
    from distributed import CancelledError as Lost
    from distributed import KilledWorker, wait
    from distributed.comm import CommClosedError

    pending = set(futures)
    futures.clear()
    alone: float | None = None  # since when there has been no worker
    try:
        while pending:
            tick()
            try:
                with client.as_current():
                    finished, pending = wait(pending, timeout=TICK, return_when="FIRST_COMPLETED")
            except TimeoutError:
                there = client.status == "running"
                if there and client.nthreads():
                    alone = None
                    continue
                alone = alone or time.monotonic()
                if time.monotonic() - alone > PATIENCE:
                    raise EDDPError(NOBODY if there else GONE) from None
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
            "The dask workers that were given a part of the images died of it, several in a row (--dask): they may have "
            "been out of memory, or have another version of eddp. Give them more, or the same, or run without --dask."
        ) from error
    except (CommClosedError, Lost) as error:
        raise EDDPError(GONE) from error
    except RuntimeError as error:
        if "deserialization" not in str(error):
            raise
        raise EDDPError(
            "The dask scheduler does not know what it is sent (--dask): start it, and the workers, in an environment with the same "
            "versions of eddp and dask as here."
        ) from error
    finally:
        client.cancel(list(pending))


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


@contextmanager
def _local_cluster() -> Iterator[Any]:
    """A process a core, each with one thread of torch.

    Files mapped into memory count as used there: without a limit they are no reason to end one. And they are spawned: a
    fork after torch or Zarr was used hangs.
    """
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        with held(signal.SIGINT):
            started = LocalCluster(
                n_workers=cores(), threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL, env={"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        with started:
            yield started


def _quiet() -> None:
    """What goes wrong is said in one sentence, not in many: dask's own are not shown."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
