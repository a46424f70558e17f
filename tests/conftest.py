"""What all tests share: one thread, small stores, small Broden folders, and networks that load by name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # tiny, tiny_net; spawned workers take it over

from by_hand import NETWORK, broden_folder, layer_store
from pretended_cuda import pretended_cuda
from tiny import TinyBroden, write_broden, write_images, write_store

from extract.segmentation.broden import BrodenSource
from stores.store import ActivationStore

# A shell starts what runs in the background with SIGINT ignored, and every process started from there takes that over:
# tests that interrupt a command would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and the suite tells of a change, not of luck: the same examples every time.
# EDDP_HYPOTHESIS=search draws new ones.
settings.register_profile("eddp", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("EDDP_HYPOTHESIS", "eddp"))


@pytest.fixture(autouse=True)
def cuda(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked ``gpu`` run on one where there is one; elsewhere on a pretended one, if that can tell them anything."""
    marked = request.node.get_closest_marker("gpu")
    if not marked or torch.cuda.is_available():
        yield
    elif marked.kwargs.get("real"):
        pytest.skip("needs a CUDA device")
    else:
        with pretended_cuda():
            yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_power_cuts() -> Iterator[None]:
    """Nobody pulls the plug on a test, and waiting for the disk would be most of the time that stores take."""
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda handle: None)
    yield
    patch.undo()


@pytest.fixture
def tiny_store(tmp_path: Path) -> Callable[..., Path]:
    """``tiny_store({layer: x (N, P, C)}, **options)``: the path of a sealed store (see ``tiny.write_store``)."""

    def make(layers: dict[str, np.ndarray], *, name: str = "acts.zarr", **options: object) -> Path:
        return write_store(tmp_path / name, layers, **options)

    return make


@pytest.fixture
def tiny_broden(tmp_path: Path) -> Callable[..., TinyBroden]:
    """``tiny_broden(**options)``: a correct Broden folder and its masks (see ``tiny.write_broden``)."""

    def make(*, name: str = "broden", **options: int) -> TinyBroden:
        return write_broden(tmp_path / name, **options)

    return make


@pytest.fixture
def tiny_images(tmp_path: Path) -> Callable[..., Path]:
    """``tiny_images(n)``: a folder of n noisy PNG images in two class folders."""

    def make(n: int = 10, *, name: str = "data", size: int = 20) -> Path:
        return write_images(tmp_path / name, n, size)

    return make


@pytest.fixture(scope="session")
def make_broden() -> Callable[..., BrodenSource]:
    """``make(root, labels [(number, name, category)], rows [{image, split, mask, cells}])`` (see ``by_hand``)."""
    return broden_folder


@pytest.fixture(scope="session")
def make_store() -> Callable[..., ActivationStore]:
    """``make(path, x (N, P, C), grid=(h, w), …)``: a sealed store of one layer, ``conv`` (see ``by_hand``)."""
    return layer_store


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a network as ``load_model`` takes it; ``sys.modules["toy_network"].SCALE`` changes its weights."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "toy_network.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("toy_network", None)
    yield "toy_network:build"
    sys.modules.pop("toy_network", None)
