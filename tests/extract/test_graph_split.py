import pytest
import torch
from torch import nn

from extract.graph_split import Replayed, Traced, trace
from extract.models import torchvision
from extract.probe import hooked
from stores.errors import NotACutError, UnknownNameError, UsageError


class Residual(nn.Module):
    """A stem, a residual block with a shared in-place ReLU, a concatenation, and a head; one layer never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)})
        self.side = nn.Conv2d(4, 2, 1)
        self.mix = nn.Conv2d(6, 5, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(5, 3)
        self.unused = nn.Linear(5, 3)
        self.alias = self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        y = self.block["b"](self.relu(self.block["a"](x)))
        y += x
        y = torch.cat([y, self.side(y)], 1)
        y = torch.relu_(self.mix(y))
        return self.fc(self.pool(y).flatten(1))


class Dynamic(Residual):
    """The same with a branch on the data, which torch.fx cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.abs().sum() < 0:
            return x
        return super().forward(x)


class Positions(nn.Module):
    """Adds position embeddings made from the image's size at every stage, and reads the batch size at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, 4)
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.register_buffer("rope", torch.randn(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, p = x.shape[0], x.shape[1]
        x = self.one(x + self.rope[:p])
        x = self.two(x * self.rope[:p])
        return x.reshape(n, -1)


class Optional(nn.Module):
    """Takes more arguments, with defaults, and has a layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.LSTM(3, 4, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 2.0) -> torch.Tensor:
        x, _ = self.pair(x.flatten(2).transpose(1, 2))
        if mask is not None:
            x = x * mask
        return self.fc(x.mean(1)) * scale


def shallow_resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


def make(build, **keywords) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(**keywords).eval().requires_grad_(False)


def images(size: int = 16, n: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def naive_cuts(module: nn.Module, x: torch.Tensor) -> list[str]:
    """Cuts by definition: with the layer's output of image a put into a pass on image b, the model answers as for a."""
    names = {child: name for name, child in module.named_modules() if name}
    order: list[str] = []
    kept: dict[str, torch.Tensor] = {}

    def keep(child, _inputs, output) -> None:
        order.append(names[child])
        kept[names[child]] = output.clone()

    handles = [child.register_forward_hook(keep) for child in names]
    with torch.no_grad():
        answer = module(x[:1]).clone()
    for handle in handles:
        handle.remove()
    cuts = []
    for name in order:
        if order.count(name) > 1:
            continue
        with torch.no_grad(), hooked(module, [name], lambda name, _: kept[name].clone()):
            if torch.allclose(module(x[1:2]), answer, rtol=1e-9, atol=1e-12):
                cuts.append(name)
    return cuts


def no_hooks(module: nn.Module) -> bool:
    return not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (Residual, 16),
        (shallow_resnet, 32),
        (torchvision.models.squeezenet1_1, 32),
        (torchvision.models.shufflenet_v2_x0_5, 32),
    ],
)
def test_cuts_of_the_graph_are_those_of_the_naive_definition(build, size: int) -> None:
    module = make(build).double()
    split = trace(module)
    assert isinstance(split, Traced)
    assert split.cuts() == naive_cuts(module, images(size, dtype=torch.float64))
    assert no_hooks(module)


def test_replay_finds_the_same_cuts_as_the_graph() -> None:
    dynamic = make(Dynamic)
    with pytest.raises(UsageError, match="cannot follow"):
        trace(dynamic)
    split = trace(dynamic, images())
    assert isinstance(split, Replayed)
    assert split.cuts() == trace(make(Residual)).cuts() == ["stem", "mix", "pool", "fc"]
    assert no_hooks(dynamic)


@pytest.mark.parametrize("build", [Residual, Dynamic])
def test_two_halves_make_all(build) -> None:
    module = make(build)
    split = trace(module, images())
    x = images(n=5)
    for layer in split.cuts():
        taken = split.backbone(layer)(x)
        before = taken.clone()
        torch.testing.assert_close(split.head(layer)(taken), module(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(taken, before)  # although an in-place operation follows
    assert no_hooks(module)


@pytest.mark.parametrize("build", [Residual, Dynamic])
def test_the_head_is_differentiable(build) -> None:
    split = trace(make(build), images())
    taken = split.backbone("stem")(images()).requires_grad_()
    split.head("stem")(taken).sum().backward()
    assert taken.grad is not None
    assert taken.grad.abs().sum() > 0


@pytest.mark.parametrize("build", [Residual, Dynamic])
def test_refusals_name_the_nearest_cuts(build) -> None:
    split = trace(make(build), images())
    with pytest.raises(UnknownNameError, match=r"no layer 'stemm'; the nearest are stem.*--layer \?"):
        split.require_cut("stemm")
    with pytest.raises(UnknownNameError, match="no layer ''"):
        split.require_cut("")
    with pytest.raises(NotACutError, match=r"runs 2 times.*'stem' before it and 'mix' after it"):
        split.require_cut("relu")
    with pytest.raises(NotACutError, match=r"a skip connection bypasses it.*'stem' before it and 'mix' after it"):
        split.require_cut("block.a")
    with pytest.raises(UsageError, match="does not run"):
        split.require_cut("unused")
    assert split.require_cut("alias") == "fc"


def test_the_size_of_the_image_may_go_round_a_layer() -> None:
    module = make(Positions)
    assert trace(module).cuts() == ["patch"]  # without an example the size is unknown
    split = trace(module, images())
    assert isinstance(split, Traced)
    assert split.cuts() == ["patch", "one", "two"]
    x = images(n=5) * 7
    for layer in split.cuts():
        torch.testing.assert_close(split.head(layer)(split.backbone(layer)(x)), module(x))


def test_further_arguments_keep_their_defaults() -> None:
    module = make(Optional)
    split = trace(module)
    assert split.cuts() == ["fc"]  # the LSTM gives a tuple
    x = images()
    torch.testing.assert_close(split.head("fc")(split.backbone("fc")(x)), module(x))


def test_parameters_are_shared_not_copied() -> None:
    module = make(Residual)
    own = {id(p) for p in module.parameters()}
    split = trace(module)
    for part in (split.backbone("mix"), split.head("mix")):
        assert {id(p) for p in part.parameters()} <= own


def test_hooks_go_even_when_the_model_fails() -> None:
    module = make(Dynamic)
    split = trace(module, images())
    with pytest.raises(RuntimeError):
        split.backbone("fc")(torch.zeros(1, 5, 4, 4))
    with pytest.raises(RuntimeError):
        split.head("stem")(torch.zeros(2, 9, 16, 16))
    assert no_hooks(module)


def test_a_model_that_fails_on_the_example_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"fails on images of shape \(5, 4, 4\)"):
        trace(make(Dynamic), torch.zeros(2, 5, 4, 4))
