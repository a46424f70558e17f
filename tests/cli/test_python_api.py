"""The public names: the same results as by the commands, and what a notebook shows of them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import do
from shortcut_net import build, directions_arrays, write_masks, write_scenes

import pipeline
from evaluate.influence.influence_study import InfluenceConfig
from fit import PCA
from stores import ActivationStore, Directions, LayerReader
from stores.errors import UnknownNameError, UsageError

MODEL = "shortcut_net:with_transform"
QUICK = InfluenceConfig(nulls=5, null_positions=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same work by the commands and in Python; folders not to be changed."""
    by_command, by_python = tmp_path_factory.mktemp("command"), tmp_path_factory.mktemp("python")
    masks = write_masks(by_command / "concepts", 20)
    for folder in (by_command, by_python):
        Directions(**directions_arrays(), method="eddp", layer="act").save(folder / "found.safetensors")
        for images, marked in (("clean", False), ("poisoned", True)):
            write_scenes(folder / images, 20, marked=marked)
    here = by_command
    do(f"extract --model {MODEL} --weights none --layer act --data", masks, "--out", here / "acts.zarr")
    do(
        "evaluate --influence --null-directions 5 --null-positions 40 --store", here / "acts.zarr",
        "--directions", here / "found.safetensors", "--broden", masks, "--classes",
    )  # fmt: skip
    do("eddp explain --row 0 --row 3 --evaluation", here / "evaluation", "--out", here / "explanation")
    do("eddp correct", here / "evaluation", "--data", here / "clean", "--poisoned", here / "poisoned")
    here = by_python
    pipeline.extract(MODEL, "act", masks, here / "acts.zarr", weights="none")
    store = ActivationStore.open(here / "acts.zarr", model=MODEL)
    result = pipeline.evaluate(
        store, here / "found.safetensors", here / "evaluation", broden=masks, influence=QUICK, classes=True
    )
    pipeline.explain(result, out=here / "explanation", rows=[0, 3])  # the result remembers which model is trusted
    pipeline.correct(
        here / "evaluation", here / "clean", here / "correction", poisoned=here / "poisoned", model=MODEL
    )  # fmt: skip
    return by_command, by_python


def without_paths(file: Path, folder: Path) -> object:
    return json.loads(file.read_text().replace(str(folder), ""))


def test_results_are_those_of_the_commands(folders: tuple[Path, Path]) -> None:
    first, second = folders
    assert (
        ActivationStore.open(first / "acts.zarr").fingerprint == ActivationStore.open(second / "acts.zarr").fingerprint
    )
    for file in ("evaluation/summary.json", "explanation/explanation.json", "correction/summary.json"):
        one, other = without_paths(first / file, first), without_paths(second / file, second)
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        one.pop("made_from", None), other.pop("made_from", None)  # the concept dataset's path
        assert one == other, file


def test_what_a_notebook_shows(folders: tuple[Path, Path]) -> None:
    folder = folders[1]
    store = ActivationStore.open(folder / "acts.zarr")
    fitter = PCA(n_directions=2)
    assert "PCA(n_directions=2)" in fitter._repr_html_()
    fitter.fit(store, head=None)
    result = pipeline.EvaluationResult(str(folder / "evaluation"))
    assert len(result.table("influence", "found")) == 2 * 2 * 3 * 3  # roles, classes, directions, steps
    assert result.table("not_there") == []
    with pytest.raises(UnknownNameError):
        result.directions("not_there")
    explained = pipeline.Explanation(
        folder / "explanation", json.loads((folder / "explanation" / "explanation.json").read_text())["images"]
    )
    assert "act" in store._repr_html_()
    assert "2 by pca" in fitter._repr_html_()
    assert result._repr_html_().count("<img") == 3  # a strip of each direction
    assert "mark" in result._repr_html_()
    assert explained._repr_html_().count("<img") == 2
    for shown in (store, fitter, result, explained):
        text = shown._repr_html_()
        assert len(re.findall(r"<td>", text)) == len(re.findall(r"</td>", text)) > 0
        assert "<script" not in text


def test_a_number_of_directions_that_is_none() -> None:
    with pytest.raises(UsageError, match="n_directions"):
        PCA(n_directions="auto")


def test_a_name_that_is_markup_is_shown_as_text(tmp_path: Path) -> None:
    w = np.ones((2, 1), np.float32)
    found = Directions(w, w / np.sqrt(2, dtype=np.float32), w[:, 0], None, method="<b>x</b>", layer="act")
    assert "<b>" not in found._repr_html_()


def test_the_correction_is_applied_to_a_model(folders: tuple[Path, Path]) -> None:
    from evaluate import Correction

    correction = Correction.load(folders[1] / "correction" / "correction.safetensors")
    x = LayerReader(folders[1] / "acts.zarr").images([0])
    assert x.ndim == 3
    corrected = correction.apply(build())
    assert corrected(torch.zeros(1, 3, 16, 16)).ndim == 2


@pytest.mark.parametrize("package", ["evaluate", "fit", "pipeline", "stores"])
def test_public_names_are_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__doc__.strip(), name
    with pytest.raises(AttributeError):
        _ = module.not_there
