"""Probes and Pattern-CAV by hand: against their formulas, against scikit-learn, and on whatever labels there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluate.ground_truth import against_truth
from fit import make_fitter
from fit.supervised.base import Task, best_f1_of_labels, count
from fit.supervised.logistic import solve
from fit.supervised.logistic_probe import Probe, Standardise, choose, signals_of
from fit.supervised.pattern_cav import PatternCAV
from fit.supervised.pool import draw, fair_share
from fit.supervised.position_labels import Labels
from stores.attachments import read_truth
from stores.errors import FitError, UnknownNameError, UsageError
from stores.progress import silent
from stores.readers import LayerReader
from stores.statistics import statistics
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]


class ByHand:
    """Labels that a test sets: present (N, P, L), annotated (N, L), and the images that may be learnt from."""

    def __init__(self, present: np.ndarray, annotated: np.ndarray | None = None, images: Sequence[int] | None = None):
        self.present = present
        n, _, labels = present.shape
        self.annotated = np.ones((n, labels), bool) if annotated is None else annotated
        self.images = np.arange(n) if images is None else np.array(images)
        self.names = [f"label {k}" for k in range(labels)]
        self.numbers = [10 + k for k in range(labels)]

    def at(self, reader: LayerReader) -> ByHand:
        return self

    def of(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.present[images] & self.annotated[images][:, None], self.annotated[images]


@pytest.fixture
def data(tmp_path: Path, make_store: Store) -> tuple[LayerReader, ByHand, np.ndarray]:
    """40 images of 6 positions and 5 channels, three labels that depend on them; image 7 could not be read."""
    g = np.random.default_rng(2)
    x = (g.normal(size=(40, 6, 5)) @ g.normal(size=(5, 5)) * [1, 2, 5, 1, 1] + 3).astype(np.float32)
    present = (x - 3) @ g.normal(size=(5, 3)) + g.normal(size=(40, 6, 3)) > [0, 1, 2]
    annotated = g.random((40, 3)) < 0.8
    valid = np.arange(40) != 7
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 3), valid=valid))
    images = [i for i in range(40) if i % 4 and i != 7]
    return reader, ByHand(present, annotated, images), x


def counted(x: np.ndarray, labels: ByHand, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and targets that count for label k."""
    use = [i for i in labels.images if labels.annotated[i, k]]
    return x[use].reshape(-1, x.shape[2]).astype(np.float64), labels.present[use][:, :, k].reshape(-1)


def task_of(reader: LayerReader, labels: Labels, **settings: object) -> Task:
    return Probe(labels=labels, min_positives=2, **settings).task(reader, silent)


# the solver


@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_all_labels_at_once_are_scikit_learns_one_by_one(l2: float) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(400, 6))
    target = x @ g.normal(size=(6, 5)) + g.normal(size=(400, 5)) > np.linspace(-2, 2, 5)
    used = g.random((400, 5)) < np.linspace(0.3, 1, 5)
    found = solve(*map(torch.from_numpy, (x, target, used)), l2=l2, iterations=500, tolerance=1e-9)
    assert found.gradient.max() < 1e-9
    for k in range(5):
        rows = used[:, k]
        model = LogisticRegression(C=1 / (l2 * rows.sum()), tol=1e-10, max_iter=5000).fit(x[rows], target[rows, k])
        np.testing.assert_allclose(found.weights[:, k], model.coef_[0], atol=1e-5)
        assert float(found.bias[k]) == pytest.approx(model.intercept_[0], abs=1e-5)


def test_separable_labels_and_many_groups_have_a_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    target = x > torch.tensor([-0.5, 0.0, 0.5])
    used = torch.ones_like(target)
    whole = solve(x, target, used, l2=1e-3, iterations=200, tolerance=1e-8)
    monkeypatch.setattr("fit.supervised.logistic.ENTRIES", 50)  # a label at a time
    parts = solve(x, target, used, l2=1e-3, iterations=200, tolerance=1e-8)
    torch.testing.assert_close(whole.weights, parts.weights, atol=1e-5, rtol=1e-5)
    assert float(whole.bias[1]) == pytest.approx(0, abs=1e-6)  # by symmetry
    assert ((x @ whole.weights + whole.bias > 0) == target).double().mean() > 0.95
    again = solve(x, target, used, l2=1e-3, iterations=200, tolerance=1e-8, start=whole)
    assert again.iterations == 0


# probes


