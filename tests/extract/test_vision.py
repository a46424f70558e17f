import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from extract import image_io as colours
from extract import vision
from extract.image_io import to_mode
from extract.vision import Preprocess, transforms
from stores.errors import ImageError, UsageError


def test_importing_extract_alone_does_not_import_torchvision() -> None:
    code = "import sys, extract; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_the_missing_operator_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("something else is broken")

    monkeypatch.setattr(vision.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        vision.load_torchvision()


def test_missing_operator_is_declared_once_and_import_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Library:
        def __init__(self, *arguments: str) -> None:
            self.defined: list[str] = []

        def define(self, schema: str) -> None:
            self.defined.append(schema)

    def import_module(name: str) -> str:
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
        return "mended"

    kept: list = []
    monkeypatch.setattr(vision.importlib, "import_module", import_module)
    monkeypatch.setattr(vision.torch.library, "Library", Library)
    monkeypatch.setattr(vision, "_declared", kept)
    assert vision.load_torchvision() == "mended"
    assert len(kept) == 1
    assert [schema.partition("(")[0] for schema in kept[0].defined] == ["nms", "qnms"]


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


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "RGB"])
def test_preprocess_takes_any_mode_and_travels(mode: str) -> None:
    preprocess = Preprocess(transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()]))
    again = pickle.loads(pickle.dumps(preprocess))  # noqa: S301 - our own, as a spawned worker does
    image = Image.new("RGB", (20, 10), (200, 200, 200)).convert(mode)
    out = again(image)
    assert out.shape == (3, 8, 8)
    assert out.dtype == torch.float32
    assert torch.equal(out, preprocess(image))
    assert "\n" not in repr(preprocess)


def test_networks_of_other_channels_get_what_they_take() -> None:
    def shape(mode: str, image: Image.Image) -> tuple[int, ...]:
        return tuple(Preprocess(transforms.ToTensor(), mode)(image).shape)

    picture = Image.new("RGB", (20, 10), (200, 100, 0))
    assert shape("L", picture) == (1, 10, 20)
    assert shape("RGBA", picture.convert("RGBA")) == shape("RGBA", picture.convert("CMYK")) == (4, 10, 20)
    with pytest.raises(ImageError, match=r"has 3 channels \(mode RGB\), and the network takes 4"):
        shape("RGBA", picture)
