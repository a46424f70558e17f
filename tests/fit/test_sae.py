"""Codes and gradients against autograd, thresholds against counting, training against what it is to reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fit.baselines import autoencoder, sae
from fit.baselines.autoencoder import Autoencoder, Codes, Gradients, gradients, positive_codes, top_codes
from fit.baselines.sae import SAE, SAEConfig, Training
from fit.config import with_settings
from stores.errors import FitError, NonFiniteError, UsageError
from stores.readers import LayerReader
from stores.statistics import statistics

Made = Callable[..., Path]
N, P, C, PARTS = 400, 10, 16, 6


def sparse_activations(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (N, P, C) far from 0, which of 6 features are on (N·P, 6) — one at a time — and their directions (6, C)."""
    g = np.random.default_rng(seed)
    directions = np.linalg.qr(g.normal(size=(C, PARTS)))[0].T
    on = np.eye(PARTS)[g.integers(0, PARTS, N * P)]
    x = (on * g.uniform(1, 2, (N * P, 1))) @ directions * 30 + 100
    return x.astype(np.float32).reshape(N, P, C), on, directions


def fitted(reader: LayerReader, directions: int = PARTS, **settings: str) -> SAE:
    quick = {"epochs": "60", "batch_rows": "200", "k": "1", "learning_rate": "0.01"}
    return SAE(with_settings(SAEConfig(n_directions=directions), {**quick, **settings})).fit(reader)


def model(units: int, channels: int, seed: int = 0) -> Autoencoder:
    g = torch.Generator().manual_seed(seed)
    shapes = ((units, channels), (units,), (units, channels), (channels,))
    return Autoencoder(*(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes))


class TestCodes:
    z = torch.tensor([[3.0, -1.0, 2.0, 0.5], [-4.0, -3.0, -2.0, -1.0], [0.0, 1.0, 5.0, 4.0]])

    def test_top(self) -> None:
        codes = top_codes(self.z, 2)
        assert codes.dense().tolist() == [[3, 0, 2, 0], [0, 0, 0, 0], [0, 0, 5, 4]]
        assert codes.fired().tolist() == [1, 0, 2, 1]
        assert codes.start.tolist() == [0, 2, 4, 6]
        assert top_codes(self.z, 4).dense().tolist() == self.z.clamp_min(0).tolist()

    @pytest.mark.parametrize(("units", "k"), [(9, 3), (64, 16), (700, 100), (2048, 32), (65, 64)])
    @pytest.mark.parametrize("digits", [7, 0])
    def test_top_of_many(self, units: int, k: int, digits: int) -> None:
        """Rounded logits are often equal; the first units are then taken."""
        z = torch.randn(300, units, generator=torch.Generator().manual_seed(units)).round(decimals=digits)
        codes = top_codes(z, k)
        order = np.sort(np.argsort(-z.numpy(), axis=1, kind="stable")[:, :k], axis=1)
        np.testing.assert_array_equal(codes.unit.reshape(300, k), order)
        assert torch.equal(codes.value.reshape(300, k), z.gather(1, torch.from_numpy(order)).clamp_min(0))

    def test_nan_is_not_lost(self) -> None:
        z = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
        z[1], z[2, 150] = torch.nan, torch.nan
        assert top_codes(z, 5).value.isnan().reshape(3, 5).sum(1).tolist() == [0, 5, 1]

    def test_positive(self) -> None:
        codes = positive_codes(self.z)
        assert codes.dense().tolist() == self.z.clamp_min(0).tolist()
        assert codes.start.tolist() == [0, 3, 3, 6]
        assert codes.row().tolist() == [0, 0, 0, 2, 2, 2]
        assert positive_codes(-self.z.abs()).dense().tolist() == [[0] * 4] * 3


