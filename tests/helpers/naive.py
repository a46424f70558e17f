"""The paper's formulas, literally and in float64: the oracle of everything fast in fit/."""

from __future__ import annotations

import math

import torch


def naive_losses(
    y: torch.Tensor, w: torch.Tensor, b: torch.Tensor, gamma: float, tau: float, rho: float
) -> dict[str, torch.Tensor]:
    """Every clustering loss from the (n, I) matrices themselves."""
    z = y @ w - b
    active = torch.sigmoid(z)
    q = active / active.sum(1, keepdim=True)
    entropy = -(q * torch.log2(q)).sum(1)
    i = w.shape[1]
    use = (active**gamma).mean(0)
    over = torch.relu(use - rho) / (1 - rho)
    return {
        "s": entropy.mean(),
        "ma": (-(q * torch.log2(active)).sum(1)).mean(),
        "sb": reduction(entropy),
        "ic": (torch.relu(tau / i - use) / (tau / i)).mean(),
        "eac": reduction(over) if float(over.detach().max()) > 0 else over.sum() * 0,
    }


def reduction(values: torch.Tensor) -> torch.Tensor:
    return (values**5).sum() / (values**4).sum()


def naive_signals(y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """cov[y, z_i] / var[z_i] over the positives of each detector, one at a time."""
    columns = []
    for i in range(z.shape[1]):
        on = z[:, i] > 0
        if int(on.sum()) < 2:
            columns.append(torch.full((y.shape[1],), math.nan, dtype=y.dtype))
            continue
        yi, zi = y[on], z[on, i]
        columns.append(((yi - yi.mean(0)) * (zi - zi.mean())[:, None]).mean(0) / zi.var(unbiased=False))
    return torch.stack(columns, 1)


def naive_orthogonality(w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    total, count = torch.zeros((), dtype=w.dtype), 0
    for i in range(w.shape[1]):
        for j in range(w.shape[1]):
            if i != j:
                total = total + (w[:, i] @ s[:, j] / (w[:, i].norm() * s[:, j].norm())) ** 2
                count += 1
    return (total / count).sqrt()
