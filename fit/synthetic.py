"""Stores whose directions are known: the paper's synthetic data, for any number of channels, concepts and distractors.

``x_p = S α_p + D β_p + offset + noise`` (paper, §4.1). Published recipe: C = 16, I = 3, F = 2; S and D random unit vectors
with pairwise |cos| < 0.5; α ~ U(0, 2.5) where a concept is off and U(2.5, 5) where it is on; β ~ U(0, 5); +10 everywhere;
two positions an image with one concept each; the classes are the pairs of concepts, 1000 images a class; the network is
average pooling and an affine map, trained by cross-entropy.

With ``zipf``, ``hierarchy`` or ``correlation`` the data are realistic in the sense of SynthSAEBench (Chanin et al. 2026,
arXiv 2602.14687): sparse sums of many concepts of unequal frequency, in hierarchies, correlated, possibly more than channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stores.attachments import write_attachment
from stores.errors import UsageError
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.paths import as_path
from stores.progress import Progress, silent
from stores.writer import StoreWriter

LAYER = "synthetic"
REALISTIC = ("zipf", "hierarchy", "correlation")
FACTORS = 4  # rank of the correlations
LEAST = {
    "concepts": (2, " (a class is a pair of concepts)"),
    "positions": (2, " (an image shows both concepts of its class)"),
    **dict.fromkeys(("channels", "images", "per_position"), (1, "")),
}


@dataclass(frozen=True)
class SyntheticConfig:
    """What to generate; the defaults are the paper's recipe.

    ``positions`` per image carry ``per_position`` concepts each; an image's class is the pair of concepts that it shows
    (``classes`` of all pairs, in lexicographic order). ``noise``: standard deviation of Gaussian noise on every channel.
    ``imbalance``: how many times rarer the last class is than the first. ``max_cosine`` bounds |cos| of all directions.

    Realistic data, where one of the following is not 0: ``per_position`` is the mean number of concepts at a position, α is
    0 where a concept is off, and an image's class is the concept that stands out most in it: the largest α averaged over
    positions, in standard deviations from the mean of all images. ``zipf``: exponent a of the frequencies ∝ (k + 1)^−a.
    ``hierarchy``: children of each parent; a child is present only where its parent is, and children of one parent exclude
    each other. ``correlation`` ρ: share of variance that a Gaussian copula takes from factors that an image's positions share.
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
    zipf: float = 0.0
    hierarchy: int = 0
    correlation: float = 0.0

    def __post_init__(self) -> None:
        for name, (least, why) in LEAST.items():
            if getattr(self, name) < least:
                raise UsageError(f"'{name}' must be at least {least}{why}, got {getattr(self, name)}.")
        if self.distractors < 0 or self.noise < 0 or self.imbalance < 1 or not 0 < self.max_cosine <= 1:
            raise UsageError("'distractors' and 'noise' must not be negative, 'imbalance' >= 1, 0 < 'max_cosine' <= 1.")
        if self.per_position > self.concepts:
            raise UsageError(f"'per_position' must be at most 'concepts' ({self.concepts}), got {self.per_position}.")
        if self.realistic:
            self._check_realistic()

    @property
    def realistic(self) -> bool:
        return any(getattr(self, name) for name in REALISTIC)

    def counts(self) -> np.ndarray:
        """(I,) at how many of the N·P positions each concept of realistic data is present."""
        share = np.arange(1.0, self.concepts + 1) ** -self.zipf
        counts: np.ndarray = np.rint(self.images * self.positions * self.per_position * share / share.sum()).astype(int)
        return counts

    def parents(self) -> np.ndarray:
        """(I,) the parent of each concept of realistic data, −1 where it has none: the first I / (1 + ``hierarchy``)."""
        roots = -(-self.concepts // (1 + self.hierarchy))
        k = np.arange(self.concepts)
        return np.where(k < roots, -1, (k - roots) // max(self.hierarchy, 1))

    def _check_realistic(self) -> None:
        if not (self.zipf >= 0 and self.hierarchy >= 0 and 0 <= self.correlation < 1):
            raise UsageError("'zipf' and 'hierarchy' must not be negative, 0 <= 'correlation' < 1.")
        if self.imbalance != 1:
            raise UsageError(
                "'imbalance' is for classes that are pairs of concepts; with 'zipf', 'hierarchy' or 'correlation' frequencies "
                "of concepts decide how frequent classes are. Leave 'imbalance' out."
            )
        counts, parents, rows = self.counts(), self.parents(), self.images * self.positions
        if counts.max() >= rows or counts.min() < 1:
            raise UsageError(
                f"The most frequent concept would be present at {counts.max()} of {rows} positions, the rarest at "
                f"{counts.min()}: each must be present at some and absent at others. Use a lower 'zipf', fewer concepts "
                "'per_position', or more 'images'."
            )
        children = np.bincount(parents[parents >= 0], counts[parents >= 0], self.concepts)
        if (full := np.flatnonzero(children >= counts)).size:
            raise UsageError(
                f"The children of concept {full[0]} exclude each other and need {children[full[0]]:.0f} positions, but it is "
                f"present at {counts[full[0]]}. Use a higher 'zipf' (at 1 there is room in general), or a lower 'hierarchy'."
            )


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
    if config.realistic:
        classes: list[tuple[int, ...]] = [(k,) for k in range(i)]
        present = realistic_presence(config, g)
        values = np.where(present, g.uniform(2.5, 5, (n, p, i)), 0)
        pooled = values.mean(1)
        labels = ((pooled - pooled.mean(0)) / np.maximum(pooled.std(0), 1e-12)).argmax(1)
    else:
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
        class_names=["+".join(map(str, concepts)) for concepts in classes],
        provenance={
            "model": LAYER,
            "weights": "trained on the data",
            "synthetic": {key: value for key, value in asdict(config).items() if value or key not in REALISTIC},
            "accuracy": accuracy,
        },
        dtype="float32",
        heads={LAYER: (weight, bias)},
    )
    writer = StoreWriter.open(out, plan, overwrite=overwrite)
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
            write_attachment(as_path(out) / "truth.safetensors", truth, {})
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
    labels: np.ndarray, classes: Sequence[tuple[int, ...]], config: SyntheticConfig, g: np.random.Generator
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


def realistic_presence(config: SyntheticConfig, g: np.random.Generator) -> np.ndarray:
    """(N, P, I) bool: each concept at the ``counts()[k]`` positions of largest latent value among those open to it.

    Latents are Gaussian with correlation ρ l_j·l_k (l: random unit vectors; both signs); open are all positions, or those
    where the parent is present and no other child of it. Frequencies are thus exact for any hierarchy and correlation.
    """
    n, p, i = config.images, config.positions, config.concepts
    loadings = g.normal(size=(i, FACTORS))
    loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)
    shared = np.repeat(g.normal(size=(n, FACTORS)) @ loadings.T, p, 0)
    latent = config.correlation**0.5 * shared + (1 - config.correlation) ** 0.5 * g.normal(size=(n * p, i))
    present, parents = np.zeros((n * p, i), bool), config.parents()
    for k, count in enumerate(config.counts()):
        if parents[k] >= 0:
            open_to = present[:, parents[k]] & ~present[:, parents == parents[k]].any(1)
            latent[~open_to, k] = -np.inf
        present[np.argpartition(-latent[:, k], count - 1)[:count], k] = True
    return present.reshape(n, p, i)


def train_head(
    pooled: np.ndarray, labels: np.ndarray, classes: int, *, seed: int, steps: int = 600, progress: Progress = silent
) -> tuple[np.ndarray, np.ndarray, float]:
    """Train ``logits = A x̄ + c`` by cross-entropy (Adam 5e-3, full batch); returns A (K, C), c (K,) and the accuracy.

    The features are centred only for the training (the offset of 10 would swamp it) and A, c are given for x itself.
    """
    import torch  # takes a second, and only this needs it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(pooled.shape[1], classes)
    mean = pooled.mean(0)
    x, y = torch.from_numpy(pooled - mean), torch.from_numpy(labels.astype(np.int64))
    optimiser = torch.optim.Adam(layer.parameters(), lr=5e-3)
    for step in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), y)
        loss.backward()
        optimiser.step()
        progress("training the head", step + 1, steps)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    accuracy = float((layer(x).argmax(1) == y).float().mean())
    return weight, bias - weight @ mean, round(accuracy, 4)
