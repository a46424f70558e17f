"""Images, datasets and weights as people bring them: read right, or refused with what decides; never a wrong result silently."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from brought import folders, loop, picture, stored
from command_line import Run, fails
from concept_folders import write_ade20k, write_masks, write_voc
from PIL import Image
from tiny import write_broden

from extract.classes import image_classes
from stores.store import ActivationStore

# Pixels


def seen(store: ActivationStore) -> dict[str, float]:
    """Mean of what the network was fed, by image."""
    return {Path(name).name: float(x.mean()) for name, x in zip(store.names, stored(store, "see"), strict=True)}


def test_deep_grey_is_scaled_alike_for_all_images(extracted: Callable, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint16)
    odd = values.copy()
    odd[0, 0] = 256  # scaled image by image, this one pixel would turn the picture black
    data = tmp_path / "scans"
    data.mkdir()
    for name, array in (
        ("low.png", values),
        ("odd.png", odd),
        ("twelve.png", values * 16),
        ("twelve.tif", values * 16),
    ):
        Image.fromarray(array).save(data / name)
    store, said = extracted("see", "see", data)
    for name, x in seen(store).items():
        bits = 12 if "twelve" in name else 8
        assert x == pytest.approx(float(values.mean()) * 2 ** (bits - 8) / 65535, abs=0.003), name
    assert "use 6.2% of their range" in said
    assert "--grey-range LOW,HIGH" in said
    store, said = extracted("see", "see", data, "--grey-range", "0,4095", "--overwrite")
    assert seen(store)["twelve.tif"] == pytest.approx(float(values.mean()) * 16 / 4095, abs=0.003)
    assert seen(store)["low.png"] == pytest.approx(seen(store)["odd.png"], abs=0.003)
    assert "0 is black, 4095 white (--grey-range)" in said
    assert store.provenance["grey_range"] == [0, 4095]
    assert (
        "pixels of a grey image are outside its range"
        in extracted("see", "see", data, "--grey-range", "0,50", "--overwrite")[1]
    )
    plain = folders(tmp_path / "plain", ["a"], lambda k, j: picture(j))
    assert "none of those looked at is one" in extracted("see", "see", plain, "--grey-range", "0,4095")[1]


def test_grey_without_a_range_is_refused(extracted: Callable, refused: Callable, tmp_path: Path) -> None:
    data = tmp_path / "maps"
    data.mkdir()
    Image.fromarray(np.full((32, 48), 0.5, np.float32)).save(data / "a.tif")
    said = refused("see", "see", data)
    assert "'a.tif' cannot be used: a TIFF image of mode F does not say which values are black and white" in said
    assert seen(extracted("see", "see", data, "--grey-range", "0,1")[0]) == {"a.tif": pytest.approx(0.5, abs=0.003)}
    assert "LOW,HIGH" in refused("see", "see", data, "--grey-range", "1")


def test_networks_of_one_and_of_four_channels(extracted: Callable, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "bands"
    data.mkdir()
    array = np.random.default_rng(0).integers(0, 256, (32, 48, 4), np.uint8)
    Image.fromarray(array, "RGBA").save(data / "a.tif")
    store, said = extracted("see_four", "see", data)
    np.testing.assert_allclose(stored(store, "see")[0], array.reshape(-1, 4) / 255, atol=1e-5)
    assert "four channels as they are, 4 × 32 × 48" in said
    store, said = extracted("see_grey", "see", data)
    grey = np.asarray(Image.fromarray(array[..., :3]).convert("L"))
    np.testing.assert_allclose(stored(store, "see")[0, :, 0], grey.reshape(-1) / 255, atol=1e-5)
    assert "grey, 1 × 32 × 48" in said
    picture(1).save(data / "b.png")
    ended = run("extract --model own_nets:see_four --layer see --data", data, "--out", tmp_path / "s")
    fails(ended, 1, "'b.png' cannot be used: it has 3 channels (mode RGB), and the network takes 4")


def test_every_format_that_pillow_reads(extracted: Callable, tmp_path: Path) -> None:
    data = tmp_path / "endings"
    endings = ("jpg", "gif", "jfif", "jpe", "jp2", "webp", "tga", "PNG", "bmp", "tif", "ppm", "avif")
    for k, ending in enumerate(endings):
        path = data / "ab"[k % 2] / f"{k}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(3).save(path, {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000"}.get(ending))
    (data / "c").mkdir()
    (data / "c" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (data / "c" / "2.npy").write_bytes(b"\x93NUMPY")
    store, said = extracted("plain", "features", data)
    assert store.n_images == len(endings)
    assert "2 files: 1 .heic, 1 .npy" in said
    assert "classes" in said
    assert "without an image keep their numbers: c" in said
    assert store.provenance["dataset"]["class_names"] == ["a", "b", "c"]
    x = stored(store, "features")
    assert np.abs(x - x[store.names.index("b/7.PNG")]).mean() < 0.05  # the same picture, but for JPEG


def test_an_orientation_is_said_and_not_applied(extracted: Callable, tmp_path: Path) -> None:
    data = tmp_path / "phone"
    data.mkdir()
    exif = Image.Exif()
    exif[274] = 6
    picture(1).save(data / "a.png", exif=exif)
    store, said = extracted("plain", "features", data)
    taken, _ = loop("plain", "features", store, data)
    np.testing.assert_allclose(stored(store, "features"), torch.cat(taken).flatten(2).transpose(1, 2), atol=1e-5)
    assert "1 of 1 looked at carry an EXIF orientation, which is not applied" in said


# Datasets


def table(said: str) -> dict[str, str]:
    """What the start of a run says, by row."""
    rows = ("images", "not read", "classes", "as the network's", "pixels", "network input", "network output")
    return {row: line[len(row) :].strip() for line in said.splitlines() for row in rows if line.startswith(f"{row}  ")}


def tiny_imagenet(root: Path) -> Path:
    wnids = ["n01443537", "n01629819", "n01641577"]
    for name in ("train", "val/images", "test/images"):
        (root / name).mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids[::-1]) + "\n")
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n")
    for k, wnid in enumerate(wnids):
        folders(root / "train" / wnid, ["images"], lambda _, j, k=k: picture(10 * k + j))
    lines = []
    for j in range(4):
        picture(100 + j).save(root / "val" / "images" / f"val_{j}.JPEG")
        picture(200 + j).save(root / "test" / "images" / f"test_{j}.JPEG")
        lines.append(f"val_{j}.JPEG\t{wnids[j % 3]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def imagenet(root: Path) -> Path:
    for wnid in ("n01440764", "n01443537", "n02102040"):
        folders(root / "val", [wnid], lambda k, j: picture(j))
    return root


def places(root: Path) -> Path:
    folders(root / "train", ["airfield", "apartment_building-outdoor"], lambda k, j: picture(j))
    (root / "categories_places365.txt").write_text("/a/airfield 0\n/a/apartment_building/outdoor 1\n/z/zen_garden 2\n")
    return root


def cifar(root: Path) -> Path:
    root.mkdir()
    g = np.random.default_rng(0)
    data = b"".join(struct.pack("B", k) + g.integers(0, 256, 3072, np.uint8).tobytes() for k in range(10))
    for name in ("test_batch", *(f"data_batch_{k}" for k in range(1, 6))):
        (root / f"{name}.bin").write_bytes(data)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (root / "batches.meta.txt").write_text("\n".join(names) + "\n")
    return root


def ade20k_as_unpacked(root: Path) -> Path:
    place = root / "images" / "ADE" / "training" / "cultural" / "apse"
    place.mkdir(parents=True)
    for k in range(2):
        picture(k).save(place / f"ADE_train_{k}.jpg")
        for ending in ("seg", "parts_1"):
            picture(k).save(place / f"ADE_train_{k}_{ending}.png")
    return root


@pytest.mark.parametrize(
    ("draw", "images", "classes", "mapped"),
    [
        (tiny_imagenet, "17, read as tiny-imagenet", "3: n01443537 goldfish, n01629819 European fire salamander, n01641577", "not known"),
        (imagenet, "9, read as imagenet", "3: n01440764 tench, n01443537 goldfish, n02102040 English springer", "not known"),
        (places, "6, read as places365", "3: airfield, apartment_building/outdoor, zen_garden", "not known"),
        (cifar, "60, read as cifar10", "10: airplane, automobile, bird, cat, …", "not known"),
        (lambda root: write_broden(root).root, "6, read as broden", "none", None),
        (lambda root: write_voc(root).root, "6, read as voc", "none", None),
        (lambda root: write_ade20k(root).root, "6, read as ade20k", "none", None),
        (lambda root: write_masks(root).root, "6, read as masks", "none", None),
        (ade20k_as_unpacked, "2, read as class folders", "1: ", "not known"),
    ],
)  # fmt: skip
def test_the_start_of_a_run_says_what_it_is_about(
    extracted: Callable, run: Run, tmp_path: Path, draw: Callable, images: str, classes: str, mapped: str | None
) -> None:
    store, said = extracted("plain", "features", draw(tmp_path / "data"))
    rows = table(said)
    assert rows["images"] == images
    assert rows["classes"].startswith(classes)
    assert ("as the network's" in rows) == (mapped is not None)
    assert rows.get("as the network's", "").startswith(mapped or "")
    assert "RGB, 3 × 32 × 48" in rows["network input"]
    ended = run("eddp inspect", store.path)
    assert images in ended.out
    record = json.loads(store.path.with_name(f"{store.path.name}.run.json").read_bytes())
    assert ["images", images] in record["result"]["about"]["rows"]


def test_some_classes_of_imagenet_are_found_among_all(extracted: Callable, run: Run, tmp_path: Path) -> None:
    data = imagenet(tmp_path / "data")
    store, said = extracted("thousand", "features", data)
    assert image_classes(store).tolist() == [0, 0, 0, 1, 1, 1, 217, 217, 217]
    assert "by WordNet number" in said


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("Images/n02085620-Chihuahua", "Images/n02085782-Japanese_spaniel"), ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"]),
        (("val_256/cat", "val_256/dog"), ["cat", "dog"]),
    ],
)  # fmt: skip
def test_folders_around_the_class_folders(
    extracted: Callable, tmp_path: Path, names: tuple[str, ...], classes: list[str]
) -> None:
    data = folders(tmp_path / "data", names, lambda k, j: picture(j))
    store, _ = extracted("plain", "features", data)
    assert store.provenance["dataset"]["class_names"] == classes


def test_images_that_were_changed_are_other_images(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for k in range(4):
        picture(k).save(data / f"{k}.bmp")  # the same names and sizes, whatever is in them
    options = ("--model", "own_nets:plain", "--layer", "features", "--data", data, "--out", tmp_path / "s.zarr")
    assert run("extract", *options).code == 0
    for k in range(4):
        picture(10 + k).save(data / f"{k}.bmp")
    fails(run("extract", *options), 2, "the images are others, or were changed or copied")
    assert run("extract", *options, "--overwrite").code == 0


def test_a_dry_run_and_json_say_the_same(run: Run, animals: Path, tmp_path: Path) -> None:
    options = ("--model", "own_nets:plain", "--layer", "features", "--data", animals, "--out", tmp_path / "s.zarr")
    planned = json.loads(run("extract", *options, "--dry-run --json").out)["about"]
    done = json.loads(run("extract", *options, "--json").out)["about"]
    assert planned == done
    assert dict(done["rows"])["classes"] == "5: a, b, c, d, …"
    assert any("matched with the network's by their order" in warning for warning in done["warnings"])
