"""Directions that fail when pushed [ours]: a class's probability as the step along a direction grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.influence.interventions import Effect

CONTROLS = 64  # random directions that curves are compared with
SWEEP = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0)


@dataclass(frozen=True)
class Steering:
    """Curves of J directions: ``target`` (J,) the class looked at, ``probability`` (A, J) its mean probability at each of
    ``alphas`` (A,), ``monotone`` (J,) the largest α up to which it never falls."""

    alphas: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    monotone: np.ndarray


def sweep(
    effect: Effect,
    directions: torch.Tensor,
    target: np.ndarray | None = None,
    alphas: tuple[float, ...] = SWEEP,
    known: Mapping[float, np.ndarray] | None = None,
) -> Steering:
    """Push all images along unit columns (C, J) by each α.

    ``target`` (J,): the class whose probability is followed; by default the one that the smallest steps up to 2 raise most. ``known``:
    by α, changes of probability (J, K) that were measured before.
    """
    base, known = effect.base.cpu().numpy(), known or {}

    def change(alpha: float) -> np.ndarray:
        return known[alpha] if alpha in known else effect(directions, alpha).probability.cpu().numpy()

    moved = [base + change(a) if a else None for a in alphas]
    filled = [np.broadcast_to(base, (directions.shape[1], len(base))) if m is None else m for m in moved]
    if target is None:
        small = max((k for k, a in enumerate(alphas) if a <= 2), default=0)
        target = (filled[small] - base).argmax(1)
    curve = np.stack([m[np.arange(len(target)), target] for m in filled])
    return Steering(np.array(alphas), target, curve, monotone_up_to(np.array(alphas), curve))


def monotone_up_to(alphas: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(J,) largest α such that the probability (A, J) did not fall before; a change of 1e-9 is none."""
    falls = np.diff(probability, axis=0) < -1e-9
    first = np.where(falls.any(0), falls.argmax(0), len(alphas) - 1)
    return alphas[first]


def random_units(channels: int, count: int, seed: int) -> torch.Tensor:
    """(C, n) random directions of unit norm, uniform on the sphere."""
    draws = np.random.default_rng([seed, 0x57]).standard_normal((channels, count))
    return torch.from_numpy((draws / np.linalg.norm(draws, axis=0)).astype(np.float32))