@pytest.mark.parametrize("kind", ["topk", "l1"])
@pytest.mark.parametrize(("way", "units"), [("_dense", 9), ("_sparse", 9), ("_sparse", 70_000)])
def test_gradients_are_autograds(way: str, units: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "SPARSE_GAIN", 10**9 if way == "_dense" else 0)
    rows, channels = 30 if units < 100 else 3, 5
    it = model(units, channels)
    x = torch.randn(rows, channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = it.logits(x)
    codes, penalty = (top_codes(z, 3), 0.0) if kind == "topk" else (positive_codes(z), 0.2)
    mine = gradients(x, x, codes, it.decoder, it.offset, penalty=penalty)
    encoder, bias, decoder, offset = (p.clone().requires_grad_() for p in it.parameters())
    c = F.relu(F.linear(x, encoder, bias))
    if kind == "topk":
        kept = c.topk(3, 1)
        c = torch.zeros_like(c).scatter(1, kept.indices, kept.values)
    residual = c @ decoder + offset - x
    loss = residual.square().sum(1).mean() + penalty * c.sum(1).mean()
    theirs = torch.autograd.grad(loss, (encoder, bias, decoder, offset))
    torch.testing.assert_close(mine.residual, residual.detach(), rtol=1e-6, atol=1e-9)
    for ours, wanted in zip((mine.encoder, mine.bias, mine.decoder, mine.offset), theirs, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)


def test_lengths_of_signal_vectors_do_not_change() -> None:
    it = model(7, 5)
    it.normalise()
    torch.testing.assert_close(it.decoder.norm(dim=1), torch.ones(7, dtype=torch.float64))
    gradient = it.project(torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close((gradient * it.decoder).sum(1), torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)


def test_topk_finds_the_features_and_its_detectors_fire_where_it_does(tiny_store: Made) -> None:
    x, on, directions = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    # among several units a feature, the best one
    found = fitted(reader, 12, epochs="30")
    rows = x.reshape(-1, C)
    assert found.log_[-1]["reconstruction"] > 0.95
    centred = (directions - directions.mean(0)) / np.linalg.norm(directions - directions.mean(0), axis=1, keepdims=True)
    assert (found.directions_.signals.T @ centred.T).max(0).min() > 0.9  # what is left of a feature without the mean
    moments = statistics(reader)
    scaled = (rows - moments.mean) / found.directions_.info["scale"]
    assert (scaled**2).sum(1).mean() == pytest.approx(1, rel=1e-4)
    positive = found.directions_.logits(rows) > 0
    share = positive.mean(0)
    assert share.sum() == pytest.approx(found.log_[-1]["l0"], abs=0.2)
    iou = (positive.T.astype(float) @ on) / (positive.sum(0)[:, None] + on.sum(0) - positive.T.astype(float) @ on)
    assert iou.max(0).mean() > 0.5


def test_thresholds_give_each_detector_the_rate_of_its_unit(tiny_store: Made) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(300, 10, 8)).astype(np.float32)
    reader = LayerReader(tiny_store({"a": x}))
    training = Training(SAEConfig(n_directions=40, k=4), reader, statistics(reader))
    training.model.bias[7] = -100  # never among the largest
    theta = training.firing_thresholds()
    z = training.model.logits(training.scaled(torch.from_numpy(x.reshape(-1, 8))))
    wanted = top_codes(z, 4).fired()
    got = (z > theta).sum(0)
    assert int(wanted[7]) == int(got[7]) == 0
    near = (z - theta).abs() <= theta.abs() / 32  # in the bin beside the threshold
    assert ((got - wanted).abs() <= near.sum(0)).all()
    assert float((got - wanted).abs().sum()) / float(wanted.sum()) < 0.02
    assert theta.min() >= 0


def test_l1_is_sparser_with_more_weight_and_detects_where_it_is_active(tiny_store: Made) -> None:
    x, _, _ = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    light, heavy = (fitted(reader, 12, kind="l1", l1_weight=w, epochs="15") for w in ("0.01", "0.3"))
    assert heavy.log_[-1]["l0"] < light.log_[-1]["l0"]
    assert light.log_[-1]["reconstruction"] > heavy.log_[-1]["reconstruction"] > 0.5
    assert light.directions_.info["k"] is None
    active = (light.directions_.logits(x.reshape(-1, C)) > 0).sum(1).mean()
    assert active == pytest.approx(light.log_[-1]["l0"], rel=0.1)


def test_filters_and_thresholds_are_those_of_the_activations_themselves(tiny_store: Made) -> None:
    x, _, _ = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    config = with_settings(SAEConfig(n_directions=5), {"kind": "l1", "epochs": "1", "batch_rows": "500"})
    found = SAE(config).fit(reader).directions_
    training = Training(config, reader, statistics(reader))
    training.run()
    z = training.model.logits(training.scaled(torch.from_numpy(x.reshape(-1, C))))
    np.testing.assert_allclose(found.logits(x.reshape(-1, C)), z, atol=1e-4)
    np.testing.assert_array_equal(found.signals, F.normalize(training.model.decoder.T, dim=0))


def test_a_step_is_adams_on_the_projected_gradient(tiny_store: Made) -> None:
    x, _, _ = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    config = SAEConfig(n_directions=9, k=2, aux_weight=0, learning_rate=0.01)
    training = Training(config, reader, statistics(reader))
    reference = [p.clone().requires_grad_() for p in training.model.parameters()]
    adam = torch.optim.Adam(reference, lr=0.01, eps=6.25e-10)
    g = torch.Generator().manual_seed(5)
    for _ in range(5):
        batch = torch.randn(64, C, generator=g)
        row = training.step(batch, measure=True)
        encoder, bias, decoder, offset = reference
        kept = F.linear(batch, encoder, bias).topk(2, 1)
        c = torch.zeros(64, 9).scatter(1, kept.indices, F.relu(kept.values))
        loss = (c @ decoder + offset - batch).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        adam.step()
        with torch.no_grad():
            decoder.copy_(F.normalize(decoder, dim=1))
        assert row is not None
        assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for mine, wanted in zip(training.model.parameters(), reference, strict=True):
        torch.testing.assert_close(mine, wanted.detach(), rtol=1e-3, atol=1e-4)


def test_dead_units_are_revived(tiny_store: Made) -> None:
    g = np.random.default_rng(0)
    features = g.normal(size=(30, C)) / 4
    common = 0.7 ** np.arange(30)  # how often each is on: the rare ones are what starts dead units
    x = features[g.choice(30, N * P, p=common / common.sum())] * g.uniform(1, 2, (N * P, 1))
    reader = LayerReader(tiny_store({"a": x.astype(np.float32).reshape(N, P, C)}))
    without = fitted(reader, 20, aux_weight="0", dead_rows="1000", epochs="20")
    revived = fitted(reader, 20, dead_rows="1000", epochs="20")
    assert len(without.directions_.info["dead"]) > len(revived.directions_.info["dead"])
    assert without.log_[-1]["dead"] == len(without.directions_.info["dead"]) / 20
    assert without.log_[-1]["reconstruction"] < revived.log_[-1]["reconstruction"]


def test_the_gradient_of_dead_units_is_autograds(tiny_store: Made) -> None:
    x, _, _ = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    training = Training(SAEConfig(n_directions=4, k=1, aux_k=1), reader, statistics(reader))
    training.model = model(4, C)
    g = torch.Generator().manual_seed(0)
    batch, residual = (torch.randn(20, C, generator=g, dtype=torch.float64) for _ in range(2))
    z = training.model.logits(batch)
    dead = torch.tensor([False, True, False, True])
    sums = [torch.zeros(shape, dtype=torch.float64) for shape in ((4, C), 4, (4, C), C)]
    training._revive(batch, z, Gradients(*sums, residual), dead)
    reference = [p.clone().requires_grad_() for p in training.model.parameters()[:3]]
    best = F.linear(batch, *reference[:2])[:, dead].topk(1, 1)
    c = torch.zeros(20, 2, dtype=torch.float64).scatter(1, best.indices, F.relu(best.values))
    wanted = torch.autograd.grad((c @ reference[2][dead] + residual).square().sum(1).mean() / 32, reference)
    for mine, theirs in zip(sums[:3], wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_seed_decides_and_the_order_is_recorded(tiny_store: Made) -> None:
    x, _, _ = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    state = torch.random.get_rng_state()
    one, two, other = (fitted(reader, epochs="3", seed=seed) for seed in ("0", "0", "1"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert (one.directions_.filters == two.directions_.filters).all()
    assert one.log_ == two.log_
    assert not (one.directions_.filters == other.directions_.filters).all()
    info = one.directions_.info
    assert info["order"] == {"batch_rows": 200, "seed": 0, "window_bytes": 2**30}
    assert (info["epochs"], info["steps"], info["k"]) == (3, 60, 1)
    assert [row["step"] for row in one.log_] == list(range(60))
    assert set(one.log_[0]) == {"step", "epoch", "loss", "reconstruction", "l0", "dead", "learning_rate"}
    assert one.log_[0]["learning_rate"] == 0.01
    assert one.log_[-1]["learning_rate"] == pytest.approx(0.01 * 5 / 60)


def test_threads_do_not_change_a_digit(tiny_store: Made) -> None:
    it = Autoencoder.random(300, 32, torch.Generator().manual_seed(0))
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(1))
    codes = top_codes(it.logits(x), 5)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        by = gradients(x, x, codes, it.decoder, it.offset)
        results.append((by.encoder, by.bias, by.decoder))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_more_than_a_batch_is_asked_for_at_a_time(tiny_store: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, _ = sparse_activations()
    reader = LayerReader(tiny_store({"a": x}))
    largest = []
    whole = Codes.fired
    monkeypatch.setattr(Codes, "fired", lambda codes: largest.append(codes.rows) or whole(codes))
    monkeypatch.setattr(sae, "TILE", 128)
    fitted(reader, epochs="1", batch_rows="100")
    assert max(largest) <= 128
    assert sum(largest) == 2 * N * P  # an epoch, and the thresholds' pass


def test_errors_are_one_message(tiny_store: Made) -> None:
    x, _, _ = sparse_activations()
    with pytest.raises(FitError, match="do not vary"):
        fitted(LayerReader(tiny_store({"a": np.full((9, 2, 3), 7.0, np.float32)}, name="same.zarr")))
    with pytest.raises(NonFiniteError, match=r"step \d+: lower the learning rate \(--set learning_rate=1e\+29\)"):
        fitted(LayerReader(tiny_store({"a": x})), kind="l1", learning_rate="1e30")


@pytest.mark.parametrize(
    "setting",
    [
        {"k": "0"},
        {"k": "65"},
        {"epochs": "0"},
        {"batch_rows": "0"},
        {"learning_rate": "0"},
        {"aux_k": "0"},
        {"dead_rows": "0"},
        {"l1_weight": "-1"},
        {"aux_weight": "-1"},
    ],
)
def test_settings_are_checked(setting: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        with_settings(SAEConfig(), setting)


def test_settings_left_open() -> None:
    config = SAEConfig(n_directions=2048)
    assert config.k_in_force == 32
    assert SAEConfig(n_directions=3).k_in_force == 1
    assert config.rate_in_force == pytest.approx(2e-4 * 8**0.5)
    assert config.epochs_in_force(1024 * 100) == 40
    assert config.epochs_in_force(10**9) == 1
    assert config.dead_in_force(10**9) == 256 * 1024
    assert config.dead_in_force(500) == 500
    chosen = with_settings(config, {"k": "5", "epochs": "2", "learning_rate": "0.1", "dead_rows": "9"})
    assert (chosen.k_in_force, chosen.rate_in_force) == (5, 0.1)
    assert (chosen.epochs_in_force(10), chosen.dead_in_force(10**6)) == (2, 9)
