"""Labels from image-level classes: by hand, against a loop over all formulas, and how often they are found where there is nothing."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, rankdata
from tiny import write_store

from evaluate.class_labels import ClassFormula, ClassLabels, label_by_classes, search_formula, weighted_auroc
from stores.errors import UsageError
from stores.readers import LayerReader, Part
from stores.store import ActivationStore

NAMES = ["cat", "dog", "sea", "sky"]


def store_of(path: Path, pooled: np.ndarray, labels: np.ndarray, **options: object) -> ActivationStore:
    """A store of two positions an image, whose mean is ``pooled`` (N, C); the network's classes are the labels'."""
    noise = np.random.default_rng(1).normal(size=pooled.shape)
    x = np.stack([pooled + noise, pooled - noise], 1).astype(np.float32)
    own: dict[str, object] = {
        "logits": np.eye(len(NAMES), dtype=np.float32)[np.maximum(labels, 0)],
        "provenance": {"model": "by hand", "dataset": {"class_names": NAMES}},
    }
    write_store(path, {"conv": x}, labels=labels, n_classes=4, chunk_images=50, class_names=NAMES, **own | options)
    return ActivationStore.open(path)


def labelled(store: ActivationStore, filters: np.ndarray, seed: int = 0) -> ClassLabels:
    return label_by_classes(LayerReader(store), {"d": filters.astype(np.float32)}, seed=seed)["d"]


def auroc(values: np.ndarray, holds: np.ndarray) -> float:
    """Over all pairs, one by one."""
    pairs = [(a > b) + 0.5 * (a == b) for a in values[holds] for b in values[~holds]]
    return float(np.mean(pairs))


def test_what_formulas_say_and_hold_for() -> None:
    classes = np.array([0, 1, 2, 3, -1])
    for formula, text, holds in (
        (ClassFormula((1,)), "dog", [0, 1, 0, 0, 0]),
        (ClassFormula((0, 1)), "cat OR dog", [1, 1, 0, 0, 0]),
        (ClassFormula((2,), True), "NOT sea", [1, 1, 0, 1, 1]),
        (ClassFormula((0, 1), True), "NOT (cat OR dog)", [0, 0, 1, 1, 1]),
    ):
        assert formula.text(NAMES) == text
        assert formula.holds(classes).astype(int).tolist() == holds


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_best_of_all_formulas(seed: int) -> None:
    g = np.random.default_rng(seed)
    number = g.integers(0, 6, 120)
    values = np.round(g.normal(size=120) + 1.5 * np.isin(number, g.choice(6, 2, replace=False)), 1)
    counts = np.bincount(number, minlength=6)
    sums = np.bincount(number, rankdata(values), minlength=6)
    found = search_formula(sums, counts, 120)
    every = [
        ClassFormula(classes, negated)
        for n in (1, 2, 3)
        for classes in combinations(range(6), n)
        for negated in (False, True)
        if 120 - counts[list(classes)].sum() >= 10 and (not negated or 2 * counts[list(classes)].sum() >= 120)
    ]
    best = max(auroc(values, formula.holds(number)) for formula in every)
    assert auroc(values, found.holds(number)) == pytest.approx(best)


def test_replicates_are_the_auroc_of_images_counted_several_times() -> None:
    g = np.random.default_rng(0)
    values, holds, weights = np.round(g.normal(size=30), 1), g.random(30) < 0.4, g.poisson(1.0, (5, 30))
    found = weighted_auroc(values, holds, weights)
    for b in range(5):
        repeated = np.repeat(np.arange(30), weights[b])
        assert found[b] == pytest.approx(auroc(values[repeated], holds[repeated]))


def test_directions_get_the_class_that_they_see(tmp_path: Path) -> None:
    """Channel 0 sees cats and dogs, channel 1 the sea, channel 2 nothing, channel 3 is dead; p is Mann-Whitney's on the other half."""
    g = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 60)
    pooled = np.zeros((240, 16))
    pooled[:, :3] = 0.3 * g.normal(size=(240, 3))
    pooled[:, 4:] = g.normal(size=(240, 12))  # what random directions see
    pooled[:, 0] += labels < 2
    pooled[:, 1] += labels == 2
    found = labelled(store_of(tmp_path / "acts.zarr", pooled, labels), np.eye(16)[:, :4])
    assert found.labels[:2] == ["cat OR dog", "sea"]
    assert found.significant.tolist() == [True, True, False, False]
    assert (found.auroc[3], found.source, found.images) == (0.5, "labels", 240)
    assert found.fires[1] == [2]
    assert (found.auroc_low <= found.auroc).all()
    assert (found.auroc <= found.auroc_high).all()
    assert found.mean_random < 0.7 < found.auroc[:2].min()
    again = labelled(store_of(tmp_path / "again.zarr", pooled, labels), np.eye(16)[:, :4])
    assert again.p.tolist() == found.p.tolist()


