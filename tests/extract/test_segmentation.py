"""Datasets with label maps: what all readers give and refuse, and what is special to VOC, ADE20K and COCO-Stuff."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from concept_folders import (
    WRITERS,
    TinyConcepts,
    write_ade20k,
    write_bomb,
    write_cocostuff,
    write_image,
    write_map,
    write_voc,
)
from tiny import TinyBroden

from extract.datasets import open_concepts, open_source
from extract.image_source import PathSource
from extract.labels import labels_on_raster
from extract.segmentation.broden import BrodenSource
from extract.segmentation.voc_ade_coco import Ade20kSource, CocoStuffSource, VocSource
from stores.errors import DatasetError, ImageError, MissingPathError, NoImagesError, UsageError

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture(params=sorted(WRITERS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> TinyConcepts:
    return WRITERS[request.param](tmp_path / request.param)


def map_of(made: TinyConcepts, i: int) -> Path:
    """The PNG of an image's (first) label map."""
    return next(iter(open_concepts(made.root).map_files(i).values()))  # type: ignore[attr-defined]


def test_all_masks_and_facts(made: TinyConcepts) -> None:
    source = open_concepts(made.root)
    assert source.kind == made.root.name
    assert [source.name(i) for i in range(len(source))] == made.names
    assert {label.number: (label.name, label.category) for label in source.labels if label.number in made.labels} == (
        made.labels
    )
    assert source.by_number == {label.number: label for label in source.labels}
    assert source.categories == list(dict.fromkeys(label.category for label in source.labels))
    assert str(made.root) in source.listing
    for i, truth in enumerate(made.masks):
        assert source.path(i) == made.root / made.names[i]
        assert source.split(i) == made.splits[i]
        assert source.label(i) == -1
        assert source.image_size(i) == (20, 24)
        assert source.image(i).size == (24, 20)
        masks = source.masks(i)
        assert list(masks) == list(truth)
        for category, layers in truth.items():
            assert masks[category].dtype == np.int32
            assert masks[category].shape[1:] == source.mask_size(i)
            np.testing.assert_array_equal(masks[category], layers)


def test_the_digest_is_of_the_images(made: TinyConcepts) -> None:
    before = open_concepts(made.root).digest
    path = map_of(made, 0)
    path.write_bytes(path.read_bytes() + b"more")
    assert open_concepts(made.root).digest == before
    write_image(made.root / made.names[0], 77, (40, 40))
    assert open_concepts(made.root).digest != before


def test_maps_are_sampled_at_their_own_size(made: TinyConcepts) -> None:
    source = open_concepts(made.root)
    for i, truth in enumerate(made.masks):
        found = labels_on_raster(source, i, (5, 3), WHOLE)
        assert found.categories == tuple(truth)
        for number, here in zip(found.numbers, found.maps, strict=True):
            layer = truth[source.by_number[int(number)].category][0]
            rows = [int((r + 0.5) / 5 * layer.shape[0]) for r in range(5)]
            columns = [int((c + 0.5) / 3 * layer.shape[1]) for c in range(3)]
            np.testing.assert_array_equal(here, (layer[np.ix_(rows, columns)] == number).reshape(-1))


def test_an_image_without_any_label_counts_for_no_category(made: TinyConcepts) -> None:
    path = map_of(made, 1)
    unlabelled = 255 if made.root.name == "cocostuff" else 0
    write_map(path, np.full((4, 4), unlabelled, np.uint8))
    masks = open_concepts(made.root).masks(1)
    assert "object" not in masks
    if "scene" in made.masks[1]:  # which is of the image, not of its map
        assert (masks["scene"] == made.masks[1]["scene"][0, 0, 0]).all()
        assert masks["scene"].shape == (1, 4, 4)


def missing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def jpeg(path: Path) -> None:
    write_image(path.with_suffix(".jpg"), 0)
    path.with_suffix(".jpg").rename(path)


