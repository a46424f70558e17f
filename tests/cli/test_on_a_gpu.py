"""Every command with ``--device cuda``, next to what the processor finds: on a GPU, or on one that is pretended."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, ok
from shortcut_net import directions_arrays, write_masks, write_scenes
from tiny import write_broden

from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions
from stores.readers import LayerReader

GPU = ("--device", "cuda", "--quiet")
QUICK = ("--quiet", "--refits", 1, "--set", "refine_steps=8", "--set", "restarts=1", "--set", "restart_steps=4")
BRIEF = ("--refits", 0, "--set", "restarts=1", "--set", "restart_epochs=2", "--set", "a.epochs=3")
FEW = ("--null-directions", 5, "--null-positions", 40)

pytestmark = pytest.mark.gpu


def extracted(run: Run, data: Path, out: Path, *more: object, network: str = "with_transform") -> Path:
    names = ("--model", f"shortcut_net:{network}", "--weights", "none", "--layer", "act")
    ok(run("extract", *names, "--data", data, "--out", out, "--quiet", *more))
    return out


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "concepts", 20)


@pytest.fixture
def store(run: Run, tmp_path: Path, masks: Path) -> Path:
    return extracted(run, masks, tmp_path / "acts.zarr", "--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic store: 300 images of 2 positions, 16 channels, 3 concepts."""
    path = tmp_path_factory.mktemp("truth") / "truth.zarr"
    make_synthetic(path, SyntheticConfig(images=300))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("more", [(), ("--positions", 5), ("--dtype", "float16")])
def test_extraction(run: Run, tmp_path: Path, masks: Path, more: tuple[object, ...]) -> None:
    here, there = (
        LayerReader(extracted(run, masks, tmp_path / device, "--device", device, *more)) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.images(range(40)), here.images(range(40)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(there.store.logits, here.store.logits, rtol=1e-4, atol=1e-4)
    record = json.loads(there.store.path.with_name("cuda.run.json").read_text())
    assert record["device"]["kind"].startswith("cuda")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--set", "regime=soft", "--set", "signals=positives", "--set", "batch_rows=200"),
        ("--set", "whiten=false", "--set", "signals=free"),
    ],
)
def test_a_fit_finds_what_the_processor_finds(run: Run, truth: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.safetensors"
        ok(run("fit --store", truth, "--directions 3 --out", out, "--device", device, *QUICK, *more))
        found.append(Directions.load(out))
    cosine = np.abs(unit(found[0].filters).T @ unit(found[1].filters)).max(1)
    assert cosine.min() > 0.98, cosine


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=0)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("eddp", ("--steps", "paper", *BRIEF, "--set", "b.epochs=3", "--set", "d.epochs=3")),
        (
            "eddp",
            ("--steps", "paper", "--set", "preset=synthetic", *BRIEF, "--set", "b.epochs=3", "--set", "d.epochs=3"),
        ),
        ("cbe", BRIEF),
        ("uibe", BRIEF),
        ("kmeans", ("--set", "space=raw")),
        ("kmeans", ()),
        ("pca", ()),
        ("ica", ("--set", "iterations=20")),
        ("nmf", ("--set", "iterations=5")),
        ("sae", ("--set", "epochs=1")),
        ("sae", ("--set", "epochs=1", "--set", "kind=l1")),
        ("neurons", ()),
    ],
)
@pytest.mark.filterwarnings("ignore:ICA did not converge")
def test_every_method_fits_and_is_measured(
    run: Run, truth: Path, tmp_path: Path, method: str, more: tuple[object, ...]
) -> None:
    out = tmp_path / "d.safetensors"
    ok(run("fit --store", truth, "--directions 3 --method", method, "--out", out, *GPU, *more))
    assert np.isfinite(Directions.load(out).filters).all()
    ok(run("evaluate --store", truth, "--directions", out, "--ground-truth --out", tmp_path / "e", *GPU))


@pytest.mark.parametrize(
    ("method", "more"),
    [("eddp", QUICK), ("eddp", (*QUICK, "--set", "uncertainty_objective=entropy")), ("cbe", BRIEF)],
)
def test_fits_that_ask_the_network(run: Run, tmp_path: Path, method: str, more: tuple[object, ...]) -> None:
    data, store = write_broden(tmp_path / "broden", images=12).root, tmp_path / "acts.zarr"
    ok(run("extract --model tiny_net:build --layer second --data", data, "--out", store, *GPU))
    out = tmp_path / "d.safetensors"
    ok(run("fit --store", store, "--directions 6 --method", method, "--out", out, *GPU, *more))
    assert np.isfinite(Directions.load(out).signals).all()


@pytest.mark.parametrize("method", ["probe", "pattern-cav"])
def test_supervised_directions(run: Run, store: Path, masks: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "d.safetensors"
    ok(run("fit --store", store, "--method", method, "--concepts", masks, "--out", out, *GPU))
    assert np.isfinite(Directions.load(out).filters).all()


@pytest.mark.parametrize("network", ["with_transform", "curved_with_transform"])
def test_evaluation_report_explanation_and_correction(run: Run, tmp_path: Path, masks: Path, network: str) -> None:
    """As a user with a GPU has them all: tables are those of the processor. Both for an affine head and for another one."""
    store = extracted(run, masks, tmp_path / "acts.zarr", "--device", "cuda", network=network)
    file = tmp_path / "found.safetensors"
    Directions(**directions_arrays(), method="eddp", layer="act").save(file)  # type: ignore[arg-type]
    measured = ("--broden", masks, "--influence", "--monosemanticity", *FEW)
    for device in ("cpu", "cuda"):
        given = ("--store", store, "--directions", file, "--out", tmp_path / device)
        ok(run("evaluate", *given, *measured, "--device", device, "--quiet"))
    for table in ("directions", "labels", "influence_directions", "unions"):
        assert_alike(rows_of(tmp_path / "cpu" / f"{table}.csv"), rows_of(tmp_path / "cuda" / f"{table}.csv"))
    evaluation = tmp_path / "cuda"

    ok(run("eddp report", evaluation, "--visualize 1", *GPU))
    ok(run("eddp explain --row 0 --evaluation", evaluation, "--out", tmp_path / "explanation", *GPU))
    images = [write_scenes(tmp_path / name, 20, marked=name == "poisoned") for name in ("clean", "poisoned")]
    given = ("--data", images[0], "--poisoned", images[1], "--random", 4)
    summary = json.loads(ok(run("eddp correct", evaluation, *given, *GPU, "--json")).out)
    assert summary["poisoned"]["before"] < 0.7
    assert summary["poisoned"]["after"] == 1


def assert_alike(a: list[dict[str, str]], b: list[dict[str, str]]) -> None:
    """Two tables: the same words, and numbers that differ by rounding."""
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        for name in one:
            try:
                assert float(one[name]) == pytest.approx(float(two[name]), abs=2e-3, rel=2e-2, nan_ok=True), name
            except ValueError:
                assert one[name] == two[name], name