def test_auroc_and_p_are_those_of_the_half_that_was_not_searched(tmp_path: Path) -> None:
    g = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 40)
    pooled = np.round(g.normal(size=(160, 5)) + 0.5 * labels[:, None], 1)
    store = store_of(tmp_path / "acts.zarr", pooled, labels)
    found = labelled(store, np.eye(5))
    test = Part(1, 2, 0).choose(labels, np.ones(160, bool))
    values = LayerReader(store).images(np.flatnonzero(test)).mean(1)
    for i, label in enumerate(found.labels):
        chosen = [NAMES.index(name) for name in label.removeprefix("NOT ").strip("()").split(" OR ")]
        holds = np.isin(labels[test], chosen) != label.startswith("NOT")
        expected = mannwhitneyu(
            values[holds, i], values[~holds, i], alternative="greater", method="asymptotic", use_continuity=False
        )
        assert found.p[i] == pytest.approx(expected.pvalue, rel=1e-6)
        assert found.auroc[i] == pytest.approx(expected.statistic / (holds.sum() * (~holds).sum()))


def test_random_directions_and_permuted_labels_are_rarely_significant(tmp_path: Path) -> None:
    """Two kinds of nothing, 40 files of 5 directions each: random directions through activations that do separate the classes, and
    directions of which each sees its own number, with labels that were permuted. At a level of 5 % at most 5 of 40 files claim anything
    in 98 of 100 such tests."""
    g = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    pooled = g.normal(size=(200, 12))
    pooled[:, :4] += 3 * np.eye(4)[labels]
    reader = LayerReader(store_of(tmp_path / "classes.zarr", pooled, labels))
    found = label_by_classes(reader, {f"{k}": g.normal(size=(12, 5)).astype(np.float32) for k in range(40)})
    assert (
        np.mean([one.p < 0.05 for one in found.values()]) > 0.5
    )  # classes are along most directions: chance is not enough
    assert sum(one.significant.any() for one in found.values()) <= 5
    assert np.mean([one.p_random <= 0.05 for one in found.values()]) <= 0.09
    separate = g.normal(size=(200, 200)) + (np.arange(200) // 50 == labels[:, None])
    reader = LayerReader(store_of(tmp_path / "permuted.zarr", separate, g.permutation(labels)))
    each = np.eye(200, dtype=np.float32).reshape(200, 40, 5)
    found = label_by_classes(reader, {f"{k}": each[:, k] for k in range(40)})
    assert sum(one.significant.any() for one in found.values()) <= 5
    assert 0.02 <= np.mean([one.p <= 0.05 for one in found.values()]) <= 0.08


def test_frames_of_a_video_are_one_image_and_images_without_labels_have_predicted_classes(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(4), 60)
    pooled = np.random.default_rng(0).normal(size=(240, 3))
    names = [f"{i // 2}.mp4#{i % 2}" for i in range(240)]
    assert labelled(store_of(tmp_path / "frames.zarr", pooled, labels, names=names), np.eye(3)).images == 120
    unlabelled = store_of(tmp_path / "acts.zarr", pooled, np.full(240, -1), logits=np.eye(4, dtype=np.float32)[labels])
    found = labelled(unlabelled, np.eye(3))
    assert (found.source, found.images) == ("predictions", 240)


def test_too_few_images_of_a_class_are_refused(tmp_path: Path) -> None:
    labels = np.array([0] * 40 + [1] * 19)
    store = store_of(tmp_path / "acts.zarr", np.random.default_rng(0).normal(size=(59, 3)), labels)
    with pytest.raises(UsageError, match="two classes of at least 20 images .*cat 40, dog 19"):
        labelled(store, np.eye(3))
