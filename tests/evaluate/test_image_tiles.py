"""The pictures: exact pixels of a tile, and curves that can be opened again."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from evaluate.image_tiles import COLOUR, DIM, EDGE, LINE, region, region_tile
from evaluate.loss_curves import loss_picture
from stores.errors import UsageError

SIZE = 8
HALF = np.array([[1.0, -1.0], [1.0, -1.0]])  # positive on the left half, exactly


def photo(size: int = SIZE, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def dimmed(image: Image.Image) -> np.ndarray:
    """The outside of a region, pixel by pixel: grey mixed in, then darkened."""
    pixels = np.asarray(image).astype(float)
    grey = pixels[..., 0] * 0.299 + pixels[..., 1] * 0.587 + pixels[..., 2] * 0.114
    return DIM * (COLOUR * pixels + (1 - COLOUR) * grey[..., None])


def upsampled(logits: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, cells tiling the picture evenly (align_corners=False), one pixel after the other."""
    h, w = logits.shape
    out = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            v = min(max((y + 0.5) * h / size - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / size - 0.5, 0), w - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, h - 1), min(u0 + 1, w - 1)
            top = logits[v0, u0] * (1 - (u - u0)) + logits[v0, u1] * (u - u0)
            low = logits[v1, u0] * (1 - (u - u0)) + logits[v1, u1] * (u - u0)
            out[y, x] = top * (1 - (v - v0)) + low * (v - v0)
    return out


def test_a_tile_keeps_the_region_draws_the_line_and_dims_the_rest():
    image = photo()
    tile = np.asarray(region_tile(image, HALF, SIZE))
    np.testing.assert_array_equal(tile[:, :4], np.asarray(image)[:, :4])  # inside: as it was
    assert (tile[:, 4:6] == LINE).all()  # two pixels of line, outside the region
    assert (tile[:, 6] == EDGE).all()
    np.testing.assert_allclose(tile[:, 7], dimmed(image)[:, 7], atol=1)


def test_a_tile_without_a_positive_position_is_dimmed_and_has_no_line():
    image = photo()
    tile = np.asarray(region_tile(image, np.full((3, 5), -0.5), SIZE))
    np.testing.assert_allclose(tile, dimmed(image), atol=1)
    assert tile.mean() < 0.5 * np.asarray(image).mean()


def test_zero_is_not_positive():
    assert not region(np.zeros((2, 2)), SIZE).any()


def test_a_tile_that_is_positive_everywhere_is_the_image():
    image = photo()
    np.testing.assert_array_equal(np.asarray(region_tile(image, np.ones((1, 1)), SIZE)), np.asarray(image))


@pytest.mark.parametrize(("h", "w", "size"), [(1, 1, 5), (2, 3, 7), (7, 7, 64), (14, 9, 31)])
def test_the_region_is_that_of_the_naive_upsampling(h, w, size):
    logits = np.random.default_rng(h * w).normal(size=(h, w))
    naive = upsampled(logits, size)
    sure = np.abs(naive) > 1e-5
    np.testing.assert_array_equal(region(logits, size)[sure], (naive > 0)[sure])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_any_image_becomes_a_square_rgb_tile(mode):
    image = Image.new("RGB", (30, 20), (200, 10, 10)).convert(mode)
    tile = region_tile(image, np.ones((4, 4), dtype=np.float16), 16)
    assert (tile.mode, tile.size) == ("RGB", (16, 16))


@pytest.mark.parametrize(
    ("logits", "size", "says"),
    [(np.zeros((0, 3)), 8, r"\(0, 3\)"), (np.zeros(4), 8, r"\(4,\)"), (np.zeros((2, 2)), 0, "at least 1 pixel, got 0")],
)
def test_wrong_logits_and_sizes_are_refused(logits, size, says):
    with pytest.raises(UsageError, match=says):
        region_tile(photo(), logits, size)


LOGS = {
    "one row": [{"step": 0, "total": 1.5, "sparsity": 0.5}],
    "one term": [{"step": i, "total": 1 / (i + 1)} for i in range(20)],
    "many": [{"step": i, **{f"term_{t}": i**0.5 * t for t in range(11)}} for i in range(50)],
    "constant": [{"step": i, "margin": 0.0} for i in range(9)],
    "no step": [{"total": 3.0}, {"total": 2.0}],
    "a term that begins late": [{"step": 0, "a": 1.0}, {"step": 1, "a": 2.0, "b": 1.0}],
    "names of all kinds": [{"step": 0, "$x_{": 1.0, "损失": 2.0, "a\nb": 3.0, "<b>": 1e30, "": -1e-30}],
    "not finite": [{"step": 0, "a": float("nan"), "b": 1.0}, {"step": 1, "a": float("inf"), "b": 2.0}],
}


@pytest.mark.parametrize("rows", LOGS.values(), ids=LOGS.keys())
def test_the_curves_are_a_picture_whatever_the_log_holds(rows, tmp_path):
    path = tmp_path / "pictures" / "log.png"
    loss_picture(rows, path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width >= 200
        assert np.asarray(image.convert("L")).std() > 1  # something is drawn
    loss_picture(rows, tmp_path / "again.png")
    assert path.read_bytes() == (tmp_path / "again.png").read_bytes()


def test_limits_and_what_was_chosen_are_marked(tmp_path):
    rows = [{"directions": n, "kappa": k, "loss": 1.0} for n, k in ((8, 0.7), (16, 0.6), (32, 0.2))]
    marks = ({}, {"chosen": 16}, {"limits": {"kappa": 0.5}}, {"caption": "dashed: 16"}, {"limits": {"else": 0.5}})
    drawn = []
    for more in marks:
        loss_picture(rows, tmp_path / "numbers.png", over="directions", **more)
        drawn.append((tmp_path / "numbers.png").read_bytes())
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[4]


def test_the_value_in_a_panel_is_that_of_what_was_chosen(tmp_path, monkeypatch):
    written = []
    title = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda *a, **k: (written.append(a[1]), title(*a, **k))[1])
    rows = [{"directions": n, "kappa": k} for n, k in ((8, 0.7), (16, 0.6), (32, 0.2))]
    loss_picture(rows, tmp_path / "numbers.png", over="directions", chosen=16)
    loss_picture(rows, tmp_path / "numbers.png", over="directions")
    assert written == ["kappa", "0.6", "kappa", "0.2"]


@pytest.mark.parametrize("rows", [[], [{}], [{"step": 1}]])
def test_an_empty_log_is_refused(rows, tmp_path):
    with pytest.raises(UsageError, match="at least one row"):
        loss_picture(rows, tmp_path / "log.png")
    assert not list(tmp_path.iterdir())
