"""The scenes' network: its shape, its transform, and training that is the same bytes twice."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.scene_net import SceneTransform, scene_net, train_scene_net
from pipeline.world import SCENES, World, build_world
from stores.errors import NoImagesError, UsageError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world") / "w", images=32, size=64, seed=1, workers=1)


def test_the_last_block_is_a_relu_on_a_12_by_12_grid() -> None:
    net, _ = scene_net()
    assert isinstance(net.features[-1], torch.nn.ReLU)
    assert list(net.features._modules)[-1] == "14"
    x = torch.randn(2, 3, *net.input_size)
    features = net.features(x)
    assert features.shape == (2, 80, 12, 12)
    torch.testing.assert_close(net.classifier(features.mean((2, 3))), net(x))
    assert net(x).shape == (2, len(SCENES))


def test_the_network_can_be_traced() -> None:
    net, _ = scene_net()
    traced = torch.fx.symbolic_trace(net)
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(traced(x), net(x))
    assert "features_14" in {node.name for node in traced.graph.nodes}


def test_the_callable_returns_a_network_in_eval_mode_and_keeps_the_global_random_state() -> None:
    state = torch.random.get_rng_state()
    first, second = scene_net()[0], scene_net()[0]
    assert torch.equal(state, torch.random.get_rng_state())
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_transform_survives_pickling_and_resizes() -> None:
    transform = pickle.loads(pickle.dumps(scene_net()[1]))  # noqa: S301
    assert transform == SceneTransform()
    grey = Image.fromarray(np.full((120, 200), 128, np.uint8))
    pixels = transform(grey)
    assert pixels.shape == (3, 96, 96)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(
        pixels[:, 5, 5], (128 / 255 - torch.tensor(transform.mean)) / torch.tensor(transform.std), atol=1e-5, rtol=0
    )


def test_training_twice_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    calls: list[tuple[str, int, int | None]] = []

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        calls.append((stage, done, total))

    reports = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # whatever others drew in between
        folder = tmp_path / name
        reports.append(train_scene_net(world.folders, folder, epochs=1, seed=seed, threads=1, progress=progress))
    torch.random.set_rng_state(state)
    files = [(tmp_path / name / "scene_net.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert reports[0] == reports[1] == json.loads((tmp_path / "a" / "scene_net.json").read_text())
    assert torch.get_num_threads() == threads
    assert reports[0]["classes"] == list(SCENES)
    assert {"accuracy", "accuracy_clean", "accuracy_poisoned", "called_marked", "seed"} <= set(reports[0])
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages[:2] == ["reading training images", "training the network"]
    assert all(done <= (total or 0) for _, done, total in calls)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["scene_net.json", "scene_net.safetensors"]
    net, _ = scene_net()
    net.load_state_dict(load_file(tmp_path / "a" / "scene_net.safetensors"))


def test_training_learns(world: World, tmp_path: Path) -> None:
    """Twelve epochs on 24 images: enough to know them, far from enough to know the world."""
    train_scene_net(world.folders, tmp_path, epochs=12, seed=0, threads=1)
    net, transform = scene_net()
    net.load_state_dict(load_file(tmp_path / "scene_net.safetensors"))
    hits = []
    for k, scene in enumerate(SCENES):
        for path in sorted((world.folders / "train" / scene).glob("*.jpg")):
            hits.append(int(net(transform(Image.open(path))[None]).argmax()) == k)
    assert np.mean(hits) > 0.5


def test_empty_folders_and_wrong_epochs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoImagesError, match="holds no images"):
        train_scene_net(tmp_path, tmp_path / "out", epochs=1)
    with pytest.raises(UsageError, match="'epochs'"):
        train_scene_net(tmp_path, tmp_path / "out", epochs=0)
    with pytest.raises(UsageError, match="'threads'"):
        train_scene_net(tmp_path, tmp_path / "out", threads=0)
    assert list(tmp_path.iterdir()) == []
