"""An epoch of our TopK autoencoder, read from a store, against overcomplete's own ``TopKSAE`` and ``train_sae`` on a tensor in memory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.cm
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from extract.models import load_torchvision
from fit.baselines.sae import SAEConfig, Training
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.readers import LayerReader
from stores.statistics import Statistics, statistics
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, best_in_turns

POSITIONS = 49


INSTALL = "pip install --no-deps --target PEERS overcomplete einops opencv-python-headless scikit-image lazy-loader, then PYTHONPATH=PEERS"
RATE, EPOCHS = 5e-3, 5  # overcomplete's R² is higher at this rate than at 5e-4


def rows(folder: Path) -> Iterator[Row]:
    if importlib.util.find_spec("overcomplete") is None:
        sys.stderr.write(f"overcomplete is not installed, so the autoencoder is not compared: {INSTALL}\n")
        return
    threads = torch.get_num_threads()
    for images, channels, units, k in ((2041, 80, 512, 8), (800, 512, 2048, 32), (160, 768, 8192, 32)):
        path = folder / f"{channels}.zarr"
        x = torch.from_numpy(activations(path, images, channels))
        reader = LayerReader(path)
        moments = statistics(reader)
        config = SAEConfig(n_directions=units, k=k, epochs=1)
        x = Training(config, reader, moments).scaled(x)
        size = f"{len(x):,} × {channels}, {units} units, k = {k}".replace(",", " ", 1)
        for count in (1, 2):
            torch.set_num_threads(count)
            a, b = best_in_turns(
                lambda config=config, reader=reader, moments=moments: Training(config, reader, moments).run(),
                lambda x=x, units=units, k=k: overcomplete(x, units, k),
                repeats=4 if units == 512 else 2,
            )
            what = f"TopK autoencoder, an epoch of {size}, threads: {count}"
            yield Row(what, "overcomplete, train_sae", a.processor / b.processor, "lower", a.next_to(b))
        torch.set_num_threads(threads)
        if units == 512:
            yield quality(config, reader, moments, x, size)


@torch.no_grad()
def quality(config: SAEConfig, reader: LayerReader, moments: Statistics, x: torch.Tensor, size: str) -> Row:
    """The share of variance that is reconstructed after as many epochs."""
    training = Training(replace(config, epochs=EPOCHS), reader, moments)
    training.run()
    model = training.model
    with torch.enable_grad():
        peer = overcomplete(x, config.n_directions, config.k_in_force, EPOCHS).eval()

    def lost(decoded: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return sum(float((decoded(part) - part).square().sum()) for part in x.split(4096)) / float(x.square().sum())

    ours = 1 - lost(lambda part: training.encode(model.logits(part)).dense() @ model.decoder + model.offset)
    theirs = 1 - lost(lambda part: peer(part)[2])
    return Row(
        f"R² after {EPOCHS} epochs of {size}", "overcomplete", ours / theirs, "higher", f"{ours:.3f} and {theirs:.3f}"
    )


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


def overcomplete(x: torch.Tensor, units: int, k: int, epochs: int = 1) -> nn.Module:
    """As its documentation trains a TopKSAE, batches of 1024; what it prints is not shown."""
    load_torchvision()  # overcomplete imports it
    matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap  # and this, which newer versions of matplotlib lack
    from overcomplete.sae import TopKSAE, train_sae

    torch.manual_seed(0)
    model = TopKSAE(x.shape[1], nb_concepts=units, top_k=k, device="cpu")
    loader = DataLoader(TensorDataset(x), batch_size=1024, shuffle=True)
    with contextlib.redirect_stdout(io.StringIO()):
        train_sae(
            model,
            loader,
            lambda x, x_hat, pre_codes, codes, dictionary: (x - x_hat).square().mean(),
            torch.optim.Adam(model.parameters(), lr=RATE),
            nb_epochs=epochs,
            device="cpu",
        )
    return model
