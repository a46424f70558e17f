"""Pictures against the maximisers known in closed form, seeds, and what is left behind when a network fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny_net
import torch
from linear_sight import SIZE, Sight, Templates, colours, untouched

from evaluate.visualize import maximise as module
from evaluate.visualize.maximise import RATES, Target, VisualizeConfig, maximise, resized
from evaluate.visualize.natural import Natural, assumed
from evaluate.visualize.pixels import Eyes, to_jpeg
from evaluate.visualize.spectra import to_planes
from extract.models import load_model
from extract.network import Network
from stores.errors import NonFiniteError, UsageError

STILL = VisualizeConfig(steps=200, transformations=False, batch=4)


def target(vector: list[float], index: int = 0) -> Target:
    return Target(f"signal vector {index}", np.array(vector, np.float32), (1, index))


def draw(sight: Any, targets: list[Target], config: VisualizeConfig, natural: Natural | None = None) -> torch.Tensor:
    drawn = maximise(sight, untouched(), natural or assumed(SIZE), targets, config)
    return torch.stack([picture for _, picture in drawn])


@pytest.fixture
def templates() -> torch.Tensor:
    """Two smooth templates (2, 3, h, w)."""
    coarse = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def unmixed(picture: torch.Tensor, natural: Natural) -> torch.Tensor:
    """The planes (3, h, w) that a picture was made of."""
    odds = torch.logit(picture) - natural.mean[:, None, None]
    return torch.einsum("cr,rhw->chw", torch.linalg.inv(natural.mix), odds)


def test_with_free_spectra_the_picture_is_the_template_at_natural_contrast(templates: torch.Tensor) -> None:
    """A linear function of the planes, maximal on the sphere of planes of unit mean square: its own gradient, scaled."""
    natural = assumed(SIZE)
    found = draw(Sight(Templates(templates), 2), [target([2, 0]), target([0.6, -0.8], 1)], STILL)
    for picture, v in zip(found, ([1.0, 0.0], [0.6, -0.8]), strict=True):
        gradient = torch.einsum("k,krhw,rc->chw", torch.tensor(v), templates, natural.mix)
        wanted = gradient / gradient.square().mean().sqrt()
        planes = unmixed(picture, natural)
        assert (planes - wanted).square().mean() < 0.005
        assert planes.square().mean() <= 1.0001


def test_with_fixed_magnitudes_the_phases_are_the_templates(templates: torch.Tensor) -> None:
    """Σ r |T| cos(φ − arg T) is largest where every phase is the template's."""
    natural = assumed(SIZE)
    config = VisualizeConfig("magnitude", steps=300, transformations=False, rate=0.1)
    (found,) = draw(Sight(Templates(templates), 2), [target([1, 0])], config)
    gradient = torch.einsum("rhw,rc->chw", templates[0], natural.mix)
    phase = torch.fft.rfft2(gradient).angle()
    wanted = to_planes(torch.polar(natural.magnitude, phase), *SIZE)
    planes = unmixed(found, natural)
    reached, best = (float((gradient * p).sum()) for p in (planes, wanted))
    assert 0.99 * best < reached < 1.001 * best
    assert (planes - wanted).square().mean() < 0.05 * wanted.square().mean()


def test_a_colour_is_drawn_as_that_colour_also_when_the_picture_moves() -> None:
    config = VisualizeConfig(steps=40, batch=3)
    found = draw(Sight(colours, 3), [target(v, k) for k, v in enumerate(np.eye(3).tolist())], config).mean((2, 3))
    assert (found.argmax(1) == torch.arange(3)).all()
    assert (found.max(1).values > 0.65).all()


