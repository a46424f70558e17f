"""Ranks that are threads of one process: every collective operation by hand, in the order of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Member:
    """One of ``size`` threads that meet at ``barrier`` and lay what they have in ``table``."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._table = rank, size, barrier, table
        self.sums: list[int] = []  # numbers in each call of sum

    def _all(self, mine: Any) -> list[Any]:
        self._table[self.rank] = mine
        self._barrier.wait()
        every = list(self._table)
        self._barrier.wait()
        return every

    def sum(self, *tensors: torch.Tensor) -> None:
        self.sums.append(sum(tensor.numel() for tensor in tensors))
        assert len({tensor.device for tensor in tensors}) == 1  # they cross the network in one operation
        every = self._all([tensor.detach().double().clone() for tensor in tensors])
        with torch.no_grad():
            for k, tensor in enumerate(tensors):
                tensor.copy_(torch.stack([parts[k] for parts in every]).sum(0))

    def broadcast(self, *tensors: torch.Tensor) -> None:
        assert len({tensor.device for tensor in tensors}) == 1
        first = self._all([tensor.detach().clone() for tensor in tensors])[0]
        with torch.no_grad():
            for tensor, value in zip(tensors, first, strict=True):
                tensor.copy_(value)

    def share(self, tensors: Mapping[str, torch.Tensor] | None, source: int = 0) -> dict[str, torch.Tensor]:
        every = self._all(tensors)
        return {name: tensor.detach().cpu().clone() for name, tensor in (every[source] or {}).items()}

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(rows.clone()))


def on_ranks(size: int, work: Callable[[Member], T]) -> list[T]:
    """What ``work`` gives on each of ``size`` ranks; the first failure that is not another's consequence is raised."""
    barrier, table = threading.Barrier(size, timeout=60), [None] * size

    def run(rank: int) -> T:
        torch.set_num_threads(1)
        try:
            return work(Member(rank, size, barrier, table))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    failures = [error for future in futures if (error := future.exception()) is not None]
    if failures:
        raise next((e for e in failures if not isinstance(e, threading.BrokenBarrierError)), failures[0])
    return [future.result() for future in futures]
