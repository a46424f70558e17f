"""Networks and class folders as people bring them: read right, or refused with what decides; never a wrong result silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from brought import folders, level, logits, loop, picture, right, stored

# Classes


@pytest.mark.parametrize("names", [list(map(str, range(12))), [f"{k:03d}" for k in range(12)]])
def test_class_folders_that_are_numbers(extracted: Callable, tmp_path: Path, names: list[str]) -> None:
    data = folders(tmp_path / "numbers", names, lambda k, j: level((k + 0.5) / 12, j))
    store, said = extracted("levels", "features", data)
    assert right(store) == 1.0
    assert "the folders are the class numbers" in said


def test_folders_whose_order_is_not_sure(extracted: Callable, refused: Callable, tmp_path: Path) -> None:
    names = [f"grade {k}" for k in range(1, 13)]  # as text: 1, 10, 11, 12, 2
    data = folders(tmp_path / "grades", names, lambda k, j: level((k + 0.5) / 12, j))
    said = refused("levels", "features", data)
    assert "grade 1, grade 10, grade 11, … as text, grade 1, grade 2, grade 3, … by number" in said
    assert "--class-names FILE" in said
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    store, said = extracted("levels", "features", data, "--class-names", tmp_path / "classes.txt")
    assert right(store) == 1.0
    assert "by name" in said


@pytest.mark.parametrize("model", ["names_list", "names_id2label", "names_class_to_idx", "names_array"])
def test_names_of_a_models_classes(extracted: Callable, tmp_path: Path, model: str) -> None:
    data = folders(tmp_path / "times", ("day", "night"), lambda k, j: level((0.8, 0.2)[k], j))
    store, said = extracted(model, "features", data)
    assert [name.lower() for name in store.class_names] == ["night", "day"]
    assert right(store) == 1.0
    assert "by name" in said


def test_class_names_of_a_file(extracted: Callable, refused: Callable, tmp_path: Path) -> None:
    data = folders(tmp_path / "times", ("day", "night"), lambda k, j: level((0.8, 0.2)[k], j))
    file = tmp_path / "names.json"
    file.write_text('{"night": 0, "day": 1}')
    assert right(extracted("dark_bright", "features", data, "--class-names", file)[0]) == 1.0
    file.write_text("1,day\n0,night\n")
    assert right(extracted("dark_bright", "features", data, "--class-names", file, "--overwrite")[0]) == 1.0
    file.write_text('{"night": 0, "day": 2}')
    assert "must map the numbers 0 to 1 to names" in refused("dark_bright", "features", data, "--class-names", file)
    file.write_text("night\n\nday\n")
    assert "line 2 is empty" in refused("dark_bright", "features", data, "--class-names", file)
    assert "no file" in refused("dark_bright", "features", data, "--class-names", tmp_path / "none")


# What a model returns, and how its layers are laid out


@pytest.mark.parametrize(
    ("model", "options", "of"),
    [
        ("pooled_first_named", (), lambda r: r[1]),
        ("pooled_first", (), lambda r: r[1]),  # five class folders
        ("embedding_and_scores", ("--output", "scores.coarse"), lambda r: r["scores"]["coarse"]),
    ],
)
def test_logits_among_other_tensors(
    extracted: Callable, animals: Path, model: str, options: tuple, of: Callable
) -> None:
    store, said = extracted(model, "features", animals, *options)
    taken, returned = loop(model, "features", store, animals)
    np.testing.assert_allclose(logits(store), torch.cat([of(r) for r in returned]), atol=1e-5)
    np.testing.assert_allclose(stored(store, "features"), torch.cat(taken).flatten(2).transpose(1, 2), atol=1e-5)
    assert "5 logits: " in said


def test_logits_that_are_not_known(refused: Callable, animals: Path) -> None:
    (animals / "f").mkdir()
    picture(9).save(animals / "f" / "0.png")
    said = refused("pooled_first", "features", animals)
    assert "0 (2, 7), 1 (2, 5). Give --output KEY (one of 0, 1)" in said
    assert "a map of logits for every pixel" in refused("maps", "features", animals)


@pytest.mark.parametrize(
    ("model", "layer", "grid", "prefix", "to_npc"),
    [
        ("tall", "stage", (16, 8), 0, lambda t: t.flatten(1, 2)),
        ("tokens_first", "mix", (8, 8), 0, lambda t: t.transpose(1, 2)),
        ("registers_in_a_strip", "mix", (5, 20), 5, lambda t: t),
    ],
)
def test_layouts(
    extracted: Callable, animals: Path, model: str, layer: str, grid: tuple[int, int], prefix: int, to_npc: Callable
) -> None:
    store, said = extracted(model, layer, animals)
    spec = store.layer(layer)
    assert (tuple(spec.grid), spec.prefix) == (grid, prefix)
    taken, _ = loop(model, layer, store, animals)
    np.testing.assert_allclose(stored(store, layer), to_npc(torch.cat(taken)), atol=1e-5)
    assert f"{grid[0]} × {grid[1]} positions" in said
    assert "100% of changed patches show in the right place" in said


def test_a_layout_that_the_user_says(extracted: Callable, refused: Callable, animals: Path) -> None:
    store, said = extracted("tall", "stage", animals, "--layout", "stage=nchw")
    assert store.layer("stage").channels == 16
    assert "where a concept is may not be where it is shown" in said
    assert "cannot have it" in refused("tall", "stage", animals, "--layout", "tokens")
    assert "must be nchw, nhwc" in refused("tall", "stage", animals, "--layout", "hwc")
    assert "which no --layer does" in refused("tall", "stage", animals, "--layout", "conv=nchw")


# Values that are no image's own


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("batch_statistics", "first in 'features.1' (BatchNorm2d)"),
        ("dropping", "first in 'fc' (Linear)"),
        ("deep", "in evaluation mode. Take out dropout(training=True), stochastic depth"),
        ("sorting", "depend on the other images of its batch"),
        ("initialised", "writes into its own weights in evaluation mode (scale)"),
        ("training_transform", "it draws random numbers. Give the one for evaluation"),
        ("crop_of_wide_images", "it draws random numbers"),
        ("channels_last_arrays", "channels last"),
        ("a_dictionary", "got dict with image"),
    ],
)
def test_values_that_are_not_an_images_own(refused: Callable, animals: Path, model: str, named: str) -> None:
    assert named in refused(model, "features", animals)


def test_a_transform_for_no_other_process(extracted: Callable, animals: Path) -> None:
    store, said = extracted("local_function", "features", animals, "--workers", 2)
    assert "cannot be sent to decoding processes" in said
    taken, _ = loop("local_function", "features", store, animals)
    np.testing.assert_allclose(stored(store, "features"), torch.cat(taken).flatten(2).transpose(1, 2), atol=1e-5)
