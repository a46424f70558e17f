"""Balanced samples and null directions against slow and literal versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import layer_store

from evaluate.detector_bank import Bank
from evaluate.influence import permutation_nulls as module
from evaluate.influence.permutation_nulls import (
    NullTraining,
    null_directions,
    permuted_labels,
    precision_on,
    train,
    unit_directions,
)
from evaluate.influence.sampling import Sample, balanced_samples, random_keys
from stores.readers import LayerReader


def reader_and_bank(
    tmp_path: Path, *, n: int = 40, chunk_images: int = 4, seed: int = 0, valid: np.ndarray | None = None
) -> tuple[LayerReader, Bank]:
    g = np.random.default_rng(seed)
    x = g.standard_normal((n, 6, 5)).astype(np.float32)
    store = layer_store(tmp_path / f"{chunk_images}.zarr", x, grid=(2, 3), chunk_images=chunk_images, valid=valid)
    filters = torch.from_numpy(g.standard_normal((5, 4)).astype(np.float32))
    thresholds = torch.tensor([0.0, 2.0, 1e9, -1e9])  # half, few, none, all
    return LayerReader(store), Bank(filters, thresholds, {"a": slice(0, 4)})


@pytest.mark.parametrize("positions", [8, 40, 5000])
def test_a_sample_is_the_positives_and_negatives_of_smallest_key(tmp_path: Path, positions: int) -> None:
    valid = np.ones(40, bool)
    valid[7] = False
    reader, bank = reader_and_bank(tmp_path, valid=valid)
    x = reader.rows(np.arange(reader.n_rows))
    on = (x @ bank.filters.numpy() - bank.thresholds.numpy()) > 0
    keys = random_keys(np.arange(reader.n_rows), 3)
    samples = balanced_samples(reader, bank, positions=positions, seed=3)
    for d, sample in enumerate(samples):
        chosen = []
        for member in (on[:, d], ~on[:, d]):
            rows = np.flatnonzero(member)
            chosen.append(rows[np.argsort(keys[rows])][: positions // 2])
        n = min(map(len, chosen))
        assert sample.rows.tolist() == np.concatenate([chosen[0][:n], chosen[1][:n]]).tolist()
        assert on[sample.rows[: sample.positives], d].all()
        assert not on[sample.rows[sample.positives :], d].any()
    assert len(samples[2].rows) == len(samples[3].rows) == 0


def test_a_sample_does_not_depend_on_chunks_or_on_how_often_it_was_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = balanced_samples(*reader_and_bank(tmp_path, n=60), positions=20, seed=1)
    monkeypatch.setattr("evaluate.influence.sampling._ROWS", 7)
    other = balanced_samples(*reader_and_bank(tmp_path, n=60, chunk_images=23), positions=20, seed=1)
    assert [s.rows.tolist() for s in wanted] == [s.rows.tolist() for s in other]


def test_keys_are_uniform_and_of_their_seed() -> None:
    keys = random_keys(np.arange(100_000), 0)
    assert len(np.unique(keys)) == 100_000
    assert keys.mean() == pytest.approx(0.5, abs=0.005)
    assert np.histogram(keys, 10, (0, 1))[0].min() > 9600
    assert abs(np.corrcoef(keys, random_keys(np.arange(100_000), 1))[0, 1]) < 0.02
    assert abs(np.corrcoef(keys[:-1], keys[1:])[0, 1]) < 0.02


def test_permuted_labels_are_balanced_and_differ() -> None:
    y = permuted_labels(20, NullTraining(count=50), 3)
    assert y.shape == (20, 50)
    assert (y.sum(0) == 10).all()
    assert len({tuple(column) for column in y.T}) > 45
    assert (y == permuted_labels(20, NullTraining(count=50), 3)).all()
    assert (y != permuted_labels(20, NullTraining(count=50), 4)).any()


def test_all_classifiers_at_once_are_those_trained_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 3, generator=g, dtype=torch.float64)
    y = (torch.rand(2, 12, 4, generator=g) > 0.5).double()
    weight = torch.ones(2, 12, 1, dtype=torch.float64)
    weight[1, 8:] = 0  # the second detector has eight rows
    w, b = train(x, y, weight, NullTraining(epochs=30))
    filters, signals, valid = unit_directions(x, w, b, weight)
    assert valid.sum() >= 6
    for k, n in enumerate((12, 8)):
        for t in torch.flatten(torch.nonzero(valid[k])).tolist():
            model = torch.nn.Linear(3, 1, dtype=torch.float64)
            torch.nn.init.zeros_(model.weight)
            torch.nn.init.zeros_(model.bias)
            adam = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(30):
                adam.zero_grad()
                logits = model(x[k, :n])[:, 0]
                torch.nn.functional.binary_cross_entropy_with_logits(logits, y[k, :n, t]).backward()
                adam.step()
            torch.testing.assert_close(w[k, :, t], model.weight.detach()[0], rtol=1e-6, atol=1e-9)
            z = model(x[k, :n])[:, 0].detach()
            on = z > 0
            xs, zs = x[k, :n][on], z[on]
            s = ((xs - xs.mean(0)) * (zs - zs.mean())[:, None]).mean(0) / zs.var(unbiased=False)
            torch.testing.assert_close(signals[k, :, t], s / s.norm(), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(filters[k, :, t], model.weight.detach()[0] / model.weight.detach().norm())


def test_a_null_without_two_positives_is_no_null() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    w = torch.tensor(
        [[[1.0, 1.0], [0.0, 1.0]]]
    )  # the first is on at rows 0 and 2 with one logit, the second at row 2 alone
    b = torch.tensor([[[-0.5, -1.5]]])
    _, signals, valid = unit_directions(x, w, b, torch.ones(1, 3, 1))
    assert valid.tolist() == [[False, False]]
    assert not signals.any()


def test_null_directions_come_for_every_detector_with_a_sample_in_groups_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, bank = reader_and_bank(tmp_path)
    samples = balanced_samples(reader, bank, positions=60)
    training = NullTraining(count=6, epochs=20)
    together = list(null_directions(reader, samples, training))
    assert [group.detectors.tolist() for group in together] == [[0, 1]]
    monkeypatch.setitem(module._BYTES, "cpu", 1)
    apart = {int(group.detectors[0]): group for group in null_directions(reader, samples, training)}
    assert sorted(apart) == [0, 1]
    for k, d in enumerate(together[0].detectors.tolist()):
        torch.testing.assert_close(together[0].signals[k], apart[d].signals[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together[0].signals[k].norm(dim=0), together[0].valid[k].float())


def test_a_group_is_small_enough_for_its_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few positions, many channels and permutations: what fills memory is not the sample."""
    x = np.random.default_rng(0).standard_normal((40, 1, 300)).astype(np.float32)
    reader = LayerReader(layer_store(tmp_path / "s.zarr", x, grid=(1, 1)))
    samples = [Sample(np.arange(4)) for _ in range(6)]
    monkeypatch.setitem(module._BYTES, "cpu", 4 * 6 * 300 * 50 * 3)
    sizes = [len(group.detectors) for group in null_directions(reader, samples, NullTraining(count=50, epochs=1))]
    assert sizes == [2, 2, 2]


def test_too_small_samples_have_no_nulls(tmp_path: Path) -> None:
    reader, _ = reader_and_bank(tmp_path)
    assert (
        list(null_directions(reader, [Sample(np.array([0, 1])), Sample(np.zeros(0, int))], NullTraining(count=2))) == []
    )


def test_products_in_bfloat16_give_nearly_the_same_directions() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 200, 16, generator=g)
    y = (torch.rand(2, 200, 12, generator=g) > 0.5).float()
    weight = torch.ones(2, 200, 1)
    exact, rough = (
        unit_directions(x, *train(x, y, weight, NullTraining(epochs=60, precision=precision)), weight)
        for precision in ("float32", "bfloat16")
    )
    for one, other in zip(exact[:2], rough[:2], strict=True):
        assert float((one * other).sum(1).min()) > 0.99
    assert precision_on(torch.device("cpu"), "float32") is torch.float32
    assert precision_on(torch.device("cpu")) in (torch.float32, torch.bfloat16)
