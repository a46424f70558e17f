"""The augmented Lagrangian: its terms, weights and multipliers by hand, and a problem whose optimum is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fit.paper.step import Multipliers


def test_terms_by_hand() -> None:
    found = Multipliers({"a": 0.5, "b": 2.0}, penalty=3.0)
    assert found.penalties == {"a": 12.0, "b": 0.75}
    assert found.values == {"a": 0.0, "b": 0.0}
    # g = 0.25: (0 + 12 · 0.25)² / 24
    assert float(found.term("a", torch.tensor(0.75))) == pytest.approx(9 / 24)
    assert found.weight("a", 0.75) == pytest.approx(3.0)
    assert float(found.term("a", torch.tensor(0.1))) == 0
    assert found.weight("a", 0.1) == 0
    found.update({"a": 0.75, "b": 1.0})
    assert found.values == {"a": pytest.approx(3.0), "b": 0.0}
    # held with slack, the multiplier falls: 3 + 12 · (−0.1) = 1.8; (1.8² − 3²) / 24
    assert float(found.term("a", torch.tensor(0.4))) == pytest.approx((1.8**2 - 9) / 24)
    found.update({"a": 0.4, "b": 1.0})
    assert found.values["a"] == pytest.approx(1.8)
    found.update({"a": 0.0, "b": 1.0})
    assert found.values["a"] == 0
    assert found.violation({"a": 0.6, "b": 4.0}) == pytest.approx(0.5 * 12 * 0.01 + 0.5 * 0.75 * 4)


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0.05, 9), st.floats(0.01, 10))
def test_the_weight_is_the_terms_slope(loss: float, multiplier: float, bound: float, penalty: float) -> None:
    found = Multipliers({"c": bound}, penalty)
    found.values["c"] = multiplier
    value = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(found.term("c", value), value)
    assert float(slope) == pytest.approx(found.weight("c", loss), rel=1e-9, abs=1e-9)


def test_it_solves_a_problem_whose_optimum_is_known() -> None:
    """min (x − 3)² + (y − 1)² subject to x² < 1: x = 1, y = 1, multiplier 2."""
    found = Multipliers({"c": 1.0}, penalty=1.0)
    x = torch.tensor([0.5, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([x], lr=0.05)
    for _ in range(200):
        for _ in range(20):
            optimiser.zero_grad()
            loss = (x - torch.tensor([3.0, 1.0])).square().sum() + found.term("c", x[0] ** 2)
            loss.backward()
            optimiser.step()
        found.update({"c": float(x[0].detach() ** 2)})
    assert x.tolist() == pytest.approx([1, 1], abs=1e-4)
    assert found.values["c"] == pytest.approx(2, abs=1e-3)
    assert math.isclose(found.violation({"c": 1.0}), 0)
