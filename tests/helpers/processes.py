"""What real processes do in tests of their group; spawned ones import it from here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fit import EDDP
from fit.process_group import Group, LostError


def join(rank: int, size: int, folder: str, work: Callable[[Group], None], backend: str = "gloo") -> None:
    """Process ``rank`` of ``size``: meet the others in a folder, and work."""
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    work(Group())
    os._exit(
        0
    )  # what gloo's threads do while a process is taken down is not what is tested: now and then they abort it


def every_operation(group: Group) -> None:
    """On two ranks; at the end one goes away, and the other learns it at once, in a sentence."""
    k = group.rank
    counts, halves = torch.tensor([k, 2**40 + k]), torch.full((2, 3), k + 0.5)
    group.sum(counts, halves)
    assert counts.tolist() == [1, 2 * 2**40 + 1]
    assert counts.dtype == torch.int64
    assert torch.equal(halves, torch.full((2, 3), 2.0))
    assert (group.calls, group.bytes) == (1, 8 * 8)
    third, flag = torch.full((4,), 1 / 3 + k), torch.tensor(float(k))
    group.broadcast(third.requires_grad_(), flag)
    assert torch.equal(third.detach(), torch.full((4,), 1 / 3))
    assert float(flag) == 0
    assert (group.calls, group.bytes) == (2, 8 * 8 + 5 * 8)
    given = {"a": torch.arange(5), "b": torch.zeros(0, 3), "c": torch.tensor(0.1, dtype=torch.float64)}
    found = group.share(given if k == 1 else None, source=1)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {n: (t.dtype, t.shape) for n, t in given.items()}
    assert found["c"] == given["c"]
    assert group.share({} if k == 0 else None) == {}
    rows = group.gather(torch.full((2 * k, 3), float(k)))  # rank 0 has none
    assert rows[:, 0].tolist() == [1, 1]
    assert group.gather(torch.full((2 - k, 1), float(k)))[:, 0].tolist() == [0, 0, 1]
    if k == 1:
        return
    start = time.monotonic()
    with pytest.raises(LostError, match="noticed by rank 0 of 2.* run the same command again to resume"):
        group.sum(torch.zeros(1))
    assert time.monotonic() - start < 30


def fit_over_nccl(rank: int, size: int, folder: str, store: str, out: str, settings: dict[str, Any]) -> None:
    """A fit on ``size`` CUDA devices; rank 0 saves it."""
    torch.cuda.set_device(rank)

    def work(group: Group) -> None:
        found = EDDP(**settings, device=f"cuda:{rank}").fit(store, ranks=group)
        if rank == 0:
            found.save(out)

    join(rank, size, folder, work, "cpu:gloo,cuda:nccl")
