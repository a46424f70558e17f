"""Stores whose directions are known: the paper's synthetic data, for any number of channels, concepts and distractors.

``x_p = S α_p + D β_p + offset + noise`` (paper, §4.1). Published recipe: C = 16, I = 3, F = 2; S and D random unit vectors
with pairwise |cos| < 0.5; α ~ U(0, 2.5) where a concept is off and U(2.5, 5) where it is on; β ~ U(0, 5); +10 everywhere;
two positions an image with one concept each; the classes are the pairs of concepts, 1000 images a class; the network is
average pooling and an affine map, trained by cross-entropy.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from stores.derived import write_derived
from stores.errors import UsageError
from stores.layers import LayerSpec
from stores.places import place
from stores.plan import StorePlan
from stores.progress import Progress, silent
from stores.writer import StoreWriter

LAYER = "synthetic"


@dataclass(frozen=True)
class SyntheticConfig:
    """What to generate; the defaults are the paper's recipe.

    ``positions`` per image carry ``per_position`` concepts each; an image's class tells which pair of concepts it shows
    (``classes`` of all pairs, in lexicographic order). ``noise``: standard deviation of Gaussian noise on every channel.
    ``imbalance``: how many times rarer the last class is than the first. ``max_cosine`` bounds |cos| of all directions.
    """

    channels: int = 16
    concepts: int = 3
    distractors: int = 2
    images: int = 3000
    positions: int = 2
    per_position: int = 1
    noise: float = 0.0
    imbalance: float = 1.0
    max_cosine: float = 0.5
    offset: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.concepts < 2:
            raise UsageError(f"'concepts' must be at least 2 (a class is a pair of concepts), got {self.concepts}.")
        for name in ("channels", "images", "positions", "per_position"):
            if getattr(self, name) < 1:
                raise UsageError(f"'{name}' must be at least 1, got {getattr(self, name)}.")
        if self.positions < 2:
            raise UsageError(
                f"'positions' must be at least 2: an image shows both concepts of its class, got {self.positions}."
            )
        if self.distractors < 0 or self.noise < 0 or self.imbalance < 1 or not 0 < self.max_cosine <= 1:
            raise UsageError("'distractors' and 'noise' must not be negative, 'imbalance' >= 1, 0 < 'max_cosine' <= 1.")
        if self.per_position > self.concepts:
            raise UsageError(f"'per_position' must be at most 'concepts' ({self.concepts}), got {self.per_position}.")


def random_directions(count: int, channels: int, max_cosine: float, generator: np.random.Generator) -> np.ndarray:
    """(C, count) random unit vectors with pairwise |cos| below ``max_cosine``, by rejection.

    Raises UsageError when no such set is found: too many directions for so few channels.
    """
    chosen = np.zeros((count, channels))
    found = 0
    for _ in range(20_000 + 2000 * count):
        if found == count:
            return np.ascontiguousarray(chosen.T)
        v = generator.normal(size=channels)
        v /= np.linalg.norm(v)
        if not (np.abs(chosen[:found] @ v) >= max_cosine).any():
            chosen[found] = v
            found += 1
    raise UsageError(
        f"No {count} directions with pairwise |cos| < {max_cosine} were found in {channels} channels. "
        "Use more --channels, or fewer --concepts and --distractors."
    )


def make_synthetic(
    out: str | Path, config: SyntheticConfig, *, overwrite: bool = False, progress: Progress = silent
) -> dict[str, float]:
    """Write a sealed store of synthetic activations with its truth and its trained head.

    The truth is in the group ``truth``: ``signals`` (C, I), ``distractors`` (C, F), ``values`` α (N, P, I) float32 and
    ``present`` (N, P, I) uint8. Returns the head's accuracy on the data.
    """
    g = np.random.default_rng(config.seed)
    n, p, i, c = config.images, config.positions, config.concepts, config.channels
    directions = random_directions(i + config.distractors, c, config.max_cosine, g)
    signals, distractors = directions[:, :i], directions[:, i:]
    classes = list(itertools.combinations(range(i), 2))
    labels = _labels(n, len(classes), config.imbalance, g)
    present = _present(labels, classes, config, g)
    values = np.where(present, g.uniform(2.5, 5, (n, p, i)), g.uniform(0, 2.5, (n, p, i)))
    nuisance = g.uniform(0, 5, (n, p, config.distractors))
    x = values @ signals.T + nuisance @ distractors.T + config.offset
    if config.noise:
        x = x + g.normal(0, config.noise, x.shape)
    x = x.astype(np.float32)
    weight, bias, accuracy = train_head(x.mean(1), labels, len(classes), seed=config.seed, progress=progress)
    logits = x.mean(1) @ weight.T + bias
    plan = StorePlan(
        layers=[LayerSpec(LAYER, (1, p), c, layout="tokens")],
        names=[f"synthetic-{k:07d}" for k in range(n)],
        n_classes=len(classes),
        class_names=["+".join(map(str, pair)) for pair in classes],
        provenance={
            "model": LAYER,
            "weights": "trained on the data",
            "synthetic": asdict(config),
            "accuracy": accuracy,
        },
        dtype="float32",
        heads={LAYER: (weight, bias)},
    )
    writer = StoreWriter.create_or_resume(out, plan, overwrite=overwrite)
    try:
        progress("writing", 0, n)
        for k in writer.missing():
            part = slice(k * writer.chunk_images, min(n, (k + 1) * writer.chunk_images))
            rows = part.stop - part.start
            writer.commit(
                k,
                names=[f"synthetic-{j:07d}" for j in range(part.start, part.stop)],
                labels=labels[part],
                valid=np.ones(rows, bool),
                logits=logits[part],
                activations={LAYER: x[part]},
            )
            progress("writing", part.stop, n)
        if not writer.sealed:
            truth: dict[str, np.ndarray] = {
                "signals": signals.astype(np.float32),
                "distractors": distractors.astype(np.float32),
                "values": values.astype(np.float32),
                "present": present.astype(np.uint8),
            }
            write_derived(place(out) / "truth", truth, {})
            writer.seal()
    finally:
        writer.close()
    return {"accuracy": accuracy, "classes": float(len(classes))}


def _labels(n: int, classes: int, imbalance: float, g: np.random.Generator) -> np.ndarray:
    """Class of each image: equal shares, or shares falling geometrically from the first class to the last."""
    if imbalance == 1:
        return g.permutation(np.arange(n) % classes)
    share = imbalance ** (-np.arange(classes) / max(classes - 1, 1))
    return g.choice(classes, n, p=share / share.sum())


def _present(
    labels: np.ndarray, classes: list[tuple[int, int]], config: SyntheticConfig, g: np.random.Generator
) -> np.ndarray:
    """(N, P, I) bool: position k shows the class's first or second concept in turn, and others drawn at random."""
    n, p, i = len(labels), config.positions, config.concepts
    pair = np.array(classes)[labels]
    present = np.zeros((n, p, i), bool)
    for k in range(p):
        present[np.arange(n), k, pair[:, k % 2]] = True
    for _ in range(config.per_position - 1):
        extra = g.random((n, p, i))
        extra[present] = -1
        np.put_along_axis(present, extra.argmax(2)[:, :, None], True, axis=2)
    return present


def train_head(
    pooled: np.ndarray, labels: np.ndarray, classes: int, *, seed: int, steps: int = 600, progress: Progress = silent
) -> tuple[np.ndarray, np.ndarray, float]:
    """Train ``logits = A x̄ + c`` by cross-entropy (Adam 5e-3, full batch); returns A (K, C), c (K,) and the accuracy.

    The features are centred for the training alone (the offset of 10 would swamp it) and A, c are given for x itself.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(pooled.shape[1], classes)
    mean = pooled.mean(0)
    x, y = torch.from_numpy(pooled - mean), torch.from_numpy(labels.astype(np.int64))
    optimiser = torch.optim.Adam(layer.parameters(), lr=5e-3)
    for step in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimiser.step()
        progress("training the head", step + 1, steps)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    accuracy = float((layer(x).argmax(1) == y).float().mean())
    return weight, bias - weight @ mean, round(accuracy, 4)
