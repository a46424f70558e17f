import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from extract.graph_split import Traced
from extract.layout_probe import find_layouts
from extract.models import LoadedModel, Preprocess, load_model, transforms
from extract.network import LayerInfo, Network, capture, list_layers
from extract.probe import probe_images
from extract.tensor_layout import LayerLayout
from stores.errors import NonFiniteError, NotACutError, UnknownNameError, UsageError

# model, layer, P, C, kind, pooled-affine
REAL = [
    ("inception_v3", "Mixed_7c", 64, 2048, "nchw", True),
    ("resnet18", "layer4", 49, 512, "nchw", True),
    ("resnet50", "layer3", 196, 1024, "nchw", False),
    ("mobilenet_v2", "features.18", 49, 1280, "nchw", True),
    ("efficientnet_b0", "features", 49, 1280, "nchw", True),
    ("vgg16", "features", 49, 512, "nchw", False),
    ("densenet121", "features", 49, 1024, "nchw", False),
    ("convnext_tiny", "features", 49, 768, "nchw", False),
    ("vit_b_16", "encoder.layers.encoder_layer_11", 197, 768, "tokens", False),
    ("swin_t", "features", 49, 768, "nhwc", False),
]


def loaded_with_live_head(model: str) -> LoadedModel:
    """Random weights; a classifier that starts at zero (vision transformers) gets random ones too."""
    loaded = load_model(model, "none")
    generator = torch.Generator().manual_seed(0)
    for module in loaded.module.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.normal_(0, 0.05, generator=generator)
    return loaded


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two images at a time gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=REAL, ids=lambda param: param[0])
def case(request: pytest.FixtureRequest) -> tuple[Network, tuple]:
    return Network.from_loaded(loaded_with_live_head(request.param[0]), request.param[1]), request.param


@pytest.fixture(scope="module")
def images(case) -> torch.Tensor:
    shape = probe_images(case[0].transform).shape[1:]
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def seen(case, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What one pass of the whole model gives, and the backbone: logits, captured, activations."""
    network, _ = case
    with capture(network.module, {network.layer: network.layout}) as taken:
        logits = network.logits(images)
    return logits, taken[network.layer], network.backbone(images)


def assert_near(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-4) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= relative * b.abs().max()


def test_layout_and_provenance(case) -> None:
    network, (model, layer, positions, channels, kind, _) = case
    assert (network.layout.kind, network.layout.positions, network.layout.channels) == (kind, positions, channels)
    assert network.split_kind == "fx"
    assert network.n_classes == 1000
    assert network.provenance["model"] == model
    assert network.provenance["layer"] == layer
    assert json.loads(json.dumps(network.provenance)) == network.provenance
    if model == "vit_b_16":
        assert (network.layout.prefix, network.layout.grid) == (1, (14, 14))


def test_head_of_backbone_is_the_model(case, seen) -> None:
    network, _ = case
    logits, _, x = seen
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    before = x.clone()
    with torch.no_grad():
        assert_near(network.head(x), logits)
    assert torch.equal(x, before)


def test_capture_is_the_backbone(case, seen) -> None:
    _, captured, x = seen
    assert_near(captured, x, 1e-5)


def test_head_gives_gradients(case, seen) -> None:
    network, _ = case
    x = seen[2].clone().requires_grad_()
    network.head(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_pooled_affine_heads_are_recognised(case, seen) -> None:
    network, (_, _, _, channels, _, expected) = case
    found = network.pooled_affine
    assert (found is not None) == expected
    if found is not None:
        assert found.A.shape == (1000, channels)
        assert_near(found(seen[2]), seen[0])
    assert network.pooled_affine is found


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
    layouts = {name: found.layout for name, found in find_layouts(loaded.module, ["one", "two"], images).items()}
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


def test_each_half_of_a_cut_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    compile_graph = Traced._compile
    monkeypatch.setattr(
        Traced, "_compile", lambda self, graph, name: built.append(name) or compile_graph(self, graph, name)
    )
    Network.from_loaded(small(), "one")
    assert built == ["Backbone", "Head"]


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


def test_half_precision_activations_are_taken() -> None:
    network = Network.from_loaded(small(), "two")
    x = network.backbone(probe_images(network.transform))
    assert_near(network.head(x.half()), network.head(x), 1e-2)


def test_layers_that_cannot_be_used_are_told() -> None:
    with pytest.raises(UsageError, match="must give one tensor"):
        Network.from_loaded(small(), "pair")
    with pytest.raises(NotACutError, match="'two' before it and 'fc' after it"):
        Network.from_loaded(small(), "inner")
    with pytest.raises(UnknownNameError, match="--layer"):
        Network.from_loaded(small(), "three")


def test_models_that_cannot_be_used_are_told() -> None:
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
    assert network.split_kind == network.provenance["split"] == "replay"
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


def test_load_finds_the_same_network_again() -> None:
    one = Network.load("squeezenet1_1", "none", "features", seed=3)
    two = Network.load("squeezenet1_1", "none", "features", seed=3)
    images = probe_images(one.transform)
    assert torch.equal(one.backbone(images), two.backbone(images))
    assert one.provenance == two.provenance
    assert torch.equal(one.module(images), two.logits(images))


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
