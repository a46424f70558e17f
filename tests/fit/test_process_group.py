"""A fit spread over ranks: every pass, the start, the term of the head and the whole fit against one process's.

Ranks are threads here (``tests.helpers.threads``); the group of real processes is tested at the end, and by the command.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from extract.network import Head, open_head
from fit import EDDP, KMeans, PaperEDDP
from fit.checkpoint import Checkpoint
from fit.config import EDDPConfig, FitterConfig
from fit.detectors import Detectors
from fit.diagnostics import diagnose
from fit.init import find_start, from_clusters
from fit.losses import RowWeights, column_gradient, streamed_sums
from fit.paper import StepSettings
from fit.reinit_dead import reseed
from fit.row_sources import Batches, InMemory, Positions, Stored, positions
from fit.signals import moments_of
from fit.synthetic import SyntheticConfig, make_synthetic
from fit.uncertainty import Uncertainty
from fit.whiten import Held, whiten_store, whitening, whitening_of_rank_0
from stores.errors import FitError, NonFiniteError, UsageError
from stores.ranks import Ranks
from stores.readers import LayerReader, Part
from stores.statistics import statistics
from tests.helpers.keeping import Killed, killed_at
from tests.helpers.threads import Member, on_ranks

QUICK: dict[str, Any] = {"n_directions": 4, "refine_steps": 16, "restarts": 2, "restart_steps": 4, "refits": 0}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> LayerReader:
    path = tmp_path_factory.mktemp("ranks") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=250, positions=3))
    return LayerReader(path)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that a small store has many, of a size that depends on the number of detectors as it does."""
    monkeypatch.setattr("fit.losses.tile_rows", lambda rank, directions, device: 600 // (directions + 3))


def parts_of(rows: torch.Tensor, ranks: Ranks, longest: int) -> Positions:
    held = Held.of(len(rows), ranks, longest)
    return InMemory(rows[held.start : held.end].clone(), held, ranks)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 25), st.integers(1, 25))
