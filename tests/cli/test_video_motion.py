"""From drawn clips to directions: a motion, which no single frame shows, is found in a network that takes clips."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stores.store import ActivationStore
from tests.helpers.motion_net import MOTIONS, train, write_dataset
from tests.helpers.tiny import write_broden

MODEL = "tests.helpers.motion_net:motion_net"


@pytest.mark.slow
def test_motions_are_found_labelled_and_influence_their_classes(
    run: Callable[..., object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, weights, store = write_dataset(tmp_path / "clips", 20), tmp_path / "weights.pt", tmp_path / "acts.zarr"
    assert train(weights) > 0.95
    run("extract", "--model", MODEL, "--weights", weights, "--layer", "late", "--data", data, "--out", store, "--quiet")
    spec = ActivationStore.open(store).layer("late")
    assert (spec.time, spec.grid, spec.positions) == (4, (8, 8), 256)
    directions, out = tmp_path / "d.safetensors", tmp_path / "evaluation"
    run("fit", "--store", store, "--directions", 8, "--refits", 0, "--out", directions, "--quiet")
    run(
        "evaluate", "--store", store, "--model", MODEL, "--directions", directions, "--broden", data, "--influence",
        "--influence-images", 48, "--null-directions", 30, "--out", out, "--quiet",
    )  # fmt: skip
    with (out / "directions.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["interpretable"] == "true"]
    assert set(MOTIONS) <= {row["label"] for row in found}
    # a label of a clip is that of all its positions, of three motions: by chance a third
    assert all(float(row["precision"]) > 0.5 for row in found if row["label"] in MOTIONS)
    with (out / "influence.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == "signal"]
    significant = [row for row in rows if row["significant_random"] == "true"]  # 30 null directions are few for p_max
    own = [row for row in significant if row["label"] in MOTIONS and row["class_name"].startswith(row["label"])]
    assert own
    assert all(float(row["score"]) > 0 for row in own)
    still = tmp_path / "still"
    run(
        "evaluate", "--store", store, "--model", MODEL, "--directions", directions, "--broden", write_broden(tmp_path / "b").root,
        "--out", still,
    )  # fmt: skip
    assert "holds still images" in caplog.text
    assert "each image is repeated 8 times" in (still / "report.html").read_text()
    with (out / "autocorrelation.csv").open() as file:
        steady = [float(row["autocorrelation"]) for row in csv.DictReader(file)]
    assert len(steady) == 8
    assert all(-1 <= value <= 1 for value in steady)
    assert json.loads((out / "summary.json").read_text())["directions"]["d"]["autocorrelation"] == pytest.approx(
        sum(steady) / 8
    )
