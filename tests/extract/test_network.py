import dataclasses

import pytest
import torch
from torch import nn

from extract.layer_choice import LayerInfo, list_layers
from extract.models import LoadedModel, Preprocess, transforms
from extract.network import Network, capture
from extract.probe import probe_images
from extract.tensor_layout import LayerLayout
from stores.errors import NonFiniteError, NotACutError, UnknownNameError, UsageError


def assert_near(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-4) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= relative * b.abs().max()


@pytest.mark.parametrize(
    ("model", "layer", "layout", "affine"),
    [
        ("resnet18", "layer4", LayerLayout("nchw", (7, 7), 512), True),
        ("resnet18", "layer3", LayerLayout("nchw", (14, 14), 256), False),
    ],
)
def test_backbone_and_head_are_the_model(model: str, layer: str, layout: LayerLayout, affine: bool) -> None:
    """More models are in tests/cli/test_models.py."""
    network = Network.load(model, "none", layer)
    assert (network.layout, network.split_kind, network.n_classes) == (layout, "fx", 1000)
    assert network.input_size == (224, 224)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    with capture(network.module, {layer: layout}) as taken:
        logits = network.logits(images)
    x = network.backbone(images)
    assert (x.dtype, x.is_contiguous()) == (torch.float32, True)
    assert_near(taken[layer], x, 1e-5)
    found = network.head(x.clone().requires_grad_())
    assert_near(found, logits)
    assert (network.pooled_affine is not None) == affine
    if affine:
        assert_near(network.pooled_affine(x), logits)
    y = x.clone().requires_grad_()
    network.head(y)[:, 0].sum().backward()
    assert y.grad.isfinite().all()
    assert y.grad.abs().max() > 0
    assert torch.equal(x, y)  # never written into


class Small(nn.Module):
    """In-place ReLUs after every layer, a residual block, and ``wrap`` around the logits."""

    def __init__(self, wrap=lambda logits: logits) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 5, 3, padding=1, stride=2)
        self.inner = nn.Conv2d(5, 5, 1)
        self.pair = Pair()
        self.fc = nn.Linear(5, 3)
        self.wrap = wrap

    def forward(self, x: torch.Tensor):
        x = torch.relu_(self.one(x))
        x = torch.relu_(self.two(x))
        x = x + self.inner(x)
        x, _ = self.pair(x)
        return self.wrap(self.fc(x.mean((2, 3))))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x * 2, 3


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


def small(module: nn.Module | None = None, size: int = 16) -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = module or Small()
    transform = Preprocess(transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()]))
    provenance = {"model": "m", "weights": "none", "weights_digest": "sha256:0", "class_names": None}
    return LoadedModel(module.eval().requires_grad_(False), transform, provenance)


def no_hooks(module: nn.Module) -> bool:
    return not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_captured_copies_survive_what_follows_in_place() -> None:
    loaded = small()
    images = probe_images(loaded.transform)
    layouts = {"one": LayerLayout("nchw", (16, 16), 4), "two": LayerLayout("nchw", (8, 8), 5)}
    with torch.no_grad():
        one = loaded.module.one(images)
        with capture(loaded.module, layouts, torch.float16) as taken:
            logits = loaded.module(images)
            assert set(taken) == {"one", "two"}
            first = dict(taken)
            loaded.module(images * 2)
            assert taken["one"] is not first["one"]
    assert (one < 0).any()
    assert torch.equal(first["one"], layouts["one"].to_npc(one).half())
    assert (first["two"] < 0).any()
    assert first["one"].is_contiguous()
    assert torch.equal(logits, Network.from_loaded(loaded, "one").logits(images))
    assert no_hooks(loaded.module)


def test_hooks_go_after_exceptions() -> None:
    loaded = small()
    layout = LayerLayout("nchw", (16, 16), 4)
    with pytest.raises(ZeroDivisionError), capture(loaded.module, {"one": layout}):
        raise ZeroDivisionError
    assert no_hooks(loaded.module)
    with pytest.raises(UsageError, match="must be"), capture(loaded.module, {"two": layout}):
        loaded.module(torch.zeros(1, 3, 16, 16))
    assert no_hooks(loaded.module)
    with pytest.raises(AttributeError), capture(loaded.module, {"one": layout, "gone": layout}):
        pass
    assert no_hooks(loaded.module)
    with pytest.raises(UsageError, match="must give a tensor, got tuple"), capture(loaded.module, {"pair": layout}):
        loaded.module(torch.zeros(1, 3, 16, 16))
    assert no_hooks(loaded.module)


