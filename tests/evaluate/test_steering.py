"""Steering curves, Pattern-CAVs and S3 by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import broden_folder, layer_store

from evaluate.influence.cavs import label_use, s3
from evaluate.influence.interventions import PooledEffect
from evaluate.influence.steering import monotone_up_to, random_units, sweep
from extract.crop_geometry import Box
from extract.labels import Alignment
from stores.readers import LayerReader


def test_a_curve_by_hand() -> None:
    """Logits (x, 0), images at x = 0: the probability of class 0 after a step of α is sigmoid(α)."""
    effect = PooledEffect(torch.zeros(3, 2), torch.tensor([[1.0], [0.0]]))
    found = sweep(effect, torch.tensor([[1.0, -1.0]]), alphas=(0.0, 1.0, 3.0))
    assert found.target.tolist() == [0, 1]
    up = 1 / (1 + np.exp(-np.array([0.0, 1.0, 3.0])))
    np.testing.assert_allclose(found.probability, np.stack([up, up], 1))
    assert found.monotone.tolist() == [3.0, 3.0]


def test_a_direction_that_fails_when_pushed() -> None:
    """Class 0 leads for small steps, class 1, which starts lower and rises twice as fast, for large ones."""
    effect = PooledEffect(torch.tensor([[0.0, -4.0, 0.0]]), torch.tensor([[1.0], [2.0], [0.0]]))
    found = sweep(effect, torch.ones(1, 1), np.array([0]), alphas=(0.0, 1.0, 2.0, 8.0, 20.0))
    assert found.monotone.tolist() == [2.0]
    assert found.probability[4, 0] < found.probability[2, 0]


def test_monotone_up_to_the_first_fall() -> None:
    curves = np.array([[0.1, 0.1, 0.5], [0.2, 0.1, 0.4], [0.3, 0.2, 0.6]])
    assert monotone_up_to(np.array([0.0, 1.0, 2.0]), curves).tolist() == [2.0, 2.0, 0.0]


def test_random_directions_are_units_of_their_seed() -> None:
    v = random_units(50, 7, 3)
    torch.testing.assert_close(v.norm(dim=0), torch.ones(7))
    assert torch.equal(v, random_units(50, 7, 3))
    assert not torch.equal(v, random_units(50, 7, 4))


def test_pattern_cavs_are_differences_of_class_means(tmp_path: Path) -> None:
    """Three images of 2 × 2 positions; the third is not annotated in objects, so its positions count for colours alone."""
    dog = np.array([[1, 1], [0, 0]])
    red = np.array([[2, 0], [0, 0]])
    source = broden_folder(
        tmp_path / "b",
        [(1, "dog", "object"), (2, "red", "color"), (3, "cat", "object")],
        [
            {"image": "0.png", "split": "train", "mask": (2, 2), "cells": {"object": [dog], "color": [red]}},
            {"image": "1.png", "split": "val", "mask": (2, 2), "cells": {"object": [np.zeros((2, 2), int)], "color": [red]}},
            {"image": "2.png", "split": "val", "mask": (2, 2), "cells": {"color": [np.zeros((2, 2), int)]}},
        ],
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((3, 4, 3)).astype(np.float32)
    reader = LayerReader(layer_store(tmp_path / "s.zarr", x, grid=(2, 2)))
    everything: Box = (0.0, 0.0, 1.0, 1.0)
    found = label_use(reader, Alignment(source, {0: 0, 1: 1, 2: 2}, lambda image: everything), np.array([1, 1, 0]), 2)
    cavs, known = found.cavs, found.known
    order = {label.name: k for k, label in enumerate(source.labels)}
    of_dog = x[0, :2].mean(0) - np.concatenate([x[0, 2:], x[1]]).mean(0)
    of_red = x[:2, 0].mean(0) - np.concatenate([x[:2, 1:].reshape(-1, 3), x[2]]).mean(0)
    for name, wanted in (("dog", of_dog), ("red", of_red)):
        np.testing.assert_allclose(cavs[:, order[name]], wanted / np.linalg.norm(wanted), rtol=1e-5)
    assert found.images[[order["dog"], order["red"], order["cat"]]].tolist() == [[0, 1], [0, 2], [0, 0]]
    assert found.annotated[[order["dog"], order["red"], order["cat"]]].tolist() == [[0, 2], [1, 2], [0, 2]]
    assert found.area[[order["dog"], order["red"], order["cat"]]].tolist() == [0.5, 0.25, 0.0]
    assert known.tolist() == [name != "cat" for name in order]
    assert not cavs[:, order["cat"]].any()


def test_s3_by_hand() -> None:
    """Label 0 has directions 0 and 1, label 1 direction 2, label 2 none; a tie does not beat; a label without a CAV does not count."""
    signals = np.array([[0.1, -0.5], [0.3, 0.2], [0.9, 0.0]])
    cavs = np.array([[-0.4, 0.5], [1.0, 0.1], [9.0, 9.0]])
    label = np.array([0, 0, 1])
    assert s3(label, signals, cavs, np.array([True, True, True])) == pytest.approx(3 / 4)
    assert s3(label, signals, cavs, np.array([True, False, True])) == pytest.approx(1 / 2)
    assert s3(np.array([-1, -1, -1]), signals, cavs, np.ones(3, bool)) is None