def test_probe_is_scikit_learns_on_the_rows_that_count(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, x = data
    probe = Probe(labels=labels, l2=0.02, tolerance=1e-7, iterations=1000).fit(reader)
    seen = x[reader.image_indices].reshape(-1, 5).astype(np.float64)
    mean, deviation = seen.mean(0), seen.std(0)
    for k in range(3):
        rows, target = counted(x, labels, k)
        model = LogisticRegression(C=1 / (0.02 * len(rows)), tol=1e-10, max_iter=5000)
        model.fit((rows - mean) / deviation, target)
        np.testing.assert_allclose(probe.filters_[:, k], model.coef_[0] / deviation, atol=2e-5)
        z = probe.decision_function(rows.astype(np.float32))[:, k]
        np.testing.assert_allclose(z, model.decision_function((rows - mean) / deviation), atol=2e-4)
    info = probe.directions_.info
    assert info["labels"] == ["label 0", "label 1", "label 2"]
    assert info["label_numbers"] == [10, 11, 12]
    assert info["positives"] == [int(counted(x, labels, k)[1].sum()) for k in range(3)]
    assert info["config"]["n_directions"] == 3
    assert info["labelled_images"] == 29
    assert info["rounds"] == 1  # no label has 20 negatives for a positive


def test_probe_signals_are_the_positives_own_covariance(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, x = data
    probe = Probe(labels=labels).fit(reader)
    rows = x[reader.image_indices].reshape(-1, 5).astype(np.float64)
    z = rows @ probe.filters_.astype(np.float64) - probe.thresholds_
    for k in range(3):
        on = z[:, k] > 0
        wanted = np.cov(rows[on].T, z[on, k])[:5, 5] / z[on, k].var(ddof=1)
        np.testing.assert_allclose(probe.signals_[:, k], wanted / np.linalg.norm(wanted), atol=1e-4)


def test_a_detector_that_is_never_positive_gets_the_pattern(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, _, _ = data
    moments = statistics(reader)
    w = torch.tensor([[1.0, 0, 0, 0, 2], [0, 1, 0, 0, 0]], dtype=torch.float64).T
    found = signals_of(reader, w, torch.tensor([1e6, 3.0], dtype=torch.float64), moments, "cpu", silent)
    np.testing.assert_allclose(found[:, 0], moments.covariance @ w[:, 0].numpy())
    assert torch.isfinite(found).all()


def test_at_most_so_many_negatives_for_a_positive_half_of_them_the_hardest() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=g)
    present = torch.zeros(500, 2, dtype=torch.bool)
    present[:10, 0] = present[:400, 1] = True
    annotated = torch.ones_like(present)
    annotated[450:, 0] = False
    pool = SimpleNamespace(x=x, present=present, annotated=annotated)
    first = choose(pool, 20, None, g)
    assert first[:, 0].sum() == 10 + 200
    assert first[:, 1].all()
    assert not first[450:, 0].any()
    solution = solve(x, present, first, l2=0.1, iterations=50, tolerance=1e-4)
    second = choose(pool, 20, solution, g)
    assert second[:10, 0].all()
    assert second[:, 0].sum() == 210
    z = x[10:450] @ solution.weights[:, 0]
    assert second[10:450, 0][z.argsort(descending=True)[:100]].all()


def test_a_small_pool_holds_what_is_rare_and_mines_what_is_hard(
    tmp_path: Path, make_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2000 rows, 12 of them positive; the 30 rows that look like them are negatives that a random draw hardly meets."""
    g = np.random.default_rng(1)
    x = g.normal(size=(500, 4, 3)).astype(np.float32)
    present = np.zeros((500, 4, 2), bool)
    rare, alike = g.choice(500, 42, replace=False)[:12], g.choice(500, 42, replace=False)[12:]
    alike = np.setdiff1d(alike, rare)
    x[rare, 0], x[alike, 1] = [9, 2, 0], [9, -2, 0]
    present[rare, 0, 0] = True
    present[..., 1] = x[..., 2] > 0
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 2), chunk_images=64))
    labels = ByHand(present)
    task = task_of(reader, labels)
    scale = Standardise.of(statistics(reader), "cpu")
    pool = draw(task, scale, 400, 0, silent)
    assert len(pool.x) == pool.member.sum() <= 400
    assert pool.present[:, 0].sum() == 12  # all that there are
    assert 60 < pool.present[:, 1].sum() < 260
    stored = x.reshape(-1, 3)[pool.member]
    torch.testing.assert_close(pool.x, scale(torch.from_numpy(stored)))

    before, member = len(pool.x), pool.member.copy()
    monkeypatch.setattr("fit.supervised.base.images_at_once", lambda *_: 7)
    pool.mine(lambda rows: rows[:, [0, 1]], 80, np.array([40, 40]), silent)
    assert pool.member.reshape(500, 4)[alike, 1].all()
    assert 400 >= len(pool.x) > before
    added = np.flatnonzero(pool.member & ~member)
    torch.testing.assert_close(pool.x[before:], scale(torch.from_numpy(x.reshape(-1, 3)[added])))
    np.testing.assert_array_equal(pool.present[before:].numpy(), present.reshape(-1, 2)[added])

    probe = Probe(labels=labels, min_positives=2, max_rows=400, l2=1e-4).fit(reader)
    on = probe.detect(x)
    assert on[rare, 0, 0].all()
    assert not on[alike, 1, 0].any()
    again = Probe(labels=labels, min_positives=2, max_rows=400, l2=1e-4).fit(reader)
    assert (again.filters_ == probe.filters_).all()


@pytest.mark.parametrize(
    ("wanted", "room", "taken"),
    [([5, 100, 1000], 2000, [5, 100, 1000]), ([5, 100, 1000], 305, [5, 100, 200]), ([9, 9, 9], 6, [2, 2, 2])],
)
def test_room_is_shared_fairly(wanted: list[int], room: int, taken: list[int]) -> None:
    assert fair_share(np.array(wanted), room).tolist() == taken


# Pattern-CAV


def test_pattern_cav_is_the_difference_of_the_annotated_means(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, x = data
    found = PatternCAV(labels=labels, filter="difference").fit(reader)
    lda = PatternCAV(labels=labels, filter="lda", shrinkage=0.3).fit(reader)
    seen = x[reader.image_indices].reshape(-1, 5).astype(np.float64)
    covariance = np.cov(seen.T, bias=True)
    for k in range(3):
        rows, target = counted(x, labels, k)
        wanted = rows[target].mean(0) - rows[~target].mean(0)
        np.testing.assert_allclose(found.signals_[:, k], wanted / np.linalg.norm(wanted), atol=1e-5)
        np.testing.assert_allclose(lda.signals_[:, k], found.signals_[:, k], atol=1e-6)
        np.testing.assert_allclose(found.filters_[:, k], found.signals_[:, k], atol=1e-6)
        w = np.linalg.solve(covariance + 0.3 * np.trace(covariance) / 5 * np.eye(5), wanted)
        np.testing.assert_allclose(lda.filters_[:, k], w / np.sqrt(w @ covariance @ w), atol=1e-4)


def test_thresholds_have_the_best_f1(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, x = data
    task = task_of(reader, labels)
    filters = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 3)))
    found = best_f1_of_labels(task, filters, silent)
    for k in range(3):
        rows, target = counted(x, labels, k)
        score = rows @ filters[:, k].numpy()

        def f1(on: np.ndarray, target: np.ndarray = target) -> float:
            return 2 * (on & target).sum() / max(1, on.sum() + target.sum())

        best = max(f1(score > b) for b in [score.min() - 1, *score])
        assert f1(score > float(found[k])) == pytest.approx(best, abs=0.01)  # two scores of one bin are not told apart


def test_a_threshold_is_in_the_middle_of_a_gap(tmp_path: Path, make_store: Store) -> None:
    x = np.array([0, 1, 2, 3, 7, 8, 9, 9], np.float32).reshape(2, 4, 1)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 2)))
    found = PatternCAV(labels=ByHand(x > 5), min_positives=2, filter="difference").fit(reader)
    assert found.thresholds_ is not None
    assert found.thresholds_[0] == pytest.approx(5, abs=0.02)
    assert found.signals_.tolist() == [[1.0]]


# labels


def test_rare_and_ubiquitous_labels_are_left_out_and_reported(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, _ = data
    labels.present[..., 0] = False
    labels.present[1, :3, 0] = True
    labels.annotated[1, 0] = True
    labels.present[..., 2] = True
    found = PatternCAV(labels=labels, min_positives=4).fit(reader).directions_
    assert found.count == 1
    assert found.info["labels"] == ["label 1"]
    assert [entry["label"] for entry in found.info["left_out"]] == ["label 0", "label 2"]
    assert found.info["left_out"][0] == {"label": "label 0", "number": 10, "positives": 3}
    labels.present[..., 1] = False
    with pytest.raises(FitError, match=r"No label is at 4 positions .*min_positives"):
        PatternCAV(labels=labels, min_positives=4).fit(reader)


def test_unannotated_images_count_for_nothing(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, _ = data
    before = [method(labels=labels).fit(reader).filters_ for method in (Probe, PatternCAV)]
    g = np.random.default_rng(0)
    noise = g.random(labels.present.shape) < 0.5
    labels.present = np.where(labels.annotated[:, None], labels.present, noise)
    labels.present[np.setdiff1d(np.arange(40), labels.images)] = noise[0]
    for filters, method in zip(before, (Probe, PatternCAV), strict=True):
        np.testing.assert_array_equal(method(labels=labels).fit(reader).filters_, filters)


def test_counts_are_of_annotated_positions(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    _, labels, x = data
    positives, negatives = count(labels, 6, silent)
    for k in range(3):
        rows, target = counted(x, labels, k)
        assert (positives[k], negatives[k]) == (target.sum(), len(rows) - target.sum())


# the truth of synthetic stores


def test_both_find_the_truth_of_a_synthetic_store(reader: LayerReader) -> None:
    truth = read_truth(reader.store.path)
    probe = against_truth(Probe(l2=1e-4).fit(reader).directions_, reader, truth)
    assert probe["match"] == [0, 1, 2]
    assert min(probe["iou"]) > 0.97
    assert min(probe["cos"]) > 0.95
    cav = against_truth(PatternCAV().fit(reader).directions_, reader, truth)
    assert cav["match"] == [0, 1, 2]
    assert min(cav["iou"]) > 0.9
    assert 0.6 < min(cav["cos"]) < 0.95  # concepts exclude each other: the others' absence is in the difference
    plain = against_truth(PatternCAV(filter="difference").fit(reader).directions_, reader, truth)
    assert min(plain["iou"]) < min(cav["iou"])  # distractors


# wrong use


def test_a_store_without_labels_is_one_message(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, _, _ = data
    for method in ("probe", "pattern-cav"):
        with pytest.raises(UsageError, match=rf"'{method}' learns from labels.*s\.zarr.*--concepts DIR"):
            make_fitter(method).fit(reader)


def test_the_number_of_directions_is_the_labels_own(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, _ = data
    with pytest.raises(UsageError, match="leave --directions 3 out"):
        make_fitter("probe", n_directions=3)
    with pytest.raises(UsageError, match="each of the 3 labels .* not 2"):
        Probe(n_directions=2, labels=labels).fit(reader)
    assert Probe(n_directions=3, labels=labels).fit(reader).directions_.count == 3
    with pytest.raises(UsageError, match="--directions N"):
        make_fitter("kmeans")
    with pytest.raises(UsageError, match="'pca' learns without labels.*--concepts"):
        make_fitter("pca", n_directions=2, labels=labels)


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("probe", "l2", "0"),
        ("probe", "rounds", "-1"),
        ("probe", "min_positives", "1"),
        ("pattern-cav", "shrinkage", "0"),
    ],
)
def test_settings_that_make_no_sense(method: str, setting: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"'{setting}'"):
        make_fitter(method, settings={setting: value})
    with pytest.raises(UnknownNameError, match="no such setting"):
        make_fitter(method, settings={"lambda_s": "1"})


def test_constant_activations_are_one_message(tmp_path: Path, make_store: Store) -> None:
    reader = LayerReader(make_store(tmp_path / "s.zarr", np.full((4, 4, 2), 3, np.float32), grid=(2, 2)))
    labels = ByHand(np.random.default_rng(0).random((4, 4, 1)) < 0.5)
    for method in (Probe, PatternCAV):
        with pytest.raises(FitError, match="do not vary"):
            method(labels=labels, min_positives=2).fit(reader)


def test_an_estimator_comes_back_from_its_file(data: tuple[LayerReader, ByHand, np.ndarray], tmp_path: Path) -> None:
    reader, labels, x = data
    probe = Probe(labels=labels, l2=0.5).fit(reader)
    probe.save(tmp_path / "p.safetensors")
    again = Probe.load(tmp_path / "p.safetensors")
    assert again.config.l2 == 0.5
    np.testing.assert_array_equal(again.detect(x), probe.detect(x))
    assert again.directions_.info["labels"] == probe.directions_.info["labels"]


@pytest.mark.gpu
def test_a_gpu_finds_the_same(data: tuple[LayerReader, ByHand, np.ndarray]) -> None:
    reader, labels, _ = data
    for method, more in ((Probe, {"max_rows": 120, "tolerance": 1e-5}), (Probe, {"threshold": "f1"}), (PatternCAV, {})):
        one, two = (method(labels=labels, device=device, **more).fit(reader) for device in ("cpu", "cuda"))
        np.testing.assert_allclose(one.filters_, two.filters_, atol=2e-3)
        np.testing.assert_allclose(one.signals_, two.signals_, atol=5e-3)
