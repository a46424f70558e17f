"""The refinement: it goes on from any step to the bit, streams, stops when settled, re-seeds, and says when it is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fit.checkpoint import Checkpoint
from fit.config import EDDPConfig, FitterConfig
from fit.detectors import Detectors
from fit.eddp import EDDP
from fit.init import find_start
from fit.losses import RowWeights, streamed_sums
from fit.optim import Plateau
from fit.reinit_dead import reseed, superfluous
from fit.row_sources import Batches, Stored, positions
from fit.whiten import whiten_store, whitening
from stores.errors import CheckpointError, MismatchError, NonFiniteError, StoreError
from stores.readers import LayerReader
from stores.statistics import statistics
from tests.helpers.keeping import Killed, killed_at, resumed, same

QUICK = {"n_directions": 3, "refine_steps": 30, "restarts": 2, "restart_steps": 10, "refits": 0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"regime": "soft"},
        {"signals": "free"},
        {"signals": "positives", "batch_rows": 250},
        {"batch_rows": 250, "rows": "store", "kmeans_points": 100, "restart_rows": 400},
        {"lambda_uncertainty": 0.0, "whiten": False},
    ],
)
def test_a_killed_fit_resumes_to_the_same_bits(reader: LayerReader, tmp_path: Path, settings: dict) -> None:
    whole = EDDP(**QUICK, **settings).fit(reader)
    kills = [("refinement", step) for step in (1, 7, 20, 29)]
    assert same(whole, resumed(lambda: EDDP(**QUICK, **settings), reader, tmp_path / "d.checkpoint", kills))


def test_a_checkpoint_of_another_fit_or_a_damaged_one_is_refused(reader: LayerReader, tmp_path: Path) -> None:
    path = tmp_path / "d.checkpoint"
    with pytest.raises(Killed):
        EDDP(**QUICK).fit(reader, progress=killed_at("refinement", 9), checkpoint=Checkpoint(path, 0))
    with pytest.raises(MismatchError, match=r"of another fit \(config.lambda_ma was None, is 2.0\)"):
        EDDP(**QUICK, lambda_ma=2.0).fit(reader, checkpoint=Checkpoint(path, 0))
    with pytest.raises(MismatchError, match="head was True, is False"):
        EDDP(**QUICK).fit(reader, None, checkpoint=Checkpoint(path, 0))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="is damaged .* remove it"):
        EDDP(**QUICK).fit(reader, checkpoint=Checkpoint(path, 0))


def test_nothing_is_stored_before_it_is_time(reader: LayerReader, tmp_path: Path) -> None:
    keep = Checkpoint(tmp_path / "d.checkpoint", minutes=60)
    EDDP(**QUICK).fit(reader, checkpoint=keep)
    assert not list(tmp_path.iterdir())


def test_reading_the_store_at_every_step_gives_what_memory_gives(reader: LayerReader) -> None:
    settings = {**QUICK, "restarts": 1, "regime": "sharp", "refine_steps": 10}
    memory = EDDP(**settings).fit(reader)
    store = EDDP(**settings, rows="store").fit(reader)
    np.testing.assert_allclose(memory.filters_, store.filters_, rtol=1e-3, atol=1e-4)
    assert store.directions_.info["positions"] == 1800


def test_batches_are_each_row_once_and_the_same_whenever_asked() -> None:
    rows = torch.arange(10.0)[:, None]
    batches = Batches(rows, 3, seed=1)
    first = [batches.at(step) for step in range(3)]
    seen = torch.cat([tile for batch in first for tile in batch.tiles(10)]).flatten().tolist()
    assert len(set(seen)) == 9
    assert batches.per_epoch == 3
    assert torch.equal(next(Batches(rows, 3, seed=1).at(2).tiles(5)), next(first[2].tiles(5)))
    assert not torch.equal(next(batches.at(3).tiles(5)), next(first[0].tiles(5)))
    assert Batches(rows, 10, 0).full
    assert Batches(rows, 0, 0).full


def test_batches_from_a_store_are_the_same_from_any_step(reader: LayerReader) -> None:
    rows = Stored(reader, whitening(statistics(reader), rank=4), "cpu")
    batches = Batches(rows, 256, seed=3)
    assert batches.per_epoch == 7
    in_order = [next(batches.at(step).tiles(256)) for step in range(6)]
    for step in (5, 2, 4):
        assert torch.equal(next(Batches(rows, 256, seed=3).at(step).tiles(256)), in_order[step])
    assert torch.equal(next(batches.at(1).tiles(256)), in_order[1])  # back


def test_the_best_of_several_starts_is_taken(reader: LayerReader) -> None:
    data = whiten_store(reader, whitening(statistics(reader), rank=64), FitterConfig(), max_rows=10**6)
    seen: list[str] = []

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        seen.append(note)

    find_start(data.rows, EDDPConfig(n_directions=3, restarts=3, restart_steps=60), progress)
    losses = [float(note.removeprefix("loss ")) for note in seen if note.startswith("loss")]
    assert len(losses) == 4  # three by k-means, one by skewness


@pytest.mark.parametrize(("crisp", "soft"), [(0.0001, True), (5.0, False)])
def test_the_regime_is_decided_by_the_best_start(reader: LayerReader, crisp: float, soft: bool) -> None:
    found = EDDP(**QUICK, crisp=crisp).fit(reader)
    assert found.directions_.info["regime"] == ("soft" if soft else "sharp")
    assert found.log_[0]["learning_rate"] == pytest.approx(1e-2 if soft else 2e-2)
    assert EDDP(**QUICK, regime="soft").fit(reader).directions_.info["regime"] == "soft"


def four_clusters(n: int = 800) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    centres = 6 * torch.eye(4)
    return (centres[:, None] + 0.3 * torch.randn(4, n // 4, 4, generator=g)).reshape(-1, 4)


def test_dead_and_duplicate_detectors_begin_anew_where_nothing_is_detected() -> None:
    rows = four_clusters()
    directions = torch.eye(4)
    directions[:, 1] = directions[:, 0]  # a duplicate of detector 0
    directions[:, 3] = -1  # dead: all projections are negative
    detectors = Detectors(F.normalize(directions, dim=0), torch.full((4,), 3.0), torch.zeros(4))
    filters, thresholds = detectors.linear()
    sums = streamed_sums(rows, filters, thresholds, RowWeights(1, 1))
    assert superfluous(detectors, sums).tolist() == [1, 3]
    assert reseed(positions(rows), detectors, sums, seed=0).tolist() == [1, 3]
    filters, thresholds = detectors.linear()
    on = rows @ filters - thresholds > 0
    found = on.float().view(4, 200, 4).mean(1)  # share of each cluster's rows, by detector
    assert sorted(found.argmax(0).tolist()) == [0, 1, 2, 3]
    assert (found.amax(0) > 0.95).all()
    sums = streamed_sums(rows, filters, thresholds, RowWeights(1, 1))
    assert len(superfluous(detectors, sums)) == 0
    assert len(reseed(positions(rows), detectors, sums, seed=0)) == 0


def test_new_detectors_look_all_over_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is sorted by class and only a part of what is undetected is looked at."""
    monkeypatch.setattr("fit.reinit_dead.KEEP", 1000)
    rows = torch.zeros(40_000, 3)
    rows[:20_000, 0], rows[20_000:, 1] = 5, 5
    rows += 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    detectors = Detectors(-torch.eye(3)[:, :2].contiguous(), torch.full((2,), 3.0), torch.zeros(2))
    filters, thresholds = detectors.linear()
    reseed(positions(rows), detectors, streamed_sums(rows, filters, thresholds, RowWeights(1, 1)), seed=0)
    assert sorted(detectors.directions.argmax(0).tolist()) == [0, 1]


