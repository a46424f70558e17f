import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_net
import torch
from image_folders import put
from tiny import trusted

from extract.datasets import open_folder
from extract.network import open_head, open_network
from extract.stream import ExtractConfig, extract
from stores.errors import CorruptStoreError, MismatchError, UnknownNameError
from stores.readers import LayerReader
from stores.store import ActivationStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    root, layers = tmp_path_factory.mktemp("head"), ("first", "second")
    config = ExtractConfig(model="tiny_net:build", layers=layers, dtype="float32", chunk_images=4, workers=0)
    extract(open_folder(put(root / "data", *(f"{i}.png" for i in range(10)))), root / "s", config)
    return trusted(root / "s")


@pytest.mark.parametrize("layer", ["first", "second"])
def test_the_head_gives_the_models_own_logits(store: ActivationStore, layer: str) -> None:
    head = open_head(store, layer)
    assert (head.affine is not None) == (layer == "second")
    x = torch.from_numpy(LayerReader(store, layer).images(range(10)))
    with torch.no_grad():
        logits = head(x)
    np.testing.assert_allclose(logits.numpy(), store.logits, rtol=1e-4, atol=1e-5)
    if head.affine is not None:
        a, c = head.affine
        assert (a.shape, c.shape) == ((5, 8), (5,))


def test_the_head_is_differentiable(store: ActivationStore) -> None:
    for layer in ("first", "second"):
        x = torch.from_numpy(LayerReader(store, layer).images([0, 1])).requires_grad_()
        open_head(store, layer)(x).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


def test_an_affine_head_needs_no_model(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tiny_net, "build")
    open_head(store, "second")
    with pytest.raises(
        UnknownNameError, match=r"The model that made '.*s' cannot be loaded again: .*no 'build'.*Put back"
    ):
        open_head(store, "first")


def test_other_weights_are_refused(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed() -> torch.nn.Module:
        net = tiny_net.Net()
        with torch.no_grad():
            net.fc.bias += 1e-6
        return net

    assert open_network(store, "first").layer == "first"
    monkeypatch.setattr(tiny_net, "build", changed)
    with pytest.raises(
        MismatchError, match=r"'tiny_net:build' now loads with other weights .*Put the old weights back"
    ):
        open_head(store, "first")


def test_a_synthetic_store_has_no_network(tiny_store: Callable[..., Path]) -> None:
    path = tiny_store({"a": np.ones((3, 2, 2), np.float32)}, provenance={"model": "synthetic", "synthetic": {}})
    with pytest.raises(MismatchError, match="is synthetic: it has a head, but no images and no backbone"):
        open_network(ActivationStore.open(path), "a")


def test_a_damaged_head_is_not_used(store: ActivationStore, tmp_path: Path) -> None:
    damaged = trusted(shutil.copytree(store.path, tmp_path / "s"))
    file = damaged.path / "layers/second/head_bias/c.0"
    file.write_bytes(b"\0" * len(file.read_bytes()))
    with pytest.raises(CorruptStoreError, match="head of 'second'"):
        open_head(damaged, "second")