def test_a_layer_that_runs_twice_cannot_be_captured() -> None:
    shared = nn.Conv2d(3, 3, 1)
    module = nn.Sequential(shared, shared)
    with pytest.raises(UsageError, match="several times"), capture(module, {"0": LayerLayout("nchw", (4, 4), 3)}):
        module(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, None),
        lambda logits: {"aux": logits[:, :2], "logits": logits},
        Output,
        lambda logits: logits[:, :, None, None],
    ],
)
def test_wrapped_logits(wrap) -> None:
    plain, wrapped = Network.from_loaded(small(), "two"), Network.from_loaded(small(Small(wrap)), "two")
    wrapped.module.load_state_dict(plain.module.state_dict())
    images = probe_images(plain.transform)
    assert torch.equal(wrapped.logits(images), plain.logits(images))
    assert_near(wrapped.head(wrapped.backbone(images)), plain.logits(images))
    assert wrapped.n_classes == 3


def test_layers_that_cannot_be_used_are_reported() -> None:
    with pytest.raises(UsageError, match="must give one tensor"):
        Network.from_loaded(small(), "pair")
    with pytest.raises(NotACutError, match="'two' before it and 'fc' after it"):
        Network.from_loaded(small(), "inner")
    with pytest.raises(UnknownNameError, match="--layer"):
        Network.from_loaded(small(), "three")


def test_models_that_cannot_be_used_are_reported() -> None:
    with pytest.raises(UsageError, match="the images as first dimension"):
        Network.from_loaded(small(nn.Sequential(Turned(), Turned(), nn.Flatten())), "0")
    with pytest.raises(UsageError, match="logits"):
        Network.from_loaded(small(nn.Sequential(nn.Conv2d(3, 2, 1))), "0")
    with pytest.raises(UsageError, match=r"fails on .*\(3, 16, 16\)"):
        Network.from_loaded(small(nn.Sequential(nn.Conv2d(5, 2, 1), nn.Flatten())), "0")
    broken = small()
    broken.module.fc.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="weights"):
        Network.from_loaded(broken, "two")


class Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(x.shape)


def test_a_model_that_is_random_in_evaluation_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), Noisy(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with (
        torch.random.fork_rng(),
        pytest.raises(UsageError, match=r"different values each time, first in '1' \(Noisy\)"),
    ):
        Network.from_loaded(small(module), "0")


class Branching(Small):
    def forward(self, x: torch.Tensor):
        return super().forward(x) if x.sum() > -1e9 else x


def test_a_model_with_branches_is_replayed() -> None:
    network = Network.from_loaded(small(Branching()), "two")
    plain = Network.from_loaded(small(Small()), "two")
    network.module.load_state_dict(plain.module.state_dict())
    assert network.split_kind == "replay"
    images = probe_images(network.transform, 5)
    x = network.backbone(images)
    assert torch.equal(x, plain.backbone(images))
    assert_near(network.head(x), plain.logits(images))
    assert no_hooks(network.module)
    assert Network.from_loaded(small(Branching()), "fc").pooled_affine is not None
    with pytest.raises(NotACutError):
        Network.from_loaded(small(Branching()), "inner")


def test_layers_are_listed_with_what_they_offer() -> None:
    assert list_layers(small()) == [
        LayerInfo("one", "Conv2d", (4, 16, 16), LayerLayout("nchw", (16, 16), 4), "from the layer's type", True),
        LayerInfo("two", "Conv2d", (5, 8, 8), LayerLayout("nchw", (8, 8), 5), "from the layer's type", True),
        LayerInfo("inner", "Conv2d", (5, 8, 8), LayerLayout("nchw", (8, 8), 5), "from the layer's type", False),
        LayerInfo("fc", "Linear", (3,), LayerLayout("vector", (1, 1), 3), "from its shape", True),
    ]
    assert list_layers(small(Branching())) == list_layers(small())


def test_probe_images_are_always_the_same_and_differ() -> None:
    transform = small().transform
    images = probe_images(transform)
    assert torch.equal(images, probe_images(transform))
    assert not torch.equal(images[0], images[1])
    with pytest.raises(UsageError, match="must give tensors"):
        probe_images(lambda image: torch.zeros(4))


@pytest.mark.gpu
def test_the_device_changes_nothing() -> None:
    cpu, gpu = Network.from_loaded(small(), "two"), Network.from_loaded(small(), "two", "cuda")
    images = probe_images(cpu.transform)
    assert gpu.backbone(images).is_cuda
    assert_near(gpu.backbone(images).cpu(), cpu.backbone(images), 1e-2)
    assert_near(gpu.head(cpu.backbone(images)).cpu(), cpu.logits(images), 1e-2)
