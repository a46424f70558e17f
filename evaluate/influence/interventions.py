"""What a step along a direction does to the classes (RCAV; Pfau et al. 2021, EDDP §5).

Every position of the layer becomes ``x_p + α v`` with v of unit norm, and the head is run again. Per direction and class:

* ``score`` ``2·share − 1`` in [−1, 1], share: images whose probability of the class does not fall;
* ``probability``: mean change of that probability over the images, ``logit``: mean change of the logit [ours: the score is a
  matter of signs, and says 1 of a change in the tenth digit].

Behind pooling and an affine map, ``logits = A mean_p(x_p) + c``, the step adds ``d = α A v`` to the logits of every image, so
with ``m_n = log Σ_k p_nk e^{d_k}``, ``p'_nk = p_nk e^{d_k − m_n}``: all images, classes and directions are one product
``p e^d``, and p' ≥ p is ``d_k ≥ m_n``, which sorting m answers for all classes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from extract.forward import computing_in
from extract.memory import keep_freed_memory
from extract.stepped_head import SteppedHead

SAME = 1e-10  # relative: a probability that fell by less has not moved, it was rounded
SAME_32 = 3e-6  # of the largest logit, of a head that computes in float32
_NUMBERS = 2**24  # of float64 at once
_KEPT = 2**29  # bytes of the images' activations that are kept from one set of directions to the next


@dataclass(frozen=True)
class Effects:
    """Of J directions on K classes, (J, K) float64 each: ``score``, ``probability``, ``logit``."""

    score: torch.Tensor
    probability: torch.Tensor
    logit: torch.Tensor

    @property
    def influence(self) -> torch.Tensor:
        """``score``, but 0 for a direction that lets no class fall: then none rises, and it has moved nothing [ours]."""
        still = (self.score == 1).all(1, keepdim=True)
        return torch.where(still, torch.zeros_like(self.score), self.score)


class Effect(Protocol):
    """Moves all images by α along directions (C, J), unit columns; ``base`` (K,): the mean probabilities unmoved."""

    @property
    def base(self) -> torch.Tensor: ...

    def __call__(self, directions: torch.Tensor, alpha: float) -> Effects: ...


class PooledEffect:
    """Behind a pooled-affine head: no activations are needed, only each image's logits.

    Parameters
    ----------
    logits : (N, K) of the images, unmoved.
    weight : (K, C), A.
    """

    def __init__(self, logits: torch.Tensor, weight: torch.Tensor) -> None:
        self._weight = weight.double()
        # not below e^-690: one image's probabilities, moved, then never all vanish, and still sum to 1
        self._p = torch.softmax(logits.to(weight.device).double(), 1).clamp_min(1e-300)
        self.base = self._p.mean(0)

    def __call__(self, directions: torch.Tensor, alpha: float) -> Effects:
        step = max(1, _NUMBERS // max(self._p.shape))
        parts = [self._tile(part, alpha) for part in directions.split(step, 1)]
        return Effects(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _tile(self, directions: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = len(self._p)
        d = alpha * (directions.double().T @ self._weight.T)  # (J, K)
        top = d.amax(1, keepdim=True)
        m = ((d - top).exp() @ self._p.T).log() + top  # (J, N): log Σ_k p e^d
        order = m.sort(1).values
        held = torch.searchsorted(order, d + SAME, right=True)  # images with m ≤ d
        after = (d - top).exp() * ((top - m).exp() @ self._p) / n
        return 2 * held.double() / n - 1, after - self.base, d


class HeadEffect:
    """Through any head: as many passes of every image through it as there are directions, on a CPU a thread a core.

    Parameters
    ----------
    blocks : gives the images' activations (n, P, C), a block at a time, as often as it is called.
    """

    def __init__(self, blocks: Callable[[], Iterator[torch.Tensor]], head: SteppedHead) -> None:
        self._blocks, self._head = blocks, head
        self._kept: list[_Batch] | None = []
        p, size = [], 0
        for batch in self._prepared():
            p.append(batch.p)
            size += sum(part.nbytes for part in batch.parts)
            self._kept = None if self._kept is None or size > _KEPT else [*self._kept, batch]
        self.base = torch.cat(p).mean(0)

    def __call__(self, directions: torch.Tensor, alpha: float) -> Effects:
        totals = torch.zeros(3, directions.shape[1], len(self.base), dtype=torch.float64, device=self.base.device)
        n = 0
        with _threads(self._head, self.base.device) as each:
            for batch in self._prepared() if self._kept is None else self._kept:
                found = each(lambda step, batch=batch: self._moved(batch, step), alpha * directions.T.float())
                for j, part in enumerate(found):
                    totals[:, j] += part
                n += len(batch.p)
        held, probability, logit = totals
        # rounded, so that what two classes exchange is the same to both, whatever the batches
        return Effects(2 * held / n - 1, (probability / n).round(decimals=12), logit / n)

    @torch.no_grad()
    def _prepared(self) -> Iterator[_Batch]:
        for x in self._blocks():
            x = x.float()
            with computing_in("float32", x.device):  # a GPU's shortened products would decide what small steps do
                parts = self._head.start(x)
                before = self._head.rest(*(part.clone() for part in parts)).double()
            yield _Batch(x[:1], parts, before, torch.softmax(before, 1))

    @torch.no_grad()
    def _moved(self, batch: _Batch, step: torch.Tensor) -> torch.Tensor:
        """Sums over a batch's images (3, K): those whose probability holds, its change, the logit's change."""
        moved = (part + more for part, more in zip(batch.parts, self._head.step(batch.like, step), strict=True))
        after = self._head.rest(*moved).double()
        q = torch.softmax(after, 1)
        same = SAME_32 * batch.before.abs().amax(1, keepdim=True).clamp(1, 1e5)  # logits are rounded by their size
        return torch.stack([part.sum(0) for part in (q >= batch.p * (1 - same), q - batch.p, after - batch.before)])


@dataclass(frozen=True)
class _Batch:
    """Images unmoved: one that is ``like`` (1, P, C) them, what the head's start gives, logits ``before`` and probabilities ``p``."""

    like: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    before: torch.Tensor
    p: torch.Tensor


@contextmanager
def _threads(head: SteppedHead, device: torch.device) -> Iterator[Callable[..., Iterator[torch.Tensor]]]:
    """``map`` with as many threads as torch has, each with one of torch: they need not wait for each other at every operation."""
    count = torch.get_num_threads()
    if device.type != "cpu" or not head.threads or count == 1:
        with computing_in("float32", device):
            yield map
        return
    with keep_freed_memory(), ThreadPoolExecutor(count, "influence", torch.set_num_threads, (1,)) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(count)
