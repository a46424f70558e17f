"""Online factorisation: codes and parts against exact least squares, the whole against scikit-learn, refusals, seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.decomposition import NMF as Reference

from fit.baselines.nmf import NMF, Factors, NMFConfig, nonnegative_codes, update_parts
from fit.settings import with_settings
from stores.errors import FitError, UsageError
from stores.readers import LayerReader

N, P, C, PARTS = 300, 10, 12, 4
Made = Callable[..., Path]


def sums_of_parts(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (N, P, C), sparse codes (N·P, 4) and parts (4, C)."""
    g = np.random.default_rng(seed)
    parts = g.random((PARTS, C)) * (g.random((PARTS, C)) < 0.5) + 0.01
    codes = g.random((N * P, PARTS)) * (g.random((N * P, PARTS)) < 0.5)
    return (codes @ parts).astype(np.float32).reshape(N, P, C), codes, parts


def fitted(reader: LayerReader, directions: int = PARTS, **settings: str) -> NMF:
    return NMF(with_settings(NMFConfig(n_directions=directions), {"epochs": "40", **settings})).fit(reader)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_codes_are_the_non_negative_least_squares_solution() -> None:
    x, _, _ = sums_of_parts()
    g = np.random.default_rng(1)
    rows = x.reshape(-1, C)[:40].astype(np.float64)
    parts = g.random((PARTS, C))
    found = nonnegative_codes(torch.from_numpy(rows), torch.from_numpy(parts), 5000, tolerance=1e-14)
    wanted = np.stack([nnls(parts.T, row)[0] for row in rows])
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    assert (wanted == 0).any()  # the sign matters


def test_each_part_goes_where_it_is_best() -> None:
    g = np.random.default_rng(2)
    x, codes, parts = g.random((50, 5)), g.random((50, 2)), g.random((2, 5))
    before = torch.from_numpy(parts.copy())
    update_parts(before, torch.from_numpy(codes.T @ codes), torch.from_numpy(codes.T @ x))
    first = ((x - codes[:, 1:] @ parts[1:]).T @ codes[:, 0] / (codes[:, 0] @ codes[:, 0])).clip(0)
    second = ((x - codes[:, :1] @ first[None]).T @ codes[:, 1] / (codes[:, 1] @ codes[:, 1])).clip(0)
    np.testing.assert_allclose(before, [first, second], rtol=1e-12)


def test_it_finds_the_parts_and_is_as_good_as_scikit_learns(tiny_store: Made) -> None:
    x, codes, parts = sums_of_parts()
    found = fitted(LayerReader(tiny_store({"a": x})))
    cosines = found.directions_.signals.T @ unit(parts).T
    assert sorted(cosines.argmax(1)) == list(range(PARTS))
    assert cosines.max(1).min() > 0.99
    rows = x.reshape(-1, C)
    theirs = Reference(PARTS, init="nndsvda", max_iter=500, tol=1e-6).fit(rows)
    # given each one's parts, how much is left
    left = [
        sum(nnls(p.T, row)[1] ** 2 for row in rows[::10].astype(np.float64))
        for p in (found.directions_.signals.T, theirs.components_)
    ]
    total = ((rows - rows.mean(0)) ** 2).sum() / 10
    assert left[0] / total < left[1] / total + 0.005
    # linear filters read the codes: exactly a pseudo-inverse, and close to the truth
    filters = found.directions_.filters
    np.testing.assert_allclose(filters.T @ found.directions_.signals, np.eye(PARTS), atol=1e-4)
    read = found.directions_.logits(rows)[:, cosines.argmax(0)]
    assert min(np.corrcoef(read[:, i], codes[:, i])[0, 1] for i in range(PARTS)) > 0.95
    assert found.directions_.thresholds is None
    assert (found.directions_.signals >= 0).all()


def test_the_log_and_what_is_recorded(tiny_store: Made) -> None:
    x, _, _ = sums_of_parts()
    found = fitted(LayerReader(tiny_store({"a": x})), epochs="3", batch_rows="500")
    assert [row["step"] for row in found.log_] == list(range(18))
    assert [row["epoch"] for row in found.log_] == [0] * 6 + [1] * 6 + [2] * 6
    assert found.log_[-1]["loss"] < found.log_[0]["loss"]
    assert found.directions_.info["epochs"] == 3
    assert found.directions_.info["order"] == {"batch_rows": 500, "seed": 0, "window_bytes": 2**30}
    assert NMFConfig(batch_rows=100).epochs_in_force(1000) == 50
    assert NMFConfig(batch_rows=100).epochs_in_force(10**6) == 1


def test_negative_activations_are_refused_or_clipped(tiny_store: Made) -> None:
    x, _, _ = sums_of_parts()
    x[7, 3, :6] = -0.25
    reader = LayerReader(tiny_store({"relu.before": x}))
    with pytest.raises(FitError, match=r"'relu\.before' .*0\.0167 % .*down to -0\.25.*--set negative=clip"):
        fitted(reader)
    clipped = fitted(reader, epochs="2", negative="clip")
    assert clipped.directions_.info["lowest"] == -0.25
    assert clipped.directions_.info["negative_share"] == pytest.approx(6 / x.size)
    zeros = LayerReader(tiny_store({"relu.before": x.clip(0)}, name="zeros.zarr"))
    assert (fitted(zeros, epochs="2").directions_.signals == clipped.directions_.signals).all()
    with pytest.raises(FitError, match="no positive activation"):
        fitted(LayerReader(tiny_store({"a": np.zeros((8, 2, 3), np.float32)}, name="nothing.zarr")))


def test_the_seed_is_the_only_chance_and_more_parts_than_rows_are_fine(tiny_store: Made) -> None:
    x, _, _ = sums_of_parts()
    reader = LayerReader(tiny_store({"a": x}))
    state = torch.random.get_rng_state()
    one, two, other = (fitted(reader, epochs="2", seed=seed).directions_ for seed in ("0", "0", "1"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert (one.signals == two.signals).all()
    assert not (one.signals == other.signals).all()
    few = LayerReader(tiny_store({"a": x[:4, :2]}, name="few.zarr"))
    many = fitted(few, 20, epochs="2").directions_
    np.testing.assert_allclose(np.linalg.norm(many.signals, axis=0), 1, rtol=1e-5)


def test_a_part_that_nothing_uses_becomes_what_is_missing() -> None:
    x, _, _ = sums_of_parts()
    rows = torch.from_numpy(x.reshape(-1, C))
    parts = torch.zeros(3, C)
    parts[0], parts[1] = rows[0], rows[1]
    factors = Factors(parts, torch.zeros(3, 3), torch.zeros(3, C))
    first = factors.step(rows, 1.0, 200)
    assert first["unused"] == pytest.approx(1 / 3)
    assert float(factors.parts[2].norm()) > 0.9
    assert factors.step(rows, 0.0, 200)["loss"] < first["loss"]


@pytest.mark.parametrize(
    "setting", [{"epochs": "0"}, {"batch_rows": "0"}, {"code_iterations": "0"}, {"forget": "0"}, {"forget": "1.5"}]
)
def test_settings_are_checked(setting: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        with_settings(NMFConfig(), setting)


def test_stages_are_reported(tiny_store: Made) -> None:
    reader = LayerReader(tiny_store({"a": sums_of_parts()[0]}))
    seen: dict[str, tuple[int, int | None]] = {}
    NMF(NMFConfig(n_directions=4, epochs=1)).fit(
        reader, None, lambda stage, done, total=None, note="": seen.__setitem__(stage, (done, total))
    )
    assert seen == {"statistics": (N, N), "signs": (N, N), "parts": (3, 3)}
