"""Directions found again: permuted and turned copies are, random ones are not, and what reads the same is known to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.stability import STABILITY, cosines, logit_correlation, match, stability_of, stability_rows
from stores.directions import Directions
from stores.errors import MismatchError
from stores.statistics import Statistics

Make = Callable[..., Directions]


def pair(filters: np.ndarray, signals: np.ndarray, *, method: str = "toy", layer: str = "conv") -> Directions:
    filters, signals = np.asarray(filters, np.float32), np.asarray(signals, np.float32)
    return Directions(filters, signals, np.zeros(len(filters), np.float32), None, method, layer)


def random_pair(c: int, i: int, seed: int) -> Directions:
    g = np.random.default_rng(seed)
    return pair(g.normal(size=(c, i)), g.normal(size=(c, i)))


@given(st.integers(2, 20), st.integers(1, 8), st.integers(0, 2**16))
def test_permuted_turned_and_scaled_copies_are_found_again(c: int, i: int, seed: int) -> None:
    g = np.random.default_rng(seed)
    a = random_pair(c, i, seed)
    order, sign = g.permutation(i), g.choice([-1, 1], i)
    scale = g.uniform(0.1, 10, i)
    b = pair(a.filters[:, order] * sign * scale, a.signals[:, order] * sign / scale)
    found = match(a, b, Statistics(np.zeros(c), np.eye(c), 100))
    assert order[found.second].tolist() == found.first.tolist() == list(range(i))
    for values in (found.signals, found.filters, found.logits):
        assert values is not None
        np.testing.assert_allclose(values, 1, atol=1e-5)
    assert found.sizes == (i, i)
    assert found.note == ""


def test_random_directions_are_as_alike_as_chance_has_it() -> None:
    c, i = 512, 32
    found = match(random_pair(c, i, 0), random_pair(c, i, 1))
    # the largest of 32 |N(0, 1/C)| is 2.35 / √C on average; one to one, not everyone gets it
    assert 0.75 * 2.35 / np.sqrt(c) < found.signal_cos < 1.02 * 2.35 / np.sqrt(c)
    # the filters take no part in the matching: E|N(0, 1/C)|
    assert found.filter_cos == pytest.approx(np.sqrt(2 / np.pi / c), rel=0.35)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
def test_no_other_matching_is_better(i: int, j: int, seed: int) -> None:
    a, b = random_pair(3, i, seed), random_pair(3, j, seed + 1)
    found = match(a, b)
    cos = np.array([[abs(s @ t) / np.linalg.norm(s) / np.linalg.norm(t) for t in b.signals.T] for s in a.signals.T])
    if i > j:
        cos = cos.T
    best = max(
        sum(cos[k, p] for k, p in enumerate(chosen)) for chosen in itertools.permutations(range(max(i, j)), min(i, j))
    )
    assert found.signals.sum() == pytest.approx(best, abs=1e-5)
    assert len(found.first) == len(found.second) == len(found.filters) == min(i, j)


def test_sets_of_different_size_say_so() -> None:
    a, b = pair(np.eye(4)[:, :2], np.eye(4)[:, :2]), pair(np.eye(4)[:, ::-1], np.eye(4)[:, ::-1])
    found, other = match(a, b), match(b, a)
    assert (found.sizes, other.sizes) == ((2, 4), (4, 2))
    assert found.note == other.note == "2 of 4 directions matched: the sets are of different size"
    assert found.signals.tolist() == other.signals.tolist() == [1, 1]
    assert (found.first.tolist(), found.second.tolist()) == ([0, 1], [3, 2])
    assert (other.first.tolist(), other.second.tolist()) == ([2, 3], [1, 0])


def test_the_signal_vectors_decide_the_matching() -> None:
    a = pair(np.eye(2), np.eye(2))
    b = pair(np.eye(2), np.eye(2)[:, ::-1])  # same filters, signal vectors the other way round
    found = match(a, b)
    assert found.second.tolist() == [1, 0]
    assert found.signals.tolist() == [1, 1]
    assert found.filters.tolist() == [0, 0]


def test_zero_vectors_are_like_nothing_and_tiny_ones_like_themselves() -> None:
    a = pair([[1, 0], [0, 0]], [[1, 0], [0, 0]])
    found = match(a, a, Statistics(np.zeros(2), np.eye(2), 9))
    assert found.signals.tolist() == found.filters.tolist() == [1, 0]
    assert found.logits is not None
    assert found.logits.tolist() == [1, 0]
    np.testing.assert_allclose(cosines(np.full((3, 1), 1e-200), np.full((3, 1), 1e200)), [[1]])


def test_filters_that_read_the_same_have_the_same_logits_whatever_their_cosine() -> None:
    statistics = Statistics(np.zeros(3), np.diag([4.0, 1.0, 0.0]), 100)  # nothing ever happens in the third channel
    a = pair([[1.0], [0], [0]], [[1.0], [0], [0]])
    b = pair([[-1.0], [0], [7]], [[1.0], [0], [0]])
    found = match(a, b, statistics)
    assert found.filters[0] == pytest.approx(1 / np.sqrt(50))
    assert found.logits is not None
    assert found.logits[0] == pytest.approx(1)
    assert match(a, b).logits is None
    assert match(a, b).logit_correlation is None
    dead = pair([[0.0], [0], [1]], [[1.0], [0], [0]])  # reads nothing but that channel
    assert logit_correlation(a, dead, statistics).tolist() == [[0]]


def test_logit_correlation_is_the_correlation_of_logits() -> None:
    g = np.random.default_rng(3)
    x = g.normal(size=(500, 5)) @ g.normal(size=(5, 5)) + 3
    a, b = random_pair(5, 3, 4), random_pair(5, 4, 5)
    statistics = Statistics(x.mean(0), np.cov(x, rowvar=False, bias=True), len(x))
    wanted = np.corrcoef(x @ a.filters, x @ b.filters, rowvar=False)[:3, 3:]
    np.testing.assert_allclose(logit_correlation(a, b, statistics), wanted, atol=1e-5)


def test_directions_or_statistics_of_another_layer_are_refused(make_directions: Make) -> None:
    a = make_directions(np.eye(3))
    with pytest.raises(MismatchError, match=r"fitted on layer 'fc' \(3 channels\), not on 'conv'"):
        match(a, make_directions(np.eye(3), layer="fc"))
    with pytest.raises(MismatchError, match="statistics are of 2 channels, the directions of 3"):
        match(a, a, Statistics(np.zeros(2), np.eye(2), 5))


def test_a_row_for_every_pair_of_one_method_and_layer() -> None:
    half = np.sqrt(0.5)
    sets = {
        "a": pair(np.eye(2), np.eye(2)),
        "b": pair(np.eye(2), np.array([[1, half], [0, half]])),
        "other": pair(np.eye(2), np.eye(2), method="pca"),
        "c": pair(np.eye(2)[:, :1], np.eye(2)[:, :1]),
        "elsewhere": pair(np.eye(2), np.eye(2), layer="fc"),
    }
    rows = stability_rows(sets, {"conv": Statistics(np.zeros(2), np.eye(2), 5)})
    assert [(row["first"], row["second"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(tuple(row) == STABILITY for row in rows)
    assert rows[0] == {
        "layer": "conv", "method": "toy", "first": "a", "second": "b", "directions_first": 2, "directions_second": 2,
        "matched": 2, "signal_cos": round((1 + half) / 2, 6), "filter_cos": 1.0, "logit_correlation": 1.0,
        "signal_share": 0.5, "filter_share": 1.0, "note": "",
    }  # fmt: skip
    assert rows[1]["note"] == "1 of 2 directions matched: the sets are of different size"
    assert stability_rows(sets)[0]["logit_correlation"] is None
    assert stability_of(rows) == {
        "a": round((1 + (1 + half) / 2) / 2, 4),
        "b": round((1 + (1 + half) / 2) / 2, 4),
        "c": 1,
    }
    assert stability_rows({"a": sets["a"], "other": sets["other"]}) == []
    assert stability_of([]) == {}
