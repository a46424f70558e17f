"""A whole study on a store whose causes are known, and through heads of both kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import layer_store

from evaluate.detector_bank import make_bank
from evaluate.influence import influence_study as study
from evaluate.influence.cavs import LabelUse
from evaluate.influence.influence_study import ROLES, InfluenceConfig, effect_of, measure_influence, unit_columns
from evaluate.influence.influence_tables import (
    claims_of,
    class_influence_rows,
    direction_influence_rows,
    influence_parts,
    influence_summary,
)
from evaluate.influence.permutation_nulls import NullTraining, null_directions
from evaluate.influence.sampling import balanced_samples
from evaluate.influence.shortcut_candidates import LARGE, OF_ONE_CLASS, labels_tested, suspect_rows
from evaluate.influence.significance import by_deviations, deviations, standardised
from evaluate.influence.steering import random_units
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.attachments import read_truth
from stores.directions import Directions
from stores.errors import UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore

CLASSES = ((0, 1), (0, 2), (1, 2))  # class k of the synthetic recipe holds these concepts


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A synthetic store, its true pairs as a file of directions, and 200 random directions as another."""
    path = tmp_path_factory.mktemp("study") / "s.zarr"
    make_synthetic(path, SyntheticConfig(channels=32, concepts=3, distractors=2, images=300))
    store = ActivationStore.open(path)
    reader = LayerReader(store)
    truth = read_truth(reader.store.path).signals.astype(np.float32)
    x = reader.rows(np.arange(reader.n_rows)).astype(np.float32)
    g = np.random.default_rng(0)
    noise = g.standard_normal((32, 200)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=0)

    def pairs(filters: np.ndarray, signals: np.ndarray) -> Directions:
        filters = filters.astype(np.float32)
        b = np.quantile(x @ filters, 0.66, axis=0).astype(np.float32)
        return Directions(filters, signals, x.mean(0), b, "known", reader.spec.name)

    sets = {"truth": pairs(np.linalg.pinv(truth).T, truth), "random": pairs(noise, noise)}
    config = InfluenceConfig(null_positions=200, nulls=40, null_epochs=40)
    return store, sets, measure_influence(store, reader.spec.name, sets, config)


def test_a_concept_lowers_the_class_that_lacks_it_and_is_claimed(known) -> None:  # type: ignore[no-untyped-def]
    _, _, found = known
    part = found.slices["truth"]
    for a in range(3):
        _, by_deviations = claims_of(found, "truth", a, 0)
        for concept in range(3):
            without = next(k for k, concepts in enumerate(CLASSES) if concept not in concepts)
            assert found.score[a, 0, part][concept, without] == -1
            assert found.probability[a, 0, part][concept, without] < 0
            assert by_deviations.random[concept, without]


def test_random_directions_are_claimed_no_more_often_than_the_level(known) -> None:  # type: ignore[no-untyped-def]
    """200 random directions × 3 classes: at most 5 % of the uncorrected p-values are below 0.05, and no family of tests claims one."""
    _, _, found = known
    for a in range(3):
        for role in range(2):
            counted, by_deviations = claims_of(found, "random", a, role)
            assert (counted.p <= 0.05).mean() <= 0.05
            claims = (counted.holm, counted.bh, by_deviations.max, by_deviations.random, by_deviations.t)
            assert not any(claim.any() for claim in claims)


@pytest.mark.parametrize("nulls", [19, 60])
def test_where_there_is_nothing_significance_claims_in_at_most_five_per_cent_of_tables(known, nulls: int) -> None:  # type: ignore[no-untyped-def]
    """Held-out null directions, and random directions, evaluated as if they had been found: 60 tables of each."""
    store, sets, _ = known
    layer, tables = next(iter(store.layers)), 60
    reader = LayerReader(store)
    bank = make_bank({"truth": sets["truth"]}, reader)
    move = effect_of(store, layer, InfluenceConfig(), 3).effect
    training = NullTraining(count=nulls + tables, epochs=40)
    samples = balanced_samples(reader, bank, positions=200)

    def change(vectors: torch.Tensor) -> np.ndarray:
        logit = move(vectors, 2.0).logit.numpy()
        return logit - logit.mean(1, keepdims=True)

    each = [
        change(v) for part in null_directions(reader, samples, training) for v in part.signals
    ]  # detector, direction, class
    random = change(random_units(reader.channels, 1000, 0))
    claims = {"null": 0, "random": 0}
    for k in range(tables):
        for kind, found in (
            ("null", np.stack([own[nulls + k] for own in each])),
            ("random", change(random_units(reader.channels, len(each), 1 + k))),
        ):
            own = [standardised(one, others[:nulls]) for one, others in zip(found, each, strict=True)]
            extremes = np.max([np.abs(nulls_t).max(1) for _, nulls_t in own], axis=0)
            t = np.stack([value for value, _ in own])
            judged = by_deviations(t, np.full(len(each), nulls), extremes, deviations(found, random), 1000)
            claims[kind] += bool(judged.significant.any())
    assert max(claims.values()) <= 8  # 3, and three standard deviations


