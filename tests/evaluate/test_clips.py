"""Layers with steps in time: scored as if each step were an image of its own; how steadily detectors fire from step to step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slow_dissection import LABELS, WHOLE, Broden, random_rows

from evaluate.autocorrelation import autocorrelation
from evaluate.detector_bank import make_bank
from evaluate.dissect import Dissector, Resolution
from evaluate.metrics import choose_labels
from extract.labels import Alignment
from stores.directions import Directions
from stores.format import LayerSpec
from stores.readers import LayerReader
from tests.helpers.tiny import write_store

CLIPS, STEPS, GRID = 9, 3, (2, 2)


@pytest.mark.parametrize("resolution", ["mask", "feature"])
@pytest.mark.parametrize("on_device", [False, True])
def test_each_step_counts_as_an_image_with_the_clips_labels(
    tmp_path: Path,
    make_broden: Broden,
    make_directions: Callable[..., Directions],
    monkeypatch: pytest.MonkeyPatch,
    resolution: Resolution,
    on_device: bool,
) -> None:
    g = np.random.default_rng(3)
    source = make_broden(tmp_path / "b", LABELS, random_rows(g, CLIPS, (8, 8)))
    x = g.normal(size=(CLIPS, STEPS, 4, 3)).astype(np.float32)
    directions = make_directions(g.normal(size=(3, 6)), 0.5 + g.random(6))
    if on_device:  # counted by torch, as on a GPU
        from evaluate import label_statistics
        from evaluate.label_counters import TorchCounter

        monkeypatch.setattr(label_statistics, "CompiledCounter", TorchCounter)

    def both(name: str, values: np.ndarray, time: int, of: list[int]) -> tuple[Any, Any]:
        spec = LayerSpec("conv", GRID, 3, time=time)
        path = write_store(tmp_path / name, {"conv": values}, specs={"conv": spec}, chunk_images=2)
        reader = LayerReader(path)
        bank = make_bank({"d": directions}, reader)
        alignment = Alignment(source, dict(enumerate(of)), lambda image: WHOLE)
        dissector = Dissector(reader, bank, alignment, resolution, scheduler="here")
        counts = dissector.count()
        return counts, dissector.second(choose_labels(counts))

    clips = both("clips.zarr", x.reshape(CLIPS, STEPS * 4, 3), STEPS, list(range(CLIPS)))
    frames = both("frames.zarr", x.reshape(CLIPS * STEPS, 4, 3), 1, [k // STEPS for k in range(CLIPS * STEPS)])
    for name in ("both", "detector", "label", "points", "positive"):
        np.testing.assert_array_equal(getattr(clips[0], name), getattr(frames[0], name), name)
    assert clips[0].covered == frames[0].covered
    for name in ("average_precision",):
        np.testing.assert_allclose(getattr(clips[1], name), getattr(frames[1], name), rtol=1e-12, err_msg=name)


def test_autocorrelation_is_that_of_neighbouring_steps_at_one_place(
    tmp_path: Path, make_directions: Callable[..., Directions]
) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(7, 5, 4, 2)).astype(np.float32).cumsum(1)
    directions = make_directions([[1, 0.5, 0], [0, 1, 0]], [0, 1, 2])
    z = x @ directions.filters
    wanted = [np.corrcoef(z[:, :-1, :, j].ravel(), z[:, 1:, :, j].ravel())[0, 1] for j in range(2)]
    clips = write_store(
        tmp_path / "c", {"conv": x.reshape(7, 20, 2)}, specs={"conv": LayerSpec("conv", (2, 2), 2, time=5)}
    )
    names = [f"{clip}.mp4#{k}" for clip in range(7) for k in range(5)]
    frames = write_store(
        tmp_path / "f",
        {"conv": x.reshape(35, 4, 2)},
        specs={"conv": LayerSpec("conv", (2, 2), 2)},
        names=names,
        chunk_images=4,
    )
    for path in (clips, frames):
        reader = LayerReader(path)
        found = autocorrelation(reader, make_bank({"d": directions}, reader))
        np.testing.assert_allclose(found[:2], wanted, rtol=1e-5)
        assert np.isnan(found[2])  # it does not vary
