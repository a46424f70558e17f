"""Broden folders and stores whose every label and activation a test sets by hand, and a network whose weights change."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import write_store

from extract.segmentation.broden import BrodenSource
from stores.format import LayerSpec
from stores.store import ActivationStore

NETWORK = '''
"""A network of one convolution whose weights can be made to change."""
import torch
from torch import nn

SCALE = 1.0


class Net(nn.Module):
    input_size = (8, 8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def build():
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(SCALE)
    return net
'''


def broden_folder(
    root: Path, labels: Sequence[tuple[int, str, str]], rows: Sequence[Mapping[str, Any]]
) -> BrodenSource:
    """A Broden folder. A cell is a list of layers, each an integer (the whole image) or an array of label numbers."""
    (root / "images").mkdir(parents=True)
    categories = list(dict.fromkeys(c for row in rows for c in row["cells"]))
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["number", "name", "category", "frequency", "coverage", "syns"])
        table.writerows([number, name, category, 1, 1.0, ""] for number, name, category in labels)
    with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "split", "ih", "iw", "sh", "sw", *categories])
        for k, row in enumerate(rows):
            h, w = row["mask"]
            pixels = np.random.default_rng(k).integers(0, 256, (2 * h, 2 * w, 3), dtype=np.uint8)
            path = root / "images" / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            cells = []
            for category in categories:
                items = []
                for layer, item in enumerate(row["cells"].get(category, [])):
                    if not isinstance(item, int):
                        rgb = np.zeros((h, w, 3), np.uint8)
                        rgb[..., 0], rgb[..., 1] = np.asarray(item) % 256, np.asarray(item) // 256
                        item = f"{Path(row['image']).stem}_{category}_{layer}.png"
                        Image.fromarray(rgb).save(root / "images" / item)
                    items.append(str(item))
                cells.append(";".join(items))
            table.writerow([row["image"], row["split"], 2 * h, 2 * w, h, w, *cells])
    return BrodenSource(root)


def layer_store(
    path: Path,
    x: np.ndarray,
    *,
    grid: tuple[int, int],
    names: Sequence[str] | None = None,
    valid: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    prefix: int = 0,
    layer: str = "conv",
    dtype: str = "float32",
    chunk_images: int = 4,
    logits: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ActivationStore:
    """A sealed store of one layer."""
    n, p, c = x.shape
    logits = np.zeros((n, 2), np.float32) if logits is None else logits
    spec = LayerSpec(layer, grid, c, prefix, None if positions is None else p)
    assert spec.positions == p
    write_store(
        path, {layer: x}, specs={layer: spec}, names=[f"{i}.png" for i in range(n)] if names is None else list(names),
        labels=np.full(n, -1), valid=valid, logits=logits, n_classes=logits.shape[1], class_names=class_names,
        provenance=dict(provenance or {"model": "toy", "weights": "none"}), dtype=dtype, chunk_images=min(chunk_images, n),
        positions=None if positions is None else {layer: positions},
    )  # fmt: skip
    return ActivationStore.open(path)
