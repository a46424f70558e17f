"""The generator of stores with known truth: the recipe's statistics, its seed, its refusals, its head."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fit.synthetic import LAYER, SyntheticConfig, make_synthetic, random_directions, realistic_presence
from stores.errors import StoreExistsError, UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore

RECIPE = SyntheticConfig(images=1500, seed=1)


def made(path: Path, config: SyntheticConfig) -> tuple[ActivationStore, np.ndarray, dict[str, np.ndarray]]:
    """The store, its activations (N, P, C) and its truth."""
    make_synthetic(path, config)
    store = ActivationStore.open(path)
    x = np.concatenate([block for _, block in LayerReader(store, LAYER).blocks()])
    return store, x, load_file(path / "truth.safetensors")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, np.ndarray, dict[str, np.ndarray]]:
    return made(tmp_path_factory.mktemp("synthetic") / "s.zarr", RECIPE)


def test_the_defaults_are_the_papers_recipe() -> None:
    c = SyntheticConfig()
    assert (c.channels, c.concepts, c.distractors, c.images, c.positions) == (16, 3, 2, 3000, 2)
    assert (c.per_position, c.noise, c.imbalance, c.max_cosine, c.offset) == (1, 0.0, 1.0, 0.5, 10.0)


def test_directions_are_of_unit_norm_and_far_apart(recipe: tuple) -> None:
    _, _, truth = recipe
    directions = np.concatenate([truth["signals"], truth["distractors"]], 1).astype(float)
    assert directions.shape == (16, 5)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-6)
    cosine = np.abs(directions.T @ directions)[np.triu_indices(5, 1)]
    assert cosine.max() < 0.5


def test_signal_values_are_uniform_below_and_above_the_middle(recipe: tuple) -> None:
    _, _, truth = recipe
    values, on = truth["values"], truth["present"].astype(bool)
    assert values.shape == on.shape == (1500, 2, 3)
    assert values[~on].min() >= 0
    assert values[~on].max() <= 2.5
    assert values[on].min() >= 2.5
    assert values[on].max() <= 5
    for part, middle in ((values[~on], 1.25), (values[on], 3.75)):
        assert part.mean() == pytest.approx(middle, abs=0.05)
        assert part.std() == pytest.approx(2.5 / 12**0.5, abs=0.03)


def test_activations_are_signals_distractors_and_the_offset(recipe: tuple) -> None:
    _, x, truth = recipe
    assert (x.shape, x.dtype) == ((1500, 2, 16), np.float32)
    rest = x - truth["values"] @ truth["signals"].T - 10
    d = truth["distractors"].astype(float)
    beta = rest.reshape(-1, 16) @ np.linalg.pinv(d).T
    np.testing.assert_allclose(beta @ d.T, rest.reshape(-1, 16), atol=1e-4)  # nothing but distractors is left
    assert beta.min() > -1e-4
    assert beta.max() < 5 + 1e-4
    assert beta.mean() == pytest.approx(2.5, abs=0.1)
    alpha = truth["values"].reshape(-1, 3)
    between = np.corrcoef(np.concatenate([alpha, beta], 1).T)[:3, 3:]
    assert np.abs(between).max() < 0.07  # distractors know nothing of concepts


def test_a_position_shows_one_concept_and_an_image_its_class_pair(recipe: tuple) -> None:
    store, _, truth = recipe
    on = truth["present"].astype(bool)
    assert (on.sum(2) == 1).all()
    pairs = list(itertools.combinations(range(3), 2))
    assert store.class_names == ["0+1", "0+2", "1+2"]
    assert np.bincount(store.labels).tolist() == [500, 500, 500]
    for label, image in zip(store.labels, on, strict=True):
        assert tuple(np.flatnonzero(image.any(0))) == pairs[label]
    assert (np.diff(store.labels) != 0).any()  # shuffled, not class by class


def test_the_store_is_sealed_and_its_head_is_exactly_affine(recipe: tuple) -> None:
    store, x, _ = recipe
    assert store.verify() == []
    head = store.affine_head(LAYER)
    assert head is not None
    weight, bias = head
    assert (weight.shape, bias.shape) == ((3, 16), (3,))
    np.testing.assert_allclose(x.mean(1) @ weight.T + bias, store.logits, atol=1e-5)
    accuracy = float((store.logits.argmax(1) == store.labels).mean())
    assert store.provenance["accuracy"] == pytest.approx(accuracy, abs=2e-3)
    assert accuracy > 0.85
    assert store.provenance["synthetic"]["seed"] == 1


def files_of(path: Path) -> dict[str, bytes]:
    kept = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {k: v for k, v in kept.items() if "/c/" in k}


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        (SyntheticConfig(images=60), "9e9a614558822de3"),
        (
            SyntheticConfig(images=60, concepts=5, positions=3, per_position=2, noise=0.1, imbalance=3, seed=2),
            "ca23108bf169b6f3",
        ),
    ],
)
def test_the_recipe_gives_what_it_gave_before_there_were_realistic_data(
    tmp_path: Path, config: SyntheticConfig, digest: str
) -> None:
    store, x, truth = made(tmp_path / "s.zarr", config)
    arrays = (x, *(truth[name] for name in ("signals", "distractors", "values", "present")), store.labels)
    assert hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16] == digest
    assert store.provenance["synthetic"].keys().isdisjoint({"zipf", "hierarchy", "correlation"})


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    small = SyntheticConfig(images=30, noise=0.1, imbalance=2.0)
    make_synthetic(tmp_path / "a.zarr", small)
    torch.manual_seed(99)  # nothing global matters, nor is it touched
    np.random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    make_synthetic(tmp_path / "b.zarr", small)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    make_synthetic(tmp_path / "c.zarr", replace(small, seed=1))
    a, b, c = (files_of(tmp_path / f"{name}.zarr") for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert (tmp_path / "a.zarr/truth.safetensors").read_bytes() != (tmp_path / "c.zarr/truth.safetensors").read_bytes()


def test_the_same_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    small = SyntheticConfig(images=12)
    first = make_synthetic(tmp_path / "a.zarr", small)
    stamp = (tmp_path / "a.zarr" / "zarr.json").stat().st_mtime_ns
    assert make_synthetic(tmp_path / "a.zarr", small) == first
    assert (tmp_path / "a.zarr" / "zarr.json").stat().st_mtime_ns == stamp
    with pytest.raises(StoreExistsError, match="images: 12 → 13"):
        make_synthetic(tmp_path / "a.zarr", replace(small, images=13))
    make_synthetic(tmp_path / "a.zarr", replace(small, images=13), overwrite=True)
    assert ActivationStore.open(tmp_path / "a.zarr").n_images == 13


def test_several_concepts_a_position_and_many_of_all(tmp_path: Path) -> None:
    config = SyntheticConfig(
        channels=32, concepts=6, distractors=4, images=40, positions=3, per_position=2, noise=0.5, offset=0.0
    )
    store, x, truth = made(tmp_path / "s.zarr", config)
    on = truth["present"].astype(bool)
    assert (on.sum(2) == 2).all()
    pairs = np.array(list(itertools.combinations(range(6), 2)))[store.labels]
    for k in range(3):
        assert on[np.arange(40), k, pairs[:, k % 2]].all()  # the first concept of the pair, the second, the first
    assert len(set(map(tuple, on.reshape(-1, 6).tolist()))) > 5  # the others are drawn
    rest = (x - truth["values"] @ truth["signals"].T).reshape(-1, 32)
    d = truth["distractors"].astype(float)
    noise = rest - rest @ np.linalg.pinv(d).T @ d.T
    assert noise.std() == pytest.approx(0.5 * (28 / 32) ** 0.5, rel=0.05)


def test_imbalance_makes_the_last_class_rarer(tmp_path: Path) -> None:
    store, _, _ = made(tmp_path / "s.zarr", SyntheticConfig(images=3000, imbalance=8.0))
    counts = np.bincount(store.labels)
    assert counts.sum() == 3000
    assert counts[0] / counts[2] == pytest.approx(8, rel=0.25)
    assert counts[0] / counts[1] == pytest.approx(8**0.5, rel=0.2)


def test_without_distractors_and_with_one_class(tmp_path: Path) -> None:
    store, x, truth = made(tmp_path / "s.zarr", SyntheticConfig(concepts=2, distractors=0, images=5))
    assert truth["distractors"].shape == (16, 0)
    np.testing.assert_allclose(x, truth["values"] @ truth["signals"].T + 10, atol=1e-5)
    assert store.class_names == ["0+1"]


@given(st.integers(1, 8), st.integers(8, 24), st.floats(0.3, 1.0), st.integers(0, 9))
def test_random_directions_keep_their_promise(count: int, channels: int, bound: float, seed: int) -> None:
    try:
        found = random_directions(count, channels, bound, np.random.default_rng(seed))
    except UsageError:
        assert bound < 0.6  # so few directions always fit otherwise
        return
    assert found.shape == (channels, count)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1)
    cosine = np.abs(found.T @ found)[np.triu_indices(count, 1)]
    assert (cosine < bound).all()


@pytest.mark.parametrize(("count", "channels", "bound"), [(3, 2, 0.1), (2, 1, 0.99), (40, 6, 0.5)])
def test_what_does_not_fit_is_refused(count: int, channels: int, bound: float) -> None:
    with pytest.raises(UsageError, match=f"No {count} directions .* {channels} channels.*Use more --channels"):
        random_directions(count, channels, bound, np.random.default_rng(0))


def test_a_request_that_does_not_fit_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="were found in 2 channels"):
        make_synthetic(tmp_path / "s.zarr", SyntheticConfig(channels=2, concepts=10))
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"concepts": 1}, "'concepts' must be at least 2"),
        ({"images": 0}, "'images' must be at least 1, got 0"),
        ({"channels": -3}, "'channels' must be at least 1"),
        ({"positions": 0}, "'positions' must be at least 2"),
        ({"per_position": 0}, "'per_position' must be at least 1"),
        ({"per_position": 4}, r"'per_position' must be at most 'concepts' \(3\), got 4"),
        ({"distractors": -1}, "must not be negative"),
        ({"noise": -0.1}, "must not be negative"),
        ({"imbalance": 0.5}, "'imbalance' >= 1"),
        ({"max_cosine": 0.0}, "'max_cosine' <= 1"),
        ({"max_cosine": 1.5}, "'max_cosine' <= 1"),
        ({"zipf": -1.0}, "must not be negative"),
        ({"zipf": float("nan")}, "must not be negative"),
        ({"hierarchy": -1}, "must not be negative"),
        ({"correlation": 1.0}, "0 <= 'correlation' < 1"),
        ({"zipf": 1.0, "imbalance": 2.0}, "Leave 'imbalance' out"),
        ({"zipf": 2.0, "per_position": 2}, "at 8816 of 6000 positions, the rarest at 980: .* lower 'zipf'"),
        ({"zipf": 1.0, "concepts": 50, "images": 20}, "the rarest at 0"),
        ({"hierarchy": 2}, "children of concept 0 .* need 4000 positions, but it is present at 2000. .* higher 'zipf'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SyntheticConfig(**settings)


REALISTIC = SyntheticConfig(
    channels=24, concepts=30, distractors=2, images=2000, positions=5, per_position=3, noise=0.1, max_cosine=0.9,
    zipf=1.0, hierarchy=2, correlation=0.5, seed=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def realistic(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, np.ndarray, dict[str, np.ndarray]]:
    return made(tmp_path_factory.mktemp("realistic") / "s.zarr", REALISTIC)


def test_frequencies_are_zipfs_and_the_mean_number_is_the_one_asked_for(realistic: tuple) -> None:
    on = realistic[2]["present"].reshape(-1, 30)
    wanted = 1 / np.arange(1, 31)
    np.testing.assert_allclose(on.mean(0), 3 * wanted / wanted.sum(), atol=0.5 / len(on))  # exact, to whole positions
    assert on.sum(1).mean() == pytest.approx(3, abs=1e-2)
    assert len(np.unique(on.sum(1))) > 5  # some positions hold none, others many


def test_children_are_present_only_with_their_parent_and_one_at_a_time(realistic: tuple) -> None:
    on = realistic[2]["present"].reshape(-1, 30).astype(bool)
    for parent in range(10):
        children = on[:, [10 + 2 * parent, 11 + 2 * parent]]
        assert not children[~on[:, parent]].any()
        assert children.sum(1).max() == 1
        assert (on[:, parent] & ~children.any(1)).any()


def test_realistic_activations_are_sparse_sums(realistic: tuple) -> None:
    """More directions than channels; zero where a concept is off."""
    store, x, truth = realistic
    on = truth["present"].astype(bool)
    assert truth["values"][~on].max() == 0
    assert 2.5 <= truth["values"][on].min() < truth["values"][on].max() <= 5
    rest = (x - truth["values"] @ truth["signals"].T - 10).reshape(-1, 24)
    d = truth["distractors"].astype(float)
    assert (rest - rest @ np.linalg.pinv(d).T @ d.T).std() == pytest.approx(0.1 * (22 / 24) ** 0.5, rel=0.02)
    assert store.verify() == []
    assert store.provenance["synthetic"]["zipf"] == 1


def test_a_class_is_the_concept_that_stands_out_and_the_head_learns_it(realistic: tuple) -> None:
    store, x, truth = realistic
    pooled = truth["values"].astype(float).mean(1)
    standing_out = ((pooled - pooled.mean(0)) / pooled.std(0)).argmax(1)
    assert (store.labels == standing_out).mean() > 0.999  # the truth is kept in float32
    assert store.class_names == [str(k) for k in range(30)]
    assert (store.logits.argmax(1) == store.labels).mean() > 0.6  # 30 classes, 32 directions in 24 channels
    weight, bias = store.affine_head(LAYER)
    np.testing.assert_allclose(x.mean(1) @ weight.T + bias, store.logits, atol=1e-4)


def test_correlation_makes_concepts_meet_and_avoid_each_other(tmp_path: Path) -> None:
    kept = {}
    for rho in (0.0, 0.3, 0.9):
        config = SyntheticConfig(channels=24, concepts=8, images=2000, positions=5, zipf=0.5, correlation=rho, seed=1)
        on = made(tmp_path / f"{rho}.zarr", config)[2]["present"]
        within = np.corrcoef(on.reshape(-1, 8).T)[np.triu_indices(8, 1)]
        across = np.corrcoef(on[:, 0].T, on[:, 1].T)[:8, 8:].diagonal()  # a concept at two positions of an image
        kept[rho] = within, across
    within, across = kept[0.0]
    assert np.abs(within).max() < 4 / 10000**0.5  # independent, within sampling error
    assert np.abs(across).max() < 4 / 2000**0.5
    for lower, higher in ((0.0, 0.3), (0.3, 0.9)):
        assert kept[higher][0].max() > 2 * kept[lower][0].max()
        assert kept[higher][0].min() < 1.3 * kept[lower][0].min() < 0
        assert (kept[higher][1] > kept[lower][1] + 0.05).all()


@given(
    st.integers(2, 12), st.integers(0, 4), st.floats(0.5, 1.5), st.floats(0, 0.95), st.integers(1, 3), st.integers(0, 9)
)
def test_whatever_is_not_refused_keeps_its_promises(
    concepts: int, hierarchy: int, zipf: float, correlation: float, mean: int, seed: int
) -> None:
    try:
        config = SyntheticConfig(
            concepts=concepts, hierarchy=hierarchy, zipf=zipf, correlation=correlation, per_position=mean, images=50
        )
    except UsageError:
        return
    on = realistic_presence(config, np.random.default_rng(seed)).reshape(-1, concepts)
    assert on.sum(0).tolist() == config.counts().tolist()
    parents = config.parents()
    for k in np.flatnonzero(parents >= 0):
        assert parents[k] < k
        assert on[on[:, k], parents[k]].all()
    for parent in set(parents[parents >= 0].tolist()):
        assert (parents == parent).sum() <= hierarchy
        assert on[:, parents == parent].sum(1).max() == 1
