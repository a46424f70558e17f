"""A store's images once more: matched by name, cut to what the network saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import trusted

from extract.datasets import open_source
from extract.store_images import crop, open_store_images
from extract.stream import ExtractConfig, extract
from stores.errors import MismatchError, MissingPathError
from stores.store import ActivationStore

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    for k in range(4):
        file = tmp_path / "data" / ("cat", "dog")[k // 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (60 * k, 10, 20)).save(file)
    config = ExtractConfig(model="tiny_net:own_transform", weights="none", layers=("second",), workers=0)
    extract(open_source(tmp_path / "data"), tmp_path / "a.zarr", config)
    return trusted(tmp_path / "a.zarr")


def test_every_row_gives_its_picture(store: ActivationStore) -> None:
    seen = open_store_images(store)
    for row in range(4):
        assert row in seen
        (picture,) = seen.frames(row)
        assert picture.size == (40, 30)  # the transform squeezes, and cuts nothing off
        assert picture.getpixel((3, 3)) == (60 * row, 10, 20)
        assert seen.name(row) == f"{('cat', 'dog')[row // 2]}/{row}.png"
        assert seen.label(row) == row // 2


def test_other_images_elsewhere_are_distinguished(store: ActivationStore, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    with pytest.raises(MissingPathError, match=r"not in '.*data' any more\. Put them back.*--data DIR"):
        open_store_images(store)
    (moved / "dog" / "3.png").unlink()
    seen = open_store_images(store, data=moved)
    assert 2 in seen
    assert 3 not in seen
    assert seen.label(3) == -1
    with pytest.raises(MismatchError, match=r"dog/3\.png"):
        seen.frames(3)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "other" / "x.png")
    with pytest.raises(MismatchError, match="other images"):
        open_store_images(store, data=tmp_path / "other")


def test_a_synthetic_store_has_none(make_store, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = make_store(tmp_path / "s.zarr", np.zeros((2, 1, 3), np.float32), grid=(1, 1))
    with pytest.raises(MismatchError, match="not made from images"):
        open_store_images(made)


def test_crops_and_padding() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = Image.fromarray(pixels).convert("RGB")
    assert crop(image, WHOLE) is image
    np.testing.assert_array_equal(np.asarray(crop(image, (0.25, 0.0, 0.75, 0.5)))[:, :, 0], pixels[:2, 1:3])
    padded = np.asarray(crop(image, (-0.5, 0.0, 1.0, 1.0)))[:, :, 0]
    assert padded.shape == (4, 6)
    assert not padded[:, :2].any()
