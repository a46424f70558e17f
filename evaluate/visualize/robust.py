"""Small random movements of pictures: what survives them is seen by a network for what it is, not for one pixel's sake."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

SHIFT = 1 / 12  # of the picture's side
SCALE = 0.1  # of its size
TURN = 8.0  # degrees


def draw_moves(generators: Sequence[torch.Generator], steps: int) -> torch.Tensor:
    """Moves for n pictures and some steps, (steps, n, 4) in [−1, 1]: right, down, larger, turned. Each picture has its own generator."""
    return torch.stack([2 * torch.rand(steps, 4, generator=g) - 1 for g in generators], 1)


def moved(pictures: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, h, w) shifted, scaled and turned as ``moves`` (n, 4) say; differentiable, edges reflected.

    A move of 1 is ``SHIFT`` of the side, a factor 1 + ``SCALE``, ``TURN`` degrees (Olah et al. 2017, in one resampling).
    """
    n, _, height, width = pictures.shape
    angle = moves[:, 3] * math.radians(TURN)
    size = (1 + SCALE) ** -moves[:, 2]
    cos, sin = size * angle.cos(), size * angle.sin()
    aspect = height / width  # the grid's units are half sides, and a turn must not shear
    theta = torch.stack(
        [
            torch.stack([cos, -sin * aspect, -2 * SHIFT * moves[:, 0]], 1),
            torch.stack([sin / aspect, cos, -2 * SHIFT * moves[:, 1]], 1),
        ],
        1,
    )  # (n, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [n, 3, height, width], align_corners=False)
    return torch.nn.functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
