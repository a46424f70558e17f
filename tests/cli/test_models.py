"""Real architectures through the command line: the store's shape, and a head that gives the model's logits back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extract.network import open_head, open_network
from stores.readers import LayerReader
from stores.store import ActivationStore

# model, layer, positions, channels, prefix, pooled-affine, images: inception on the 64 images of a real batch, the others on a few
MODELS = [
    ("inception_v3", "Mixed_7c", 64, 2048, 0, True, 64),
    ("resnet18", "layer4", 49, 512, 0, True, 5),
    ("resnet50", "layer3", 196, 1024, 0, False, 5),
    ("efficientnet_b0", "features", 49, 1280, 0, True, 5),
    ("vgg16", "features", 49, 512, 0, False, 3),
    ("densenet121", "features", 49, 1024, 0, False, 5),
    ("convnext_tiny", "features", 49, 768, 0, False, 5),
    ("vit_b_16", "encoder.layers.encoder_layer_11", 197, 768, 1, False, 3),
    ("swin_t", "features", 49, 768, 0, False, 5),
    ("mobilenet_v2", "features.18", 49, 1280, 0, True, 5),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 smooth coloured pictures of different sizes in two class folders."""
    folder, g = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(64):
        coarse = Image.fromarray(g.integers(0, 256, (6, 6, 3), np.uint8))
        file = folder / ("a", "b")[i % 2] / f"{i:02d}.jpg"
        file.parent.mkdir(exist_ok=True)
        coarse.resize((300 + 3 * i, 360 - i), Image.Resampling.BICUBIC).save(file, quality=90)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layer", "positions", "channels", "prefix", "affine", "images"), MODELS, ids=[m[0] for m in MODELS]
)
def test_store_and_head(
    run: Callable[..., object],
    photos: Path,
    tmp_path: Path,
    model: str,
    layer: str,
    positions: int,
    channels: int,
    prefix: int,
    affine: bool,
    images: int,
) -> None:
    out = tmp_path / "acts.zarr"
    torch.set_num_threads(2)
    try:
        ended = run("extract --model", model, "--layer", layer, "--weights none --data", photos, "--out", out,
                    "--dtype float32 --limit", images)  # fmt: skip
    finally:
        torch.set_num_threads(1)
    assert ended.code == 0, ended.err
    store = ActivationStore.open(out)
    reader = LayerReader(store, layer, prefix=True)
    x = torch.from_numpy(reader.images(range(min(images, 3))))
    assert (store.n_images, reader.positions, reader.channels) == (images, positions, channels)
    assert (store.layer(layer).prefix, store.affine_head(layer) is not None) == (prefix, affine)
    wanted = torch.from_numpy(store.logits[: len(x)])
    scale = wanted.abs().max()
    untouched = open_network(store, layer)
    names = store.names[: len(x)]
    images = torch.stack([untouched.transform(Image.open(photos / name)) for name in names])
    assert float((untouched.backbone(images) - x).abs().max()) <= 1e-4 * float(x.abs().max())
    for head in (open_head(store, layer), untouched.head):
        with torch.no_grad():
            found = head(x)
        assert float((found - wanted).abs().max()) <= 1e-4 * max(float(scale), 1.0)


def test_exact_runs_the_network_as_it_is(run: Callable[..., object], photos: Path, tmp_path: Path) -> None:
    stores = []
    for name, option in (("fast", ""), ("exact", "--exact")):
        ended = run("extract --model resnet18 --layer layer1 --weights none --dtype float32 --limit 2 --data", photos,
                    "--out", tmp_path / name, *option.split())  # fmt: skip
        assert ended.code == 0, ended.err
        stores.append(ActivationStore.open(tmp_path / name))
    fast, exact = (store.provenance["forward"] for store in stores)
    assert fast == {"folded_batch_norm": 20, "channels_last": True}
    assert exact == {"folded_batch_norm": 0, "channels_last": False}
    a, b = (LayerReader(store, "layer1").images(range(2)) for store in stores)
    assert 0 < np.abs(a - b).max() <= 1e-4 * np.abs(b).max()  # rounding differs, so two forms did run
    network = open_network(stores[1], "layer1")
    pictures = [network.transform(Image.open(photos / name)) for name in stores[1].names]
    assert np.array_equal(network.backbone(torch.stack(pictures)).numpy(), b)
