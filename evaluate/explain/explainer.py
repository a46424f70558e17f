"""One prediction explained: everything there is to say of an image, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from evaluate.explain.contributions import (
    ROUNDING,
    Contributions,
    measured_contributions,
    pooled_contributions,
    reads_positions,
)
from evaluate.explain.counterfactual_search import HeadMoved, Moved, PooledMoved, Turned, turn
from evaluate.explain.gradcam import contribution_maps, grad_cam, logit_gradient
from evaluate.explain.values import Usual, Values, readout
from stores.directions import Directions
from stores.errors import NonFiniteError


@dataclass(frozen=True)
class Explained:
    """Of one image; P counts the positions on the image, without a class token.

    ``explained``: the class that is explained, ``against``: the one it is held against, the ``target`` if that is another class; ``alpha`` (P, I) signal values, ``fires`` (P, I) the detectors' logits;
    ``maps`` (P, I) what each concept adds to the explained logit at each position; ``cam`` (P,) Grad-CAM. ``pooled`` (I,): mean signal values, and
    ``target`` and ``turned``: what class it was to be turned into, and how; None where it is that already, or where nothing is found that turns it.
    ``unread``: the head does not read these positions at all, but only a class token; then there is nothing to explain here.
    """

    contributions: Contributions
    explained: int
    against: int | None
    alpha: np.ndarray
    fires: np.ndarray
    maps: np.ndarray
    cam: np.ndarray
    pooled: np.ndarray
    target: int | None
    turned: Turned | None
    unread: bool = False

    @property
    def predicted(self) -> int:
        return int(self.contributions.logits.argmax())

    @property
    def probabilities(self) -> np.ndarray:
        """(K,), the softmax of the logits."""
        return softmax(self.contributions.logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(K,) -> (K,), float64."""
    e = np.exp(logits - logits.max())
    shares: np.ndarray = e / e.sum()
    return shares


class Explainer:
    """Explains predictions from a layer's activations.

    Parameters
    ----------
    head : the network's, (n, P, C) float32 -> logits (n, K), differentiable.
    directions : of that layer.
    thresholds : (I,), of the detectors; the directions' own, or ``make_bank``'s for a set without.
    usual : what the store's images have (``usual_values``, read out by the same ``values``).
    affine : (A (K, C), c (K,)) where the head is pooling and an affine map.
    prefix : positions that are nowhere on the image, at the front. They are left as they are, as a correction leaves them.
    values : how signal values are read (``readout``).
    """

    def __init__(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        directions: Directions,
        thresholds: np.ndarray,
        usual: Usual,
        *,
        affine: tuple[np.ndarray, np.ndarray] | None = None,
        prefix: int = 0,
        values: Values = "joint",
        device: str = "cpu",
    ) -> None:
        self.head, self.directions, self.thresholds, self.usual = head, directions, thresholds, usual
        self.affine, self.prefix, self.values, self.device = affine, prefix, values, device
        self.read = readout(directions, values)

    def explain(self, x: np.ndarray, *, explained: int | None = None, target: int | None = None) -> Explained:
        """Explain the prediction for one image.

        Parameters
        ----------
        x : (P, C) float32, the layer's activations, the prefix included.
        explained : class to explain; the predicted one by default.
        target : class to turn the prediction into; by default the class explained if it is not the prediction, else the runner-up.

        Raises
        ------
        NonFiniteError
            The activations or the logits are NaN or infinite.
        """
        own = slice(self.prefix, None)
        alpha = (x[own].astype(np.float64) - self.directions.mean) @ self.read
        if not np.isfinite(x).all():
            raise NonFiniteError("the model gives NaN or infinite activations for it")
        found = self._contributions(x, alpha)
        if not np.isfinite(found.logits).all():
            raise NonFiniteError("the model gives NaN or infinite logits for it")
        order = np.argsort(-found.logits, kind="stable")
        predicted, runner = int(order[0]), int(order[1]) if len(order) > 1 else None
        k = predicted if explained is None else explained
        rival = runner if k == predicted else predicted
        wanted = target if target is not None else rival if k == predicted else k
        against = rival if wanted == k else wanted
        gradient = logit_gradient(self.head, torch.from_numpy(x).to(self.device), k).cpu().numpy()
        pooled = alpha.mean(0)
        if unread := self._unread(x, found):
            found = replace(found, base=found.logits, parts=0 * found.parts, residual=0 * found.residual)
        turned = None if unread or wanted is None or wanted == predicted else self.turn(x, pooled, wanted)
        return Explained(
            found,
            k,
            against,
            alpha,
            x[own] @ self.directions.filters - self.thresholds,
            contribution_maps(alpha, self.directions.signals, gradient[own]),
            grad_cam(x[own], gradient[own]),
            pooled,
            wanted,
            turned,
            unread,
        )

    def turn(self, x: np.ndarray, pooled: np.ndarray, target: int) -> Turned | None:
        """Find what turns the prediction of ``x`` (P, C), of mean signal values ``pooled`` (I,), into ``target`` (see ``turning.turn``)."""
        usual = self.usual
        low, high = np.minimum(usual.low - pooled, 0), np.maximum(usual.high - pooled, 0)
        kept = self._moved(x, keep=True) if usual.nonnegative else None
        return turn(self._moved(x, keep=False), kept, target, usual.spread, low, high)

    def pooled(self, x: np.ndarray) -> np.ndarray:
        """(I,) mean signal values of an image's activations (P, C)."""
        mean: np.ndarray = (x[self.prefix :].astype(np.float64).mean(0) - self.directions.mean) @ self.read
        return mean

    def _moved(self, x: np.ndarray, *, keep: bool) -> Moved:
        if self.affine is not None:
            return PooledMoved(x, self.directions.signals, *self.affine, prefix=self.prefix, keep=keep)
        signals = torch.from_numpy(self.directions.signals).to(self.device)
        return HeadMoved(self.head, torch.from_numpy(x).to(self.device), signals, prefix=self.prefix, keep=keep)

    def _contributions(self, x: np.ndarray, alpha: np.ndarray) -> Contributions:
        d = self.directions
        if self.affine is not None:
            return pooled_contributions(x, d.mean, alpha, d.signals, *self.affine, prefix=self.prefix)
        tensors = (torch.from_numpy(a.astype(np.float32)).to(self.device) for a in (x, d.mean, alpha, d.signals))
        return measured_contributions(self.head, *tensors, prefix=self.prefix)

    def _unread(self, x: np.ndarray, found: Contributions) -> bool:
        """Whether the head does not depend on the positions on the image; asked only where no concept does anything."""
        if self.affine is not None or np.abs(found.parts).max(initial=0) > ROUNDING * np.abs(found.logits).max():
            return False
        return not reads_positions(self.head, torch.from_numpy(x).to(self.device), self.prefix)
