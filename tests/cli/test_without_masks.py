"""The demo's world without its masks: do labels by classes and by words say what the masks say? And do random directions get any?

What agrees is defined in ``tests/helpers/agreement.py``. Labels count whether they are significant or not: on this network hardly any is, because
random directions have labels, too. By masks, half of them have a label with an IoU above 0.2, so that no test against random directions can be
passed by most of the directions found. The encoder was chosen on the world of seed 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agreement import agreement
from command_line import do

from pipeline.class_labelling import find_class_labels
from pipeline.evaluation_parts import Subject
from pipeline.firing_examples import find_examples
from pipeline.scene_net import train_scene_net
from pipeline.vocabulary_labels import find_words
from pipeline.world import SCENES, build_world
from stores.directions import Directions
from stores.store import ActivationStore

SEED, IMAGES, EPOCHS, DIRECTIONS = 0, 400, 8, 32
ENCODER = "example_sight:scene_words"
OTHERS = ("piano", "owl", "lace", "fog", "crowd", "guitar", "statue", "rain", "bread", "ladder", "velvet", "marble")
LAYER = "features.14"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the world, its network, activations of its pictures in class folders, directions, and a word list."""
    folder = tmp_path_factory.mktemp("demo")
    world = build_world(folder / "world", images=IMAGES, seed=SEED)
    train_scene_net(world.folders, folder, epochs=EPOCHS, seed=SEED, threads=1)
    weights = folder / "scene_net.safetensors"
    do("extract", f"--model pipeline.scene_net:scene_net --layer {LAYER} --dtype float32 --weights", weights, "--data", world.folders,
       "--out", folder / "acts.zarr")  # fmt: skip
    do("fit", f"--directions {DIRECTIONS} --set max_rows=20000 --refits 0 --seed {SEED} --store", folder / "acts.zarr",
       "--out", folder / "d.safetensors")  # fmt: skip
    (folder / "words.txt").write_text("\n".join((*world.labels, *OTHERS)), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_labels_without_masks_are_those_of_the_masks(demo: Path) -> None:
    do("evaluate --store", demo / "acts.zarr", "--directions", demo / "d.safetensors", "--broden", demo / "world", "--classes --vocabulary",
       demo / "words.txt", "--encoder", ENCODER, "--out", demo / "out")  # fmt: skip
    found = agreement(demo / "out", "d", demo / "world", SCENES)
    assert found.count >= 10
    for agrees, least in ((found.words, 0.8), (found.classes, 0.7), (found.classes_sayable, 0.9)):
        assert agrees is not None  # no class can say `sky`, which is in all of them
        assert agrees >= least
    for others in (found.words_others, found.classes_others):
        assert others is not None
        assert others <= 0.25


@pytest.mark.slow
def test_random_directions_get_no_name(demo: Path) -> None:
    """200 of them: by classes and by words, p ≤ 0.05 for no more than 5 % (three standard deviations), and no significant label."""
    store = ActivationStore.open(demo / "acts.zarr")
    w = np.random.default_rng(17).normal(size=(store.layer(LAYER).channels, 200)).astype(np.float32)
    drawn = Directions(w, w, np.zeros(len(w), np.float32), None, "by hand", LAYER)
    subject = Subject(store, LAYER, {"random": drawn})
    by_class = find_class_labels(subject, 0)["random"]
    examples = find_examples(subject, ENCODER, 0, texts=True)
    listed = (demo / "words.txt").read_text(encoding="utf-8").split("\n")
    (by_word,) = find_words(subject, examples, listed, 0).findings.tables["vocabulary_labels"]
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(np.maximum(by_class.p, by_class.p_random) <= 0.05) <= most
    assert np.mean(np.array(by_word["p"]) <= 0.05) <= most
    assert not by_class.significant.any()
    assert not any(by_word["significant"])
