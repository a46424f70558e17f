import tracemalloc

import numpy as np
import pytest
from PIL import Image

from extract import image_io as colours
from extract.image_io import to_mode
from stores.errors import UsageError


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_every_mode_becomes_rgb_of_about_the_same_grey(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 5), 255 * 257, np.uint16))
    elif mode == "RGB":
        image = Image.new("RGB", (5, 6), (255, 255, 255))
    else:
        image = Image.new("L", (5, 6), 255).convert(mode)
    rgb = to_mode(image, grey_range=(0, 255) if mode in ("I", "F") else None)
    assert rgb.mode == "RGB"
    assert rgb.size == (5, 6)
    np.testing.assert_allclose(np.asarray(rgb), 255, atol=1)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 9, dtype=np.uint16)[None]
    rgb = np.asarray(to_mode(Image.fromarray(ramp)))[0, :, 0]
    np.testing.assert_allclose(rgb, ramp[0] / 257, atol=1)


@pytest.mark.parametrize("most", [1, 255, 256, 4095])
def test_the_scale_does_not_depend_on_the_values(most: int) -> None:
    """Scaled image by image, one bright pixel would turn a picture black."""
    values = np.minimum(np.arange(5000, 10000, dtype=np.uint16), most)[None]
    grey = np.asarray(to_mode(Image.fromarray(values), "L"))
    np.testing.assert_array_equal(grey, np.rint(values / 257))


def test_a_range_of_grey_is_for_all_deep_images_and_no_others() -> None:
    deep = Image.fromarray(np.array([[0, 1000, 2000, 4000, 9000]], np.uint16))
    assert np.asarray(to_mode(deep, "L", (1000, 4000)))[0].tolist() == [0, 0, 85, 255, 255]
    assert np.asarray(to_mode(deep, "L", (4000, 1000)))[0].tolist() == [255, 255, 170, 0, 0]  # white is low
    assert to_mode(Image.new("L", (1, 1), 7), "RGB", (1000, 4000)).getpixel((0, 0)) == (7, 7, 7)
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert np.asarray(to_mode(real, "L", (0, 1)))[0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_of_no_known_range_is_refused(mode: str) -> None:
    with pytest.raises(UsageError, match=rf"mode {mode} does not say .* --grey-range LOW,HIGH"):
        to_mode(Image.new("L", (5, 6), 255).convert(mode))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "F"])
def test_bands_of_wide_grey_make_no_difference(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    g = np.random.default_rng(0)
    values = g.integers(0, 65536, (37, 11))
    if mode in "IF":
        image = Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    else:
        image = Image.frombytes(mode, (11, 37), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    wanted = np.clip(np.rint(values * (255 / 65535)), 0, 255).astype(np.uint8)
    for band in (1, 25, 2**20):
        monkeypatch.setattr(colours, "_BAND", band)
        rgb = np.asarray(to_mode(image, "RGB", (0, 65535)))
        assert all(np.array_equal(rgb[..., channel], wanted) for channel in range(3))


def test_wide_grey_takes_a_few_bytes_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colours, "_BAND", 2**14)
    image = Image.fromarray(np.full((1000, 1000), 300, np.uint16))
    tracemalloc.start()
    try:
        to_mode(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # of NumPy; the result itself is Pillow's


def test_palette_with_transparency_gives_no_warning() -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30)).quantize(2)
    image.info["transparency"] = b"\x00\xff"
    assert to_mode(image).getpixel((0, 0)) == (10, 20, 30)
