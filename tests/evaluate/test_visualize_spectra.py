"""Spectra, planes and colours of pictures against naive transforms and small closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluate.visualize.fourier import CONTRAST, Pictures, calmed
from evaluate.visualize.natural import FLOOR, MARGIN, assumed, measured
from evaluate.visualize.robust import SCALE, SHIFT, TURN, draw_moves, moved
from evaluate.visualize.spectra import falling, frequencies, odd, to_planes

SIZES = [(8, 8), (6, 9), (7, 4), (5, 5)]
CPU = torch.device("cpu")


def naive_dft(plane: np.ndarray) -> np.ndarray:
    """The full orthonormal transform of a plane (h, w), by its definition."""
    h, w = plane.shape
    down = np.exp(-2j * np.pi * np.outer(np.arange(h), np.arange(h)) / h)
    across = np.exp(-2j * np.pi * np.outer(np.arange(w), np.arange(w)) / w)
    return down @ plane @ across / np.sqrt(h * w)


@pytest.mark.parametrize("size", SIZES)
def test_frequencies_and_fall_are_those_of_the_full_spectrum(size: tuple[int, int]) -> None:
    h, w = size
    full = np.array(
        [[np.hypot(min(y, h - y) / h, min(x, w - x) / w) for x in range(w)] for y in range(h)]
    )  # aliases: a frequency above 1/2 is a negative one
    np.testing.assert_allclose(frequencies(h, w), full[:, : w // 2 + 1], atol=1e-6)
    fall = 1 / np.maximum(full, 1 / max(h, w))
    fall /= np.sqrt((fall**2).mean())  # orthonormal: the mean square of the plane is that of the coefficients
    np.testing.assert_allclose(falling(h, w), fall[:, : w // 2 + 1], rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_planes_come_back_from_their_spectra(size: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    half = torch.from_numpy(naive_dft(plane)[:, : size[1] // 2 + 1]).to(torch.complex64)
    np.testing.assert_allclose(to_planes(half, *size), plane, atol=1e-5)


@given(h=st.integers(1, 9), w=st.integers(1, 9), seed=st.integers(0, 99))
def test_odd_phases_are_those_of_a_real_picture(h: int, w: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    phase = odd(7 * torch.rand(h, w // 2 + 1, generator=g), w)
    magnitude = naive_dft(torch.rand(h, w, generator=g).numpy())[:, : w // 2 + 1]
    wanted = torch.from_numpy(np.abs(magnitude)).float()
    full = naive_dft(to_planes(torch.polar(wanted, phase), h, w).numpy())[:, : w // 2 + 1]
    np.testing.assert_allclose(np.abs(full), wanted, atol=1e-5)
    for x in range(w // 2 + 1):
        if x in (0, w - x):
            for y in range(h):
                assert phase[y, x] == -phase[-y % h, x]


def test_odd_leaves_odd_phases() -> None:
    phase = torch.from_numpy(np.angle(naive_dft(np.random.default_rng(1).random((6, 8))))[:, :5]).float()
    phase[phase.abs() > 3.14] = 0  # π is its own opposite, but no odd number is
    np.testing.assert_allclose(odd(phase, 8), phase, atol=1e-5)


def test_contrast_is_bounded_by_scaling_the_complete_picture() -> None:
    planes = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    planes[0] *= 0.1
    found = calmed(planes)
    torch.testing.assert_close(found[0], planes[0])
    torch.testing.assert_close(found[1], planes[1] * CONTRAST / planes[1].square().mean().sqrt())
    assert calmed(torch.zeros(1, 3, 2, 2)).abs().max() == 0


@pytest.mark.parametrize("size", [(8, 8), (7, 6), (6, 9)])
def test_magnitudes_stay_those_of_natural_images(size: tuple[int, int]) -> None:
    g = np.random.default_rng(0)
    images = [Image.fromarray(g.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(3)]
    natural = measured(images, size)
    pictures = Pictures("magnitude", [torch.Generator().manual_seed(k) for k in range(2)], natural, CPU)
    for _ in range(3):  # also after steps, whatever they are
        planes = pictures.planes().detach()
        full = torch.fft.fft2(planes, norm="ortho").abs()[..., : size[1] // 2 + 1]
        assert (full - natural.magnitude).abs().max() < 1e-5
        odds = torch.logit(pictures.rgb().detach())
        torch.testing.assert_close(odds.mean((2, 3)), natural.mean.expand(2, 3), atol=1e-5, rtol=1e-4)
        pictures.free.data += torch.randn(pictures.free.shape, generator=torch.Generator().manual_seed(9))


def test_pictures_start_nearly_flat_and_each_from_its_own_generator() -> None:
    natural = assumed((8, 6))
    three = Pictures("fourier", [torch.Generator().manual_seed(k) for k in (1, 2, 3)], natural, CPU)
    one = Pictures("fourier", [torch.Generator().manual_seed(2)], natural, CPU)
    torch.testing.assert_close(three.rgb()[1], one.rgb()[0], rtol=0, atol=1e-7)
    assert 0 < (three.rgb() - 0.5).abs().max() < 0.05
    assert not torch.equal(three.free[0], three.free[1])


def test_statistics_of_natural_images_are_those_of_their_log_odds() -> None:
    g = np.random.default_rng(0)
    mixed = g.random((5, 8, 6, 1)) + 0.3 * g.random((5, 8, 6, 3))
    pixels = (255 * mixed / mixed.max()).astype(np.uint8)
    natural = measured([Image.fromarray(p) for p in pixels], (8, 6))
    value = np.clip(pixels / 255, MARGIN, 1 - MARGIN)
    odds = np.log(value / (1 - value))  # (n, h, w, 3)
    flat = odds.reshape(-1, 3)
    np.testing.assert_allclose(natural.mean, flat.mean(0), atol=1e-4)
    np.testing.assert_allclose(natural.mix @ natural.mix.T, np.cov(flat.T, bias=True), atol=1e-4)
    planes = np.einsum("cr,nhwr->nchw", np.linalg.inv(natural.mix.numpy()), odds - flat.mean(0))
    uncorrelated = np.cov(planes.transpose(1, 0, 2, 3).reshape(3, -1), bias=True)
    np.testing.assert_allclose(uncorrelated, np.eye(3), atol=1e-4)
    wanted = np.mean([[np.abs(naive_dft(plane))[:, :4] for plane in image] for image in planes], 0)
    wanted[:, 0, 0] = 0
    np.testing.assert_allclose(natural.magnitude, wanted, atol=1e-3)
    assert natural.images == 5
    assert natural.size == (8, 6)


def test_grey_and_flat_images_have_statistics_too() -> None:
    ramp = np.tile(np.linspace(20, 230, 8), (8, 1)).astype(np.uint8)
    grey = measured([Image.fromarray(ramp)], (8, 8))
    covariance = (grey.mix @ grey.mix.T).numpy()
    assert np.abs(covariance - covariance.mean()).max() < 3 * FLOOR * np.trace(covariance)
    assert np.linalg.eigvalsh(covariance)[0] > 0
    assert measured([Image.new("RGB", (8, 8), (9, 99, 199))], (8, 8)).images == 0
    assert measured([], (8, 8)).images == 0


def test_assumed_colours_are_mostly_brightness() -> None:
    natural = assumed((6, 6))
    variance, axes = np.linalg.eigh((natural.mix @ natural.mix.T).numpy())
    np.testing.assert_allclose(np.abs(axes[:, -1]), 1 / np.sqrt(3), atol=1e-5)
    assert variance[-1] > 5 * variance[-2] > 0
    assert natural.magnitude[:, 0, 0].abs().max() == 0


def test_no_move_changes_nothing_and_a_shift_shifts() -> None:
    pictures = torch.rand(1, 3, 12, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved(pictures, torch.zeros(1, 4)), pictures, atol=1e-5, rtol=0)
    right = moved(pictures, torch.tensor([[1.0, 0, 0, 0]]))  # 24 · SHIFT = 2 pixels
    assert round(24 * SHIFT) == 2
    torch.testing.assert_close(right[..., 2:], pictures[..., :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(right[..., :2], pictures[..., :2].flip(-1), atol=1e-5, rtol=0)  # the edge is a mirror
    down = moved(pictures, torch.tensor([[0, 1.0, 0, 0]]))
    torch.testing.assert_close(down[:, :, 1:], pictures[:, :, :-1], atol=1e-5, rtol=0)


def test_turns_and_sizes_are_what_they_say_in_pictures_of_any_shape() -> None:
    h, w = 40, 80
    y, x = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij")
    spots = []
    for move in ([0, 0, 1.0, 0], [0, 0, 0, 1.0]):
        spot = np.exp(-((x - 15) ** 2 + (y - 5) ** 2) / 8).astype(np.float32)
        after = moved(torch.from_numpy(spot).expand(1, 3, h, w), torch.tensor([move]))[0, 0].double().numpy()
        spots.append(((after * x).sum() / after.sum(), (after * y).sum() / after.sum()))
    np.testing.assert_allclose(spots[0], (15 * (1 + SCALE), 5 * (1 + SCALE)), atol=0.05)
    angle = np.arctan2(5, 15) - np.arctan2(spots[1][1], spots[1][0])
    assert abs(np.degrees(angle)) == pytest.approx(TURN, abs=0.2)
    assert np.hypot(*spots[1]) == pytest.approx(np.hypot(15, 5), abs=0.05)


def test_moves_are_each_pictures_own() -> None:
    both = draw_moves([torch.Generator().manual_seed(k) for k in (1, 2)], 5)
    alone = draw_moves([torch.Generator().manual_seed(2)], 5)
    assert both.shape == (5, 2, 4)
    assert torch.equal(both[:, 1], alone[:, 0])
    assert both.abs().max() <= 1
    assert not torch.equal(both[:, 0], both[:, 1])
