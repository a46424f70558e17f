"""The check of pairs: what is measured, on networks where the answers are known, and pictures of a real store's network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_net
import torch
from linear_sight import SIZE, Sight, colours
from PIL import Image
from tiny import trusted

from evaluate.visualize import check as module
from evaluate.visualize.check import check_pairs, check_rows
from evaluate.visualize.maximise import VisualizeConfig
from evaluate.visualize.natural import assumed, sampled
from extract.datasets import open_folder
from extract.network import Network
from extract.store_images import open_store_images
from extract.stream import ExtractConfig, extract
from pipeline.visualization import Features, draw_features
from stores.directions import Directions
from stores.errors import MismatchError, NonFiniteError, UsageError
from stores.readers import LayerReader
from stores.store import ActivationStore

QUICK = VisualizeConfig(steps=30)


class Seeing(Sight):
    """``Sight`` with a transform: RGB in [0, 1] at its size."""

    def transform(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize(SIZE[::-1]), np.float32) / 255).permute(2, 0, 1)


def with_token(images: torch.Tensor) -> torch.Tensor:
    """Colours, behind a token that must not count."""
    x = colours(images)
    return torch.cat([1000 + x[:, :1], x], 1)


@pytest.fixture
def primaries(make_directions: Callable[..., Directions]) -> Directions:
    """Detectors of red, green, blue: twice the value, above 1."""
    return make_directions(2 * np.eye(3), [1, 1, 1], layer="eye")


def test_each_detector_sees_its_own_colour_best(primaries: Directions) -> None:
    files: dict[tuple[str, int], bytes] = {}
    sight = Seeing(with_token, 3, prefix=1)
    assert primaries.thresholds is not None
    check = check_pairs(
        sight, primaries, primaries.thresholds, [2, 0, 1], assumed(SIZE), QUICK,
        keep=lambda role, index, file: files.__setitem__((role, index), file),
    )  # fmt: skip
    assert set(files) == {(r, i) for r in ("signal", "filter") for i in range(3)} | {("random", k) for k in range(8)}
    assert check.indices == (2, 0, 1)
    for m, index in enumerate(check.indices):
        with Image.open(io.BytesIO(files["signal", index])) as picture:
            value = np.asarray(picture.convert("RGB"), np.float64).reshape(-1, 3) / 255
        z = 2 * value - 1  # all detectors, from the file itself
        np.testing.assert_allclose(check.signals[m], z.mean(0)[[2, 0, 1]], atol=1e-5)
        assert check.fires_signal[m] == pytest.approx((z[:, index] > 0).mean())
        np.testing.assert_allclose(check.flats[m], check.signals[m], atol=0.02)  # colours: the mean is all there is
        with Image.open(io.BytesIO(files["random", m])) as picture:
            value = np.asarray(picture.convert("RGB"), np.float64).reshape(-1, 3) / 255
        np.testing.assert_allclose(check.randoms[m], (2 * value - 1).mean(0)[[2, 0, 1]], atol=1e-5)
        np.testing.assert_allclose(check.fires_random[m], (value > 0.5).mean(0)[[2, 0, 1]])
    assert (check.beyond_others == 1).all()


def test_shares_and_medians_are_those_of_the_numbers_given(primaries: Directions) -> None:
    sight = Seeing(colours, 3)
    check = check_pairs(sight, primaries, np.ones(3), [0, 1], assumed(SIZE), QUICK)
    made = replace(
        check,
        signals=np.array([[3.0, 9.0], [0.0, 4.0]]),
        randoms=np.array([[2.0, 4.0], [3.0, 5.0], [1.0, 3.0], [5.0, 1.0]]),
        fires_random=np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.5], [0.4, 1.0]]),
    )
    np.testing.assert_array_equal(made.beyond_random, [0.5, 0.5])  # 3 > 2, 1 and 4 > 3, 1: equal is not beyond
    np.testing.assert_array_equal(made.beyond_others, [1, 0])
    rows = check_rows(made, "ours", ["red", "green", "blue"])
    assert [(row["directions"], row["index"], row["label"]) for row in rows] == [
        ("ours", 0, "red"),
        ("ours", 1, "green"),
    ]
    assert [row["response_random"] for row in rows] == [2.5, 3.5]
    assert [row["fires_random"] for row in rows] == [0.25, 0.25]
    assert [row["response_signal"] for row in rows] == [3, 4]


def test_a_signal_that_its_filter_does_not_read_fails_the_check(make_directions: Callable[..., Directions]) -> None:
    made = make_directions(np.eye(3), [0.5, 0.5, 0.5], layer="eye")
    crossed = replace(made, signals=made.signals[:, [1, 2, 0]])
    check = check_pairs(Seeing(colours, 3), crossed, np.full(3, 0.5), [0, 1, 2], assumed(SIZE), QUICK)
    assert not (check.beyond_others == 1).any()
    assert check.beyond_random.mean() < 0.8
    assert (np.diag(check.filters) > np.diag(check.signals)).all()


@pytest.mark.gpu
def test_a_gpu_checks_what_a_processor_checks(primaries: Directions) -> None:
    assert primaries.thresholds is not None
    checks = []
    for device in ("cpu", "cuda"):
        sight = Seeing(with_token, 3, prefix=1)
        sight.device = torch.device(device)
        checks.append(check_pairs(sight, primaries, primaries.thresholds, [0, 2], assumed(SIZE), QUICK))
    np.testing.assert_allclose(checks[0].signals, checks[1].signals, atol=0.05)
    np.testing.assert_allclose(checks[0].randoms, checks[1].randoms, atol=0.05)


def test_pictures_are_measured_in_full_float32(primaries: Directions, monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[str] = []

    @contextmanager
    def computing(precision: str, device: torch.device) -> Iterator[None]:
        now.append(f"{precision} {device}")
        yield
        now.pop()

    monkeypatch.setattr(module, "computing_in", computing)
    sight = Seeing(lambda images: (measured.append(list(now)) if len(images) == 1 else None, colours(images))[1], 3)
    measured: list[list[str]] = []
    check_pairs(sight, primaries, np.ones(3), [0], assumed(SIZE), VisualizeConfig(steps=1))
    assert measured == [["float32 cpu"]] * (8 + 3)


def test_one_pair_has_no_others(primaries: Directions) -> None:
    check = check_pairs(Seeing(colours, 3), primaries, np.ones(3), [1], assumed(SIZE), QUICK)
    assert check_rows(check, "x", ["", "", ""])[0]["beyond_others"] is None


@pytest.mark.parametrize(
    ("indices", "says"),
    [([0, 3], "from 0 to 2, got 3"), ([1, 1], "got 1, 1"), ([], "got none"), ([-1], "got -1")],
)
def test_directions_that_are_not_there_are_refused(primaries: Directions, indices: list[int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_pairs(Seeing(colours, 3), primaries, np.ones(3), indices, assumed(SIZE), QUICK)


def test_directions_of_another_layer_and_thresholds_of_another_set_are_refused(
    primaries: Directions, make_directions: Callable[..., Directions]
) -> None:
    with pytest.raises(MismatchError, match="fitted on layer 'conv'"):
        check_pairs(Seeing(colours, 3), make_directions(np.eye(3)), np.ones(3), [0], assumed(SIZE), QUICK)
    with pytest.raises(MismatchError, match=r"'thresholds' must be \(3,\)"):
        check_pairs(Seeing(colours, 3), primaries, np.ones(2), [0], assumed(SIZE), QUICK)


@pytest.fixture
def store(tmp_path: Path, tiny_images: Callable[..., Path]) -> ActivationStore:
    config = ExtractConfig(model="tiny_net:build", layers=("second",), dtype="float32", chunk_images=4, workers=0)
    extract(open_folder(tiny_images()), tmp_path / "s", config)
    return trusted(tmp_path / "s")


@pytest.fixture
def found(make_directions: Callable[..., Directions]) -> Directions:
    """Five directions of the store's layer, without thresholds of their own."""
    filters = np.random.default_rng(0).standard_normal((8, 5))
    return make_directions(filters, layer="second", quantile=0.1)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_pictures_of_a_stores_network(store: ActivationStore, found: Directions, tmp_path: Path) -> None:
    config = VisualizeConfig(steps=4, batch=7)
    told: list[str] = []
    drawn = draw_features(
        store, found, [4, 1], tmp_path / "a" / "v", config=config,
        progress=lambda stage, done, total=None, note="": told.append(stage),
    )  # fmt: skip
    assert list(drawn) == [4, 1]
    assert drawn[4].signal == "signal-00004.jpg"
    assert drawn[1].filter == "filter-00001.jpg"
    assert sorted(contents(tmp_path / "a" / "v")) == sorted(f for d in drawn.values() for f in (d.signal, d.filter))
    for file in (tmp_path / "a" / "v").iterdir():
        with Image.open(file) as picture:
            assert picture.size == (tiny_net.SIZE, tiny_net.SIZE)
            assert picture.format == "JPEG"
    assert set(told) == {"quantiles", "feature pictures"}
    again = draw_features(store, found, [4, 1], tmp_path / "b", config=config)
    assert contents(tmp_path / "b") == contents(tmp_path / "a" / "v")
    assert again == drawn
    x = LayerReader(store, "second").images(range(10)).reshape(-1, 8)
    values = np.sort(x @ found.filters, axis=0)
    given = draw_features(store, found, [4], tmp_path / "c", config=config, thresholds=values[0] - 100)
    assert given[4].fires_signal == given[4].fires_random == 1
    assert given[4].response_signal > drawn[4].response_signal
    own = replace(found, thresholds=values[-1].astype(np.float32) + 1e6)
    assert draw_features(store, own, [4], tmp_path / "d", config=config, thresholds=values[0])[4].fires_signal == 0


