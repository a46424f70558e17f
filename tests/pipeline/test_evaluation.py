"""One evaluation from end to end: stores and directions in, summary.json, tables and pages out."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image
from tiny import trusted

from extract.datasets import open_folder
from extract.segmentation.broden import BrodenSource
from extract.stream import ExtractConfig, extract
from fit.synthetic import SyntheticConfig, make_synthetic
from pipeline.evaluation import EvaluationConfig, evaluate_directions, load_sets, summary_lines
from pipeline.world import World, build_world
from stores.directions import Directions
from stores.errors import DatasetError, MismatchError, MissingPathError, StoreError, StoreExistsError, UsageError
from stores.store import ActivationStore

NETWORK = '''
"""A network that sees colours: its channels are those of the picture, over patches of 8 x 8 pixels."""
import torch
from torch import nn


class Net(nn.Module):
    input_size = (32, 32)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))
'''
KEYS = {
    "method", "s1", "s2", "interpretable", "distinct", "per_category", "coverage", "redundancy", "precision", "recall",
    "f1", "average_precision",
}  # fmt: skip
MODEL = "toy_patches:Net"


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "toy_patches.py").write_text(NETWORK, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("toy_patches", None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world") / "w", images=32, size=64, seed=3, workers=1)


@pytest.fixture(scope="module")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    out = tmp_path_factory.mktemp("stores") / "acts.zarr"
    extract(BrodenSource(world.root), out, ExtractConfig(MODEL, ("conv",), dtype="float32", chunk_images=5))
    return trusted(out)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files: ``plain`` with thresholds (its last detector is dead), ``units`` without."""
    folder = tmp_path_factory.mktemp("directions")
    g = np.random.default_rng(0)
    filters = g.normal(size=(6, 5)).astype(np.float32)
    signals = filters / np.linalg.norm(filters, axis=0)
    b = np.array([0, 0.1, 0.2, 0.3, 1e6], np.float32)
    mean = np.zeros(6, np.float32)
    Directions(filters, signals, mean, b, "eddp", "conv", info={"diagnosis": {"dead": [4]}}).save(
        folder / "plain.safetensors"
    )
    eye = np.eye(6, dtype=np.float32)
    Directions(eye, eye, mean, None, "neurons", "conv", 0.1).save(folder / "units.safetensors")
    return folder / "plain.safetensors", folder / "units.safetensors"


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, which must be those of the CSV beside it."""
    kept = pyarrow.parquet.read_table(path.with_suffix(".parquet"))
    options = pyarrow.csv.ConvertOptions(column_types={f.name: f.type for f in kept.schema if str(f.type) != "null"})
    text = pyarrow.csv.read_csv(path.with_suffix(".csv"), convert_options=options)
    assert text.to_pylist() == kept.to_pylist()
    return kept.to_pylist()


@pytest.fixture(scope="module")
def evaluated(
    store: ActivationStore, files: tuple[Path, Path], world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "deep" / "evaluation"
    return out, evaluate_directions(store, load_sets(files), out, EvaluationConfig(world.root))


def test_summary_has_what_scripts_rely_on(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, summary = evaluated
    assert json.loads((out / "summary.json").read_text()) == summary
    assert list(summary["directions"]) == ["plain", "units"]
    for name, entry in summary["directions"].items():
        assert entry.keys() >= KEYS
        assert entry["method"] == {"plain": "eddp", "units": "neurons"}[name]
        assert entry["directions"] == {"plain": 5, "units": 6}[name]
        assert 0 < entry["s2"] <= entry["s1"]
        assert 0 < entry["coverage"] <= 1 <= entry["redundancy"]
        assert 0 < entry["distinct"] <= entry["interpretable"] <= entry["directions"]
    assert "ground_truth" not in summary["directions"]["plain"]


def test_tables_agree_with_the_summary(evaluated: tuple[Path, dict[str, Any]], world: World) -> None:
    out, summary = evaluated
    rows, labels, categories = (table(out / name) for name in ("directions", "labels", "categories"))
    known = {label.name: label for label in BrodenSource(world.root).labels}
    for name, entry in summary["directions"].items():
        mine = [row for row in rows if row["directions"] == name]
        assert [row["index"] for row in mine] == list(range(entry["directions"]))
        assert sum(row["iou_val"] for row in mine) == pytest.approx(entry["s1"], abs=1e-4)
        best: dict[str, float] = {}
        for row in mine:
            best[row["label"]] = max(best.get(row["label"], 0), row["iou_val"])
        assert sum(best.values()) == pytest.approx(entry["s2"], abs=1e-4)
        good = [row for row in mine if row["interpretable"]]
        assert all(row["iou_val"] > 0.04 for row in good)
        assert (len(good), len({row["label"] for row in good})) == (entry["interpretable"], entry["distinct"])
        for measure in ("precision", "recall", "f1", "average_precision"):
            mean = np.mean([row[measure] for row in good if row[measure] is not None])
            assert entry[measure] == pytest.approx(mean, abs=1e-4)
        per_category = {
            row["category"]: {"distinct": row["distinct"], "detectors": row["detectors"]}
            for row in categories
            if row["directions"] == name
        }
        assert per_category == entry["per_category"]
        for row in mine:
            if row["label"]:
                assert known[row["label"]].category == row["category"]
                assert known[row["label"]].number == row["number"]
                first = next(r for r in labels if (r["directions"], r["index"], r["rank"]) == (name, row["index"], 1))
                assert (first["label"], first["iou_train"]) == (row["label"], row["iou_train"])
    dead = next(row for row in rows if row["directions"] == "plain" and row["index"] == 4)
    assert (dead["label"], dead["iou_val"], dead["share"], dead["average_precision"]) == ("", 0, 0, None)
    assert all(row["agreement"] == pytest.approx(1, abs=1e-5) for row in rows)
    units = [row["share"] for row in rows if row["directions"] == "units"]
    assert units == pytest.approx([0.1] * 6, abs=0.002)  # the top tenth of each unit is positive


def test_the_start_page_leads_to_the_pages_of_each_set(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, _ = evaluated
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in (
        "plain",
        "units",
        "toy_patches:Net",
        "mask, 32 × 32",
        "report/plain/index.html",
        "report/units/index.html",
    ):
        assert text in page
    for name, count in (("plain", 5), ("units", 6)):
        folder = out / "report" / name
        assert len(list((folder / "d").iterdir())) == len(list((folder / "s").iterdir())) == count
        assert len({file.name.partition("-")[0] for file in (folder / "t").iterdir()}) == count
        for link in re.findall(r'(?:src|href)="([^"#]+)"', (folder / "c" / "0000.html").read_text(encoding="utf-8")):
            assert link == "data:," or (folder / "c" / link).is_file(), link
    assert not list(out.rglob("*.partial"))


def test_one_file_only_gets_the_same_numbers(
    tmp_path: Path,
    evaluated: tuple[Path, dict[str, Any]],
    store: ActivationStore,
    files: tuple[Path, Path],
    world: World,
) -> None:
    _, both = evaluated
    alone = evaluate_directions(store, load_sets([files[1]]), tmp_path, EvaluationConfig(world.root))
    assert alone["directions"]["units"] == both["directions"]["units"]


def test_again_with_fewer_directions_leaves_no_old_pages(
    tmp_path: Path, store: ActivationStore, files: tuple[Path, Path], world: World
) -> None:
    evaluate_directions(store, load_sets([files[1]]), tmp_path, EvaluationConfig(world.root, "feature"))
    _, units = load_sets([files[1]])["units"]
    fewer = Directions(units.filters[:, :2], units.signals[:, :2], units.mean, None, "neurons", "conv", 0.1)
    summary = evaluate_directions(store, {"units": (files[1], fewer)}, tmp_path, EvaluationConfig(world.root))
    assert summary["directions"]["units"]["directions"] == 2
    assert sorted(p.name for p in (tmp_path / "report" / "units" / "d").iterdir()) == ["00000.html", "00001.html"]


def test_dead_directions_give_tables_with_columns(tmp_path: Path, store: ActivationStore, world: World) -> None:
    eye = np.eye(6, dtype=np.float32)
    dead = Directions(eye, eye, np.zeros(6, np.float32), np.full(6, 1e6, np.float32), "toy", "conv")
    dead.save(tmp_path / "dead.safetensors")
    sets = load_sets([tmp_path / "dead.safetensors"])
    entry = evaluate_directions(store, sets, tmp_path / "out", EvaluationConfig(world.root))["directions"]["dead"]
    assert (entry["s1"], entry["interpretable"], entry["coverage"], entry["per_category"]) == (0, 0, 0, {})
    for name in ("labels", "categories"):
        with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
            assert "directions" in next(csv.reader(file))
    assert (tmp_path / "out" / "report.html").is_file()


def test_sampled_positions_are_scored_at_the_layers_resolution(
    tmp_path: Path, files: tuple[Path, Path], world: World
) -> None:
    config = ExtractConfig(MODEL, ("conv",), dtype="float32", positions=5)
    extract(BrodenSource(world.root), tmp_path / "some.zarr", config)
    some = trusted(tmp_path / "some.zarr")
    with pytest.raises(UsageError, match="--resolution feature"):
        evaluate_directions(some, load_sets([files[0]]), tmp_path / "out", EvaluationConfig(world.root))
    summary = evaluate_directions(
        some, load_sets([files[0]]), tmp_path / "out", EvaluationConfig(world.root, "feature")
    )
    assert summary["directions"]["plain"].keys() >= KEYS
    assert len(list((tmp_path / "out" / "report" / "plain" / "s").iterdir())) == 5


def test_a_store_of_other_images_is_scored_on_the_models_own(
    tmp_path: Path, evaluated: tuple[Path, dict[str, Any]], files: tuple[Path, Path], world: World
) -> None:
    extract(open_folder(world.folders / "val"), tmp_path / "val.zarr", ExtractConfig(MODEL, ("conv",), dtype="float32"))
    other = trusted(tmp_path / "val.zarr")
    stages: set[str] = set()
    found = evaluate_directions(
        other,
        load_sets(files),
        tmp_path / "out",
        EvaluationConfig(world.root),
        progress=lambda stage, done, total=None, note="": stages.add(stage),
    )
    assert {"extraction", "quantiles", "dissection", "average precision", "logits", "pictures"} <= stages
    assert found["directions"] == evaluated[1]["directions"]
    assert len(list(tmp_path.glob("val.conv.broden-*.zarr"))) == 1


def test_against_the_truth(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "syn.zarr", SyntheticConfig(images=60))
    store = ActivationStore.open(tmp_path / "syn.zarr")
    g = np.random.default_rng(0)
    filters = g.normal(size=(16, 4)).astype(np.float32)
    directions = Directions(filters, filters, np.zeros(16, np.float32), None, "toy", "synthetic", 0.3)
    directions.save(tmp_path / "toy.safetensors")
    sets = load_sets([tmp_path / "toy.safetensors"])
    summary = evaluate_directions(store, sets, tmp_path / "out", EvaluationConfig(ground_truth=True))
    found = summary["directions"]["toy"]["ground_truth"]
    assert found.keys() == {"iou", "cos", "filter_cos", "rmse", "matched", "distinct_matches"}
    assert len(found["iou"]) == len(found["cos"]) == len(found["filter_cos"]) == 3
    rows = table(tmp_path / "out" / "ground_truth")
    assert [row["iou"] for row in rows] == found["iou"]
    assert [row["cos"] for row in rows] == found["cos"]
    assert [row["filter_cos"] for row in rows] == found["filter_cos"]
    assert len({row["direction"] for row in rows}) == 3
    assert "Synthetic" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    said = f"of filters {min(found['filter_cos']):.3f} (mean {np.mean(found['filter_cos']):.3f}), distinct matches "
    assert any("concepts found" in line and said in line for line in summary_lines(summary))
    with pytest.raises(MismatchError, match="Use --ground-truth"):
        evaluate_directions(store, sets, tmp_path / "out2", EvaluationConfig(_one_image(tmp_path / "b")))


def _one_image(root: Path, split: str = "train") -> Path:
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "images" / "a.png")
    (root / "label.csv").write_text("number,name,category\n1,sky,object\n")
    (root / "index.csv").write_text(f"image,split,ih,iw,sh,sw,object\na.png,{split},8,8,4,4,1\n")
    return root


def test_summary_lines_are_a_table(evaluated: tuple[Path, dict[str, Any]]) -> None:
    _, summary = evaluated
    head, *lines = summary_lines(summary)[:3]
    assert head.split() == [
        "directions", "S1", "S2", "interpr.", "distinct", "coverage", "precision", "recall", "F1", "AP",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == ["plain", "units"]
    assert {len(line) for line in [head, *lines]} == {len(head)}


# what is refused, and that nothing is left behind


def test_a_folder_without_val_is_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    only = BrodenSource(_one_image(tmp_path / "b"))
    extract(only, tmp_path / "a.zarr", ExtractConfig(MODEL, ("conv",)))
    with pytest.raises(DatasetError, match="no image of the split 'val'"):
        evaluate_directions(
            trusted(tmp_path / "a.zarr"), load_sets(files), tmp_path / "out", EvaluationConfig(only.root)
        )


def test_directions_of_another_layer_are_refused(tmp_path: Path, store: ActivationStore, world: World) -> None:
    eye = np.eye(6, dtype=np.float32)

    def of(layer: str, channels: int = 6) -> tuple[Path, Directions]:
        part = eye[:channels, :channels]
        return tmp_path / "x", Directions(part, part, np.zeros(channels, np.float32), None, "toy", layer)

    for wrong in (of("fc"), of("conv", 4)):
        with pytest.raises(MismatchError, match=r"not on 'conv' \(6 channels"):
            evaluate_directions(store, {"a": wrong}, tmp_path / "out", EvaluationConfig(world.root))
    with pytest.raises(UsageError, match=r"several layers \(conv, fc\)"):
        evaluate_directions(store, {"a": of("conv"), "b": of("fc")}, tmp_path / "out", EvaluationConfig(world.root))
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="Two directions files are named 'plain'"):
        load_sets([files[0], tmp_path / "plain.safetensors"])


def test_what_is_missing_is_found_before_anything_is_written(
    tmp_path: Path, store: ActivationStore, files: tuple[Path, Path], world: World
) -> None:
    sets = load_sets(files)
    with pytest.raises(MissingPathError, match="There is no Broden folder"):
        evaluate_directions(store, sets, tmp_path / "out", EvaluationConfig(tmp_path / "nowhere"))
    with pytest.raises(MissingPathError, match=r"index\.csv"):
        evaluate_directions(store, sets, tmp_path / "out", EvaluationConfig(world.folders))
    with pytest.raises(MismatchError, match="no ground truth"):
        evaluate_directions(store, sets, tmp_path / "out", EvaluationConfig(world.root, ground_truth=True))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    for out, error in ((tmp_path / "file", StoreExistsError), (tmp_path / "file" / "below", StoreError)):
        with pytest.raises(error, match=r"is no folder|could not be written: Not a directory"):
            evaluate_directions(store, sets, out, EvaluationConfig(world.root))
