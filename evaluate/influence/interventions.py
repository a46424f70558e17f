"""What a step along a direction does to the classes (RCAV; Pfau et al. 2021, EDDP §5).

Every position of the layer becomes ``x_p + α v`` with v of unit norm, and the head is run again. Per direction and class:

* ``score`` ``2·share − 1`` in [−1, 1], share: images whose probability of the class does not fall;
* ``probability``: mean change of that probability over the images, ``logit``: mean change of the logit [ours: the score is a
  matter of signs alone, and says 1 of a change in the tenth digit].

Behind pooling and an affine map, ``logits = A mean_p(x_p) + c``, the step adds ``d = α A v`` to the logits of every image, so
with ``m_n = log Σ_k p_nk e^{d_k}``, ``p'_nk = p_nk e^{d_k − m_n}``: all images, classes and directions are one product
``p e^d``, and p' ≥ p is ``d_k ≥ m_n``, which sorting m answers for all classes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

SAME = 1e-10  # relative: a probability that fell by less has not moved, it was rounded
SAME_32 = 3e-6  # of the largest logit, of a head that computes in float32
_NUMBERS = 2**24  # of float64 at once


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
    """Through any head, image after image: as many passes through it as there are directions.

    Parameters
    ----------
    blocks : gives the images' activations (n, P, C), a block at a time, as often as it is called.
    head : (n, P, C) -> logits (n, K).
    """

    def __init__(
        self, blocks: Callable[[], Iterator[torch.Tensor]], head: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self._blocks, self._head = blocks, head
        with torch.inference_mode():
            parts = [torch.softmax(head(x.float()).double(), 1) for x in blocks()]
        self.base = torch.cat(parts).mean(0)

    @torch.inference_mode()
    def __call__(self, directions: torch.Tensor, alpha: float) -> Effects:
        steps = alpha * directions.T.float()
        held, probability, logit = (
            torch.zeros(len(steps), len(self.base), dtype=torch.float64, device=self.base.device) for _ in range(3)
        )
        n = 0
        for x in self._blocks():
            x = x.float()
            before = self._head(x).double()
            p = torch.softmax(before, 1)
            same = SAME_32 * before.abs().amax(1, keepdim=True).clamp(1, 1e5)  # logits are rounded by their size
            moved = torch.empty_like(x)
            for j, step in enumerate(steps):
                after = self._head(torch.add(x, step, out=moved)).double()
                q = torch.softmax(after, 1)
                held[j] += (q >= p * (1 - same)).sum(0)
                probability[j] += (q - p).sum(0)
                logit[j] += (after - before).sum(0)
            n += len(x)
        return Effects(2 * held / n - 1, probability / n, logit / n)