def test_the_stores_own_images_tell_what_is_natural(
    store: ActivationStore, found: Directions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    natural = sampled(open_store_images(store), (16, 16), images=6)
    assert natural.images == 6
    assert torch.equal(natural.magnitude, sampled(open_store_images(store), (16, 16), images=6).magnitude)
    assert not torch.equal(natural.magnitude, sampled(open_store_images(store), (16, 16), images=6, seed=1).magnitude)
    config = VisualizeConfig("magnitude", steps=2)
    before = draw_features(store, found, [0], tmp_path / "v", config=config)
    images = Path(store.provenance["dataset"]["path"])
    next(images.rglob("*.png")).unlink()
    sampled(open_store_images(store), (16, 16))  # one image that is gone is no matter
    images.rename(tmp_path / "elsewhere")
    after = draw_features(store, found, [0], tmp_path / "w", config=config)
    assert "colours of everyday photographs" in caplog.text
    assert isinstance(after[0], Features)
    assert after != before


def test_nothing_is_written_when_the_network_fails(
    store: ActivationStore, found: Directions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, working = [], Network.activations

    def failing(self: Network, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return working(self, images) * (float("nan") if len(calls) > 35 else 1)  # 20 steps, 8 measured, then these two

    monkeypatch.setattr(Network, "activations", failing)
    config = VisualizeConfig(steps=20, batch=8)
    with pytest.raises(NonFiniteError, match="while signal vector 2, filter 2 is drawn"):
        draw_features(store, found, [2], tmp_path / "v", config=config, thresholds=np.zeros(5))
    assert not (tmp_path / "v").exists()


def test_a_synthetic_store_has_nothing_to_draw(
    tiny_store: Callable[..., Path], make_directions: Callable[..., Directions], tmp_path: Path
) -> None:
    path = tiny_store({"a": np.ones((3, 2, 2), np.float32)}, provenance={"model": "synthetic", "synthetic": {}})
    made: Any = make_directions(np.eye(2), [0, 0], layer="a")
    with pytest.raises(MismatchError, match="is synthetic: it has a head, but no images"):
        draw_features(ActivationStore.open(path), made, [0], tmp_path / "v")
