"""Which activations a concept dataset is scored on, and how rows and images are matched."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import trusted

import evaluate.concepts
from evaluate.concepts import concept_store
from extract.datasets import open_folder
from extract.labels import align
from extract.network import Network
from extract.segmentation.broden import BrodenSource
from extract.stream import ExtractConfig, extract
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.errors import ImageError, MismatchError, UnsealedStoreError
from stores.readers import LayerReader
from stores.store import ActivationStore

Broden = Callable[..., BrodenSource]
LABELS = [(1, "sky", "object")]


@pytest.fixture
def source(tmp_path: Path, make_broden: Broden) -> BrodenSource:
    rows = [
        {"image": f"some/{i}.png", "split": s, "mask": (8, 8), "cells": {"object": [1]}}
        for i, s in enumerate(("train", "val", "train", "val"))
    ]
    return make_broden(tmp_path / "broden", LABELS, rows)


def extracted(source: Any, out: Path, network: str, **settings: Any) -> ActivationStore:
    extract(source, out, ExtractConfig(model=network, layers=("conv",), **settings))
    return trusted(out)


@pytest.fixture
def other(tmp_path: Path, network: str) -> ActivationStore:
    """A store of images that are not the concept dataset's."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, 2 * i, 99)).save(tmp_path / "photos" / f"{i}.png")
    return extracted(open_folder(tmp_path / "photos"), tmp_path / "acts.zarr", network, dtype="float32")


def test_a_store_of_this_folder_is_used_as_it_is(tmp_path: Path, source: BrodenSource, network: str) -> None:
    store = extracted(source, tmp_path / "acts.zarr", network)
    assert concept_store(store, "conv", source) is store
    assert [p.name for p in tmp_path.glob("*.zarr")] == ["acts.zarr"]


def test_a_store_of_a_part_of_the_folder_is_used_too(tmp_path: Path, source: BrodenSource, network: str) -> None:
    store = extracted(source, tmp_path / "acts.zarr", network, limit=3)
    assert concept_store(store, "conv", source) is store
    assert align(store, source).rows == {0: 0, 1: 1, 2: 2}


def test_for_other_images_the_model_runs_once_and_its_activations_are_stored(
    other: ActivationStore,
    source: BrodenSource,
    network: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        made = concept_store(other, "conv", source)
    assert "made from other images" in caplog.text
    assert made.path.parent == other.path.parent
    assert made.path.name.startswith("acts.conv.broden-")
    assert made.names == [f"some/{i}.png" for i in range(4)]
    assert made.attributes["dtype"] == "float32"
    assert made.provenance["weights_digest"] == other.provenance["weights_digest"]
    net = Network.load(network, "DEFAULT", "conv")
    images = torch.stack([net.transform(source.image(i)) for i in range(4)])
    x = np.concatenate([block for _, block in LayerReader(made, "conv").blocks()])
    np.testing.assert_allclose(x, net.backbone(images).numpy(), atol=1e-6)

    def run(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("the model runs again")

    monkeypatch.setattr(evaluate.concepts, "extract", run)
    again = concept_store(other, "conv", source)
    assert again.path == made.path
    assert again.fingerprint == made.fingerprint


def test_a_folder_that_was_moved_is_still_the_same(
    tmp_path: Path, other: ActivationStore, source: BrodenSource
) -> None:
    made = concept_store(other, "conv", source)
    shutil.move(source.root, tmp_path / "elsewhere")
    moved = BrodenSource(tmp_path / "elsewhere")
    assert concept_store(other, "conv", moved).path == made.path


def test_a_run_that_failed_resumes(other: ActivationStore, source: BrodenSource) -> None:
    image = source.path(2)
    good = image.read_bytes()
    image.write_bytes(b"x" * len(good))
    with pytest.raises(ImageError, match=r"2\.png"):
        concept_store(other, "conv", source)
    (unfinished,) = other.path.parent.glob("acts.conv.broden-*.zarr")
    with pytest.raises(UnsealedStoreError):
        ActivationStore.open(unfinished)
    image.write_bytes(good)
    made = concept_store(other, "conv", source)
    assert made.path == unfinished
    assert made.valid.all()


def test_another_folder_and_other_precision_get_a_store_of_their_own(
    tmp_path: Path, other: ActivationStore, source: BrodenSource, make_broden: Broden, network: str
) -> None:
    rows = [{"image": "x.png", "split": "train", "mask": (4, 4), "cells": {"object": [1]}}]
    second = make_broden(tmp_path / "second", LABELS, rows)
    first = concept_store(other, "conv", source)
    assert concept_store(other, "conv", second).path != first.path
    shutil.rmtree(other.path)
    half = extracted(open_folder(tmp_path / "photos"), tmp_path / "acts.zarr", network, dtype="float16")
    again = concept_store(half, "conv", source)
    assert again.path != first.path
    assert again.attributes["dtype"] == "float16"


def test_weights_that_changed_since_are_refused_before_the_model_runs(
    other: ActivationStore, source: BrodenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules["toy_network"].SCALE = 2.0  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluate.concepts, "extract", lambda *a, **k: pytest.fail("the model runs"))
    with pytest.raises(MismatchError, match=r"loads with other weights.*Put the old weights back"):
        concept_store(other, "conv", source)


def test_weights_that_changed_after_the_run_are_refused_too(other: ActivationStore, source: BrodenSource) -> None:
    concept_store(other, "conv", source)
    sys.modules["toy_network"].SCALE = 2.0  # type: ignore[attr-defined]
    with pytest.raises(MismatchError, match="loads with other weights"):
        concept_store(other, "conv", source)


def test_a_synthetic_store_has_no_network_to_run(tmp_path: Path, source: BrodenSource) -> None:
    make_synthetic(tmp_path / "syn.zarr", SyntheticConfig(images=6))
    with pytest.raises(MismatchError, match=r"synthetic.*Use --ground-truth"):
        concept_store(ActivationStore.open(tmp_path / "syn.zarr"), "synthetic", source)