def test_tiles_of_all_ranks_are_the_tiles_of_one(count: int, size: int, longest: int, tile: int) -> None:
    rows, tile = torch.arange(count)[:, None], min(tile, longest)
    found: list[torch.Tensor] = []
    for rank in range(size):
        part = parts_of(rows, Member(rank, size, None, []), longest)  # type: ignore[arg-type]
        found += part.tiles(tile)
        assert len(part.tensor) <= -(-count // size) + longest - 1
    wanted = list(positions(rows).tiles(tile))
    assert [t.tolist() for t in found] == [t.tolist() for t in wanted]


def test_a_tile_longer_than_what_is_stored_is_refused() -> None:
    part = parts_of(torch.zeros(20, 2), Member(0, 2, None, []), 3)  # type: ignore[arg-type]
    with pytest.raises(FitError, match="A tile of 8 positions extends beyond what rank 0 holds"):
        list(part.tiles(8))


def problem(n: int = 500, r: int = 5, i: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, r, generator=g), 2 * torch.randn(r, i, generator=g), torch.randn(i, generator=g).abs()


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("bound", [0.0, 0.7])
def test_one_pass_gives_the_sums_of_one_process(size: int, bound: float) -> None:
    y, w, b = problem()
    weights = RowWeights(1, 2, bound)
    alone = streamed_sums(y, w, b, weights, tile=64)
    slope = torch.tensor([0.0, -1.5, 0.0, 2.0])
    by_filters, by_thresholds = column_gradient(y, w, b, slope, tile=90)
    wanted = moments_of(y)
    told = diagnose(y, w, b, w, tile=70)

    def work(ranks: Member) -> None:
        part = parts_of(y, ranks, 8192)
        sums = streamed_sums(part, w, b, weights, tile=64)
        for field in fields(sums):
            torch.testing.assert_close(
                torch.as_tensor(getattr(sums, field.name)), torch.as_tensor(getattr(alone, field.name)), rtol=1e-6, atol=1e-9
            )  # fmt: skip
        assert torch.equal(sums.filters_row, alone.filters_row)  # tile by tile the same products
        assert torch.equal(sums.mean, alone.mean)
        found = column_gradient(part, w, b, slope, tile=90)
        assert torch.equal(found[0], by_filters)
        assert torch.equal(found[1], by_thresholds)
        torch.testing.assert_close(moments_of(part).covariance, wanted.covariance, rtol=1e-13, atol=1e-14)
        assert diagnose(part, w, b, w, tile=70) == told

    on_ranks(size, work)


def test_what_is_summed_does_not_grow_with_the_positions() -> None:
    numbers = []
    for n in (200, 1600):
        y, w, b = problem(n, 5, 4)
        ranks = on_ranks(2, lambda ranks, y=y, w=w, b=b: (_all_sums(parts_of(y, ranks, 8192), w, b), ranks)[1])
        assert ranks[0].sums == ranks[1].sums
        numbers.append(ranks[0].sums)
    r, i = 5, 4
    assert numbers[0] == numbers[1]
    assert numbers[0][0] == 3 + 2 * i + i * r + (3 * i + i * r + i * i)  # of signals="pooled"
    assert numbers[0][1] == i * r + i


def _all_sums(part: Positions, w: torch.Tensor, b: torch.Tensor) -> None:
    streamed_sums(part, w, b, RowWeights(1, 1), signals="pooled", tile=50)
    column_gradient(part, w, b, torch.ones(len(b)), tile=50)


@pytest.mark.parametrize("most", [10**6, 700, 5])
@pytest.mark.parametrize("size", [2, 5])
def test_ranks_whiten_their_parts(tmp_path: Path, most: int, size: int) -> None:
    """Also of a store with skipped images; rows and pooled vectors are those of one process, to the bit."""
    from tiny import write_store

    g = np.random.default_rng(0)
    x, valid = g.normal(size=(90, 11, 6)).astype(np.float32), g.random(90) < 0.8
    small = LayerReader(write_store(tmp_path / "a.zarr", {"a": x}, valid=valid, chunk_images=16))
    transform = whitening(statistics(small), rank=4)
    alone = whiten_store(small, transform, FitterConfig(seed=3), max_rows=most)

    def work(ranks: Member) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        data = whiten_store(small, transform, FitterConfig(seed=3), max_rows=most, ranks=ranks, longest=40)
        assert torch.equal(data.rows, alone.rows[data.held.start : data.held.end])
        chosen = torch.tensor([0, 3, small.n_images - 1])
        return data.rows[: data.held.stop - data.held.start], data.pooled, data.pooled_of(chosen)

    found = on_ranks(size, work)
    assert torch.equal(torch.cat([rows for rows, _, _ in found]), alone.rows)
    assert torch.equal(torch.cat([pooled for _, pooled, _ in found]), alone.pooled)
    for _, _, together in found:
        assert torch.equal(together, alone.pooled_of(torch.tensor([0, 3, small.n_images - 1])))


def test_rank_0_makes_the_axes(reader: LayerReader) -> None:
    moments = statistics(reader)
    wanted = whitening(moments, rank=3)
    for found in on_ranks(3, lambda ranks: whitening_of_rank_0(moments if not ranks.rank else None, ranks, rank=3)):  # type: ignore[arg-type]
        assert torch.equal(found.forward, wanted.forward)
        assert torch.equal(found.backward, wanted.backward)
        assert found.kept == wanted.kept


@pytest.mark.parametrize("settings", [{}, {"crisp": 1e-4}, {"restarts": 1, "regime": "soft"}])
@pytest.mark.parametrize("sample", [200_000, 300])
def test_ranks_begin_with_what_one_process_begins_with(
    reader: LayerReader, settings: dict[str, Any], sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The starts are spread over the ranks, and the sample is the same wherever its rows lie."""
    monkeypatch.setattr("fit.init.SAMPLE", sample)
    config = EDDPConfig(**{**QUICK, "kmeans_points": 60, "restart_rows": 200, **settings})
    data = whiten_store(reader, whitening(statistics(reader), rank=8), FitterConfig(), max_rows=10**6)
    alone = find_start(data.rows, config)
    for found in on_ranks(2, lambda ranks: find_start(parts_of(data.rows, ranks, 50), config)):
        assert found.soft == alone.soft
        for mine, theirs in zip(found.detectors.parameters(), alone.detectors.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_detectors_begin_anew_where_all_ranks_detect_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    rows = (6 * torch.eye(4)[:, None] + 0.3 * torch.randn(4, 200, 4, generator=g)).reshape(-1, 4)
    directions = torch.eye(4)
    directions[:, 1], directions[:, 3] = directions[:, 0], -1.0

    def renewed(data: Positions) -> tuple[list[int], torch.Tensor]:
        detectors = Detectors(directions.clone(), torch.full((4,), 3.0), torch.zeros(4))
        sums = streamed_sums(data, *detectors.linear(), RowWeights(1, 1))
        return reseed(data, detectors, sums, seed=0).tolist(), torch.cat([t.flatten() for t in detectors.parameters()])

    alone = renewed(positions(rows))
    assert alone[0] == [1, 3]
    for found in on_ranks(3, lambda ranks: renewed(parts_of(rows, ranks, 2**20))):
        assert found[0] == alone[0]
        assert torch.equal(found[1], alone[1])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("images", [3, 20])
def test_the_term_of_the_head_is_that_of_one_process(reader: LayerReader, affine: bool, images: int) -> None:
    """The general head's images are shared out, also fewer of them than ranks; value, entropy and gradients."""
    head = open_head(reader.store, reader.spec.name)
    linear = head.function
    if not affine:
        head = Head(lambda x: torch.tanh(linear(x)), None)
    transform = whitening(statistics(reader), rank=8)
    data = whiten_store(reader, transform, FitterConfig(), max_rows=10**6)
    detectors = from_clusters(data.rows, EDDPConfig(n_directions=3), 0)

    def term(ranks: Ranks | None) -> list[torch.Tensor]:
        held = data
        if ranks is not None:
            held = whiten_store(reader, transform, FitterConfig(), max_rows=10**6, ranks=ranks)
        mine = Detectors(*(t.detach().clone().requires_grad_() for t in detectors.parameters()))
        signals = torch.randn(transform.rank, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        term = Uncertainty(transform, held, reader, head, 0, images=images)
        loss, entropy = term(mine.unit(), mine.offsets, signals)
        slopes = torch.autograd.grad(2 * loss, [mine.directions, mine.offsets, signals])
        return [loss.detach(), torch.tensor(entropy), *slopes]

    alone = term(None)
    for found in on_ranks(4, term):
        for mine, theirs in zip(found, alone, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0 if affine else 2e-5, atol=0 if affine else 5e-6)


@pytest.mark.parametrize("stored", [True, False])
def test_batches_of_all_ranks_are_the_batches_of_one(reader: LayerReader, stored: bool) -> None:
    transform = whitening(statistics(reader), rank=4)
    data = whiten_store(reader, transform, FitterConfig(), max_rows=10**6)
    alone = Batches(Stored(reader, transform, "cpu") if stored else data.rows, 256, seed=3)
    wanted = [torch.cat(list(alone.at(step).tiles(100))) for step in range(6)]

    def work(ranks: Member) -> list[torch.Tensor]:
        part = Stored(reader, transform, "cpu", ranks) if stored else parts_of(data.rows, ranks, 40)
        batches = Batches(part, 256, seed=3)
        assert [batches.at(step).count for step in range(6)] == [256] * 6
        return [torch.cat([torch.zeros(0, 4), *batches.at(step).tiles(100)]) for step in range(6)]

    found = on_ranks(3, work)
    for step, batch in enumerate(wanted):
        together = torch.cat([parts[step] for parts in found])
        assert len(together) == 256
        order = [rows[torch.argsort(rows[:, 0])] for rows in (together, batch)]
        torch.testing.assert_close(*order, rtol=1e-5, atol=1e-5)


def same(a: EDDP | PaperEDDP, b: EDDP | PaperEDDP) -> None:
    for mine, theirs in ((a.filters_, b.filters_), (a.signals_, b.signals_), (a.thresholds_, b.thresholds_)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert a.diagnosis_ == b.diagnosis_
    assert a.directions_.info == b.directions_.info  # nothing tells how many ranks there were


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {}),
        (3, {"refits": 4}),
        (3, {"regime": "soft", "lambda_sb": 0.3, "max_rows": 500}),
        (2, {"signals": "free", "lambda_uncertainty": 0.0}),
        (3, {"signals": "positives", "rows": "store", "kmeans_points": 50, "restart_rows": 300}),
    ],
)
def test_a_fit_on_ranks_is_that_of_one_process(reader: LayerReader, size: int, settings: dict[str, Any]) -> None:
    alone = EDDP(**{**QUICK, **settings}).fit(reader)
    for found in on_ranks(size, lambda ranks: EDDP(**{**QUICK, **settings}).fit(reader, ranks=ranks)):
        same(found, alone)
        np.testing.assert_array_equal(found.found_again_, alone.found_again_)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("settings", [{}, {"rows": "store", "kmeans_points": 50, "restart_rows": 300}])
def test_with_batches_too_while_steps_are_few(reader: LayerReader, settings: dict[str, Any]) -> None:
    """A batch is shared out row by row, so its sums differ in the last digits of float32."""
    few = {**QUICK, "refine_steps": 8, "batch_rows": 256, **settings}
    alone = EDDP(**few).fit(reader)
    for found in on_ranks(2, lambda ranks: EDDP(**few).fit(reader, ranks=ranks)):
        np.testing.assert_allclose(found.filters_, alone.filters_, rtol=2e-3, atol=2e-4)


def test_a_general_head_too_while_steps_are_few(reader: LayerReader) -> None:
    head = open_head(reader.store, reader.spec.name)
    head = Head(head.function, None)
    few = {**QUICK, "refine_steps": 8}
    alone = EDDP(**few).fit(reader, head)
    for found in on_ranks(2, lambda ranks: EDDP(**few).fit(reader, head, ranks=ranks)):
        assert found.directions_.info["uncertainty"] == "general"
        np.testing.assert_allclose(found.filters_, alone.filters_, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("small_tiles")
def test_the_published_steps_on_ranks(reader: LayerReader) -> None:
    settings: dict[str, Any] = {name: StepSettings(epochs=6) for name in ("a", "b", "d")}
    how = {"n_directions": 3, "preset": "synthetic", "restart_epochs": 3, **settings}
    alone = PaperEDDP(**how).fit(reader)
    for found in on_ranks(2, lambda ranks: PaperEDDP(**how).fit(reader, ranks=ranks)):
        same(found, alone)


@pytest.mark.gpu
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "settings", [{"batch_rows": 256}, {"signals": "positives", "rows": "store", "restart_rows": 300}]
)
def test_ranks_with_gpus(reader: LayerReader, settings: dict[str, Any]) -> None:
    few = {**QUICK, "refine_steps": 3, "restart_steps": 2, "kmeans_points": 50, "device": "cuda", **settings}
    alone = EDDP(**few).fit(reader)
    for found in on_ranks(2, lambda ranks: EDDP(**few).fit(reader, ranks=ranks)):
        np.testing.assert_allclose(found.filters_, alone.filters_, rtol=2e-3, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.usefixtures("small_tiles")
def test_the_published_steps_on_ranks_with_gpus(reader: LayerReader) -> None:
    steps = {name: StepSettings(epochs=1) for name in ("a", "b", "d")}
    how: dict[str, Any] = {"n_directions": 3, "preset": "synthetic", "restarts": 1, "device": "cuda", **steps}
    alone = PaperEDDP(**how).fit(reader)
    for found in on_ranks(2, lambda ranks: PaperEDDP(**how).fit(reader, ranks=ranks)):
        np.testing.assert_allclose(found.filters_, alone.filters_, rtol=2e-3, atol=2e-4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 2), (2, 3)])
