"""The estimator: what a notebook user expects of ``EDDP(n_directions=500).fit(store)``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fit import EDDP, PCA, EDDPConfig, make_fitter
from stores.errors import MismatchError, NotFittedError, UnknownNameError, UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore

QUICK = {"n_directions": 3, "refine_steps": 20, "restarts": 1, "restart_steps": 10, "refits": 0}


def test_fit_gives_itself_back_from_a_path_a_store_or_a_reader(synthetic: Path) -> None:
    found = [
        EDDP(**QUICK).fit(given)
        for given in (synthetic, str(synthetic), ActivationStore.open(synthetic), LayerReader(synthetic))
    ]
    assert all(isinstance(one, EDDP) for one in found)
    for one in found[1:]:
        np.testing.assert_array_equal(one.filters_, found[0].filters_)
    assert EDDP(**QUICK).fit(synthetic, layer="synthetic").directions_.layer == "synthetic"


def test_what_is_fitted_has_a_trailing_underscore(synthetic: Path) -> None:
    eddp = EDDP(**QUICK).fit(synthetic)
    assert eddp.filters_.shape == eddp.signals_.shape == (16, 3)
    assert eddp.thresholds_ is not None
    assert eddp.thresholds_.shape == (3,)
    assert eddp.mean_.shape == (16,)
    assert len(eddp.log_) == 20
    assert {"dead", "coverage", "agreement_in_fit_coordinates"} <= set(eddp.diagnosis_)
    assert eddp.directions_.info["uncertainty"] == "pooled-affine"  # the store's own head, without asking
    assert EDDP(**QUICK).fit(synthetic, None).directions_.info["uncertainty"] == "none"


def test_transform_and_detect(synthetic: Path) -> None:
    eddp = EDDP(**QUICK).fit(synthetic)
    x = LayerReader(synthetic).images([0, 5])
    values, on = eddp.transform(x), eddp.detect(x)
    assert values.shape == on.shape == (2, 2, 3)
    assert values.dtype == np.float32
    assert on.dtype == bool
    np.testing.assert_array_equal(on, x @ eddp.filters_ - eddp.thresholds_ > 0)
    np.testing.assert_array_equal(values, eddp.directions_.signal_values(x))
    with pytest.raises(UsageError, match=r"shape \(…, 16\), channels last, got \(2, 2, 15\)"):
        eddp.transform(x[..., :15])
    with pytest.raises(UsageError, match="no thresholds: take the largest 0.5 %"):
        PCA(n_directions=3).fit(synthetic).detect(x)


def test_save_and_load(synthetic: Path, tmp_path: Path) -> None:
    eddp = EDDP(**QUICK, seed=4).fit(synthetic)
    eddp.save(tmp_path / "d.safetensors")
    again = EDDP.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(again.filters_, eddp.filters_)
    assert again.config == eddp.config
    assert again.log_ == []
    with pytest.raises(MismatchError, match="by 'eddp', not by 'pca'"):
        PCA.load(tmp_path / "d.safetensors")


def test_before_it_is_fitted_it_says_so() -> None:
    with pytest.raises(NotFittedError, match=r"call fit\(store\) first"):
        _ = EDDP().filters_
    assert not hasattr(EDDP(), "filters_")


def test_settings_by_name_and_by_configuration() -> None:
    assert EDDP(EDDPConfig(n_directions=7), seed=3).config == EDDPConfig(n_directions=7, seed=3)
    with pytest.raises(UnknownNameError, match="Did you mean lambda_ma"):
        EDDP(lamda_ma=1)
    with pytest.raises(UsageError, match="'learning_rate' must be positive, got -1"):
        EDDP(learning_rate=-1)
    with pytest.raises(UsageError, match="'lambda_s' must not be negative, got nan"):
        make_fitter("eddp", n_directions=2).config.__class__(lambda_s=float("nan"))
    with pytest.raises(UsageError, match="seed"):
        EDDP(seed=-1)
