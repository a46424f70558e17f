"""The detectors of steps (b) and (d): each its own filter, margin and threshold; and the coordinates of all steps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fit.detectors import Detectors
from fit.paper.orthonormal import Orthonormal
from fit.whiten import Whitening
from stores.errors import FitError
from stores.statistics import Statistics

CONSTANT = 1e-10  # variance over mean square, under which a channel is constant but for rounding


def standardised(statistics: Statistics) -> Whitening:
    """Per-channel z-scores ``y = (x − μ) / σ`` [I], r numbers a position: channels without variance are left out.

    Raises FitError when no channel varies.
    """
    variance = statistics.covariance.diagonal()
    varies = np.flatnonzero(variance > CONSTANT * (variance + statistics.mean**2))
    if not len(varies):
        raise FitError(
            "The activations do not vary: every position of every image has the same vector, so there is nothing to "
            "find. Look at the layer and the images with `eddp inspect`."
        )
    deviation = np.sqrt(variance[varies])
    forward = np.zeros((len(varies), len(variance)), np.float32)
    forward[np.arange(len(varies)), varies] = 1 / deviation
    backward = np.zeros((len(variance), len(varies)), np.float32)
    backward[varies, np.arange(len(varies))] = deviation
    return Whitening(torch.from_numpy(forward), torch.from_numpy(backward), _float(statistics.mean), 1.0)


def plain(standard: Whitening, *, centre: bool) -> Whitening:
    """The activations themselves in the channels that vary, less their mean with ``centre``."""
    forward = (standard.forward != 0).to(standard.forward.dtype)
    mean = standard.mean if centre else torch.zeros_like(standard.mean)
    return Whitening(forward, forward.T.contiguous(), mean, 1.0)


class Separate:
    """``z = y·ū_i / M_i − b_i``, and the signal vectors where they are learnt too.

    ``directions`` (r, I), normalised where used; ``log_margins`` ln M (I,); ``thresholds`` b (I,); ``encoding`` (r, I),
    normalised where used, or None. Rows y are plain activations.
    """

    def __init__(
        self,
        directions: torch.Tensor,
        log_margins: torch.Tensor,
        thresholds: torch.Tensor,
        encoding: torch.Tensor | None = None,
    ) -> None:
        self.directions, self.log_margins, self.thresholds = (
            t.detach().clone().requires_grad_(True) for t in (directions, log_margins, thresholds)
        )
        self.encoding = None if encoding is None else encoding.detach().clone().requires_grad_(True)

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], device: str) -> Separate:
        """What ``tensors`` gave."""
        names = ("directions", "log_margins", "thresholds", "encoding")
        return cls(*(tensors[name].to(device) for name in names if name in tensors))

    def parameters(self) -> list[torch.Tensor]:
        return list(self.tensors().values())

    def unit(self) -> torch.Tensor:
        """ū (r, I)."""
        return F.normalize(self.directions, dim=0)

    def inverse_margins(self) -> torch.Tensor:
        """1/M (I,)."""
        return torch.exp(-self.log_margins)

    @property
    def offsets(self) -> torch.Tensor:
        """β (I,): distances from the thresholds' planes are ``y·ū − β``."""
        return self.thresholds * torch.exp(self.log_margins)

    def linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W (r, I), b (I,)) with ``z = y W − b``."""
        return self.unit() * self.inverse_margins(), self.thresholds

    def signals(self) -> torch.Tensor | None:
        """s̄ (r, I), None where they are not learnt."""
        return None if self.encoding is None else F.normalize(self.encoding, dim=0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        kept = {"directions": self.directions, "log_margins": self.log_margins, "thresholds": self.thresholds}
        return kept if self.encoding is None else {**kept, "encoding": self.encoding}

    def with_signals(self, encoding: torch.Tensor) -> Separate:
        """The same detectors, with signal vectors (r, I) to learn: the start of step (d)."""
        return Separate(self.directions, self.log_margins, self.thresholds, F.normalize(encoding, dim=0))

    def detectors(self) -> Detectors:
        """The same in float64, as the project's other fits have them."""
        exact = (t.detach().double() for t in (self.directions, self.offsets, self.log_margins))
        return Detectors(*exact)


@torch.no_grad()
def released(found: Orthonormal, standard: Whitening, activations: Whitening) -> Separate:
    """The exact affine change of variables that begins step (b): the logits of every activation stay what they are.

    With ``y = T(x − μ)`` and ``z = y·w − b``: ``w' = Tᵀw``, ``b' = b + w'·(μ − μ')`` for activations less μ' (0 or μ). In float64.
    """
    w, b = (t.double() for t in found.linear())
    filters = standard.forward.double().T @ w
    thresholds = b + (standard.mean - activations.mean).double() @ filters
    filters = activations.forward.double() @ filters
    norms = filters.norm(dim=0)
    dtype = found.free.dtype
    return Separate((filters / norms).to(dtype), -norms.log().to(dtype), thresholds.to(dtype))


def _float(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
