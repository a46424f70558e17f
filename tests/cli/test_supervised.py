"""``fit --method probe --concepts DIR``: labels from the concept dataset that a store was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from PIL import Image
from tiny import LABELS, TinyBroden, trusted

from extract.labels import labels_on_raster
from fit.supervised.position_labels import ConceptLabels
from stores.directions import Directions
from stores.readers import LayerReader


@pytest.fixture
def broden(tiny_broden: Callable[..., TinyBroden]) -> TinyBroden:
    return tiny_broden(images=9)


@pytest.fixture
def store(run: Run, broden: TinyBroden, tmp_path: Path) -> Path:
    return extracted(run, broden.root, tmp_path / "acts.zarr")


def extracted(run: Run, data: Path, out: Path, *more: object) -> Path:
    ok(run("extract --model tiny_net:build --layer second --weights none --data", data, "--out", out, "--quiet", *more))
    return out


@pytest.mark.parametrize("method", ["probe", "pattern-cav"])
def test_one_direction_a_label(run: Run, broden: TinyBroden, store: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "d.safetensors"
    ended = ok(run("fit --store", store, "--method", method, "--concepts", broden.root, "--out", out,
                   "--json --set min_positives=10"))  # fmt: skip
    found = Directions.load(out)
    assert json.loads(ended.out)["directions"] == found.count
    info = found.info
    # scenes cover whole images; stripes cover one of train entirely and no other is annotated in textures
    assert info["labels"] == [LABELS[n][0] for n in info["label_numbers"]]
    assert info["label_numbers"] == [1, 2, 3, 4, 5, 6, 7, 300]
    assert [entry["label"] for entry in info["left_out"]] == ["stripes"]
    assert info["labelled_images"] == 6  # of nine, those of the split train
    assert info["config"]["min_positives"] == 10
    again = tmp_path / "again.safetensors"
    run("fit --store", store, "--method", method, "--concepts", f"broden:{broden.root}", "--out", again,
        "--quiet --set min_positives=10")  # fmt: skip
    assert (Directions.load(again).filters == found.filters).all()
    ended = ok(run("evaluate --store", store, "--directions", out, "--broden", broden.root, "--out", tmp_path / "ev",
                   "--resolution feature --quiet"))  # fmt: skip


def test_labels_are_those_of_the_train_images_at_the_layers_grid(broden: TinyBroden, store: Path) -> None:
    reader = LayerReader(trusted(store))
    labels = ConceptLabels(broden.root)
    found = labels.at(reader)
    assert found.images.tolist() == [0, 1, 3, 4, 6, 7]
    present, annotated = found.of(found.images[[4, 1, 1]])
    assert present.shape == (3, 16, len(LABELS))
    assert present.dtype == annotated.dtype == bool
    whole = (0.0, 0.0, 1.0, 1.0)
    for k, image in enumerate((6, 1, 1)):
        here = labels_on_raster(labels.source, image, (4, 4), whole)
        for column, number in enumerate(found.numbers):
            map_ = here.maps[here.numbers == number]
            np.testing.assert_array_equal(present[k, :, column], map_[0] if len(map_) else np.zeros(16, bool))
            assert annotated[k, column] == (LABELS[number][1] in here.categories)
    categories = [LABELS[n][1] for n in found.numbers]
    _, annotated = found.of(found.images)
    assert annotated[:, [c == "texture" for c in categories]].sum() == 1


def test_sampled_positions_have_the_labels_of_their_places(
    run: Run, broden: TinyBroden, store: Path, tmp_path: Path
) -> None:
    sampled = LayerReader(trusted(extracted(run, broden.root, tmp_path / "sampled.zarr", "--positions", 5)))
    labels = ConceptLabels(broden.root)
    whole, some = labels.at(LayerReader(trusted(store))), labels.at(sampled)
    present, _ = some.of(some.images)
    every, _ = whole.of(whole.images)
    for k, image in enumerate(some.images.tolist()):
        np.testing.assert_array_equal(present[k], every[k][sampled.places(image)])


def test_wrong_use_is_one_message(run: Run, broden: TinyBroden, store: Path, tmp_path: Path) -> None:
    def refused(code: int, *arguments: object) -> str:
        ended = run("fit --store", store, "--out", tmp_path / "d.safetensors", "--quiet", *arguments)
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err
        assert not (tmp_path / "d.safetensors").exists()
        return str(ended.err)

    probe = ("--method", "probe", "--concepts", broden.root)
    assert "leave --directions 4 out" in refused(2, *probe, "--directions", 4)
    assert "--directions N" in refused(2, "--method", "pca")
    assert "leave --concepts out" in refused(2, "--method", "pca", "--directions", 2, "--concepts", broden.root)
    assert "brings none" in refused(2, "--method", "probe")
    assert "There is no concept dataset at" in refused(2, "--method", "probe", "--concepts", tmp_path / "no")
    assert "No label is at 1000 positions" in refused(1, *probe, "--set", "min_positives=1000")
    assert "an option of its own" in refused(2, *probe, "--set", "n_directions=3")
    assert "keep more with --set max_rows=N" in refused(1, *probe, "--set", "max_rows=1", "--set", "min_positives=10")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "x.png")
    assert "no known kind of label maps" in refused(2, "--method", "probe", "--concepts", tmp_path / "flat")


def test_a_store_of_other_images_is_refused(
    run: Run, broden: TinyBroden, tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    other = extracted(run, tiny_images(4), tmp_path / "other.zarr")
    ended = run("fit --store", other, "--method probe --concepts", broden.root, "--out", tmp_path / "d.safetensors")
    fails(ended, 2, "was not made from the images in", "extract --data")


def test_a_folder_without_train_images_is_refused(run: Run, broden: TinyBroden, tmp_path: Path) -> None:
    val = tmp_path / "val"
    shutil.copytree(broden.root, val)
    index = val / "index.csv"
    index.write_text(index.read_text().replace(",train,", ",val,"))
    store = extracted(run, val, tmp_path / "val.zarr")
    ended = run("fit --store", store, "--method probe --concepts", val, "--out", tmp_path / "d.safetensors")
    fails(ended, 2, "split 'train'")
    assert not (tmp_path / "d.safetensors").exists()


def test_a_synthetic_store_brings_its_own_labels(run: Run, tmp_path: Path) -> None:
    assert run("eddp synthetic --out", tmp_path / "t.zarr", "--images 300 --quiet").code == 0
    out = tmp_path / "d.safetensors"
    assert run("fit --store", tmp_path / "t.zarr", "--method probe --out", out, "--quiet").code == 0
    assert Directions.load(out).info["labels"] == ["concept 0", "concept 1", "concept 2"]