def test_a_full_disk_leaves_the_last_state_and_the_fit_resumes(
    reader: LayerReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("fit.checkpoint.write_tensors", full)
    assert EDDP(**QUICK).fit(reader, checkpoint=Checkpoint(tmp_path / "d.checkpoint", 0)).filters_.shape == (16, 3)
    assert "could not be stored: the disk is full" in caplog.text


def test_a_fit_with_more_detectors_than_concepts_stays_finite(reader: LayerReader) -> None:
    found = EDDP(n_directions=12, refine_steps=40, restarts=1).fit(reader)
    assert np.isfinite(found.filters_).all()
    assert found.filters_.shape == (16, 12)


def test_early_end(reader: LayerReader) -> None:
    plateau = Plateau(patience=3, tolerance=0.01)
    assert [plateau.reached(v) for v in (1.0, 0.5, 0.499, 0.498, 0.497)] == [False, False, False, False, True]
    never = Plateau(patience=0, tolerance=0.01)
    assert not any(never.reached(1.0) for _ in range(50))
    short = EDDP(**{**QUICK, "refine_steps": 200}, patience=2, learning_rate=1e-7).fit(reader)
    assert len(short.log_) < 20
    assert short.directions_.info["steps"] == len(short.log_)


def test_a_loss_that_is_not_finite_ends_the_fit(reader: LayerReader) -> None:
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        EDDP(**QUICK, learning_rate=1e30).fit(reader)
