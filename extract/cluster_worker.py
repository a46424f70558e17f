"""What a worker of a dask cluster does for an extraction: it opens source and model by itself, and fills ranges of chunks.

What it is sent are plain values. One extraction runs at a time in a process; what it has opened serves all parts of a run.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.plan import Forecast, Plan, forecast, plan_extraction
from extract.stream import fill
from stores.errors import EDDPError, StoreBusyError, StoreError, StoreExistsError, UsageError
from stores.paths import as_path
from stores.plan import StorePlan
from stores.store import read_attributes
from stores.writer import StoreWriter

PATIENCE = 120.0  # seconds to wait for whoever holds the same chunks, perhaps a worker that is believed dead
PAUSE = 1.0  # seconds between two tries
TELLING = 0.5  # seconds between two words about how far a part is


@dataclass(frozen=True)
class Order:
    """What is asked of the workers.

    Parameters
    ----------
    run : of this run alone, also the topic of what workers tell of it. What they have open for another run is not used.
    data, out : as the commands take them, absolute.
    config : with what the store was laid out with: images a chunk, images a batch. ``device`` may be ``auto``.
    code_version : of who asks.
    folder : where the command was started: one's own models are found from there.
    """

    run: str
    data: str
    out: str
    config: ExtractConfig
    code_version: str = ""
    folder: str = ""


class Unwanted(EDDPError):
    """Nobody waits for this part any more."""


_alone = threading.Lock()
_opened: dict[str, Plan] = {}  # of one run


def fill_part(order: Order, part: tuple[int, int]) -> int:
    """Fill what is missing of part (i, n) of the store, and seal the store if nothing else is; returns the part's images.

    May be done twice, late, or by several workers at once: whoever comes second finds the chunks held, and waits, or done.

    Raises what an extraction raises; EDDPError where this worker does not see what the command sees.
    """
    with _alone:
        teller = _Teller(order.run, part)
        plan = _open(order)
        with closing(_writer(order, plan, part, teller)) as writer:
            fill(plan, writer, progress=teller)
            return sum(min(writer.chunk_images, writer.n_images - k * writer.chunk_images) for k in writer.span)


def batch_size(order: Order) -> int:
    """Images a pass that suit this worker's device."""
    with _alone:
        return _open(order).batch_size


def look_ahead(order: Order, overwrite: bool) -> Forecast:
    """What lies ahead, with the rate of this one worker."""
    with _alone:
        return forecast(_open(order), as_path(order.out), overwrite=overwrite, measure=True)


def own_device(device: str) -> str:
    """``auto`` -> ``cuda`` where this process has one, else ``cpu``. Raises UsageError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or (number and not (name == "cuda" and number.isdigit())):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got '{device}'.")
    if name == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: {_here()} has {torch.cuda.device_count()} CUDA devices. Use --device auto, which takes what "
            "each worker has."
        )
    return device


def _open(order: Order) -> Plan:
    """Source and model, kept for the next part of the same run."""
    config = replace(order.config, device=own_device(order.config.device))
    plan = _opened.get(order.run)
    if plan is None:
        _opened.clear()
        mine, theirs = _version(), order.code_version.partition("+")[0]
        if theirs not in ("", "unknown", mine):
            raise EDDPError(f"{_here()} runs eddp {mine}, this command is of {theirs} (--dask). Give both the same.")
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


def _writer(order: Order, plan: Plan, part: tuple[int, int], teller: _Teller) -> StoreWriter:
    """A writer of a part of the store that the client has laid out."""
    out = as_path(order.out)
    if not (out / "zarr.json").exists():
        raise EDDPError(f"{_here()} finds no store at '{out}' (--dask). Give all workers the same file system.")
    store = _where_it_was(plan.store, read_attributes(out)["provenance"])
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return StoreWriter.create_or_resume(out, store, shard=part)
        except StoreExistsError as error:
            raise EDDPError(
                f"{_here()} sees other images, another model or another store than this command (--dask). Give all workers "
                f"the same files. {error}"
            ) from error
        except StoreBusyError as error:
            if time.monotonic() > until:
                raise StoreError(
                    f"Another process has been writing to a part of the store '{out}' for {PATIENCE:.0f} s, perhaps a worker that "
                    "dask takes for dead. Wait until it has ended, then run the same command again."
                ) from error
            teller.check()
            time.sleep(PAUSE)


def _where_it_was(plan: StorePlan, there: dict[str, Any]) -> StorePlan:
    """The plan, with places as the store names them: a worker that reaches images by another path changes nothing in it."""
    made = {**plan.provenance, "dataset": {**plan.provenance["dataset"], "path": there["dataset"]["path"]}}
    made.update({key: there[key] for key in ("weights", "weights_source") if key in there})
    return replace(plan, provenance=made)


class _Teller:
    """A Progress that tells the client how far a part is, and ends the work that nobody waits for."""

    def __init__(self, topic: str, part: tuple[int, int]) -> None:
        self.topic, self.part = topic, part
        self.worker = _worker()
        self.key = None if self.worker is None else self.worker.get_current_task()
        self.told = 0.0

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        self.check()
        now = time.monotonic()
        if self.worker is not None and (done == total or now - self.told > TELLING):
            self.told = now
            self.worker.log_event(self.topic, {"part": self.part[0], "done": done})

    def check(self) -> None:
        """Raise Unwanted once the task is cancelled or the worker is on its way out: locks must not outlive that."""
        if self.worker is None:
            return
        task = self.worker.state.tasks.get(self.key)
        if task is None or task.state == "cancelled" or self.worker.status.name in ("closing", "closed", "failed"):
            raise Unwanted("Nobody waits for this part of the extraction any more.")


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


def _version() -> str:
    try:
        return version("eddp")
    except PackageNotFoundError:
        return "unknown"
