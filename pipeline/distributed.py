"""Joining the processes that torchrun has started, and having them speak with one voice.

torchrun gives each process its number (RANK, LOCAL_RANK), how many there are (WORLD_SIZE, LOCAL_WORLD_SIZE), and where they meet
(MASTER_ADDR, MASTER_PORT). Without it nothing of ``torch.distributed`` is started.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.logging import ranks as launched
from pipeline.run import pick_device
from pipeline.slurm import device_of
from stores.errors import EDDPError, FitError, UsageError
from stores.ranks import ALONE, Ranks

TIMEOUT = timedelta(
    hours=1
)  # for ranks to come to the same point: one may read its part of the store faster than another
JOINING = timedelta(minutes=10)
RANK_0_SECONDS = 3.0  # that other machines give rank 0 to say what was wrong
MEETING = ("MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """The ranks of this run, and the device of this one, for as long as the block lasts; one process has no others.

    ``device``: as ``--device`` has it; auto and cuda are each process's own CUDA device. What fails in the block is said by the process
    in which it failed first: the others, which lose it or fail of the same, end without a word (SystemExit).

    Raises UsageError for an environment or devices that do not fit together.
    """
    rank, size = launched()
    if size < 2:
        yield ALONE, pick_device(device)
        return
    try:
        chosen = _own_device(device)
    except UsageError as error:
        if _is_first_here():
            raise
        raise SystemExit(error.exit_code) from error
    store = _join(chosen, rank, size)
    from fit.process_group import Group

    root, level = logging.getLogger(), logging.getLogger().level
    if rank and level == logging.WARNING:
        root.setLevel(logging.ERROR)  # rank 0 warns of the same
    try:
        yield Group(), chosen
    except BaseException as error:
        if _is_to_say(error, store, rank):
            raise
        raise SystemExit(_code(error)) from error
    finally:
        root.setLevel(level)
    dist.destroy_process_group()  # not after a failure: it would wait for the others


def _own_device(device: str) -> str:
    local, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    missing = [name for name in MEETING if not os.environ.get(name)]
    if missing or not dist.is_available():
        what = f"nothing says {' and '.join(missing)}" if missing else "this build of torch has no torch.distributed"
        raise UsageError(
            f"RANK and WORLD_SIZE say that this is one of several processes, but {what}: start them by torchrun, or unset both."
        )
    if device.startswith("cuda:") and local > 1:
        raise UsageError(
            f"--device {device} is one device for {local} processes: leave the number out, and each takes its own."
        )
    if device != "cpu" and 0 < devices < local:
        raise UsageError(
            f"torchrun has started {local} processes here, and there are {devices} CUDA devices: give it --nproc-per-node {devices}, "
            "or use --device cpu."
        )
    return pick_device(device_of(device, os.environ, devices))


def _join(device: str, rank: int, size: int) -> dist.Store:
    """Initialise ``torch.distributed``; gives the store by which the processes have found each other."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=JOINING))
        store.set_timeout(JOINING)
        if device != "cpu":
            torch.cuda.set_device(device)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ[name] for name in MEETING)
        raise FitError(
            f"Process {rank} of {size} could not join the others at {where} ({str(error).splitlines()[0]}): see whether all were "
            "started, and can reach that machine."
        ) from error
    return store


def _is_first_here() -> bool:
    """Whether this is the one process of its machine that speaks of what all of them see alike."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_to_say(error: BaseException, store: dist.Store, rank: int) -> bool:
    """Whether it falls to this process to say what went wrong: no other one has failed before; wrong use is rank 0's to say."""
    if rank and _code(error) == 2:
        if not _is_first_here():
            return False
        time.sleep(RANK_0_SECONDS)
    try:
        return int(store.add("eddp/failures", 1)) == 1
    except RuntimeError:  # the store went with the process that held it: better said twice than not at all
        return True


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, EDDPError) else 1
