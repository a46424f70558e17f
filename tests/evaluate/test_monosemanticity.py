"""The streamed score against all N × N pairs, what it is by hand, and whose embeddings it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evaluate.monosemanticity
from evaluate.detector_bank import Bank, make_bank
from evaluate.monosemanticity import monosemanticity
from stores.errors import MismatchError, UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]


def naive(activations: np.ndarray, embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """(J,) scores and the baseline, over all pairs n ≠ m, one by one."""

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / norms if norms else 0.0

    n = len(embeddings)
    if n == 0:
        return np.full(activations.shape[1], np.nan), np.nan
    alike = np.array(
        [[cos(a, b) if i != k else 0.0 for k, b in enumerate(embeddings)] for i, a in enumerate(embeddings)]
    )
    scores = []
    for z in activations.T:
        if z.max() == z.min():
            scores.append(np.nan)
            continue
        a = (z - z.min()) / (z.max() - z.min())
        weight = np.outer(a, a)
        np.fill_diagonal(weight, 0)
        scores.append((weight * alike).sum() / weight.sum() if weight.sum() > 0 else np.nan)
    return np.array(scores), alike.sum() / (n * (n - 1)) if n > 1 else np.nan


def bank_of(filters: Any) -> Bank:
    filters = torch.as_tensor(filters).float()
    return Bank(filters, torch.full((filters.shape[1],), 0.5), {"a": slice(0, filters.shape[1])})


def with_store(reader: Any, names: list[str], **provenance: str) -> Any:
    """A reader in memory that also knows its images' names."""
    reader.store = SimpleNamespace(provenance=provenance, names=names, path=Path(f"{provenance.get('model')}.zarr"))
    reader.images = lambda indices: reader.x[np.asarray(indices)]
    return reader


@given(
    n=st.integers(1, 9),
    p=st.integers(1, 3),
    chunk=st.integers(1, 4),
    spread=st.sampled_from([1, 2, 50]),  # 1: many zeros and ties
    activation=st.sampled_from(["max", "mean"]),
    other=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_it_is_the_mean_over_all_pairs(
    memory_reader: Any, n: int, p: int, chunk: int, spread: int, activation: Any, other: bool, seed: int
) -> None:
    g = np.random.default_rng(seed)
    x = g.integers(-spread, spread + 1, (n, p, 3)).astype(np.float32)
    filters = g.integers(-2, 3, (3, 4)).astype(np.float32)
    valid, theirs = g.random(n) < 0.8, g.random(n) < 0.8
    names = [f"{i}.png" for i in range(n)]
    reader = with_store(memory_reader(x, (1, p), chunk_images=chunk, valid=valid), names, model="net")
    encoder, pooled = None, x.astype(float).mean(1)
    if other:  # the other store holds one image more, in another order
        order = g.permutation(n + 1)
        y = g.integers(-spread, spread + 1, (n + 1, 2, 5)).astype(np.float32)
        readable = np.append(theirs, True)
        stored = memory_reader(y[order], (1, 2), chunk_images=2, valid=readable[order])
        encoder = with_store(stored, [[*names, "more.png"][i] for i in order], model="clip")
        valid, pooled = valid & theirs, y[:n].astype(float).mean(1)
    found = monosemanticity(reader, bank_of(filters), encoder, activation=activation)
    z = x.astype(float) @ filters
    wanted, baseline = naive((z.max(1) if activation == "max" else z.mean(1))[valid], pooled[valid])
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
    np.testing.assert_allclose(found.baseline, baseline, atol=1e-6)
    assert found.images == valid.sum()
    assert found.independent is other


def test_by_hand(tmp_path: Path, make_store: Store) -> None:
    """Two cats with one embedding, a dog at a right angle to them, and a car turned away from the cats."""
    clip = np.array([[2, 0], [3, 0], [0, 5], [-1, 0]], np.float32)[:, None]
    #             cat detector, animal detector, one image alone, the same everywhere
    x = np.array([[1, 1, 0, 4], [1, 1, 0, 4], [0, 1, 0, 4], [0, 0, 7, 4]], np.float32)[:, None]
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 1)))
    encoder = LayerReader(
        make_store(tmp_path / "e.zarr", clip, grid=(1, 1), provenance={"model": "clip", "weights": "b"})
    )
    found = monosemanticity(reader, bank_of(np.eye(4)), encoder)
    np.testing.assert_allclose(found.scores, [1, 1 / 3, np.nan, np.nan], atol=1e-12)
    assert found.baseline == pytest.approx((1 - 1 - 1) / 6)  # the pairs: cats alike, each of them against the car
    assert found.images == 4
    assert found.summary(slice(0, 2)) == {
        "monosemanticity": round((1 + 1 / 3) / 2, 4),
        "monosemanticity_baseline": round(-1 / 6, 4),
        "monosemanticity_encoder": "clip (b), layer 'conv', mean over positions: an independent encoder",
    }
    assert found.summary(slice(2, 4))["monosemanticity"] is None


