import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extract.tensor_layout import LayerLayout, candidates, parse_layout, token_grids
from stores.errors import UsageError

small = st.integers(1, 5)


@st.composite
def layouts(draw: st.DrawFn) -> LayerLayout:
    kind = draw(st.sampled_from(["nchw", "nhwc", "tokens", "ncp", "vector", "ncthw", "nthwc", "ntchw"]))
    grid = (1, 1) if kind == "vector" else (draw(small), draw(small))
    prefix = draw(st.integers(0, 4)) if kind in ("tokens", "ncp") else 0
    return LayerLayout(kind, grid, draw(small), prefix, draw(small) if kind.startswith(("nct", "nt", "tok")) else 1)


@given(layouts(), st.integers(1, 3))
def test_both_directions_are_exact_inverses(layout: LayerLayout, n: int) -> None:
    own = torch.arange(n * math.prod(layout.shape), dtype=torch.float32).reshape(n, *layout.shape)
    x = layout.to_npc(own)
    assert x.shape == (n, layout.positions, layout.channels)
    assert torch.equal(layout.from_npc(x), own)
    assert layout.from_npc(x).is_contiguous()
    assert torch.equal(layout.to_npc(layout.from_npc(x)), x)
    size = (8, 64, 64) if layout.kind in ("ncthw", "nthwc", "ntchw") or layout.time > 1 else (64, 64)
    assert parse_layout(layout.option, (n, *layout.shape), size) == layout


def test_positions_run_row_by_row_and_channels_last() -> None:
    own = torch.arange(12).reshape(1, 2, 2, 3)  # nchw: C=2, h=2, w=3
    x = LayerLayout("nchw", (2, 3), 2).to_npc(own)
    assert x[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert x[0, 1].tolist() == [1, 7]
    assert LayerLayout("nhwc", (2, 2), 3).to_npc(own)[0, 1].tolist() == [3, 4, 5]


def test_positions_of_clips_run_step_by_step() -> None:
    own = torch.arange(24).reshape(1, 2, 3, 2, 2)
    assert LayerLayout("ncthw", (2, 2), 2, time=3).to_npc(own)[0, :, 0].tolist() == list(range(12))
    assert LayerLayout("ntchw", (2, 2), 3, time=2).to_npc(own)[0, :, 0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert LayerLayout("nthwc", (3, 2), 2, time=2).to_npc(own)[0, :, 0].tolist() == list(range(0, 24, 2))


@pytest.mark.parametrize(
    ("positions", "size", "expected"),
    [
        (197, (224, 224), [(1, (14, 14))]),
        (198, (224, 224), [(2, (14, 14))]),
        (261, (224, 224), [(5, (16, 16))]),
        (281, (224, 320), [(1, (14, 20))]),
        (280, (320, 224), [(0, (20, 14))]),
        (65, (64, 64), [(1, (8, 8))]),  # nor 7 × 7 patches, cut off, behind 16
        (20, (64, 64), [(4, (4, 4)), (16, (2, 2))]),
        (148, (200, 200), [(4, (12, 12))]),  # patches of 16
        (168, (224, 224), []),
    ],
)
def test_grids_of_tokens(positions: int, size: tuple[int, int], expected: list) -> None:
    assert [found[:2] for found in token_grids(positions, size)] == expected


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6), st.integers(0, 16), st.integers(0, 5))
def test_the_true_grid_of_square_patches_is_among_them(h: int, w: int, side: int, prefix: int, rest: int) -> None:
    rest = min(rest, side - 1)  # of the image beside the last patch
    found = token_grids(prefix + h * w, (h * side + rest, w * side + rest))
    assert found
    assert rest or (prefix, (h, w), 1) in found


def test_candidates_of_four_dimensions() -> None:
    assert candidates((2, 512, 7, 9), (224, 224)) == [
        LayerLayout("nchw", (7, 9), 512),
        LayerLayout("nhwc", (512, 7), 9),
    ]
    assert candidates((2, 10), (224, 224)) == [LayerLayout("vector", (1, 1), 10)]
    assert candidates((2, 3, 4, 5, 6), (224, 224)) == candidates((2,), (224, 224)) == []


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("nhwc", (2, 7, 7, 768), LayerLayout("nhwc", (7, 7), 768)),
        ("nchw", (2, 7, 7, 768), LayerLayout("nchw", (7, 768), 7)),
        ("vector", (2, 9), LayerLayout("vector", (1, 1), 9)),
        ("tokens", (2, 197, 8), LayerLayout("tokens", (14, 14), 8, 1)),
        ("tokens+5:5x20", (2, 105, 8), LayerLayout("tokens", (5, 20), 8, 5)),
        ("tokens:5x20", (2, 105, 8), LayerLayout("tokens", (5, 20), 8, 5)),
        ("tokens+0:1x105", (2, 105, 8), LayerLayout("tokens", (1, 105), 8)),
        ("ncp:14x14", (2, 8, 196), LayerLayout("ncp", (14, 14), 8)),
    ],
)
def test_layouts_as_the_user_writes_them(text: str, shape: tuple, expected: LayerLayout) -> None:
    assert parse_layout(text, shape, (224, 224)) == expected


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("nwhc", (2, 7, 7, 8)),
        ("tokens", (2, 7, 7, 8)),
        ("tokens+4:5x20", (2, 105, 8)),
        ("ncp+1", (2, 105, 8)),
        ("nhwc+1", (2, 7, 7, 8)),
    ],
)
def test_layouts_that_do_not_fit_are_refused(text: str, shape: tuple) -> None:
    with pytest.raises(UsageError, match="--layout"):
        parse_layout(text, shape, (224, 224))


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
