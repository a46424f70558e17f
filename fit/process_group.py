"""The processes of a fit over ``torch.distributed``: what crosses the network, and how much.

Only sums, parameters and bounded samples do; their sizes depend on I and r, never on the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from stores.errors import FitError
from stores.ranks import Ranks


class LostError(FitError):
    """Another process of the fit ended, or does not answer within the time allowed."""


class Group(Ranks):
    """The process group that ``torch.distributed`` was initialised with; CPU tensors need gloo in it, CUDA tensors NCCL.

    ``calls`` and ``bytes``: collective operations so far, and the size of what was handed to them here.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.calls = self.bytes = 0

    def sum(self, *tensors: torch.Tensor) -> None:
        """All in one operation: at these sizes a network's delay costs more than its width."""
        self._together(tensors, dist.all_reduce)

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """As ``Ranks.broadcast``; float64 holds every float32 exactly."""
        self._together(tensors, dist.broadcast, src=0)

    def share(self, tensors: Mapping[str, torch.Tensor] | None, source: int = 0) -> dict[str, torch.Tensor]:
        """The tensors travel as the bytes of a safetensors file."""
        data = b""
        if self.rank == source:
            data = save({name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()})
        length = torch.tensor([len(data)])
        self._run(dist.broadcast, length, src=source)
        buffer = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == source:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._run(dist.broadcast, buffer, src=source)
        return load(buffer.numpy().tobytes())

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """One broadcast a rank: their numbers differ, and nothing is held twice."""
        lengths = torch.zeros(self.size, dtype=torch.float64, device=rows.device)
        lengths[self.rank] = len(rows)
        self._run(dist.all_reduce, lengths)
        every = [int(length) for length in lengths]
        gathered = torch.empty(sum(every), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        for source, part in enumerate(gathered.split(every)):
            if len(part):
                if source == self.rank:
                    part.copy_(rows)
                self._run(dist.broadcast, part, src=source)
        return gathered

    def _run(self, operation: Callable[..., Any], tensor: torch.Tensor, **more: Any) -> None:
        self.calls += 1
        self.bytes += tensor.numel() * tensor.element_size()
        try:
            operation(tensor, **more)
        except RuntimeError as error:
            raise LostError(
                f"Another process of this fit ended or does not answer (noticed by rank {self.rank} of {self.size}): see what it "
                "said, and run the same command again to resume from the last checkpoint."
            ) from error

    def _together(self, tensors: tuple[torch.Tensor, ...], operation: Callable[..., Any], **more: Any) -> None:
        """An operation in place on all tensors as one, in float64."""
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
        self._run(operation, flat, **more)
        with torch.no_grad():
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))