def values(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: write_map(path, array)


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (missing, "cannot be read: No such file or directory"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "cannot be read: "),
        (
            lambda path: path.write_text("hello"),
            "cannot be read: cannot identify it as a PNG. Unpack or write it again.",
        ),
        (jpeg, "cannot be read: cannot identify it as a PNG"),
        (values(np.full((3, 3), 222, np.uint8)), "holds the value 222, "),
        (
            values(np.ones((3, 3), bool)),
            "has pixels of the kind 1: a label map has a palette or one channel of 8 or 16 bits",
        ),
        (values(np.ones((3, 3, 2), np.uint8)), "has pixels of the kind LA: a label map has"),
        (write_bomb, "cannot be read: Image size (3600000000 pixels) exceeds limit"),
    ],
)
def test_a_bad_map_is_named(made: TinyConcepts, harm: Callable[[Path], None], wanted: str) -> None:
    path = map_of(made, 1)
    harm(path)
    source = open_concepts(made.root)
    with pytest.raises(DatasetError) as caught:
        source.masks(1)
    assert f"The mask '{path}' {wanted}" in str(caught.value)
    source.masks(0)


def test_a_map_in_colours_is_refused_where_it_is_none_of_the_format(made: TinyConcepts) -> None:
    write_map(map_of(made, 1), np.ones((3, 3, 3), np.uint8))
    source = open_concepts(made.root)
    wanted = r"has the colour \(1, 1, 1\)" if made.root.name == "masks" else "has pixels of the kind RGB"
    with pytest.raises(DatasetError, match=wanted):
        source.masks(1)


def test_an_image_whose_size_is_not_known(made: TinyConcepts) -> None:
    (made.root / made.names[2]).write_text("no picture")
    write_bomb(made.root / made.names[3])
    source = open_concepts(made.root)
    with pytest.raises(ImageError, match="is no image file"):
        source.image_size(2)
    with pytest.raises(ImageError, match="cannot be read: Image size"):
        source.image_size(3)
    assert source.image_size(1) == (20, 24)


def test_links_are_followed_wherever_they_lead(made: TinyConcepts, tmp_path: Path) -> None:
    """A table may not lead out of the folder; a link is the user's own."""
    path = map_of(made, 1)
    for file in (path, made.root / made.names[1]):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    link = tmp_path / "link"
    link.symlink_to(made.root)
    source = open_concepts(link)
    assert source.image(1).size == (24, 20)
    np.testing.assert_array_equal(source.masks(1)["object"], made.masks[1]["object"])


