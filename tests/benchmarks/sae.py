"""An epoch of our TopK autoencoder, read from a store, against overcomplete's training loop on a tensor in memory.

overcomplete's own where it is installed; else the same loop rebuilt in plain torch: DataLoader, the module of its default
encoder (linear, batch norm, ReLU) and dictionary (rows of unit norm), Adam, autograd, clipped gradients, its figures a step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from extract.models import load_torchvision
from fit.baselines.sae import SAEConfig, Training
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.readers import LayerReader
from stores.statistics import Statistics, statistics
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, in_turns

POSITIONS = 49


def rows(folder: Path) -> Iterator[Row]:
    for images, channels, units, k, batch in ((800, 512, 2048, 32, 1024), (160, 768, 8192, 32, 1024)):
        path = folder / f"{channels}.zarr"
        x = activations(path, images, channels)
        reader = LayerReader(path)
        moments = statistics(reader)
        config = SAEConfig(n_directions=units, k=k, batch_rows=batch, epochs=1)

        def ours(config: SAEConfig = config, reader: LayerReader = reader, moments: Statistics = moments) -> None:
            Training(config, reader, moments).run()

        loops = {"overcomplete's loop, rebuilt in torch": rebuilt_epoch}
        if importlib.util.find_spec("overcomplete") is not None:
            loops["overcomplete, train_sae"] = overcomplete_epoch
        scaled = Training(config, reader, moments).scaled(torch.from_numpy(x))
        for name, epoch in loops.items():
            a, b = in_turns(ours, lambda epoch=epoch, x=scaled, u=units, k=k, n=batch: epoch(x, u, k, n), repeats=3)
            count = f"{len(x):,}".replace(",", " ")
            what = f"TopK autoencoder, an epoch of {count} × {channels}, {units} units, k = {k}"
            yield Row(what, name, b / a, "higher", f"{a:.2f} s")


def activations(path: Path, images: int, channels: int) -> np.ndarray:
    """A sealed store of sparse positive combinations of random directions, and its rows (n, C)."""
    g = np.random.default_rng(0)
    parts = g.normal(size=(4 * channels, channels)).astype(np.float32)
    parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    on = (g.random((images * POSITIONS, len(parts)), np.float32) < 8 / len(parts)).astype(np.float32)
    x = ((on * g.random(on.shape, np.float32)) @ parts).reshape(images, POSITIONS, channels)
    plan = StorePlan(
        layers=[LayerSpec("layer", (7, 7), channels)],
        names=[f"{i}" for i in range(images)],
        n_classes=1,
        provenance={},
        dtype="float32",
        chunk_images=32,
    )
    writer = StoreWriter.open(path, plan)
    for chunk in range(-(-images // 32)):
        part = slice(chunk * 32, min(images, (chunk + 1) * 32))
        n = part.stop - part.start
        writer.commit(
            chunk,
            names=plan.names[part],
            labels=np.zeros(n, np.int64),
            valid=np.ones(n, bool),
            logits=np.zeros((n, 1), np.float32),
            activations={"layer": x[part]},
        )
    writer.seal()
    writer.close()
    return x.reshape(-1, channels)


def overcomplete_epoch(x: torch.Tensor, units: int, k: int, batch: int) -> None:
    """As its documentation trains a TopKSAE; what it prints is not shown."""
    load_torchvision()  # overcomplete imports it
    from overcomplete.sae import TopKSAE, train_sae

    model = TopKSAE(x.shape[1], nb_concepts=units, top_k=k, device="cpu")
    loader = DataLoader(TensorDataset(x), batch_size=batch, shuffle=True)
    with contextlib.redirect_stdout(io.StringIO()):
        train_sae(
            model,
            loader,
            lambda x, x_hat, pre_codes, codes, dictionary: (x - x_hat).square().mean(),
            torch.optim.Adam(model.parameters(), lr=5e-4),
            nb_epochs=1,
            device="cpu",
        )


class TopKModule(nn.Module):
    """The architecture of overcomplete's TopKSAE with its defaults."""

    def __init__(self, channels: int, units: int, k: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(channels, units), nn.BatchNorm1d(units), nn.ReLU())
        self.dictionary = nn.Parameter(F.normalize(torch.randn(units, channels), dim=1))
        self.k = k

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.encoder(x)
        kept = codes.topk(self.k, dim=-1)
        codes = torch.zeros_like(codes).scatter(-1, kept.indices, kept.values)
        dictionary = self.dictionary / (self.dictionary.norm(dim=1, keepdim=True) + 1e-8)
        return codes, codes @ dictionary


def rebuilt_epoch(x: torch.Tensor, units: int, k: int, batch: int) -> None:
    model = TopKModule(x.shape[1], units, k)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
    alive = torch.zeros(units, dtype=torch.bool)
    figures = []
    for (rows_,) in DataLoader(TensorDataset(x), batch_size=batch, shuffle=True):
        optimiser.zero_grad()
        codes, decoded = model(rows_)
        loss = (rows_ - decoded).square().mean()
        alive |= (codes > 0).any(0)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        lost = (rows_ - decoded).square().mean() / (rows_ - rows_.mean()).square().mean()
        figures.append((loss.item(), 1 - lost.item(), (codes.abs() >= 1e-6).float().mean(0).sum().item()))
