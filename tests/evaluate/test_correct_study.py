"""Predictions under many corrections against the corrected model itself, and the study on a network with a known shortcut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shortcut_net import CLASSES, ToUnit, build, curved, directions_arrays, write_scenes
from tiny import trusted

from evaluate.correct import CorrectConfig, Correction, study_correction
from evaluate.correct.choice import NO_GAIN
from evaluate.correct.correction_study import Study, accuracy, confusion
from evaluate.correct.correction_tables import (
    class_rows,
    confusion_rows,
    correction_rows,
    correction_summary,
    strength_rows,
)
from evaluate.correct.gates import Gates, measure_gates
from evaluate.correct.heldout_evaluation import FLOOR, Judged, judged, predict
from extract.classes import image_classes
from extract.datasets import open_source
from extract.network import open_head
from extract.stream import ExtractConfig, extract
from stores.directions import Directions
from stores.errors import UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore


def store_of(
    tmp_path: Path, name: str, *, marked: bool, model: str = "with_transform", count: int = 20
) -> ActivationStore:
    write_scenes(tmp_path / name, count, marked=marked)
    config = ExtractConfig(
        model=f"shortcut_net:{model}", weights="none", layers=("act",), dtype="float32", chunk_images=8, workers=0
    )
    extract(open_source(tmp_path / name), tmp_path / f"{name}.zarr", config)
    return trusted(tmp_path / f"{name}.zarr")


def found_directions() -> Directions:
    return Directions(**directions_arrays(), method="eddp", layer="act")  # type: ignore[arg-type]


def detectors(store: ActivationStore, chosen: list[int], thresholds: np.ndarray | None = None) -> Gates:
    d = found_directions()
    b = d.thresholds if thresholds is None else thresholds
    assert b is not None
    return measure_gates(d, chosen, b, LayerReader(store, "act"))


def corrections() -> list[Correction]:
    d = found_directions()
    g = np.random.default_rng(0).normal(size=(12, 1)).astype(np.float32)
    w, b = d.filters[:, :1], d.thresholds[:1]  # type: ignore[index]
    return [
        Correction(w, b, v, k, t, True, "act")
        for v in (d.signals[:, :1], g / np.linalg.norm(g))
        for k in (0.0, 0.2, 1.0, 5.0)
        for t in (0.0, 2.0)
    ]


@pytest.mark.parametrize("model", ["with_transform", "curved_with_transform"])
def test_predictions_are_those_of_the_corrected_model(tmp_path: Path, model: str) -> None:
    store = store_of(tmp_path, "poisoned", marked=True, model=model, count=9)
    of = judged({"poisoned": store}, "act")["poisoned"]
    head = open_head(store, "act")
    assert (head.affine is not None) == (model == "with_transform")
    module = (build if model == "with_transform" else curved)().eval()
    images = torch.stack([ToUnit()(Image.open(tmp_path / "poisoned" / name)) for name in of.names])
    wanted = np.stack([one.apply(module)(images).argmax(1).numpy() for one in corrections()])
    found = predict(of, head, corrections())
    np.testing.assert_array_equal(found, wanted)
    assert len({tuple(row) for row in wanted}) >= 3  # the corrections differ
    where = np.arange(len(of.rows)) % 2 == 0
    some = predict(of, head, corrections(), where=where, floor=FLOOR)
    np.testing.assert_array_equal(some[:, where], wanted[:, where])
    assert (some[:, ~where] == -1).all()


def test_classes_names_and_parts(tmp_path: Path) -> None:
    stores = {n: store_of(tmp_path, n, marked=n == "poisoned") for n in ("clean", "poisoned")}
    clean, poisoned = judged(stores, "act").values()
    assert [CLASSES[k] for k in clean.classes] == [name.split("/")[0] for name in clean.names]
    np.testing.assert_array_equal(clean.held, poisoned.held)  # a picture and its poisoned copy are on the same side
    assert [clean.held[clean.classes == k].sum() for k in (0, 1)] == [10, 10]
    with pytest.raises(UsageError, match="40 are held out"):
        judged(stores, "act", held=1.0)
    assert (judged(stores, "act", seed=1)["clean"].held != clean.held).any()
    fewer = {which: image_classes(store).copy() for which, store in stores.items()}
    fewer["poisoned"][::3] = -1  # copies of some of the pictures: these are on the side of the picture, too
    for share in (0.5, 0.3):
        some = judged(stores, "act", fewer, held=share)
        kept = np.isin(some["clean"].rows, some["poisoned"].rows)
        np.testing.assert_array_equal(some["clean"].held[kept], some["poisoned"].held)
        assert [some["clean"].held[some["clean"].classes == k].sum() for k in (0, 1)] == [20 * share] * 2


def test_images_without_classes_are_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d", 2, marked=False)
    config = ExtractConfig(model="shortcut_net:with_transform", weights="none", layers=("act",), workers=0)
    extract(open_source(tmp_path / "d" / "sea"), tmp_path / "flat.zarr", config)
    with pytest.raises(UsageError, match="None of the images .* has a class"):
        judged({"clean": ActivationStore.open(tmp_path / "flat.zarr")}, "act")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    place = tmp_path_factory.mktemp("study")
    stores = {n: store_of(place, n, marked=n == "poisoned") for n in ("clean", "poisoned")}
    gates, head = detectors(stores["poisoned"], [0]), open_head(stores["clean"], "act")
    return study_correction(gates, head, *judged(stores, "act").values(), rectify=True, config=CorrectConfig(randoms=5))


def test_the_shortcut_is_taken_out(study: Study) -> None:
    assert study.typical == pytest.approx(1.0)  # the mark's red, by the filter's own scale
    summary = correction_summary(study)
    assert summary["poisoned"]["before"] == pytest.approx(0.5, abs=0.2)
    assert (study.before["poisoned"] == 1).all()  # everything marked is predicted as the sea
    assert summary["poisoned"]["after"] == 1.0
    assert summary["clean"]["before"] == summary["clean"]["after"] == 1.0
    assert 0.25 <= study.correction.strength <= 1.01  # among equals the weakest
    assert summary["problem"] is None
    change = summary["poisoned"]
    assert change["gain_low"] < change["gain"] < change["gain_high"]
    spread = change["own_strength"]
    assert spread["random_mean"] <= spread["random_percentile_95"] <= spread["random_best"]
    assert summary["poisoned"]["same_strength"]["random_mean"] < 0.8


def test_tables_agree_with_the_predictions(study: Study) -> None:
    poisoned = study.sets()["poisoned"]
    rows = correction_rows(study)
    assert [(r["vector"], r["set"]) for r in rows[:2]] == [("none", "clean"), ("none", "poisoned")]
    assert len(rows) == 2 * (1 + 1 + 2 * 6)  # sets × (none, signal, two settings of the filter and five random ones)
    told = ~poisoned.held
    after = next(r for r in rows if r["vector"] == "signal" and r["set"] == "poisoned")
    assert after["accuracy"] == pytest.approx((study.after["poisoned"][told] == poisoned.classes[told]).mean())
    assert after["images"] == told.sum()
    tried = strength_rows(study)
    assert sum(r["chosen"] for r in tried) == 7
    assert all(r["accuracy_clean_low"] < r["accuracy_clean"] < r["accuracy_clean_high"] for r in tried)
    by_class = {(r["set"], r["class_name"]): r for r in class_rows(study, CLASSES)}
    assert by_class["poisoned", "meadow"]["before"] == 0
    assert by_class["poisoned", "meadow"]["after"] == 1
    counts = confusion_rows(study, CLASSES)
    for which, of in study.sets().items():
        for when in ("before", "after"):
            assert sum(r["images"] for r in counts if r["set"] == which and r["when"] == when) == (~of.held).sum()


def test_a_tolerance_that_no_setting_meets_takes_what_harms_least_and_says_so(tmp_path: Path) -> None:
    """Detectors that fire everywhere, and vectors that the classes need."""
    stores = {n: store_of(tmp_path, n, marked=n == "poisoned", count=6) for n in ("clean", "poisoned")}
    config = CorrectConfig(tolerance=0.0, randoms=0, multiples=(4.0, 8.0))
    found = study_correction(
        detectors(stores["clean"], [1, 2], np.full(3, -50.0, np.float32)), open_head(stores["clean"], "act"),
        *judged(stores, "act").values(), rectify=True, config=config,
    )  # fmt: skip
    tried = found.tried["signal"]
    assert tried.clean.after[tried.best] == tried.clean.after.max() < 1
    assert correction_summary(found)["problem"] == tried.problem == NO_GAIN


def test_without_poisoned_images_it_is_the_strongest_that_spares_clean_ones(tmp_path: Path) -> None:
    marked = store_of(tmp_path, "p", marked=True)
    clean = judged({"clean": store_of(tmp_path, "c", marked=False)}, "act")["clean"]
    head = open_head(marked, "act")
    found = study_correction(detectors(marked, [0]), head, clean, None, rectify=True)
    assert found.correction.strength == pytest.approx(found.typical) == pytest.approx(1.0)
    assert found.correction.shift == 0
    given = study_correction(
        detectors(marked, [0]), head, clean, None, rectify=True, config=CorrectConfig(strength=0.3, shift=0.7)
    )
    assert (given.correction.strength, given.correction.shift) == (0.3, 0.7)
    # grass is what meadows are known by: hardly any of it can be taken out; without any, it is a sea, not a tie
    harmful = study_correction(
        detectors(marked, [1], np.zeros(3, np.float32)),
        head,
        replace(clean, logits=clean.logits + np.array([0, 1e-3], np.float32)),
        None,
        rectify=True,
        config=CorrectConfig(tolerance=0.0),
    )
    assert harmful.correction.strength < 0.8 * harmful.typical


def test_a_detector_that_never_fires_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="detector 0 fires nowhere"):
        detectors(store_of(tmp_path, "c", marked=False), [0])


def test_detectors_are_measured_as_by_hand(tmp_path: Path) -> None:
    store = store_of(tmp_path, "p", marked=True, count=7)
    d = found_directions()
    x = np.concatenate([np.asarray(b, np.float32) for _, b in LayerReader(store, "act").blocks()]).reshape(-1, 12)
    z = x @ d.filters[:, [0, 2]] - d.thresholds[[0, 2]]  # type: ignore[index]
    alpha = x @ d.filters[:, [0, 2]] / 20
    found = detectors(store, [0, 2])
    assert found.typical == pytest.approx(alpha[z > 0].mean(), rel=1e-5)
    np.testing.assert_allclose(np.sort(found.positives), np.sort(z[z > 0]), rtol=1e-5)
    assert found.shift(0.5) == pytest.approx(np.median(z[z > 0]), rel=1e-5)
    assert found.shift(0.0) == 0
    np.testing.assert_array_equal(found.filters, d.filters[:, [0, 2]])


def test_gates_of_methods_without_thresholds_are_shut_where_the_concept_is_not(tmp_path: Path) -> None:
    store = store_of(tmp_path, "p", marked=True)
    units = Directions(
        np.eye(12, dtype=np.float32), np.eye(12, dtype=np.float32), np.zeros(12, np.float32), None, "neurons", "act"
    )
    found = measure_gates(units, [0], np.full(12, 0.9, np.float32), LayerReader(store, "act"))
    x = np.concatenate([np.asarray(b, np.float32) for _, b in LayerReader(store, "act").blocks()]).reshape(-1, 12)
    z = x @ found.filters - found.thresholds
    assert np.abs(z).mean() == pytest.approx(3, rel=1e-4)
    gate = 1 / (1 + np.exp(-z[:, 0]))
    assert gate[x[:, 0] == 0].max() < 0.05
    np.testing.assert_array_equal(z[:, 0] > 0, x[:, 0] > 0.9)  # what is detected stays the same


def test_accuracy_and_confusion_by_hand() -> None:
    of = Judged(None, np.arange(4), np.array([0, 1, 1, 2]), np.zeros((4, 3)), np.zeros(4, bool))  # type: ignore[arg-type]
    found = np.array([0, 1, 2, 0])
    assert accuracy(of, found, np.ones(4, bool)) == 0.5
    assert np.isnan(accuracy(of, found, np.zeros(4, bool)))
    np.testing.assert_array_equal(confusion(of.classes, found, 3), [[1, 0, 0], [0, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    "wrong", [{"tolerance": 2.0}, {"randoms": -1}, {"strength": -1.0}, {"strength": float("nan")}, {"seed": -1}]
)
def test_wrong_configurations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        CorrectConfig(**wrong)  # type: ignore[arg-type]