def test_changes_are_those_of_the_effect_and_nulls_are_counted(known) -> None:  # type: ignore[no-untyped-def]
    store, sets, found = known
    moving = effect_of(store, next(iter(store.layers)), InfluenceConfig(), 3)
    wanted = moving.effect(torch.from_numpy(sets["truth"].signals), 2.0)
    part = found.slices["truth"]
    np.testing.assert_allclose(found.score[1, 0, part], wanted.score)
    np.testing.assert_allclose(found.probability[1, 0, part], wanted.probability)
    assert found.images == 300
    assert found.nulls.max() <= 40
    assert found.nulls.min() > 35
    assert (found.reached <= found.nulls[:, None]).all()


def test_tables_hold_a_row_for_everything_and_agree_with_the_summary(known) -> None:  # type: ignore[no-untyped-def]
    _, _, found = known
    names, classes = ["one", "two", ""], ["a", "b", "c"]
    parts = list(influence_parts(found, "truth", names, classes))
    columns = {key: np.concatenate([part[key] for part in parts]).tolist() for key in parts[0]}
    assert {len(values) for values in columns.values()} == {3 * 2 * 3 * 3}
    summary = influence_summary(found, "truth")
    main = [
        row
        for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        if row["role"] == "signal" and row["alpha"] == 2.0
    ]
    for row in main:
        assert row["significant"] == (row["significant_max"] and row["significant_random"])
    assert summary["significant"] == sum(row["significant"] for row in main)
    assert summary["scdp"] == sum(row["significant_paper"] for row in main)
    assert (
        summary["influence"]["signal"]["2"]["significant_random"] == sum(row["significant_random"] for row in main) >= 3
    )
    assert summary["sdc"] == len({row["index"] for row in main if row["significant_paper"]})
    rows = direction_influence_rows(found, "truth", names, classes)
    assert len(rows) == 3 * 2 * 3
    assert {row["role"] for row in rows} == set(ROLES)
    per_class = class_influence_rows(found, "truth", names, classes)
    for row in per_class:
        assert (row["probability_change"] > 0) == (row["sign"] == "positive")
    first = next(row for row in per_class if row["class"] == 0 and row["sign"] == "negative" and row["rank"] == 1)
    assert first["label"] == ""  # class a = concepts 0 and 1: the third is against it


def test_a_direction_without_positives_has_no_nulls_and_no_claim(tmp_path: Path) -> None:
    store, reader = _pooled_store(tmp_path)
    half = float(np.median(reader.rows(np.arange(reader.n_rows))[:, 0]))
    d = Directions(
        np.eye(4, 2, dtype=np.float32), np.eye(4, 2, dtype=np.float32), np.zeros(4, np.float32),
        np.array([half, 1e9], np.float32), "toy", reader.spec.name,
    )  # fmt: skip
    found = measure_influence(store, reader.spec.name, {"d": d}, InfluenceConfig(nulls=5, null_epochs=3, randoms=0))
    assert found.nulls.tolist()[1] == 0
    assert found.nulls.tolist()[0] > 0
    assert influence_summary(found, "d")["influence"]["directions_without_nulls"] == 1
    assert not claims_of(found, "d", 0, 0)[0].paper[1].any()


def test_without_null_directions_nothing_is_claimed(tmp_path: Path) -> None:
    store, reader = _pooled_store(tmp_path)
    eye = np.eye(4, dtype=np.float32)
    d = Directions(eye, eye, np.zeros(4, np.float32), np.zeros(4, np.float32), "toy", reader.spec.name)
    found = measure_influence(store, reader.spec.name, {"d": d}, InfluenceConfig(nulls=0, randoms=0))
    summary = influence_summary(found, "d")
    assert summary["scdp"] == summary["significant_bh"] == summary["significant"] == 0
    assert found.logit.any()
    assert not found.score.any()  # of a single class nothing can move


