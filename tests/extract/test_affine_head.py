import copy

import pytest
import torch
from torch import nn

from extract.affine_head import head_logits, pooled_affine
from extract.tensor_layout import LayerLayout

LAYOUT = LayerLayout("nchw", (3, 4), 6)


def pool() -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


class Weighted(nn.Module):
    """An affine head that is no average: every position has its own weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(2) * torch.arange(12, dtype=x.dtype)).mean(2)


class Power(nn.Module):
    """Generalised mean pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class Normalised(nn.Module):
    """Averages, then projects to the unit sphere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x.mean((2, 3)))


AFFINE = {
    "resnet": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5)),
    "conv before": lambda: nn.Sequential(nn.Conv2d(6, 5, 1), pool(), nn.Flatten()),
    "conv after": lambda: nn.Sequential(pool(), nn.Conv2d(6, 5, 1)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(6), pool(), nn.Flatten(), nn.Linear(6, 5)),
    "two linears": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(6, 7), nn.Linear(7, 5)),
    "avg pool": lambda: nn.Sequential(nn.AvgPool2d((3, 4)), nn.Flatten(), nn.Linear(6, 5)),
}
OTHER = {
    "relu between": lambda: nn.Sequential(nn.ReLU(), pool(), nn.Flatten(), nn.Linear(6, 5)),
    "relu after": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5)),
    "relu at the end": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(6, 5), nn.ReLU()),
    "hardswish": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(6, 9), nn.Hardswish(), nn.Linear(9, 5)),
    "faint softplus": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(6, 5), nn.Softplus(beta=100)),
    "layer norm": lambda: nn.Sequential(pool(), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 5)),
    "max pool": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5)),
    "padded conv": lambda: nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), pool(), nn.Flatten()),
    "weighted": Weighted,
    "power": Power,
    "normalised": Normalised,
    "softmax": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(6, 5), nn.Softmax(1)),
}


def make(build) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = build().eval()
        for child in head.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.normal_()
                child.running_var.uniform_(0.5, 2)
        return head


@pytest.mark.parametrize("name", AFFINE)
def test_averages_and_affine_maps_are_recognised(name: str) -> None:
    head = make(AFFINE[name])
    before = copy.deepcopy(head.state_dict())
    found = pooled_affine(head, LAYOUT)
    assert found is not None
    assert found.A.shape == (5, 6)
    assert found.c.shape == (5,)
    assert found.A.dtype == found.c.dtype == torch.float32
    x = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(1)) * 10
    torch.testing.assert_close(found(x), head_logits(head, LAYOUT, x), rtol=1e-4, atol=1e-4)
    if name == "resnet":
        torch.testing.assert_close(found.A, head[3].weight.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.c, head[3].bias.detach(), rtol=1e-6, atol=1e-7)
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


@pytest.mark.parametrize("name", OTHER)
def test_anything_else_is_not(name: str) -> None:
    assert pooled_affine(make(OTHER[name]), LAYOUT) is None


@pytest.mark.parametrize(("weight", "bias"), [(0.0, 1.0), (0.0, 0.0), (1.0, float("nan"))])
def test_a_constant_head_and_not_a_number_are_not_recognised(weight: float, bias: float) -> None:
    head = make(AFFINE["resnet"])
    nn.init.constant_(head[3].weight, weight)
    nn.init.constant_(head[3].bias, bias)
    assert pooled_affine(head, LAYOUT) is None


def test_the_class_token_makes_no_average() -> None:
    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0]

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 1:].mean(1)

    layout = LayerLayout("tokens", (2, 2), 3, 1)
    assert pooled_affine(First(), layout) is None
    assert pooled_affine(Mean(), layout) is None
    assert pooled_affine(nn.Linear(3, 2), LayerLayout("vector", (1, 1), 3)) is not None
