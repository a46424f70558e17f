"""Sums over the positives of each detector, streamed: what signal vectors are estimated from (paper §3.3).

``Σ y`` and ``Σ z y`` over the positions with ``z_pi > 0`` are two matrix products, ``yᵀ [z > 0]`` and ``yᵀ relu(z)``, as
large as the forward itself. In a fit a position is positive for one to three detectors only, so nearly all of that
work multiplies zeros: where positives are few they are looked up and added one by one instead. Both ways are exact.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

WORD = 8  # booleans in an int64
Wanted = Literal["none", "pooled", "positives", "all"]  # which estimate of signal vectors the sums are for


def sparse_share(rank: int, device: torch.device) -> float:
    """Share of positives up to which adding them one by one beats the dense products (break-even measured: 6 % at rank
    64, 13 % at 128, 25 % at 256, about 30 % above).

    A lookup costs about as much as a thousand multiplications, so less pays at low rank. Elsewhere than on a processor
    a dense product is nearly free, and a lookup makes the device wait.
    """
    return min(rank / 1000, 0.3) if device.type == "cpu" else 0.0


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
        # share of words with a positive, had the entries nothing to do with each other
        self._sparse_words = 1 - (1 - sparse_share(rank, device)) ** WORD
        self.count, self.logit, self.square = (
            torch.zeros(directions, dtype=torch.float64, device=device) for _ in range(3)
        )
        self.rows, self.cross = (torch.zeros(directions, rank, dtype=torch.float64, device=device) for _ in range(2))
        self.together = torch.zeros(directions, directions, dtype=torch.float64, device=device)
        self._flags: torch.Tensor | None = None
        self._mask = torch.zeros(-(-tile * directions // WORD) * WORD, dtype=torch.bool, device=device)
        self._dense: torch.Tensor | None = None
        self._dtype = dtype
        self._size = tile * directions

    def add(self, y: torch.Tensor, z: torch.Tensor) -> None:
        """Add a tile's positives: rows y (t, r) and their contiguous logits z (I, t), which stay as they are."""
        if not self._sparse_words:
            return self._add_dense(y, z)
        size = z.numel()
        padded = self._mask[: -(-size // WORD) * WORD]
        padded[size:] = False
        torch.gt(z, 0, out=padded[:size].view(z.shape))
        # eight entries at once: looking through single booleans would cost more than the products saved
        packed = padded.view(torch.int64)
        words = torch.nonzero(packed).squeeze(1)
        if len(words) > self._sparse_words * len(packed):
            return self._add_dense(y, z)
        hits = torch.nonzero(packed.index_select(0, words).view(torch.bool)).squeeze(1)
        self._add_sparse(y, z, words.index_select(0, hits // WORD) * WORD + hits % WORD)

    def _add_sparse(self, y: torch.Tensor, z: torch.Tensor, entries: torch.Tensor) -> None:
        """``entries``: flat indices of the positives in z, rising: detector after detector."""
        i, t = z.shape
        start = torch.searchsorted(entries, torch.arange(0, i * t, t, device=z.device))
        position = entries % t
        # bag i holds the positives of detector i: a sparse (I × t) times dense (t × r) product
        self.rows += F.embedding_bag(position, y, start, mode="sum")
        ends = torch.cat([start[1:], start.new_tensor([len(entries)])])
        self.count += ends - start
        if self._pairs:
            self._count_together(position, entries // t, start, t, i)
        if not self._values:
            return
        value = z.view(-1).index_select(0, entries)
        self.cross += F.embedding_bag(position, y, start, mode="sum", per_sample_weights=value)
        moments = torch.stack([value, value * value], 1)
        each = torch.arange(len(entries), device=z.device)
        sums = F.embedding_bag(each, moments, start, mode="sum")
        self.logit += sums[:, 0]
        self.square += sums[:, 1]

    def _count_together(
        self, position: torch.Tensor, detector: torch.Tensor, start: torch.Tensor, t: int, i: int
    ) -> None:
        """Add up, for each detector, the rows of flags of its positive positions."""
        if self._flags is None or len(self._flags) < t:
            self._flags = torch.zeros(t, i, dtype=self._dtype, device=position.device)
        self._flags[position, detector] = 1
        self.together += F.embedding_bag(position, self._flags, start, mode="sum")
        self._flags[position, detector] = 0  # cheaper than clearing all of it

    def _add_dense(self, y: torch.Tensor, z: torch.Tensor) -> None:
        i, t = z.shape
        if self._dense is None:
            self._dense = torch.empty(2 * self._size, dtype=z.dtype, device=z.device)
        block = self._dense[: 2 * i * t].view(2, i, t)
        positive, value = block
        torch.clamp_min(z, 0, out=value)
        torch.sign(value, out=positive)
        products = (block if self._values else positive[None]).view(-1, t) @ y
        self.rows += products[:i]
        self.count += positive.sum(1)
        if self._pairs:
            self.together += positive @ positive.T
        if self._values:
            self.cross += products[i:]
            self.logit += value.sum(1)
            self.square += value.square_().sum(1)
