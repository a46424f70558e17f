"""The surest images of each detector, against sorting everything, and where on them its logits are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evaluate.top_images import Top, on_grid
from stores.readers import LayerReader
from stores.store import ActivationStore

Store = Callable[..., ActivationStore]


@given(st.data())
def test_tops_of_parts_add_up_to_that_of_all_in_any_order(data: st.DataObject) -> None:
    """Against a sort by value, then by row; the values are few, so that many are equal."""
    n, most = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5))
    values = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=2 * n, max_size=2 * n)), float).reshape(n, 2)
    edges = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = []
    for start, stop in pairwise([0, *edges, n]):
        order = [sorted(range(start, stop), key=lambda row, j=j: (-values[row, j], row))[:most] for j in range(2)]
        rows = np.array(order, int).reshape(2, -1).T
        parts.append(Top(rows, np.take_along_axis(values, rows, 0), most))
    whole = sum(data.draw(st.permutations(parts)), Top(np.zeros((0, 2), int), np.zeros((0, 2)), most))
    for j in range(2):
        assert whole.rows[:, j].tolist() == sorted(range(n), key=lambda row, j=j: (-values[row, j], row))[:most]
        assert whole.values[:, j].tolist() == [values[row, j] for row in whole.rows[:, j]]


def test_sampled_positions_are_drawn_where_they_are(tmp_path: Path, make_store: Store) -> None:
    positions = np.array([[0, 8], [2, 6]], np.int32)
    x = np.array([[[5], [-5]], [[7], [-7]]], np.float32)
    reader = LayerReader(make_store(tmp_path / "s.zarr", x, grid=(3, 3), positions=positions))
    (first,), (second,) = on_grid(reader, 0, x[0, :, 0]), on_grid(reader, 1, x[1, :, 0])
    assert first.tolist()[0] == [5, 5, 5]  # nearest to the corner 0; the middle row's tie goes to the first
    assert first.tolist()[2] == [5, -5, -5]
    assert second[0, 2] == second[1, 2] == 7
    assert second[2, 0] == second[2, 1] == -7
