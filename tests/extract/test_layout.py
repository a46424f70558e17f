import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extract.layout import LayerLayout, infer_layout, token_grid
from stores.errors import UsageError

small = st.integers(1, 5)


@st.composite
def layouts(draw: st.DrawFn) -> LayerLayout:
    kind = draw(st.sampled_from(["nchw", "nhwc", "tokens", "vector"]))
    grid = (1, 1) if kind == "vector" else (draw(small), draw(small))
    return LayerLayout(kind, grid, draw(small), draw(st.integers(0, 4)) if kind == "tokens" else 0)


@given(layouts(), st.integers(1, 3))
def test_both_directions_are_exact_inverses(layout: LayerLayout, n: int) -> None:
    own = torch.arange(n * math.prod(layout.shape), dtype=torch.float32).reshape(n, *layout.shape)
    x = layout.to_npc(own)
    assert x.shape == (n, layout.positions, layout.channels)
    assert torch.equal(layout.from_npc(x), own)
    assert layout.from_npc(x).is_contiguous()
    assert torch.equal(layout.to_npc(layout.from_npc(x)), x)
    assert LayerLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_positions_run_row_by_row_and_channels_last() -> None:
    own = torch.arange(12).reshape(1, 2, 2, 3)  # nchw: C=2, h=2, w=3
    x = LayerLayout("nchw", (2, 3), 2).to_npc(own)
    assert x[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert x[0, 1].tolist() == [1, 7]
    assert LayerLayout("nhwc", (2, 2), 3).to_npc(own)[0, 1].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("positions", "size", "expected"),
    [
        (197, (224, 224), (1, (14, 14))),
        (196, (224, 224), (0, (14, 14))),
        (198, (224, 224), (2, (14, 14))),
        (261, (224, 224), (5, (16, 16))),
        (50, (224, 224), (1, (7, 7))),
        (17, (32, 32), (1, (4, 4))),
        (281, (224, 320), (1, (14, 20))),
        (280, (320, 224), (0, (20, 14))),
        (1, (224, 224), (0, (1, 1))),
        (35, (224, 224), (10, (5, 5))),
        (168, (224, 224), (0, (1, 168))),
    ],
)
def test_grid_of_tokens(positions: int, size: tuple[int, int], expected: tuple) -> None:
    assert token_grid(positions, size) == expected


@pytest.mark.parametrize(
    ("shape", "other", "expected"),
    [
        ((2, 512, 7, 7), (1, 512, 6, 8), LayerLayout("nchw", (7, 7), 512)),
        ((2, 7, 7, 768), (1, 6, 8, 768), LayerLayout("nhwc", (7, 7), 768)),
        ((2, 7, 7, 7), (1, 6, 8, 7), LayerLayout("nhwc", (7, 7), 7)),
        ((2, 7, 7, 7), (1, 7, 6, 8), LayerLayout("nchw", (7, 7), 7)),
        ((2, 7, 7, 7), None, LayerLayout("nchw", (7, 7), 7)),
        ((2, 7, 7, 768), None, LayerLayout("nhwc", (7, 7), 768)),
        ((2, 512, 7, 7), (1, 512, 7, 7), LayerLayout("nchw", (7, 7), 512)),
        ((2, 512, 1, 1), None, LayerLayout("nchw", (1, 1), 512)),
        ((2, 10, 20, 512), (1, 9, 21, 512), LayerLayout("nhwc", (10, 20), 512)),
        ((2, 197, 768), None, LayerLayout("tokens", (14, 14), 768, 1)),
        ((2, 1000), None, LayerLayout("vector", (1, 1), 1000)),
    ],
)
def test_layout_from_shapes(shape: tuple, other: tuple | None, expected: LayerLayout) -> None:
    layout = infer_layout(shape, (224, 224), other)
    assert layout == expected
    assert layout.shape == shape[1:]


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4, 5, 6), ()])
def test_shapes_without_a_layout_are_refused(shape: tuple) -> None:
    with pytest.raises(UsageError, match="must give"):
        infer_layout(shape, (224, 224))


def test_tensors_of_another_shape_are_refused() -> None:
    layout = LayerLayout("nchw", (2, 3), 4)
    with pytest.raises(UsageError, match=r"\(n, 4, 2, 3\), got \(1, 4, 3, 2\)"):
        layout.to_npc(torch.zeros(1, 4, 3, 2))
    with pytest.raises(UsageError, match=r"\(n, 6, 4\)"):
        layout.from_npc(torch.zeros(1, 4, 6))
    with pytest.raises(UsageError):
        layout.from_npc(torch.zeros(6, 4))


@pytest.mark.parametrize(
    "arguments", [("cube", (1, 1), 3), ("nchw", (1, 1), 3, 1), ("vector", (1, 2), 3), ("nchw", (0, 1), 3)]
)
def test_impossible_layouts_are_refused(arguments: tuple) -> None:
    with pytest.raises(UsageError):
        LayerLayout(*arguments)
