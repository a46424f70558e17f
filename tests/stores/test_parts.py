"""Parts of a store's images: disjoint, covering, with as many of each class, and drawn anew by each seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stores.readers import Part


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=60),
    gone=st.sets(st.integers(0, 59)),
    of=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_parts_are_alike(labels: list[int], gone: set[int], of: int, seed: int) -> None:
    classes = np.array(labels)
    valid = np.array([k not in gone for k in range(len(labels))])
    parts = [Part(i, of, seed).choose(classes, valid) for i in range(of)]
    assert np.array_equal(np.sum(parts, 0), valid)  # every valid image is in exactly one
    sizes = [part.sum() for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for k in set(labels):
        counts = [int((part & (classes == k)).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_classes_in_turn_are_in_both_halves() -> None:
    """By number modulo 2, halves of images whose eight classes come in turn share no class."""
    classes = np.arange(80) % 8
    half = Part(0, 2).choose(classes, np.ones(80, bool))
    assert np.bincount(classes[half]).tolist() == [5] * 8


def test_seeds_draw_other_parts() -> None:
    classes, valid = np.arange(40) // 10, np.ones(40, bool)
    first, again, other = (Part(0, 2, seed).choose(classes, valid) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