def test_broden_is_one_of_them(tiny_broden: Callable[..., TinyBroden]) -> None:
    made = tiny_broden()
    for given in (made.root, str(made.root), f"broden:{made.root}"):
        assert isinstance(open_concepts(given), BrodenSource)
    (made.root / "index.csv").unlink()
    with pytest.raises(MissingPathError, match=r"no Broden folder: index\.csv is missing"):
        open_concepts(made.root)


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("no", "file"):
        with pytest.raises(MissingPathError, match="There is no concept dataset at"):
            open_concepts(tmp_path / place)
    with pytest.raises(UsageError, match=r"images without label maps \(cifar10\).*one of broden, voc, ade20k"):
        open_concepts(f"cifar10:{tmp_path}")
    with pytest.raises(UsageError, match="no reader 's3'"):
        open_concepts("s3://bucket")
    write_image(tmp_path / "flat" / "x.png", 0)
    with pytest.raises(MissingPathError) as caught:
        open_concepts(tmp_path / "flat")
    for wanted in ("index.csv", "SegmentationClass", "annotations/validation", "annotations/val2017", "masks"):
        assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("voc", "ImageSets/Segmentation/val.txt"),
        ("ade20k", "objectInfo150.txt"),
        ("cocostuff", "labels.txt"),
        ("masks", "labels.csv"),
    ],
)
def test_without_its_table_it_is_a_folder_of_images(
    tmp_path: Path, kind: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = WRITERS[kind](tmp_path / kind)
    (made.root / table).unlink()
    with pytest.raises(MissingPathError, match=f"lacks {table}[:,]"):
        open_concepts(made.root)
    if kind == "voc":  # which needs the folder of lists, and has the other one
        return
    assert isinstance(open_source(made.root), PathSource)
    assert f"looks like a concept dataset ({kind}) but lacks {table}" in caplog.text


@pytest.mark.parametrize("kind", ["ade20k", "cocostuff", "masks"])
def test_no_image_with_a_mask(tmp_path: Path, kind: str) -> None:
    made = WRITERS[kind](tmp_path / kind)
    (made.root / "split.csv").unlink(missing_ok=True)
    for name in made.names:
        (made.root / name).unlink()
    with pytest.raises(NoImagesError, match="no image with a mask in .*: looked for images/"):
        open_concepts(made.root)


@pytest.mark.parametrize("kind", ["ade20k", "cocostuff", "masks"])
def test_images_and_masks_that_lack_each_other_are_left_out(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = WRITERS[kind](tmp_path / kind)
    (made.root / "split.csv").unlink(missing_ok=True)
    map_of(made, 0).unlink()
    (made.root / made.names[1]).unlink()
    (made.root / made.names[2]).unlink()
    source = open_concepts(made.root)
    assert [source.name(i) for i in range(len(source))] == made.names[3:]
    assert "left out 1 images without a mask and 2 masks without an image" in caplog.text


def test_two_images_for_one_mask(tmp_path: Path) -> None:
    made = write_ade20k(tmp_path / "ade20k")
    write_image((made.root / made.names[0]).with_suffix(".png"), 1)
    with pytest.raises(DatasetError, match="differ in their endings only"):
        open_concepts(made.root)


def test_background_and_void_are_unlabelled_and_a_number_is_its_index(tmp_path: Path) -> None:
    made = write_voc(tmp_path)
    values = np.arange(21, dtype=np.uint8).reshape(3, 7)
    write_map(tmp_path / "SegmentationClass/2007_000000.png", np.vstack([values, values * 0 + 255]), palette=True)
    source = VocSource(made.root)
    found = source.masks(0)["object"][0]
    np.testing.assert_array_equal(found[:3], values)
    assert not found[3:].any()
    assert [label.number for label in source.labels] == list(range(1, 21))
    assert (source.labels[0].name, source.labels[19].name) == ("aeroplane", "tvmonitor")


def test_empty_lists(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text("\n")
    with pytest.raises(NoImagesError, match=r"names no image: train\.txt and val\.txt are empty"):
        VocSource(tmp_path)


def test_without_scenes_there_are_objects_only(tmp_path: Path) -> None:
    made = write_ade20k(tmp_path, scenes=False)
    source = Ade20kSource(made.root)
    assert source.categories == ["object"]
    assert all(set(source.masks(i)) == {"object"} for i in range(len(source)))


def test_the_table_of_the_first_release_has_one_column_less(tmp_path: Path) -> None:
    write_ade20k(tmp_path, scenes=False)
    before = Ade20kSource(tmp_path).labels
    rows = "".join(f"{label.number}\t0.1\t1\t1\t{label.name}\n" for label in before)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + rows)
    assert Ade20kSource(tmp_path).labels == before


def test_only_one_of_the_splits(tmp_path: Path) -> None:
    made = write_ade20k(tmp_path)
    for name in made.names[:4]:
        (tmp_path / name).unlink()
    source = Ade20kSource(tmp_path)
    assert [source.split(i) for i in range(len(source))] == ["val", "val"]
    assert source.masks(0)["scene"][0, 0, 0] == 152  # numbered as ever


@pytest.mark.parametrize("by_value", [False, True])
def test_both_forms_of_the_list_name_the_same_pixels(tmp_path: Path, by_value: bool) -> None:
    made = write_cocostuff(tmp_path, by_value=by_value)
    write_map(tmp_path / "annotations/train2017/000000000000.png", np.array([[0, 34, 181, 255]] * 3, np.uint8))
    source = CocoStuffSource(tmp_path)
    numbers = source.masks(0)["object"][0, 0].tolist()
    assert numbers == [1, 35, 182, 0]
    assert [source.by_number[n].name for n in numbers[:3]] == ["person", "skis", "wood"]
    assert {label.number: (label.name, label.category) for label in source.labels} == made.labels
    np.testing.assert_array_equal(source.masks(4)["object"], made.masks[4]["object"])


def test_the_first_form_without_its_unlabelled_line(tmp_path: Path) -> None:
    write_cocostuff(tmp_path)
    before = CocoStuffSource(tmp_path).labels
    (tmp_path / "labels.txt").write_text("1: person\n35: skis\n182:wood\n")
    assert CocoStuffSource(tmp_path).labels == before


@pytest.mark.parametrize(("by_value", "more"), [(False, " (its number would be one more)"), (True, "")])
def test_a_value_without_a_label(tmp_path: Path, by_value: bool, more: str) -> None:
    write_cocostuff(tmp_path, by_value=by_value)
    write_map(tmp_path / "annotations/train2017/000000000000.png", np.array([[182, 183]], np.uint8))
    with pytest.raises(DatasetError) as caught:
        CocoStuffSource(tmp_path).masks(0)
    wanted = f"holds the value 182, for which '{tmp_path / 'labels.txt'}' has no label{more}: fix the mask"
    assert wanted in str(caught.value)
