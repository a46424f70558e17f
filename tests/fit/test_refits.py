"""Which directions are found again, and how many directions to look for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fit import EDDP, make_fitter
from fit.config import CONTAINED, KAPPA, SHARP
from fit.refits import COLUMNS, part_of_refit, select_number
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.readers import LayerReader
from stores.statistics import statistics
from tests.benchmarks.heldout import row_loss


def test_concepts_that_are_there_are_found_again_and_noise_is_not(
    reader: LayerReader, tiny_store: Callable[..., Path]
) -> None:
    found = EDDP(n_directions=3, restarts=1, restart_steps=40, refine_steps=100, refits=4).fit(reader).found_again_
    assert found is not None
    np.testing.assert_array_equal(found, [1, 1, 1])
    x = np.random.default_rng(0).normal(size=(300, 4, 24)).astype(np.float32)
    quick = EDDP(n_directions=4, restarts=1, restart_steps=10, refine_steps=40, refits=4)
    noise = quick.fit(tiny_store({"conv": x}), None)
    assert noise.found_again_ is not None
    assert noise.found_again_.mean() < 0.3
    assert EDDP(n_directions=3, restarts=1, refine_steps=5, refits=0).fit(reader).found_again_ is None


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("kmeans", {"space": "whitened"}),
        ("nmf", {"negative": "clip"}),
        ("ica", {}),
        ("sae", {"epochs": "2"}),
        ("pca", {}),
    ],
)
def test_every_method_against_all_permutations(method: str, settings: dict[str, str], reader: LayerReader) -> None:
    """The shares are those of refits made by hand, matched by trying every order."""
    fitter = make_fitter(method, n_directions=3, settings=settings, refits=2).fit(reader, None)
    covariance = statistics(reader).covariance
    w = fitter.filters_
    own = w.T @ covariance @ w
    own = np.abs(own / np.sqrt(np.outer(own.diagonal(), own.diagonal()))) - np.eye(3)
    distinct = own.max(0) <= CONTAINED
    assert fitter.diagnosis_["too_alike"] == 3 - distinct.sum()
    found = np.zeros(3)
    for k in range(2):
        again = make_fitter(method, n_directions=3, settings=settings, seed=1 + k)
        v = again.fit(reader.only(part_of_refit(fitter.config, reader.n_rows, k)), None).filters_
        scale = [np.sqrt(np.einsum("ci,cd,di->i", f, covariance, f)) for f in (w, v)]
        alike = np.abs(w.T @ covariance @ v / np.outer(*scale))
        best = max(itertools.permutations(range(3)), key=lambda order: sum(alike[i, order[i]] for i in range(3)))
        found += [distinct[i] and alike[i, best[i]] > CONTAINED for i in range(3)]
    np.testing.assert_array_equal(fitter.found_again_, found / 2)


def test_loss_of_refits_on_images_that_they_saw_and_on_others(reader: LayerReader) -> None:
    quick = {"n_directions": 3, "restarts": 1, "restart_steps": 5, "refine_steps": 20, "regime": "sharp"}
    fitter = EDDP(**quick, refits=2).fit(reader, None)
    halves = [reader.only(part_of_refit(fitter.config, reader.n_rows, k)) for k in range(2)]
    x = [np.concatenate([block.reshape(-1, half.channels) for _, block in half.blocks()]) for half in halves]
    again = [fitter.brief(1 + k).fit(half, None).directions_ for k, half in enumerate(halves)]
    for name, other in (("loss_seen", 0), ("loss_unseen", 1)):
        expected = np.mean([row_loss(again[k], x[k ^ other], SHARP["lambda_ma"]) for k in range(2)])
        assert fitter.diagnosis_[name] == pytest.approx(expected, abs=2e-4)


def test_two_refits_of_a_pair_share_no_image(reader: LayerReader) -> None:
    fitter = EDDP(n_directions=3)
    parts = [set(reader.only(part_of_refit(fitter.config, reader.n_rows, k)).image_indices) for k in range(4)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == parts[2] | parts[3] == set(reader.image_indices)
    assert parts[0] not in (parts[2], parts[3])
    half = reader.only(part_of_refit(fitter.config, reader.n_rows, 0))
    assert set(half.only(part_of_refit(fitter.config, half.n_rows, 1)).image_indices) < parts[0]


def test_one_image_cannot_be_halved(tiny_store: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(1, 400, 8)).astype(np.float32)
    fitter = EDDP(n_directions=2, restarts=1, refine_steps=2).fit(tiny_store({"conv": x}), None)
    assert fitter.found_again_ is None
    assert "found_again is left out" in caplog.text


def test_the_number_of_concepts_is_selected(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "s.zarr", SyntheticConfig(channels=32, concepts=6, distractors=4, images=1000))
    make = partial(make_fitter, "eddp", settings={"refine_steps": "50", "restart_steps": "50"})
    selection = select_number(make, LayerReader(tmp_path / "s.zarr"), numbers=(3, 6, 12))
    assert selection.number == 6
    kappa = {row["directions"]: row["kappa"] for row in selection.rows}
    assert kappa[6] > max(0.9, KAPPA)
    assert kappa[6] == max(kappa.values())


def test_what_was_not_tried_is_said(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Number × κ is largest at 3, though halves are alike at 4, too."""
    kappas = {2: 0.9, 3: 0.8, 4: 0.55, 5: 0.4, 6: 0.3}
    row = dict.fromkeys(COLUMNS, 1.0)
    monkeypatch.setattr("fit.refits._row", lambda fitter, *_: row | {"directions": (n := fitter.config.n_directions), "kappa": kappas[n]})  # fmt: skip
    selection = select_number(partial(make_fitter, "kmeans"), reader, numbers=(2, 3, 4, 5, 6, 7, 8))
    assert selection.number == 3
    assert "Not tried, as two numbers in a row were not alike: 7, 8." in selection.why
    assert "Not tried" not in select_number(partial(make_fitter, "kmeans"), reader, numbers=(2, 3, 4, 5)).why