def test_positions_outside_the_image_do_not_count(templates: torch.Tensor) -> None:
    """A class token that shouts the opposite changes nothing."""

    def with_token(images: torch.Tensor) -> torch.Tensor:
        x = colours(images)
        return torch.cat([-1000 * x.mean(1, keepdim=True), x], 1)

    config = VisualizeConfig(steps=5)
    alone = draw(Sight(colours, 3), [target([1, 0, 0])], config)
    beside = draw(Sight(with_token, 3, prefix=1), [target([1, 0, 0])], config)
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["fourier", "magnitude"])
def test_two_runs_give_the_same_bytes_and_no_picture_depends_on_the_others(
    kind: Any, conv: Callable[[str], Network]
) -> None:
    network = conv("second")
    eyes = Eyes(network.transform, (16, 16))
    targets = [target(v.tolist(), k) for k, v in enumerate(np.random.default_rng(0).standard_normal((5, 8)))]

    def run(some: list[Target], batch: int) -> list[torch.Tensor]:
        config = VisualizeConfig(kind, steps=6, batch=batch)
        return [p for _, p in maximise(network, eyes.normalise, assumed((16, 16)), some, config)]

    first, second = run(targets, 2), run(targets, 2)
    assert [to_jpeg(p) for p in first] == [to_jpeg(p) for p in second]
    backwards = run(targets[::-1], 3)[::-1]
    for k, picture in enumerate(first):
        torch.testing.assert_close(picture, backwards[k], atol=1e-4, rtol=0)  # convolutions of 2 and of 3 round apart
        torch.testing.assert_close(picture, run([targets[k]], 4)[0], atol=1e-4, rtol=0)
    assert not torch.equal(first[0], first[1])
    other = VisualizeConfig(kind, steps=6, seed=1)
    (changed,) = (p for _, p in maximise(network, eyes.normalise, assumed((16, 16)), targets[:1], other))
    assert (changed - first[0]).abs().max() > 0.01


def test_a_batch_bounds_how_many_pictures_are_held_at_a_time() -> None:
    sight = Sight(colours, 3)
    told: list[tuple[int, int | None]] = []
    config = VisualizeConfig(steps=2, batch=2)
    targets = [target([1, 0, 0], k) for k in range(5)]
    progress = lambda stage, done, total=None, note="": told.append((done, total))  # noqa: E731
    assert len(list(maximise(sight, untouched(), assumed(SIZE), targets, config, progress=progress))) == 5
    assert sight.seen == [2, 2, 2, 2, 1, 1]
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("layer", ["embed", "block", "second", "fc"])
def test_layers_of_every_layout_can_be_drawn(layer: str, conv: Callable[..., Network]) -> None:
    """Maps, tokens behind a class token, vectors: the response to the picture is larger than to its start."""
    network = conv(layer, "tiny_net:tokens" if layer in ("embed", "block") else "tiny_net:build")
    eyes = Eyes(network.transform, (16, 16))
    v = np.ones(network.layout.channels, np.float32)
    natural = assumed((20, 20))  # pictures need not have the size of the network's input
    responses = []
    for steps in (1, 20):
        config = VisualizeConfig(steps=steps, size=20)
        ((_, picture),) = maximise(network, eyes.normalise, natural, [Target("v", v, (0, 0))], config)
        x = network.backbone(eyes.normalise(resized(picture[None], (16, 16))))
        responses.append(float((x[0, network.layout.prefix :] @ torch.from_numpy(v)).mean()))
    assert responses[1] > responses[0]


def test_channels_last_layers_can_be_drawn() -> None:
    found = draw(Sight(lambda images: images.permute(0, 2, 3, 1).flatten(1, 2), 3), [target([0, 1, 0])], STILL)
    assert found.mean((2, 3)).argmax() == 1


def test_a_direction_of_zeros_leaves_a_picture_of_nothing() -> None:
    (found,) = draw(Sight(colours, 3), [target([0, 0, 0])], VisualizeConfig(steps=3))
    assert (found - 0.5).abs().max() < 0.1


def test_a_network_that_gives_nan_names_the_direction_and_stays_as_it_was(templates: torch.Tensor) -> None:
    module = Templates(templates)

    def failing(images: torch.Tensor) -> torch.Tensor:
        x = module(images)
        return torch.where(torch.arange(len(x))[:, None, None] == 1, x * float("nan"), x)

    targets = [target([1, 0], 4), target([0, 1], 7)]
    with pytest.raises(NonFiniteError, match=r"NaN or infinite values at 'eye' while signal vector 7 is drawn"):
        draw(Sight(failing, 2), targets, STILL)
    assert module.templates.requires_grad
    assert module.templates.grad is None