def test_a_state_is_resumed_with_any_number_of_ranks(
    reader: LayerReader, tmp_path: Path, before: int, after: int
) -> None:
    whole = EDDP(**QUICK).fit(reader)
    path = tmp_path / "d.checkpoint"

    def run(size: int, stop: int | None) -> list[EDDP]:
        def work(ranks: Member) -> EDDP:
            keep = Checkpoint(path, 0, ranks)
            if stop is None:
                return EDDP(**QUICK).fit(reader, checkpoint=keep, ranks=ranks)
            # every rank is killed at the same step; rank 0 has written by then
            return EDDP(**QUICK).fit(reader, progress=killed_at("refinement", stop), checkpoint=keep, ranks=ranks)

        return on_ranks(size, work)

    with pytest.raises(Killed):
        run(before, 9)
    for found in run(after, None):
        same(found, whole)
        assert [row["step"] for row in found.log_] == list(range(QUICK["refine_steps"]))


def test_more_ranks_than_tiles_and_than_images(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "s.zarr", SyntheticConfig(images=30))
    tiny = LayerReader(tmp_path / "s.zarr", part=Part(0, 10))  # three images
    assert tiny.n_images == 3
    quick = {**QUICK, "n_directions": 2, "restarts": 1}
    alone = EDDP(**quick).fit(tiny)
    for found in on_ranks(5, lambda ranks: EDDP(**quick).fit(tiny, ranks=ranks)):
        same(found, alone)


