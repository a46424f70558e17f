"""p-values and corrections by hand, and against brute force over all permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.influence.significance import (
    bh_adjusted,
    by_deviations,
    counted,
    deviations,
    fewest_nulls,
    holm_adjusted,
    rounds,
    standardised,
)


def test_by_hand() -> None:
    """Two directions, two classes, 99 nulls; the second direction has none, and is never significant."""
    found = counted(np.array([[0, 9], [0, 0]]), np.array([99, 0]))
    assert found.p_paper.tolist() == [[0.0, 9 / 99], [1.0, 1.0]]
    assert found.p.tolist() == [[0.01, 0.1], [1.0, 1.0]]
    assert found.paper.tolist() == [[True, False], [False, False]]
    assert found.p_holm == pytest.approx(np.array([[0.04, 0.3], [1, 1]]))
    assert found.q_bh == pytest.approx(np.array([[0.04, 0.2], [1, 1]]))
    assert found.holm.tolist() == found.bh.tolist() == [[True, False], [False, False]]


def test_with_fewer_null_directions_no_p_value_reaches_the_level() -> None:
    assert [fewest_nulls(level) for level in (0.05, 0.01, 0.2)] == [19, 99, 4]


def test_adjusted_p_values_of_a_textbook_example() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm_adjusted(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bh_adjusted(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.2))
def test_rejections_are_those_of_the_procedures_as_published(values: list[float], level: float) -> None:
    p = np.array(values)
    order, m = np.argsort(p, kind="stable"), len(p)
    ranked = p[order]
    failing = np.flatnonzero(ranked > level / (m - np.arange(m)))
    holm = np.zeros(m, bool)
    holm[order[: failing[0] if len(failing) else m]] = True
    passing = np.flatnonzero(ranked <= level * np.arange(1, m + 1) / m)
    bh = np.zeros(m, bool)
    bh[order[: passing[-1] + 1 if len(passing) else 0]] = True
    near = 1e-12  # a p-value on the very line is rounding's to decide
    if (np.abs(ranked - level / (m - np.arange(m))) > near).all():
        assert ((holm_adjusted(p) <= level) == holm).all()
    if (np.abs(ranked - level * np.arange(1, m + 1) / m) > near).all():
        assert ((bh_adjusted(p) <= level) == bh).all()


def test_p_is_that_of_the_exact_permutation_test() -> None:
    """All 720 orders of six values, the difference of means of two groups of three: the count over all others but the data's own
    order gives back the exact test's p."""
    values, observed = np.array([1.0, 2.5, 4.0, 0.5, 3.0, 7.0]), (0, 1, 2, 3, 4, 5)

    def strength(order: tuple[int, ...]) -> float:
        mixed = values[list(order)]
        return abs(mixed[:3].mean() - mixed[3:].mean())

    every = [strength(order) for order in permutations(range(6))]
    exact = np.mean([s >= strength(observed) - 1e-12 for s in every])
    others = [strength(order) for order in permutations(range(6)) if order != observed]
    reached = sum(s >= strength(observed) - 1e-12 for s in others)
    assert counted(np.array([[reached]]), np.array([719])).p[0, 0] == pytest.approx(exact)


def test_holds_its_level_where_there_is_nothing() -> None:
    """4000 tested directions drawn as their 99 nulls are: p ≤ 0.05 in about 5 % of cases, and p is never too small."""
    g = np.random.default_rng(0)
    reached = (np.abs(g.standard_normal((4000, 1, 99))) >= np.abs(g.standard_normal((4000, 1, 1)))).sum(2)
    found = counted(reached, np.full(4000, 99))
    for level in (0.01, 0.05, 0.2):
        share = (found.p <= level).mean()
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 4000)
    assert found.holm.sum() == found.bh.sum() == 0
    assert (
        20 < found.paper.sum() < 70
    )  # the paper's rule: no null reaches it, in 1 % of 4000 cases, whatever the number of tests


def test_standardised_by_hand() -> None:
    """Nulls 0, 1, 2, 3 on one class: mean 1.5, variance 5/3. Without the last: mean 1, variance 1."""
    t, each = standardised(np.array([4.0]), np.array([[0.0], [1.0], [2.0], [3.0]]))
    assert t[0] == pytest.approx(2.5 / np.sqrt(5 / 3 * 1.25))
    assert each[3, 0] == pytest.approx(2 / np.sqrt(4 / 3))
    assert each[0, 0] == pytest.approx(-2 / np.sqrt(4 / 3))


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_each_null_is_standardised_by_the_others(n: int, k: int, seed: int) -> None:
    nulls = np.random.default_rng(seed).standard_normal((n, k)) + 5
    _, each = standardised(nulls[0], nulls)
    for b in range(n):
        others = np.delete(nulls, b, 0)
        wanted = (nulls[b] - others.mean(0)) / (others.std(0, ddof=1) * np.sqrt(1 + 1 / (n - 1)))
        np.testing.assert_allclose(each[b], wanted, rtol=1e-7, atol=1e-9)