def test_nothing_hangs_on_the_network_after_a_failure(
    conv: Callable[[str], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = conv("second")
    eyes = Eyes(network.transform, (16, 16))
    before = [(p.requires_grad, p.clone()) for p in network.module.parameters()]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    targets = [Target("v", np.ones(8, np.float32), (0, 0))]
    with pytest.raises(KeyboardInterrupt):
        list(maximise(network, eyes.normalise, assumed((16, 16)), targets, STILL, progress=fail))
    for parameter, (asked, value) in zip(network.module.parameters(), before, strict=True):
        assert parameter.requires_grad == asked
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    for part in network.module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert not part._backward_hooks
    assert torch.is_grad_enabled()


def test_pictures_are_drawn_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        (found,) = draw(Sight(colours, 3), [target([1, 0, 0])], VisualizeConfig(steps=20))
    assert found.mean((1, 2)).argmax() == 0
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"parametrisation": "pixels"}, "'parametrisation' must be one of fourier, magnitude, got 'pixels'"),
        ({"steps": 0}, "'steps' must be at least 1, got 0"),
        ({"batch": 0}, "'batch' must be at least 1"),
        ({"seed": -1}, "'seed' must be at least 0"),
        ({"randoms": 7}, "'randoms' must be at least 8"),
        ({"rate": 0.0}, "'rate' must be a positive number"),
        ({"rate": float("nan")}, "'rate' must be a positive number"),
        ({"size": 4}, "'size' must be between 8 and 1024 pixels, got 4"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        VisualizeConfig(**given)


def test_the_pictures_size_keeps_the_networks_shape() -> None:
    assert VisualizeConfig().picture_size((96, 64)) == (96, 64)
    assert VisualizeConfig(size=48).picture_size((96, 64)) == (48, 32)
    assert set(RATES) == {"fourier", "magnitude"}


@pytest.fixture
def conv() -> Callable[..., Network]:
    """``conv(layer, model)``: a small real network cut at a layer."""
    assert tiny_net.SIZE == 16

    def load(layer: str, model: str = "tiny_net:build") -> Network:
        return Network.from_loaded(load_model(model, "none"), layer)

    return load


def test_everything_is_moved_to_the_networks_device(templates: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that computes nothing but complains of tensors from elsewhere: all steps are taken, and the picture asked for."""
    monkeypatch.setattr(module, "_check", lambda *_: None)  # there are no values to check
    sight = Sight(Templates(templates).to("meta"), 2)
    sight.device = torch.device("meta")
    told: list[int] = []
    progress = lambda stage, done, total=None, note="": told.append(done)  # noqa: E731
    for kind in ("fourier", "magnitude"):
        config = VisualizeConfig(kind, steps=3, size=9)
        drawn = maximise(sight, untouched(), assumed((9, 8)), [target([1, 0])], config, progress=progress)
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            next(drawn)
    assert told == [0, 0, 1] * 2


def test_networks_run_in_full_float32_and_only_they(monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[str] = []

    @contextmanager
    def computing(precision: str, device: torch.device) -> Iterator[None]:
        now.append(f"{precision} {device}")
        yield
        now.pop()

    monkeypatch.setattr(module, "computing_in", computing)
    seen: list[list[str]] = []
    sight = Sight(lambda images: (seen.append(list(now)), colours(images))[1], 3)
    for _ in maximise(
        sight, untouched(), assumed(SIZE), [target([1, 0, 0], k) for k in range(3)], VisualizeConfig(steps=2, batch=2)
    ):
        assert not now
    assert seen == [["float32 cpu"]] * 4


@pytest.mark.gpu
def test_a_gpu_draws_what_a_processor_draws(templates: torch.Tensor) -> None:
    found = []
    for device in ("cpu", "cuda"):
        sight = Sight(Templates(templates).to(device), 2)
        sight.device = torch.device(device)
        drawn = maximise(sight, untouched(), assumed(SIZE), [target([1, 0])], STILL)
        found.append(next(picture for _, picture in drawn))
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0)