def test_other_methods_are_for_one_process(reader: LayerReader) -> None:
    with pytest.raises(UsageError, match="'kmeans' is fitted by one process, not by 2"):
        on_ranks(2, lambda ranks: KMeans(n_directions=2).fit(reader, ranks=ranks))


def test_an_image_that_is_not_finite_in_one_rank_s_part(tmp_path: Path) -> None:
    from tiny import write_store

    x = np.random.default_rng(0).normal(size=(40, 4, 8)).astype(np.float32)
    x[33, 2, 5] = np.inf
    store = LayerReader(write_store(tmp_path / "a.zarr", {"a": x}))
    with pytest.raises(NonFiniteError, match=f"first for image '{store.store.names[33]}'"):
        on_ranks(3, lambda ranks: EDDP(**QUICK).fit(store, None, ranks=ranks))


# Processes


def test_every_operation_of_a_group_of_processes(tmp_path: Path) -> None:
    mp.spawn(processes.join, (2, str(tmp_path), processes.every_operation), nprocs=2)


@pytest.mark.gpu(real=True)
def test_a_fit_over_nccl_is_that_of_one_process(reader: LayerReader, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    alone = EDDP(**QUICK, device="cuda").fit(reader)
    out = tmp_path / "d.safetensors"
    mp.spawn(processes.fit_over_nccl, (2, str(tmp_path), str(reader.store.path), str(out), QUICK), nprocs=2)
    found = EDDP.load(out)
    np.testing.assert_allclose(found.filters_, alone.filters_, rtol=1e-4, atol=1e-5)