def test_nulls_that_do_not_vary_or_are_too_few_say_nothing() -> None:
    t, each = standardised(np.array([3.0, 3.0]), np.ones((5, 2)))
    assert not t.any()
    assert not each.any()
    assert not standardised(np.array([3.0]), np.array([[1.0], [2.0]]))[0].any()
    found = by_deviations(np.full((1, 2), 99.0), np.array([2]), np.zeros(9), np.full((1, 2), 99.0), 0)
    assert not found.max.any()
    assert not found.t.any()


def test_the_extreme_of_the_full_table_is_what_counts() -> None:
    """Nine rounds with extremes 1 to 9: |t| = 9.5 is beyond all (p 0.1), 9 is reached once, 0 always."""
    found = by_deviations(
        np.array([[9.5, -9.0], [5.5, 0.0]]), np.array([9, 9]), np.arange(1.0, 10.0), np.zeros((2, 2)), 9, level=0.2
    )
    assert found.p_max == pytest.approx(np.array([[0.1, 0.2], [0.5, 1.0]]))
    assert found.max.tolist() == [[True, True], [False, False]]


def test_claims_nothing_where_there_is_nothing_and_finds_what_there_is() -> None:
    """20 studies of 30 directions × 10 classes without effect: some claim in at most about 5 % of them; 0.1 % of the pairs with a strong
    effect are found by deviations, and cannot be by counting."""
    g = np.random.default_rng(1)
    claims, by_t, found = 0, 0, 0
    for _ in range(20):
        nulls = g.standard_normal((30, 100, 10)) * g.uniform(0.5, 3, (30, 1, 1))
        own = nulls[:, 0].copy()
        nulls = nulls[:, 1:]
        strong = own.copy()
        strong[3, 7] = 12 * nulls[3, :, 7].std()
        tables = []
        for values in (own, strong):
            t, extremes = np.zeros((30, 10)), np.zeros(99)
            for d in range(30):
                t[d], each = standardised(values[d], nulls[d])
                extremes = np.maximum(extremes, np.abs(each).max(1))
            tables.append(by_deviations(t, np.full(30, 99), extremes, np.zeros((30, 10)), 0))
        claims += tables[0].max.any()
        by_t += tables[0].t.any()
        found += tables[1].max[3, 7]
        reached = (np.abs(nulls) >= np.abs(strong)[:, None, :]).sum(1)
        assert not counted(reached, np.full(30, 99)).holm.any()
    assert claims <= 4
    assert by_t <= 4
    assert found == 20


def test_a_detector_with_few_nulls_claims_no_more_than_they_can_tell() -> None:
    """Four nulls of a hundred rounds, all of them weaker: p is 1/5, not 1/101."""
    found = by_deviations(np.array([[9.0]]), np.array([4]), rounds(np.arange(1.0, 5.0), 100), np.zeros((1, 1)), 0)
    assert found.p_max[0, 0] == pytest.approx(1 / 5)
    assert rounds(np.array([1.0, 2.0]), 5).tolist() == [1, 2, 1, 2, 1]
    assert rounds(np.zeros(0), 2).tolist() == [0, 0]


def test_few_nulls_next_to_many_keep_the_level() -> None:
    """200 studies without effect, one detector with 30 nulls among four with 99, 20 classes: some claim in about 5 % of them."""
    g = np.random.default_rng(2)
    counts, claims = np.array([30, 99, 99, 99, 99]), 0
    for _ in range(200):
        t, extremes = np.zeros((5, 20)), np.zeros(99)
        for d, n in enumerate(counts):
            drawn = g.standard_normal((n + 1, 20))
            t[d], each = standardised(drawn[0], drawn[1:])
            extremes = np.maximum(extremes, rounds(np.abs(each).max(1), 99))
        claims += by_deviations(t, counts, extremes, np.zeros((5, 20)), 0).max.any()
    assert claims <= 20  # three standard deviations above 10


def test_deviations_from_random_directions_by_hand() -> None:
    t = deviations(np.array([[4.0, 5.0]]), np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    assert t[0] == pytest.approx([2.5 / np.sqrt(5 / 3 * 1.25), 0.0])


def test_random_directions_are_seldom_more_than_random_directions() -> None:
    """300 random directions of 40 channels on 10 classes, as one table: no claim; one direction along a class's weights: a claim."""
    g = np.random.default_rng(0)
    weights = g.standard_normal((40, 10))

    def changes(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v, axis=1, keepdims=True) @ weights

    own = g.standard_normal((300, 40))
    own[7] = weights[:, 3]
    t = deviations(changes(own), changes(g.standard_normal((1000, 40))))
    found = by_deviations(np.zeros((300, 10)), np.zeros(300, int), np.zeros(0), t, 1000)
    assert found.random[7, 3]
    assert not np.delete(found.random, 7, 0).any()
    assert not found.max.any()