def test_a_file_has_the_same_numbers_whatever_files_come_with_it(known) -> None:  # type: ignore[no-untyped-def]
    store, sets, _ = known
    layer = next(iter(store.layers))
    config = InfluenceConfig(null_positions=40, nulls=5, null_epochs=3, randoms=5)
    few = Directions(
        sets["random"].filters[:, :4], sets["random"].signals[:, :4], sets["random"].mean,
        sets["random"].thresholds[:4], "known", layer,
    )  # fmt: skip
    alone = measure_influence(store, layer, {"truth": sets["truth"]}, config)
    after = measure_influence(store, layer, {"few": few, "truth": sets["truth"]}, config)
    part = after.slices["truth"]
    for of in ("score", "probability", "logit", "reached", "t", "t_random"):
        np.testing.assert_allclose(getattr(after, of)[:, :, part], getattr(alone, of), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(after.extremes[:, :, 1], alone.extremes[:, :, 0], rtol=1e-9)
    np.testing.assert_array_equal(after.nulls[part], alone.nulls)


def test_what_moves_nothing_is_claimed_by_no_rule(known) -> None:  # type: ignore[no-untyped-def]
    """A detector with positives and null directions, but a zero signal vector: no probability falls, and that is no influence."""
    store, sets, _ = known
    truth = sets["truth"]
    dead = Directions(
        truth.filters,
        truth.signals * np.array([0, 1, 1], np.float32),
        truth.mean,
        truth.thresholds,
        "known",
        truth.layer,
    )
    config = InfluenceConfig(alphas=(0.01,), alpha=0.01, null_positions=40, nulls=40, null_epochs=3, randoms=5)
    found = measure_influence(store, truth.layer, {"dead": dead}, config)
    assert found.nulls[0] == 40
    assert not found.score[0, 0, 0].any()
    score, logit = claims_of(found, "dead", 0, 0)
    assert (score.p_paper[0] == 1).all()
    for claim in (score.paper, score.holm, score.bh, logit.t, logit.max, logit.random):
        assert not claim[0].any()


def test_a_suspect_is_small_of_one_class_and_raises_it_by_logit_too() -> None:
    """Three labels alike but for one thing: the third's class rises only because another falls further. The first is carried by two
    more directions: one raises its class, too, and more; one does not. The last direction has no label."""
    change = np.array(
        [[0.2, -0.1, -0.1], [0.1, 0, -0.1], [0.3, -0.2, -0.1], [0.25, -0.1, -0.1], [-0.1, 0.1, 0], [0.4, -0.1, -0.1]]
    )
    t_random = np.array([[9.0, 0, 0], [9.0, 0, 0], [-9.0, 0, 0], [8.0, 0, 0], [-9.0, 0, 0], [9.0, 0, 0]])
    of = (1, 2, 6, 3)
    found = study.Influence(
        InfluenceConfig(alphas=(2.0,), nulls=0), {"d": slice(0, 6)}, np.zeros(of), np.tile(change, (1, 2, 1, 1)), np.zeros(of),
        np.zeros(of, np.int32), np.zeros(of), np.tile(t_random, (1, 2, 1, 1)), 100, np.zeros((1, 2, 1, 0)),
        np.zeros(6, np.int64), np.full(3, 1 / 3), 10, "toy",
    )  # fmt: skip
    images = np.array([[10, 0, 0], [5, 5, 0], [10, 0, 0], [0, 30, 30]])
    use = LabelUse(np.zeros((2, 4)), np.ones(4, bool), images, np.full((4, 3), 50), np.full(4, 0.05))
    labels = [(name, "object") for name in ("mark", "spread", "lower", "mark", "mark", "")]
    rows = suspect_rows(found, "d", labels, np.array([0, 1, 2, 0, 0, -1]), use, ["a", "b", "c"])
    assert [(row["label"], row["class_name"], row["share_of_class"]) for row in rows] == [("mark", "a", 1.0)]
    assert (rows[0]["indices"], rows[0]["probability_change"], rows[0]["t_random"]) == ([3, 0], 0.25, 8.0)
    assert (rows[0]["kind"], rows[0]["share_of_images"], rows[0]["usual_share"]) == (OF_ONE_CLASS, 0.2, 0.0667)
    assert labels_tested(np.array([0, 1, 2, 0, 0, -1]), use) == {"labels": 3, "small": 3}

    # of 6 images of class a 5 show the second label, and not even half of all; it is as large as a background
    kept = {"cavs": use.cavs, "known": use.known, "images": images}
    use = LabelUse(
        **kept,
        annotated=np.array([[50, 50, 50], [6, 30, 30], [9, 5, 5], [50, 50, 50]]),
        area=np.array([0.05, 0.6, 0.6, 0.6]),
    )
    rows = suspect_rows(found, "d", labels, np.array([0, 1, 2, 0, 0, -1]), use, ["a", "b", "c"])
    assert [(row["label"], row["class_name"], row["kind"]) for row in rows] == [
        ("mark", "a", OF_ONE_CLASS),
        ("spread", "a", LARGE),
    ]
    assert (rows[1]["share_of_images"], rows[1]["usual_share"], rows[1]["indices"]) == (0.8333, 0.1515, [1])
    assert labels_tested(np.array([0, 1, 2, 0, 0, -1]), use) == {"labels": 3, "small": 1}


def test_units_of_any_length() -> None:
    columns = torch.tensor([[3e30, 3e-30, 0.0], [4e30, -4e-30, 0.0]])
    torch.testing.assert_close(unit_columns(columns), torch.tensor([[0.6, 0.6, 0.0], [0.8, -0.8, 0.0]]))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"alphas": ()}, "steps"),
        ({"alphas": (1.0, -2.0), "alpha": 1.0}, "positive"),
        ({"alphas": (1.0,)}, "one of"),
        ({"alphas": (1.0, 1e308), "alpha": 1.0}, "up to 1e"),
        ({"alphas": (float("nan"),)}, "positive"),
        ({"alphas": (1.0, 1.0000001), "alpha": 1.0}, "differ"),
        ({"seed": -1}, "seed"),
        ({"images": 0}, "images"),
        ({"nulls": -1}, "nulls"),
        ({"null_positions": 2}, "null_positions"),
    ],
)
def test_wrong_settings_are_one_message(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        InfluenceConfig(**wrong)  # type: ignore[arg-type]


def _pooled_store(tmp_path: Path) -> tuple[ActivationStore, LayerReader]:
    """A synthetic store of four channels, with its head."""
    make_synthetic(tmp_path / "p.zarr", SyntheticConfig(channels=4, concepts=2, distractors=1, images=40))
    store = ActivationStore.open(tmp_path / "p.zarr")
    return store, LayerReader(store)


def test_sizes_fit_into_minutes_where_none_are_given_and_the_time_is_said() -> None:
    def decide(seconds: float, **given: int) -> tuple[int, int, study.InfluenceForecast]:
        config, _, forecast = study._decide(InfluenceConfig(**given), 32, 5000, seconds)  # type: ignore[arg-type]
        assert config.images is not None
        assert config.nulls is not None
        return config.images, config.nulls, forecast

    images, nulls, forecast = decide(1e-5)
    assert (images, nulls) == (100, 100)
    assert "Chosen" not in forecast.text
    for seconds in (1e-3, 3e-3, 1e-2, 0.1):
        fewer, few, forecast = decide(seconds)
        assert fewer * (few + 1) < images * (nulls + 1)
        assert forecast.seconds <= 480
        assert "Chosen for the time: 100 images with 100 null directions" in forecast.text
        images, nulls = fewer, few
    assert nulls == 0
    assert "random ones only" in forecast.text
    # 48 images × (3 steps × (2 · 32 · 21 + 20) + 7 other steps × 64 + 10 steps × 64 random directions) × 50 ms
    images, nulls, forecast = decide(0.05, images=48, nulls=20)
    assert (images, nulls, forecast.seconds) == (48, 20, pytest.approx(48 * (3 * (64 * 21 + 20) + 7 * 64 + 640) * 0.05))
    assert "about 3.5 hours" in forecast.text
    assert "--null-directions" in forecast.text
    assert decide(0.05, images=48)[0] == 48


def test_sampled_positions_are_refused_where_the_head_needs_all(
    tmp_path: Path,
) -> None:
    x = np.zeros((3, 2, 4), np.float32)
    positions = np.tile(np.array([0, 3], np.int32), (3, 1))
    store = layer_store(tmp_path / "s.zarr", x, grid=(2, 2), positions=positions)
    with pytest.raises(UsageError, match="--positions all"):
        effect_of(store, "conv", InfluenceConfig(), 3)
