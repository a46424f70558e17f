"""Recognise a head that averages over positions and is affine after that: ``logits = A mean_p(x_p) + c``.

Method §5: pooling then commutes with the manipulation of the uncertainty term, one vector per image instead of one per
position. What the head does to random inputs decides, whatever modules it is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from extract.tensor_layout import LayerLayout

_BYTES = 64 * 2**20  # of inputs at once while A is read off


@dataclass(frozen=True)
class PooledAffine:
    """``logits = A mean_p(x_p) + c`` with A (K, C) and c (K,), float32."""

    A: torch.Tensor
    c: torch.Tensor

    def __call__(self, x_npc: torch.Tensor) -> torch.Tensor:
        """Give the logits (n, K) of activations (n, P, C)."""
        return x_npc.mean(1) @ self.A.T + self.c


def head_logits(head: nn.Module, layout: LayerLayout, x_npc: torch.Tensor) -> torch.Tensor:
    """Run a head on activations (n, P, C): logits (n, K)."""
    return head(layout.from_npc(x_npc)).flatten(1)


def pooled_affine(head: nn.Module, layout: LayerLayout) -> PooledAffine | None:
    """Find A and c of a head that is global average pooling and affine maps only; None for any other.

    A few random inputs in float32 turn most heads away: positions are permuted, and an affine combination of inputs
    must give the same combination of logits. What passes is copied in float64; A is read off by feeding each channel
    separately, and must then predict the logits of large random activations of both signs to 1e-9.
    """
    device = next((t.device for t in (*head.parameters(), *head.buffers())), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def random(n: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
        p, c = layout.positions, layout.channels
        level = torch.randn(n, 1, c, generator=generator, dtype=torch.float64)  # survives the pooling
        x = scale * (level + torch.randn(n, p, c, generator=generator, dtype=torch.float64))
        return x.to(device, dtype)

    with torch.no_grad():
        if not _may_be_affine(head, layout, random):
            return None
        exact = copy.deepcopy(head).double()
        A, c = _read_off(exact, layout, device)
        if not A.any():  # the logits are constant (a head initialised to zeros): nothing was recognised
            return None
        for scale in (0.1, 1.0, 30.0, 1000.0):
            x = random(4, scale, torch.float64)
            found = PooledAffine(A, c)(x)
            wanted = head_logits(exact, layout, x).double()  # some models round what they return
            if not _close(found, wanted, 1e-9):
                return None
    return PooledAffine(A.float(), c.float())


def _may_be_affine(head: nn.Module, layout: LayerLayout, random: Callable[..., torch.Tensor]) -> bool:
    """Ask in float32, cheapest first, whether a head ignores the order of positions and respects combinations."""
    for scale in (1.0, 30.0):
        x = random(2, scale, torch.float32)
        first, second = head_logits(head, layout, x)
        if torch.equal(first, second):  # constant, as a head of zeros: reading it off would take long for nothing
            return False
        if not _close(head_logits(head, layout, x.flip(1)), torch.stack([first, second]), 1e-3):
            return False
        mixed = head_logits(head, layout, (1.7 * x[:1] - 0.7 * x[1:]))[0]
        if not _close(mixed, 1.7 * first - 0.7 * second, 1e-3):
            return False
    return True


def _read_off(head: nn.Module, layout: LayerLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Give A (K, C) and c (K,) in float64: the answers to single channels, one at all positions, and to zeros."""
    p, channels = layout.positions, layout.channels
    zeros = torch.zeros(1, p, channels, dtype=torch.float64, device=device)
    c = head_logits(head, layout, zeros)[0].double()
    step = max(1, _BYTES // (8 * p * channels))
    columns = []
    for start in range(0, channels, step):
        stop = min(start + step, channels)
        basis = torch.zeros(stop - start, 1, channels, dtype=torch.float64, device=device)
        basis[:, 0, start:stop] = torch.eye(stop - start, dtype=torch.float64, device=device)
        columns.append(head_logits(head, layout, basis.expand(-1, p, -1)) - c)
    return torch.cat(columns).T.contiguous(), c


def _close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())  # False for NaN
