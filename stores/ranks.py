"""Several processes that do one piece of work: what a pass over a store asks of them.

Nothing here knows how they talk to each other: ``fit.process_group`` does. Every process calls the same methods in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Ranks:
    """This process is number ``rank`` (from 0) of ``size``. This base is one single process; ``fit.process_group`` has the group of many."""

    rank: int = 0
    size: int = 1

    def sum(self, *tensors: torch.Tensor) -> None:
        """Add up each tensor over all ranks, in place and in float64; all on one device."""

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """Give all ranks the values that rank 0's tensors have, in place; all on one device."""

    def share(self, tensors: Mapping[str, torch.Tensor] | None, source: int = 0) -> dict[str, torch.Tensor]:
        """What rank ``source`` gives, on all ranks; the others need not know names or shapes beforehand, and give None.

        Tensors of any kind; on the CPU but where there is one rank.
        """
        return dict(tensors or {})

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows (m, r) of all ranks, in the order of ranks; m may differ, and be 0."""
        return rows


ALONE = Ranks()


def part_of(count: int, ranks: Ranks) -> range:
    """Which of ``count`` things in order are this rank's: as many as the others', but for one; rank 0 has the first.

    Part k of n is ``⌈k count / n⌉`` up to ``⌈(k + 1) count / n⌉``.
    """
    return range(-(-ranks.rank * count // ranks.size), -(-(ranks.rank + 1) * count // ranks.size))