def test_the_largest_position_counts_or_the_mean_of_them(tmp_path: Path, make_store: Store) -> None:
    x = np.array([[[4.0], [0]], [[3], [3]], [[0], [0]], [[1], [0]]], np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 2)))
    g = np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)
    encoder = LayerReader(make_store(tmp_path / "e.zarr", g, grid=(1, 1), provenance={"model": "clip"}))
    for activation, per_image in (("max", [4, 3, 0, 1]), ("mean", [2, 3, 0, 0.5])):
        found = monosemanticity(reader, bank_of([[1.0]]), encoder, activation=activation)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.scores, naive(np.array(per_image)[:, None], g[:, 0])[0], atol=1e-6)
    with pytest.raises(UsageError, match="'activation' must be one of max, mean, got 'sum'"):
        monosemanticity(reader, bank_of([[1.0]]), encoder, activation="sum")  # type: ignore[arg-type]


def test_without_another_encoder_the_layers_own_features_and_it_says_so(tmp_path: Path, make_store: Store) -> None:
    x = np.random.default_rng(1).normal(size=(9, 6, 4)).astype(np.float32)
    store = make_store(tmp_path / "s.zarr", x, grid=(2, 3), dtype="float16")
    reader = LayerReader(store)
    found = monosemanticity(reader, bank_of(np.eye(4)))
    kept = x.astype(np.float16).astype(float)
    wanted, baseline = naive(kept.max(1), kept.mean(1))
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
    assert found.baseline == pytest.approx(baseline, abs=1e-6)
    assert found.encoder == "toy (none), layer 'conv', mean over positions: the model itself"
    assert not found.independent
    again = monosemanticity(reader, bank_of(np.eye(4)), LayerReader(store))  # nor is its own store another encoder
    assert not again.independent
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-12)


@pytest.mark.parametrize(
    ("mine", "theirs", "independent"),
    [
        ({"model": "a", "weights": "DEFAULT", "weights_digest": "1"}, {"model": "a", "weights": "V2", "weights_digest": "1"}, False),
        ({"model": "a", "weights": "V2", "weights_digest": "1"}, {"model": "a", "weights": "V2", "weights_digest": "2"}, True),
        ({"model": "a", "weights": "V2"}, {"model": "a", "weights": "V2"}, False),
        ({"model": "a", "weights": "V2"}, {"model": "b", "weights": "V2"}, True),
    ],
)  # fmt: skip
def test_an_encoder_is_independent_when_its_weights_are_others(
    memory_reader: Any, mine: dict[str, str], theirs: dict[str, str], independent: bool
) -> None:
    x = np.ones((2, 1, 1), np.float32)
    reader, encoder = (with_store(memory_reader(x, (1, 1)), ["a", "b"], **made) for made in (mine, theirs))
    assert monosemanticity(reader, bank_of([[1.0]]), encoder).independent is independent


@given(scale=st.sampled_from([0.25, 4, 1024]), shift=st.integers(-100, 100), seed=st.integers(0, 2**16))
def test_scale_and_threshold_of_a_detector_do_not_matter(
    memory_reader: Any, scale: float, shift: int, seed: int
) -> None:
    g = np.random.default_rng(seed)
    x = g.integers(-20, 21, (8, 2, 3)).astype(np.float32)
    reader = with_store(memory_reader(x, (1, 2)), [str(i) for i in range(8)], model="net")
    filters = torch.from_numpy(g.integers(-3, 4, (3, 2)).astype(np.float32))
    a = monosemanticity(reader, Bank(filters, torch.zeros(2), {}))
    b = monosemanticity(reader, Bank(filters * scale, torch.full((2,), float(shift)), {}))
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-9)
    finite = a.scores[np.isfinite(a.scores)]
    assert (np.abs(finite) <= 1 + 1e-9).all()


