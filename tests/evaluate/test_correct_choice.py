"""The rule that chooses a correction's strength, on a few images, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.correct.choice import NO_GAIN, TOO_COSTLY, TOO_FEW, AccuracyChange, choose, paired_change


def changes(before: int, gained: list[int], lost: list[int], images: int) -> AccuracyChange:
    """``before`` of the images are right at first; each setting makes some others right, and some of these wrong."""
    first = np.arange(images) < before
    after = np.tile(first, (len(gained), 1))
    for row, more, fewer in zip(after, gained, lost, strict=True):
        row[before : before + more] = True
        row[:fewer] = False
    return paired_change(first, after)


def test_the_interval_is_of_images_that_change_sides() -> None:
    found = changes(50, [0, 3, 0], [0, 1, 10], 98)
    assert found.before == pytest.approx(50 / 98)
    np.testing.assert_allclose(found.change, [0, 2 / 98, -10 / 98])
    # Agresti and Min: (c − b)/(n + 2) ± 1.96 √(((b + c + 1) − (c − b)²/(n + 2))/(n + 2)²)
    half = 1.959964 * np.sqrt([1.0, 5 - 0.04, 11 - 1.0]) / 100
    np.testing.assert_allclose(found.low, np.array([0, 0.02, -0.1]) - half)
    np.testing.assert_allclose(found.high, np.array([0, 0.02, -0.1]) + half)


def test_a_loss_that_chance_explains_keeps_to_the_tolerance() -> None:
    """Of 279 images 8 lost at a tolerance of 1 point (2.8 images) may be chance, 9 are not."""
    strengths, poisoned = np.array([1.0, 2.0]), changes(100, [100, 150], [0, 0], 300)
    assert choose(strengths, changes(270, [0, 0], [0, 8], 279), poisoned, 0.01) == (1, None)
    assert choose(strengths, changes(270, [0, 0], [0, 9], 279), poisoned, 0.01) == (0, None)
    assert choose(strengths, changes(270, [0, 0], [0, 9], 279), poisoned, 0.02) == (1, None)


def test_gain_is_weighed_against_loss_and_of_equals_the_weakest_is_taken() -> None:
    clean = changes(190, [0, 0, 0, 0], [0, 2, 4, 2], 200)
    poisoned = changes(100, [10, 62, 63, 62], [0, 0, 0, 0], 200)
    assert choose(np.array([1.0, 3.0, 4.0, 2.0]), clean, poisoned, 0.01) == (3, None)  # 62 − 2, and at strength 2


def test_what_cannot_be_corrected_says_why() -> None:
    strengths = np.array([1.0, 2.0])
    harmless, harmful = changes(190, [0, 0], [0, 1], 200), changes(190, [0, 0], [30, 40], 200)
    nothing, much = changes(100, [2, 3], [1, 0], 200), changes(100, [50, 80], [0, 0], 200)
    assert choose(strengths, harmless, nothing, 0.01) == (1, NO_GAIN)
    assert choose(strengths, harmful, nothing, 0.01) == (0, NO_GAIN)
    assert choose(strengths, harmful, much, 0.01) == (0, TOO_COSTLY)
    helps_where_it_harms = changes(100, [0, 80], [0, 0], 200)
    assert choose(strengths, changes(190, [0, 0], [0, 40], 200), helps_where_it_harms, 0.01) == (0, TOO_COSTLY)


def test_without_poisoned_images_the_loss_itself_is_held_to_the_tolerance() -> None:
    clean = changes(190, [0, 0, 0], [0, 2, 3], 200)
    assert choose(np.array([1.0, 2.0, 3.0]), clean, None, 0.01) == (1, None)
    assert choose(np.array([1.0, 2.0]), changes(190, [0, 0], [20, 9], 200), None, 0.01) == (1, TOO_COSTLY)


def test_a_loss_on_few_images_that_chance_explains_is_not_a_verdict() -> None:
    """Of 15 images up to 4 lost may be 1 % and chance, 5 may not."""
    strengths = np.array([1.0, 2.0])
    assert choose(strengths, changes(15, [0, 0], [1, 2], 15), None, 0.01) == (0, TOO_FEW)
    assert choose(strengths, changes(15, [0, 0], [5, 4], 15), None, 0.01) == (1, TOO_FEW)
    assert choose(strengths, changes(15, [0, 0], [5, 6], 15), None, 0.01) == (0, TOO_COSTLY)
    assert choose(strengths, changes(15, [0, 0], [0, 1], 15), None, 0.01) == (0, None)
    assert choose(strengths, changes(0, [0, 0], [0, 0], 0), None, 0.01) == (1, TOO_FEW)
