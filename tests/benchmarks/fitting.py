"""A full-batch step against its bare matrix products and against plain autograd; k-means against FAISS itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import torch
import torch.nn.functional as F

from fit.clustering import spherical_kmeans
from fit.losses import RowWeights, streamed_sums
from tests.benchmarks.measure import Row, in_turns


def rows(folder: Path) -> Iterator[Row]:
    g = torch.Generator().manual_seed(0)
    for n, r, i in ((50_000, 64, 64), (100_000, 512, 256)):
        y = torch.randn(n, r, generator=g)
        w, b = torch.randn(r, i, generator=g) / r**0.5 * 3, torch.full((i,), 2.0)

        def step(y: torch.Tensor = y, w: torch.Tensor = w, b: torch.Tensor = b) -> None:
            streamed_sums(y, w, b, RowWeights(1, 1))

        def products(y: torch.Tensor = y, w: torch.Tensor = w) -> None:
            z = y @ w
            _ = y.T @ z

        def autograd(y: torch.Tensor = y, w: torch.Tensor = w, b: torch.Tensor = b) -> None:
            w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
            z = y @ w - b
            on = torch.sigmoid(z)
            q = on / on.sum(1, keepdim=True)
            loss = -(q * torch.log2(q + 1e-12)).sum(1).mean() - (q * F.logsigmoid(z)).sum(1).mean() / 0.6931
            loss.backward()

        shape = f"{n:,} × {r} × {i}".replace(",", " ")
        a, c = in_turns(step, products, repeats=3)
        yield Row(
            f"losses, gradient and signals, {shape}", "its two bare products", a / c, "lower", f"{1000 * a:.0f} ms"
        )
        a, c = in_turns(step, autograd, repeats=3)
        yield Row(
            f"losses, gradient and signals, {shape}",
            "autograd of the losses alone",
            c / a,
            "higher",
            f"{1000 * a:.0f} ms",
        )
    y = torch.randn(65_536, 64, generator=g)
    unit = F.normalize(y, dim=1).numpy()

    def plain() -> None:
        kmeans = faiss.Kmeans(64, 64, niter=25, nredo=3, spherical=True, seed=1, max_points_per_centroid=1024)
        kmeans.train(unit)

    a, c = in_turns(lambda: spherical_kmeans(y, 64, seed=0), plain, repeats=3)
    yield Row("spherical k-means, 65 536 × 64, 64 clusters", "faiss.Kmeans", a / c, "lower", f"{1000 * a:.0f} ms")