def test_random_activations_score_the_baseline(memory_reader: Any) -> None:
    g = np.random.default_rng(0)
    n = 3000
    x = np.concatenate([g.random((n, 1, 2)), np.zeros((n, 1, 3))], 2).astype(np.float32)
    e = (g.normal(size=(n, 1, 20)) + 0.3).astype(np.float32)  # not centred: all pairs are a little alike
    names = [str(i) for i in range(n)]
    reader = with_store(memory_reader(x, (1, 1), chunk_images=500), names, model="net")
    encoder = with_store(memory_reader(e, (1, 1)), names, model="clip")
    found = monosemanticity(reader, bank_of(np.eye(5)[:, :2]), encoder)
    assert found.baseline > 0.05
    np.testing.assert_allclose(found.scores, found.baseline, atol=0.005)


def test_the_score_does_not_depend_on_block_sizes(
    tmp_path: Path, make_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = np.random.default_rng(2)
    x, y = (g.normal(size=shape).astype(np.float32) for shape in ((23, 4, 3), (23, 9, 5)))
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(2, 2), chunk_images=8))
    encoder = LayerReader(make_store(tmp_path / "e.zarr", y, grid=(3, 3), chunk_images=5, provenance={"model": "clip"}))
    found = []
    for images, piece in ((1, 1), (3, 100), (100, 2**20)):
        monkeypatch.setattr(evaluate.monosemanticity, "block_images", lambda reader, detectors, n=images: n)
        monkeypatch.setattr(evaluate.monosemanticity, "PIECE", piece)
        found.append(monosemanticity(reader, bank_of(np.eye(3)), encoder).scores)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_it_reads_the_store_twice_and_says_how_far_it_is(
    tmp_path: Path, make_store: Store, make_directions: Any
) -> None:
    x = np.random.default_rng(2).normal(size=(10, 2, 3)).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 2)))
    bank = make_bank({"a": make_directions(np.eye(3), [0, 0, 0]), "b": make_directions(np.eye(3)[:, :1], [0])}, reader)
    calls: list[tuple[str, int, int | None]] = []
    found = monosemanticity(
        reader, bank, progress=lambda stage, done, total=None, note="": calls.append((stage, done, total))
    )
    assert [c for c in calls if c[1] == 10] == [("monosemanticity: range", 10, 10), ("monosemanticity", 10, 10)]
    assert found.scores.shape == (4,)
    assert found.scores[3] == found.scores[0]


def test_names_that_do_not_match_are_refused(tmp_path: Path, make_store: Store) -> None:
    x = np.random.default_rng(0).normal(size=(5, 1, 2)).astype(np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(1, 1), names=["a", "b", "c", "d", "e"]))
    few = LayerReader(make_store(tmp_path / "few.zarr", x[:1], grid=(1, 1), names=["a"]))
    with pytest.raises(
        MismatchError, match=r"4 of 5 images of the store '.*s\.zarr' are not in '.*few\.zarr'.*: 'b', 'c', 'd', …\."
    ):
        monosemanticity(reader, bank_of(np.eye(2)), few)
    twice = LayerReader(make_store(tmp_path / "twice.zarr", x, grid=(1, 1), names=["a", "b", "c", "b", "e"]))
    with pytest.raises(MismatchError, match=r"'.*twice\.zarr' holds several images named 'b'"):
        monosemanticity(reader, bank_of(np.eye(2)), twice)
    monosemanticity(few, bank_of(np.eye(2)), reader)  # more than is asked for is no harm


def test_an_image_without_features_is_like_no_other(memory_reader: Any) -> None:
    x = np.array([[1, 0], [1, 0], [1, 1]], np.float32)[:, None]
    e = np.array([[1, 0], [0, 0], [1, 0]], np.float32)[:, None]
    reader = with_store(memory_reader(x, (1, 1)), ["a", "b", "c"], model="net")
    encoder = with_store(memory_reader(e, (1, 1)), ["a", "b", "c"], model="clip")
    assert monosemanticity(reader, bank_of([[0.0], [-1.0]]), encoder).scores.tolist() == [0]
    assert monosemanticity(reader, bank_of([[0.0], [-1.0]]), encoder).baseline == pytest.approx(1 / 3)
