"""Counterfactuals: closed forms by hand, the fewest changes against all subsets, bounds, many classes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from evaluate.explain.counterfactual import ConceptChange, few_changes

FREE = np.inf


def find(logits, effects, target, *, spread=None, low=-FREE, high=FREE, within=True) -> ConceptChange | None:  # type: ignore[no-untyped-def]
    effects = np.asarray(effects, float)
    n = len(effects)
    spread = np.ones(n) if spread is None else np.asarray(spread, float)
    low, high = np.broadcast_to(low, n).astype(float), np.broadcast_to(high, n).astype(float)
    return few_changes(np.asarray(logits, float), effects, target, spread, low, high, within=within)


def lacking(logits, effects, target: int, found: ConceptChange) -> float:  # type: ignore[no-untyped-def]
    after = np.asarray(logits) + found.delta @ np.asarray(effects)
    return float(np.delete(after, target).max() - after[target])


def test_one_direction_by_hand() -> None:
    # the second needs 1 (and 1 % more), the first pushes twice as hard but costs four times as much
    found = find([1.0, 0.0], [[0.0, 2.0], [-1.0, 0.0]], 1, spread=[0.25, 1.0])
    assert found is not None
    assert found.delta == pytest.approx([0, 1.01 + 1e-4])
    assert found.cost == pytest.approx(1.0101)
    assert found.changed.tolist() == [1]
    assert not found.beyond


def test_a_third_class_in_the_way() -> None:
    # direction 0 lifts the target and, faster, a third class: alone it never does; direction 1 is dear but does
    logits, effects = [1.0, 0.0, 0.0], [[0, 1, 2], [0, 1, 0]]
    found = find(logits, effects, 1, spread=[1, 0.01])
    assert found is not None
    assert found.changed.tolist() == [1]
    # within an interval: at 1 the target passes the first class, at 2 the third passes the target
    found = find([1.0, 0.0, -2.0], [[0, 1, 2]], 1)
    assert found is not None
    assert found.delta == pytest.approx([1.01 + 2e-4])
    assert find([1.0, 0.0, -0.5], [[0, 1, 2]], 1) is None


def test_nothing_to_do_and_nothing_that_helps() -> None:
    done = find([0.0, 1.0], [[1.0, 0.0]], 1)
    assert done is not None
    assert done.delta.tolist() == [0]
    assert done.cost == 0
    assert find([1.0, 0.0], [[3.0, 3.0], [0.0, 0.0]], 1) is None


def test_a_narrow_win_is_a_win() -> None:
    """The target is the largest between 1 and 1.005, by less than the margin that is asked for at first."""
    found = find([1.0, 0.0, -1.005], [[0, 1, 2]], 1)
    assert found is not None
    assert 1 < found.delta[0] < 1.005
    assert find([1.0, 0.0, -0.999], [[0, 1, 2]], 1) is None


def test_two_are_needed_where_one_is_bounded() -> None:
    found = find([2.0, 0.0], np.eye(2)[[1, 1]], 1, low=0, high=1.5)
    assert found is not None
    assert found.delta.sum() == pytest.approx(2 * 1.01 + 2e-4)
    assert (found.delta <= 1.5 + 1e-9).all()
    assert len(found.changed) == 2


def test_beyond_the_bounds_only_where_it_must() -> None:
    found = find([2.0, 0.0], np.eye(2)[[1, 1]], 1, low=0, high=0.5)
    assert found is not None
    assert found.beyond
    assert len(found.changed) == 1
    inside = find([2.0, 0.0], np.eye(2)[[1, 1]], 1, low=0, high=0.5, within=False)
    assert inside is not None
    assert inside.beyond


def fewest(
    logits: np.ndarray, effects: np.ndarray, target: int, low: np.ndarray, high: np.ndarray
) -> tuple[int, float]:
    """How few directions can do it, and the least cost with so many: a linear programme for every subset."""
    others = np.delete(np.arange(len(logits)), target)
    gap = logits.max() - logits[target]
    need = logits[others] - logits[target] + 0.01 * gap + 1e-4 * max(1, np.abs(logits).max())
    gain = effects[:, [target]] - effects[:, others]
    for size in range(1, len(effects) + 1):
        costs = []
        for some in map(list, itertools.combinations(range(len(effects)), size)):
            both = np.concatenate([gain[some], -gain[some]]).T
            bounds = [(0, h) for h in high[some]] + [(0, -v) for v in low[some]]
            found = linprog(np.ones(2 * size), A_ub=-both, b_ub=-need, bounds=bounds)
            if found.status == 0:
                costs.append(found.fun)
        if costs:
            return size, min(costs)
    return 0, 0.0


def test_against_every_subset() -> None:
    g = np.random.default_rng(0)
    sizes = []
    for _ in range(18):
        logits, effects = g.normal(size=4) * 2, g.normal(size=(6, 4))
        target = int(np.argsort(logits)[g.integers(0, 3)])
        low, high = -g.random(6), g.random(6)
        size, cost = fewest(logits, effects, target, low, high)
        found = find(logits, effects, target, low=low, high=high)
        assert found is not None
        assert found.beyond == (size == 0)
        if found.beyond:
            continue
        assert lacking(logits, effects, target, found) < 0
        sizes.append((size, len(found.changed)))
        if size == 1:
            assert found.cost == pytest.approx(cost)
    assert len(sizes) >= 10
    assert max(size for size, _ in sizes) >= 3
    assert all(found >= size for size, found in sizes)
    assert np.mean([found == size for size, found in sizes]) >= 0.85
    assert max(found - size for size, found in sizes) <= 1


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 12))
def test_whatever_is_found_does_it(seed: int, classes: int, count: int) -> None:
    g = np.random.default_rng(seed)
    logits, effects, spread = g.normal(size=classes) * 3, g.normal(size=(count, classes)), g.random(count) + 0.05
    target = int(g.integers(classes))
    low, high = -2 * g.random(count), 2 * g.random(count)
    found = find(logits, effects, target, spread=spread, low=low, high=high)
    if found is None:
        return
    assert target == logits.argmax() or lacking(logits, effects, target, found) < 0
    assert found.cost == pytest.approx(np.abs(found.delta / spread).sum())
    if not found.beyond:
        assert (found.delta <= high + 1e-7).all()
        assert (found.delta >= low - 1e-7).all()


def test_many_classes_enter_as_they_get_in_the_way() -> None:
    """The rivals of the first programme are few; whatever is found holds for all 300."""
    g = np.random.default_rng(4)
    bounded = 0
    for _ in range(6):
        logits, effects = g.normal(size=300), g.normal(size=(30, 300))
        target = int(np.argsort(-logits)[100])
        found = find(logits, effects, target, low=-1.0, high=1.0)
        assert found is not None
        assert lacking(logits, effects, target, found) < 0
        bounded += not found.beyond
    assert bounded == 6
