"""The quantile sketch against exact order statistics, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stores.sketch
from stores.readers import LayerReader
from stores.sketch import BINS, EDGES, ZERO, Sketch, quantile_sketch

Make = Callable[..., Path]
NAMES = ("counts", "zeros", "nan", "infinite", "minimum", "maximum")


def sketch_of(x: np.ndarray) -> Sketch:
    made = Sketch(x.shape[1])
    made.update(x)
    return made


def equal(a: Sketch, b: Sketch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in NAMES)


def naive_counts(column: np.ndarray) -> np.ndarray:
    """Counts by searching the edges; an edge belongs to the bin away from 0, so magnitudes are looked up."""
    found = np.zeros(BINS, np.int64)
    for value in column.astype(np.float64):
        k = int(np.searchsorted(EDGES[ZERO + 1 :], abs(value), "right"))  # 0: below 2^-24
        k = min(k, ZERO)
        found[ZERO + k if value >= 0 else ZERO - k] += 1
    return found


def test_a_toy_by_hand() -> None:
    x = np.array([[0, 1], [-0.0, 1.03125], [2, -1], [-3, 4]], np.float32)
    found = sketch_of(x)
    assert found.zeros.tolist() == [2, 0]
    assert found.minimum.tolist() == [-3, -1]
    assert found.maximum.tolist() == [2, 4]
    assert found.total.tolist() == [4, 4]
    one = ZERO + 1 + 24 * 32  # the bin that begins at 2^0
    assert (EDGES[one], EDGES[one + 1]) == (1, 1 + 1 / 32)
    assert np.flatnonzero(found.counts[1]).tolist() == [2 * ZERO - one, one, one + 1, one + 64]
    assert found.quantiles([0, 0.5, 0.75, 1]).T.tolist() == [[-3, 0, 0, 2], [-1, 1 + 1 / 64, 1.03125 + 1 / 64, 4]]


def test_bins_tile_the_line_with_a_relative_width_of_one_32nd() -> None:
    assert len(EDGES) == BINS + 1 == 4098
    assert np.array_equal(EDGES, -EDGES[::-1])
    positive = EDGES[ZERO + 1 :]
    assert (positive[0], positive[-1]) == (2.0**-24, 2.0**40)
    assert (np.diff(positive) / positive[:-1]).max() == 1 / 32


@st.composite
def heavy_tailed(draw: st.DrawFn) -> np.ndarray:
    """(n, C) values over many octaves, some of them zero, some negative, in float16 or float32."""
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, c = draw(st.integers(1, 300)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["cauchy", "lognormal", "pareto", "octaves"]))
    x = {
        "cauchy": lambda: g.standard_cauchy((n, c)),
        "lognormal": lambda: np.exp(g.normal(0, 3, (n, c))) * g.choice([-1, 1], (n, c)),
        "pareto": lambda: g.pareto(0.5, (n, c)),
        "octaves": lambda: np.exp2(g.uniform(-30, 45, (n, c))) * g.choice([-1, 1], (n, c)),
    }[kind]()
    x[g.random((n, c)) < draw(st.sampled_from([0, 0.3, 0.95]))] = 0
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    return np.clip(x, -6e4, 6e4).astype(dtype) if dtype == np.float16 else x.astype(dtype)


@given(heavy_tailed(), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_quantiles_keep_their_guarantee(x: np.ndarray, q: list[float]) -> None:
    found = sketch_of(x).quantiles(q)
    exact = np.quantile(x.astype(np.float64), q, axis=0, method="inverted_cdf")
    covered = np.abs(exact) < 2.0**40
    allowed = np.where(np.abs(exact) < 2.0**-24, 2.0**-24, np.abs(exact) / 64)
    assert (np.abs(found - exact) <= allowed)[covered].all()
    assert (found >= x.min(0)).all()
    assert (found <= x.max(0)).all()


@given(heavy_tailed())
def test_counts_against_a_search_of_the_edges(x: np.ndarray) -> None:
    found = sketch_of(x)
    for channel in range(x.shape[1]):
        assert np.array_equal(found.counts[channel], naive_counts(x[:, channel]))
    assert np.array_equal(found.zeros, (x == 0).sum(0))
    assert np.array_equal(found.minimum, x.min(0).astype(np.float32))
    assert np.array_equal(found.maximum, x.max(0).astype(np.float32))


@given(heavy_tailed(), st.integers(0, 300), st.booleans())
def test_parts_merge_to_all(x: np.ndarray, cut: int, spoil: bool) -> None:
    if spoil:
        x[np.random.default_rng(cut).random(x.shape) < 0.2] = np.nan
    whole, first, second = sketch_of(x), sketch_of(x[:cut]), sketch_of(x[cut:])
    streamed = sketch_of(x[:cut])
    streamed.update(x[cut:])
    second.merge(first)
    assert equal(whole, second)
    assert equal(whole, streamed)


@pytest.mark.parametrize("tile", [(1, 1), (7, 3), (10**6, 10**6)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], dtype: type) -> None:
    x = np.random.default_rng(0).standard_cauchy((50, 70)).astype(dtype)
    x[3, 4], x[5:, 6], x[:, 8] = np.nan, np.inf, -np.inf
    wanted = sketch_of(x)
    monkeypatch.setattr(stores.sketch, "ROWS", tile[0])
    monkeypatch.setattr(stores.sketch, "COLUMNS", tile[1])
    assert equal(sketch_of(x), wanted)
    assert equal(sketch_of(np.asfortranarray(x)), wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_not_finite_is_counted_apart(dtype: type) -> None:
    x = np.array([[1, np.nan, np.nan, 0], [np.inf, np.nan, 0, 0], [-np.inf, np.nan, -2, 0], [3, np.nan, 0, 0]], dtype)
    found = sketch_of(x)
    assert found.nan.tolist() == [0, 4, 1, 0]
    assert found.infinite.tolist() == [2, 0, 0, 0]
    assert found.zeros.tolist() == [0, 0, 2, 4]
    assert found.total.tolist() == [4, 4, 4, 4]
    assert found.minimum.tolist() == [1, np.inf, -2, 0]
    assert found.maximum.tolist() == [3, -np.inf, 0, 0]
    np.testing.assert_array_equal(found.quantiles([0, 1]), [[1, np.nan, -2, 0], [3, np.nan, 0, 0]])
    assert sketch_of(np.full((3, 2), np.nan, dtype)).total.tolist() == [3, 3]


def test_float16_zeros_and_its_smallest_value_are_distinguished() -> None:
    x = np.array([[0], [2.0**-24], [-(2.0**-24)], [-0.0]], np.float16)
    assert sketch_of(x).zeros.tolist() == [2]
    tiny = np.array([[0], [2.0**-30], [-(2.0**-149)]], np.float32)
    found = sketch_of(tiny)
    assert found.zeros.tolist() == [1]
    assert found.counts[0, ZERO] == 3
    assert found.minimum.item() == -(2.0**-149)


def test_all_channels_pooled() -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    x[0, 0], x[1, 1] = np.nan, 0
    assert equal(sketch_of(x).pooled(), sketch_of(x.reshape(-1, 1)))


def test_a_layer_is_streamed_and_stored(tiny_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 5)).astype(np.float16)
    valid = np.arange(20) != 7
    path = tiny_store({"a": x}, valid=valid, dtype="float16", compress="zstd")
    wanted = sketch_of(x[valid].reshape(-1, 5))
    found = quantile_sketch(LayerReader(path))
    assert equal(found, wanted)
    assert found.images == 19
    assert LayerReader(path).store.verify() == []
    monkeypatch.setattr(stores.sketch, "sketch_chunks", None)
    for images in (None, 5):
        again = quantile_sketch(LayerReader(path), images=images)
        assert equal(again, wanted)
        assert again.images == 19
    with pytest.raises(TypeError):
        quantile_sketch(LayerReader(path), cache=False)


@pytest.mark.parametrize("images", [1, 2, 7, 19, 64, 99, 100, 1000])
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_quick_look_takes_so_many_images_from_all_over(tiny_store: Make, images: int, compress: str) -> None:
    x = np.arange(100, dtype=np.float32)[:, None, None] + np.zeros((100, 2, 3), np.float32)
    path = tiny_store({"a": x}, chunk_images=10, compress=compress)
    found = quantile_sketch(LayerReader(path), images=images)
    assert found.images == min(images, 100)
    assert found.total.tolist() == [2 * found.images] * 3
    seen = found.quantiles(np.linspace(0, 1, 50))[:, 0]
    assert abs(seen.mean() - 49.5) < 6
    if images >= 19:
        assert seen[0] < 10
        assert seen[-1] > 89
    assert not (path / "layers/a/sketch.safetensors").exists()


def test_another_layers_sketch_is_not_used(tiny_store: Make) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 5)).astype(np.float32)
    path = tiny_store({"a": x, "b": x + 1})
    lower = quantile_sketch(LayerReader(path, "a")).minimum
    (path / "layers/a/sketch.safetensors").rename(path / "layers/b/sketch.safetensors")
    assert quantile_sketch(LayerReader(path, "b")).minimum.min() > lower.min()


HARMED = {
    "lacking": lambda a: a.pop("zeros"),
    "channels": lambda a: a.update({k: v[:1] for k, v in a.items() if k != "bins"}),
    "kind": lambda a: a.update(maximum=a["maximum"].astype(np.float64)),
    "bins": lambda a: a.update(bins=a["bins"] + BINS),
    "negative": lambda a: a.update(counts=-a["counts"]),
}


@pytest.mark.parametrize("what", HARMED)
def test_a_stored_sketch_that_is_none_is_made_anew(
    tiny_store: Make, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Sound to the byte, and of this very store, but made by who knows whom."""
    path = tiny_store({"a": np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)})
    reader = LayerReader(path)
    wanted = quantile_sketch(reader).to_arrays()
    arrays = dict(wanted)
    HARMED[what](arrays)
    key = {"store": reader.store.fingerprint, "layer": "a", "prefix": 2, "version": 1}
    stores.sketch.write_cache(path / "layers/a/sketch.safetensors", key, arrays, {"images": 5})
    found = quantile_sketch(reader).to_arrays()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert "Computed again" in caplog.text
    caplog.clear()
    quantile_sketch(reader)
    assert not caplog.text
