"""Does a direction stand for one thing, and for another one than its neighbours? Measures of its examples, without labels.

With e_n the unit embeddings of a direction's n examples (``evaluate.examples``), as in SemanticLens (Dreyer et al. 2025, arXiv 2501.05398)::

    clarity              mean cosine of all pairs of examples, (‖Σ e_n‖² − n) / (n (n − 1))
    polysemanticity      1 − cosine of the centres of two clusters of the examples (k-means)
    semantic redundancy  largest cosine of the mean of the examples with that of another direction of the file

Where a cluster has fewer than two examples, polysemanticity is 1 − the mean cosine of the mean and the first ten examples, as in the authors'
code. K-means starts from each example and the next one, and takes the best: no draw decides.

To many encoders any two pictures are alike. **Firing monosemanticity** [ours] is clarity after the mean embedding of parts of random images is
subtracted (and norms are 1 again), less the same value of these parts: 0 is what random images have.

**Chance** [ours]. Random directions have strongest images, too, and these are often alike: all measures are also taken of theirs, and of sets of
as many parts of random images. A random direction is as redundant as the nearest of as many others as the file has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluate.bootstrap import interval
from evaluate.examples import Examples
from evaluate.glossary import MEASURES as TERMS
from stores.progress import Progress, silent

MEASURES = ("firing_monosemanticity", "clarity", "polysemanticity", "semantic_redundancy")
BETTER = {measure.key: measure.better for measure in TERMS if measure.key in MEASURES}
STAGE = "examples"
SETS = 200  # of random images
FEW = 10  # examples, where a cluster has one or none (the authors' code)
ROUNDS = 100  # of k-means at most


@dataclass(frozen=True)
class Meaning:
    """Of one file each measure of its directions (I,), of random directions (R,) and of sets of random images (S,); ``nearest`` (I,): the
    direction that each is most like, −1 for none."""

    own: Mapping[str, np.ndarray]
    randoms: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]
    nearest: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Entries of ``summary.json``: the mean of each measure, and next to it what random directions and random images have."""
        means = {key: _mean(values) for key, values in self.own.items()}
        return {**means, "meaning": {key: self._chance(key) for key in MEASURES}}

    def _chance(self, key: str) -> dict[str, Any]:
        if np.isnan(self.randoms[key]).all():
            return dict.fromkeys(("random", "random_low", "random_high", "random_images", "beyond"))
        low, high = interval(self.randoms[key])
        beyond = self.own[key] > high if BETTER[key] > 0 else self.own[key] < low
        return {
            "random": _mean(self.randoms[key]),
            "random_low": round(float(low), 4),
            "random_high": round(float(high), 4),
            "random_images": _mean(self.images[key]),
            "beyond": int(beyond.sum()),
        }


def measure_examples(
    examples: Examples, *, seed: int = 0, device: str = "cpu", progress: Progress = silent
) -> dict[str, Meaning]:
    """Measure the examples of each file's directions; one direction at a time, so that memory does not grow with their number.

    Parameters
    ----------
    seed : of the sets of random images.
    """

    def readable(which: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(examples.embedded[which]).to(device).double()

    pool = examples.by_chance[examples.embedded.known[examples.by_chance]]
    elsewhere = readable(pool)
    centre = elsewhere.mean(0)
    base = alike(_unit(elsewhere - centre))
    size = min(len(examples.number), len(pool))
    g = np.random.default_rng([seed, 0x5E])
    sets = [g.permutation(pool)[:size] for _ in range(SETS)]
    found: dict[str, list[float]] = {key: [] for key in MEASURES[:3]}
    means = []
    last = examples.number.shape[1]
    for done, which in enumerate([*examples.number.T, *sets], 1):
        e = readable(which)
        found["firing_monosemanticity"].append(alike(_unit(e - centre)) - base)
        found["clarity"].append(alike(e))
        found["polysemanticity"].append(polysemanticity(e))
        means.append(e.mean(0))
        progress(STAGE, done, last + SETS)
    unit = _unit(torch.stack(means))
    random, images = slice(last - examples.randoms, last), slice(last, None)
    measured = {}
    for name, part in examples.slices.items():
        others = part.stop - part.start - 1
        groups = []
        for group in (part, random, images):
            cosine, which = nearest(unit[group], others)
            mine = {key: np.array(values[group]) for key, values in found.items()}
            groups.append((mine | {"semantic_redundancy": cosine}, which))
        (own, closest), (of_random, _), (of_images, _) = groups
        measured[name] = Meaning(own, of_random, of_images, closest)
    return measured


def alike(e: torch.Tensor) -> float:
    """Mean dot product of all pairs of n > 1 rows (n, D)."""
    total = e.sum(0)
    return float((total @ total - e.square().sum()) / (len(e) * (len(e) - 1)))


def polysemanticity(e: torch.Tensor) -> float:
    """1 − cosine of the centres of two clusters of the rows (n, D)."""
    side = two_clusters(e)
    if 2 <= side.sum() <= len(e) - 2:
        first, second = _unit(torch.stack([e[side].mean(0), e[~side].mean(0)]))
        return float(1 - first @ second)
    few = e[:FEW]
    return float(1 - (_unit(few) @ _unit(e.mean(0)[None])[0]).mean())


def two_clusters(e: torch.Tensor) -> torch.Tensor:
    """(n,) bool: one of two clusters of the rows (n, D), by k-means; the best of n starts, each a row and the next one."""
    gram = e @ e.T
    norms = gram.diagonal()
    apart = norms[:, None] + norms - 2 * gram
    side = apart < apart.roll(-1, 0)  # (starts, n): which rows are nearer to the start's example than to the next one
    for _ in range(ROUNDS):
        first, second = _about(side, gram), _about(~side, gram)
        moved = first[1][:, None] - 2 * first[0] < second[1][:, None] - 2 * second[0]
        moved = torch.where(moved.all(1, keepdim=True) | ~moved.any(1, keepdim=True), side, moved)  # two remain
        if (moved == side).all():
            break
        side = moved
    within = side.sum(1) * first[1] + (~side).sum(1) * second[1]  # what the clusters explain of the sum of squares
    return side[within.argmax()]


def _about(side: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the centre of each cluster (starts, n): its dot product with all rows, and with itself."""
    share = side.to(gram) / side.sum(1, keepdim=True).clamp(min=1)
    with_rows = share @ gram
    return with_rows, (with_rows * share).sum(1)


def nearest(unit: torch.Tensor, others: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit row (J, D) the largest cosine with the ``others`` next ones, after the last the first; and which one that is."""
    cosine, which, others = np.full(len(unit), np.nan), np.full(len(unit), -1), min(others, len(unit) - 1)
    for j in range(len(unit) if others else 0):
        found = (unit @ unit[j]).roll(-j - 1)[:others].max(0)
        cosine[j], which[j] = float(found.values), (int(found.indices) + j + 1) % len(unit)
    return cosine, which


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else round(float(np.nanmean(values)), 4)


def _unit(e: torch.Tensor) -> torch.Tensor:
    norms = e.norm(dim=1, keepdim=True)
    return e / torch.where(norms > 0, norms, 1)
