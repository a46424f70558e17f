"""The prepared network: BatchNorm folded where nothing sees it, channels-last, the same values; or left as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from extract.inference import InferenceModule, prepare_inference
from extract.models import LoadedModel, Preprocess
from extract.network import capture, cut


class Net(nn.Module):
    """Two convolutions with BatchNorm of unusual statistics; ``kind`` says what is special about it."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=kind == "bias"), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=kind != "no affine")
        self.last = nn.Sequential(nn.ReLU(inplace=True))
        self.fc = nn.Linear(8 * 64 if kind == "view" else 8, 5)
        if kind == "weight_norm":
            self.conv = torch.nn.utils.parametrizations.weight_norm(self.conv)
        generator = torch.Generator().manual_seed(0)
        for norm in (self.first[1], self.norm):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.1, 3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        before = self.conv(x)
        x = self.norm(before)
        if self.kind == "twice":
            x = self.norm(self.conv(x))
        x = self.last(x + before if self.kind == "skip" else x)
        return self.fc(x.view(len(x), -1) if self.kind == "view" else x.mean((2, 3)))


def prepared(kind: str, *layers: str) -> tuple[nn.Module, InferenceModule]:
    """The untouched module and the prepared one; both give the same at the kept layers and at the logits."""
    torch.manual_seed(0)
    module = Net(kind).eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    transform = Preprocess(lambda image: np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255)
    loaded = LoadedModel(module, transform, {"class_names": None})
    networks = cut(loaded, layers, layouts=dict.fromkeys(layers, "nchw"))
    made = prepare_inference(networks)
    images = torch.randn(4, 3, 8, 8)
    layouts = {name: network.layout for name, network in networks.items()}
    with torch.inference_mode():
        with capture(module, layouts) as wanted:
            logits = module(images)
        with capture(made.module, layouts) as found:
            torch.testing.assert_close(made.module(images), logits, rtol=1e-4, atol=1e-5)
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    return module, made


@pytest.mark.parametrize("kind", ["", "bias", "no affine"])
def test_every_batch_norm_after_a_convolution_is_folded(kind: str) -> None:
    module, made = prepared(kind, "first", "last")
    assert (made.folded, made.channels_last) == (2, True)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.module.modules())
    assert made.module.fc.weight is module.fc.weight  # what is not changed is not copied


@pytest.mark.parametrize(
    ("layers", "folded"), [(("norm",), 2), (("conv",), 1), (("first.0", "conv"), 0), (("first.1", "last"), 2)]
)
def test_a_convolution_at_a_layer_that_is_stored_is_not_folded(layers: tuple[str, ...], folded: int) -> None:
    assert prepared("", *layers)[1].folded == folded


def test_a_convolution_whose_weights_are_computed_is_not_folded() -> None:
    made = prepared("weight_norm", "last")[1]
    assert (made.folded, made.channels_last) == (1, True)


def test_a_convolution_that_runs_twice_is_not_folded() -> None:
    assert prepared("twice", "last")[1].folded == 1


def test_a_network_that_needs_planar_memory_gets_it() -> None:
    made = prepared("view", "last")[1]
    assert (made.folded, made.channels_last) == (2, False)


def test_a_network_that_would_give_something_else_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    module, made = prepared("skip", "last")
    assert (made.module, made.folded, made.channels_last) == (module, 0, False)
    assert "differ" in caplog.text
