"""Sums over the positives of each detector, streamed: what signal vectors are estimated from (paper §3.3).

``Σ y`` and ``Σ z y`` over the positions with ``z_pi > 0`` are two matrix products, ``yᵀ [z > 0]`` and ``yᵀ relu(z)``, as
large as the forward itself. In a fit a position is positive for one to three detectors only, so nearly all of that
work multiplies zeros: where positives are few they are looked up and added one by one instead. Both ways are exact.
"""

from __future__ import annotations

from typing import Literal

import torch

from fit.tile_backends import PIECE, in_pieces

Wanted = Literal["none", "pooled", "positives", "all"]  # which estimate of signal vectors the sums are for


def sparse_share(device: torch.device) -> float:
    """Share of positives up to which adding them one by one beats the dense products (break-even measured: 14 % at rank
    16, 17 to 22 % at 64, 22 to 30 % at 512).

    Elsewhere than on a processor a dense product is nearly free, and looking positives up makes the device wait.
    """
    return 0.15 if device.type == "cpu" else 0.0


class PositiveSums:
    """Float64 sums over positives: ``count``, ``logit`` (Σz), ``square`` (Σz²), each (I,); ``rows`` (Σy) and ``cross``
    (Σzy), each (I, r); ``together`` (I, I): at how many positions two detectors are both positive.

    Parameters
    ----------
    rank, directions, tile : r, I and the largest number of rows given at once.
    dtype, device : of the rows.
    wanted : "pooled" leaves out what only the positives-only estimate needs (``logit``, ``square``, ``cross``), "positives" what
        only the pooled one does (``together``); these then stay 0.
    """

    def __init__(
        self,
        rank: int,
        directions: int,
        tile: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        wanted: Wanted = "all",
    ) -> None:
        self._values, self._pairs = wanted in ("positives", "all"), wanted in ("pooled", "all")
        self._share = sparse_share(device)
        self._moments = torch.zeros(3, directions, dtype=torch.float64, device=device)
        self.count, self.logit, self.square = self._moments
        self.rows, self.cross = (torch.zeros(directions, rank, dtype=torch.float64, device=device) for _ in range(2))
        self.together = torch.zeros(directions, directions, dtype=torch.float64, device=device)
        self._dense: torch.Tensor | None = None
        self._size = tile * directions
        self._piece = max(1, PIECE // directions)  # rows
        if self._share:
            pieces = -(-tile // self._piece)
            self._found = torch.empty(pieces, self._piece * directions, dtype=torch.int32)
            self._ends = torch.empty(pieces, self._piece, dtype=torch.int32)

    def sums(self, wanted: Wanted) -> tuple[torch.Tensor, ...]:
        """Those of the sums that ``wanted`` fills, to be added up over ranks."""
        if wanted == "none":
            return ()
        return (
            self._moments,
            self.rows,
            *((self.cross,) if self._values else ()),
            *((self.together,) if self._pairs else ()),
        )

    def add(self, y: torch.Tensor, z: torch.Tensor) -> None:
        """Add a tile's positives: rows y (t, r) and their logits z (I, t), which stay as they are.

        On a processor z is best the transpose of a contiguous tensor.
        """
        if not self._share:
            return self._add_dense(y, z)
        z = z.T.contiguous()
        if self._find(z) > self._share * z.numel():
            return self._add_dense(y, z.T)
        self._add_sparse(y, z)

    def _find(self, z: torch.Tensor) -> int:
        """How many positives z (t, I) has; each row's are left in ``_found``, in pieces, up to ``_ends``."""
        from fit import tile_kernels as kernels

        rows, found, ends, size = z.numpy(), self._found.numpy(), self._ends.numpy(), self._piece
        return sum(
            in_pieces(
                lambda k: kernels.find(rows[k * size : (k + 1) * size], found[k], ends[k]),
                -(-len(rows) // size),
            )
        )

    def _add_sparse(self, y: torch.Tensor, z: torch.Tensor) -> None:
        """A thread adds all positives of some detectors: whatever their number, each sum is taken in the positions' order."""
        from fit import tile_kernels as kernels

        i, parts = z.shape[1], min(torch.get_num_threads(), z.shape[1])
        given = tuple(part.numpy() for part in (y.contiguous(), z, self._found, self._ends))
        sums = tuple(part.numpy() for part in (self._moments, self.rows, self.cross, self.together))
        in_pieces(
            lambda k: kernels.add(*given, i * k // parts, i * (k + 1) // parts, self._values, self._pairs, *sums),
            parts,
        )

    def _add_dense(self, y: torch.Tensor, z: torch.Tensor) -> None:
        i, t = z.shape
        if self._dense is None:
            self._dense = torch.empty(2 * self._size, dtype=z.dtype, device=z.device)
        block = self._dense[: 2 * i * t]
        positive, value = block.view(2, i, t) if z.is_contiguous() else block.view(2, t, i).mT  # in z's own layout
        if not self._values:
            torch.gt(z, 0, out=positive)
        else:
            torch.clamp_min(z, 0, out=value)
            torch.sign(value, out=positive)
            self.cross += value @ y
            self.logit += value.sum(1)
            self.square += value.square_().sum(1)
        self.rows += positive @ y
        self.count += positive.sum(1)
        if self._pairs:
            self.together += positive @ positive.T
