"""Networks that take clips, through the command line: the activations of a plain loop, and a head that gives the logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extract.models import torchvision
from extract.network import open_head
from stores.readers import LayerReader
from stores.store import ActivationStore
from tests.helpers import own_nets
from tests.helpers.video_clips import FRAMES, RATE, moving, put_clips

# model, layer, frames a clip, (T, h, w), channels, prefix, pooled-affine; fewer frames than they were trained with, where they take any
NETWORKS = [
    ("r3d_18", "layer4", 8, (1, 7, 7), 512, 0, True),
    ("mc3_18", "layer4", 4, (4, 7, 7), 512, 0, True),
    ("swin3d_t", "norm", 4, (2, 7, 7), 768, 0, True),
    ("tests.helpers.own_nets:small_mvit", "norm", 4, (2, 4, 4), 32, 1, False),
]
if os.environ.get("EDDP_ALL_NETWORKS"):  # minutes
    NETWORKS += [
        ("s3d", "features", 16, (2, 7, 7), 1024, 0, True),
        ("mvit_v2_s", "norm", 16, (8, 7, 7), 768, 1, False),
    ]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_clips(tmp_path_factory.mktemp("clips"), 1, ending="mkv", classes=("left", "up"))


def wanted(model: str, layer: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations and logits of both clips as anyone would compute them with torchvision and a hook."""
    models = torchvision.models
    torch.manual_seed(0)
    if ":" in model:
        network, transform = own_nets.small_mvit()
    else:
        network, transform = models.get_model(model, weights=None), models.get_model_weights(model).DEFAULT.transforms()
    network.eval()
    taken: list[torch.Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: taken.append(output))
    start = (FRAMES - frames) / 2  # the middle of the video, a frame in 24 a second
    numbers = [int(start + k + 0.5 + 1e-6) for k in range(frames)]
    every = [np.stack([moving(name, 0)[k] for k in numbers]) for name in ("left", "up")]
    with torch.no_grad():
        inputs = torch.stack([transform(torch.from_numpy(clip).permute(0, 3, 1, 2)) for clip in every])
        logits = network(inputs)
    x = taken[0]
    if x.ndim == 5 and model != "swin3d_t":
        x = x.movedim(1, -1)
    return x.reshape(2, -1, x.shape[-1]).numpy(), logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layer", "frames", "grid", "channels", "prefix", "affine"),
    NETWORKS,
    ids=[n[0].rpartition(":")[2] for n in NETWORKS],
)
def test_activations_are_those_of_a_plain_loop(
    run: Callable[..., object],
    clips: Path,
    tmp_path: Path,
    model: str,
    layer: str,
    frames: int,
    grid: tuple[int, int, int],
    channels: int,
    prefix: int,
    affine: bool,
) -> None:
    out = tmp_path / "acts.zarr"
    run(
        "extract", "--model", model, "--weights", "none", "--layer", layer, "--data", clips, "--out", out,
        "--clip-frames", frames, "--clip-rate", RATE, "--dtype", "float32", "--quiet",
    )  # fmt: skip
    store = ActivationStore.open(out, model=model)
    spec = store.layer(layer)
    assert ((spec.time, *spec.grid), spec.channels, spec.prefix) == (grid, channels, prefix)
    x, logits = wanted(model, layer, frames)
    stored = store.array(f"layers/{layer}/activations").read(0)
    assert np.abs(stored - x).max() <= 1e-5 * np.abs(x).max()
    assert np.abs(store.array("images/logits").read(0) - logits).max() <= 1e-5 * np.abs(logits).max()
    head = open_head(store, layer)
    assert (head.affine is not None) == affine
    rebuilt = head(torch.from_numpy(LayerReader(store, layer, prefix=True).images([0, 1]))).detach().numpy()
    assert np.abs(rebuilt - logits).max() <= 1e-4 * np.abs(logits).max()


def test_still_images_are_repeated_and_that_is_said(
    run: Callable[..., object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for k in range(2):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 40, 3), np.uint8)).save(images / f"{k}.png")
    network, out = "tests.helpers.own_nets:small_mvit", tmp_path / "acts.zarr"
    run("extract --model", network, "--layer norm --data", images, "--out", out, "--dtype float32 --quiet")
    assert "the network takes clips, and these are images: each is repeated 4 times" in caplog.text
    assert ActivationStore.open(out).layer("norm").time == 2
