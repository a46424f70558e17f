"""Pascal VOC, ADE20K and COCO-Stuff: datasets with one PNG of label numbers an image."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from extract.file_list import at, check_listed, csv_rows, inside, lines_of, read_pairs
from extract.image_io import shown
from extract.image_source import register
from extract.segmentation.base import (
    SPLITS,
    ConceptLabel,
    MapSource,
    holds,
    images_below,
    no_masks,
    paired,
    png,
    read_labels,
    stem,
    stems_below,
)
from extract.string_array import Names
from stores.errors import DatasetError, MissingPathError, NoImagesError

VOC_CLASSES = (  # by their indices
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_LISTS = "ImageSets/Segmentation"
UNLABELLED = 255  # the value of a pixel without a label, in VOC and COCO-Stuff


@register(
    "voc",
    holds("JPEGImages", "SegmentationClass"),
    maps="JPEGImages with SegmentationClass (Pascal VOC)",
    needs=(VOC_LISTS,),
    images="JPEGImages",
)
class VocSource(MapSource):
    """Pascal VOC's segmentations (Everingham et al. 2010), 2007 to 2012: ``VOCdevkit/VOC2012``, say.

    ``ImageSets/Segmentation/train.txt`` and ``val.txt`` name the images, ``JPEGImages/NAME.jpg``;
    ``SegmentationClass/NAME.png`` is a palette's indices: 0 the background, 1 to 20 the classes, 255 the void at objects'
    borders. A label's number is its index; background is "none of the classes", and is unlabelled like the void.
    Raises MissingPathError, NoImagesError, and DatasetError naming list and line.
    """

    kind = "voc"

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        split_of: dict[str, int] = {}
        for split in ("train", "val"):
            file = _needed(root, f"{VOC_LISTS}/{split}.txt", "Pascal VOC names there the images that are segmented")
            lines = array("q")
            listed = []
            for line, text in lines_of(file):
                listed.append(inside(text, file, line))
                lines.append(line)
            check_listed(root, Names(f"JPEGImages/{name}.jpg" for name in listed), lines, file)
            check_listed(root, Names(f"SegmentationClass/{name}.png" for name in listed), lines, file, "mask")
            for line, name in zip(lines, listed, strict=True):
                if name in split_of:
                    raise DatasetError(f"{at(file, line)}: '{shown(name)}' is in train.txt too. Take one line out.")
                split_of[name] = SPLITS.index(split)
        if not split_of:
            raise NoImagesError(f"'{shown(root / VOC_LISTS)}' names no image: train.txt and val.txt are empty.")
        last = len(VOC_CLASSES) - 1
        super().__init__(
            root,
            (f"JPEGImages/{name}.jpg" for name in split_of),
            list(split_of.values()),
            [ConceptLabel(k, name, "object") for k, name in enumerate(VOC_CLASSES) if k],
            {**{k: k for k in range(last + 1)}, UNLABELLED: 0},
            unknown=f"which is no class of Pascal VOC (0 to {last}, and {UNLABELLED} for void): fix the mask",
            listing=f"'{shown(root / VOC_LISTS)}'",
        )

    def map_files(self, i: int) -> dict[str, Path]:
        return {"object": self.root / "SegmentationClass" / f"{stem(self.name(i).removeprefix('JPEGImages/'))}.png"}


class TwinSource(MapSource):
    """``images/FOLDER/NAME`` has ``annotations/FOLDER/NAME.png``, with a folder a split; only images with a map are read."""

    folders: dict[str, str]  # split -> folder

    def __init__(self, root: Path, labels: list[ConceptLabel], number_of: dict[int, int], unknown: str) -> None:
        names: list[str] = []
        splits: list[int] = []
        left_out: Counter[str] = Counter()
        for split, folder in self.folders.items():
            below = root / "images" / folder
            images, left = images_below(below)
            left_out += left
            found = paired(images, stems_below(root / "annotations" / folder), below)
            names += [f"images/{folder}/{name}" for name in found]
            splits += [SPLITS.index(split)] * len(found)
        if not names:
            train, val = self.folders.values()
            raise no_masks(root, f"images/{train}/NAME.jpg with annotations/{train}/NAME.png, and in {val}/")
        super().__init__(
            root,
            names,
            splits,
            labels,
            number_of,
            unknown=unknown,
            listing=f"'{shown(root / 'images')}'",
            left_out=left_out,
        )

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Whether a folder has the images and one of the folders of annotations."""
        return any(holds("images", f"annotations/{folder}")(root) for folder in cls.folders.values())

    def map_files(self, i: int) -> dict[str, Path]:
        return {"object": png(self.root / "annotations", stem(self.name(i).removeprefix("images/")))}


@register(
    "ade20k",
    lambda root: Ade20kSource.detect(root),
    maps="images with annotations/training or annotations/validation (ADE20K)",
    needs=("objectInfo150.txt",),
)
class Ade20kSource(TwinSource):
    """ADE20K as the Scene Parsing benchmark distributes it (Zhou et al. 2017): the folder ``ADEChallengeData2016``.

    The maps have 8 bits: 0 "other objects" and so unlabelled, else the number (``Idx``) of one of the 150 objects of
    ``objectInfo150.txt``, a table with tabs. Where there is a ``sceneCategories.txt`` (``NAME SCENE`` a line), scenes are a
    category of their own, each over its complete image; they are numbered after the objects, in the order of their names.
    Raises MissingPathError, NoImagesError, and DatasetError naming file and line.
    """

    kind = "ade20k"
    folders = {"train": "training", "val": "validation"}  # noqa: RUF012

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        table = _needed(root, "objectInfo150.txt", "it names the labels of ADE20K's masks and comes with the images")
        rows = csv_rows(table, ("Idx", "Name"), tabs=True)
        objects = read_labels(table, rows, _object, columns=("Idx", "Name"))
        scene_of = _read_scenes(root / "sceneCategories.txt")
        first = max(label.number for label in objects) + 1
        scenes = {name: first + k for k, name in enumerate(sorted(set(scene_of.values())))}
        super().__init__(
            root,
            objects + [ConceptLabel(number, name, "scene") for name, number in scenes.items()],
            {0: 0, **{label.number: label.number for label in objects}},
            f"which '{shown(table)}' does not list: fix the mask",
        )
        of = (scene_of.get(stem(name.rpartition("/")[2])) for name in self.names)
        self._scenes = np.array([scenes.get(scene or "", 0) for scene in of], np.int32)

    def masks(self, i: int) -> dict[str, np.ndarray]:
        found = super().masks(i)
        if self._scenes[i]:
            size = found["object"].shape[1:] if found else self.mask_size(i)
            found["scene"] = np.full((1, *size), self._scenes[i], np.int32)
        return found


@register(
    "cocostuff",
    lambda root: CocoStuffSource.detect(root),
    maps="images with annotations/train2017 or annotations/val2017 (COCO-Stuff)",
    needs=("labels.txt",),
)
class CocoStuffSource(TwinSource):
    """COCO-Stuff's pixel maps (Caesar et al. 2018), the "stuffthingmaps" of COCO 2017.

    ``labels.txt`` has a line ``number: name`` a label. The maps are **one off** from that file: they were made for Caffe,
    with 0 to 181 for the labels 1 to 182 and 255 for its 0, unlabelled. So a pixel's value is the label's number less one.

    A later version of ``labels.txt`` lists the values of the pixels themselves (0 person, ... 255 unlabeled). It is recognised
    by its number 0, which is a label there and not ``unlabeled``. Labels are numbered 1 to 182 either way: the pixel's value
    plus one. Raises MissingPathError, NoImagesError, and DatasetError naming file and line.
    """

    kind = "cocostuff"
    folders = {"train": "train2017", "val": "val2017"}  # noqa: RUF012

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        file = _needed(root, "labels.txt", "it names the labels of COCO-Stuff's maps: take that of its repository")
        form = f"NUMBER: NAME, with a number up to {UNLABELLED}"
        pairs = read_pairs(file, r"(1?\d?\d|2[0-4]\d|25[0-5])\s*:\s*(.+)", form)
        names = {int(number): name for number, (name, _) in pairs.items()}
        less = names.get(0, "unlabeled").lower() in ("unlabeled", "unlabelled")  # the number less one is the value
        names.pop(0 if less else UNLABELLED, None)
        labels = [ConceptLabel(number + (not less), name, "object") for number, name in names.items()]
        if not labels:
            raise DatasetError(f"'{shown(file)}' lists no label.")
        super().__init__(
            root,
            labels,
            {UNLABELLED: 0, **{label.number - 1: label.number for label in labels}},
            f"for which '{shown(file)}' has no label{' (its number would be one more)' * less}: fix the mask, or take the list "
            "that it was made with",
        )


def _needed(root: Path, name: str, why: str) -> Path:
    if not (root / name).is_file():
        raise MissingPathError(f"'{shown(root)}' lacks {name}: {why}. Put it there.")
    return root / name


def _object(row: dict[str, str]) -> str:
    if not row["Name"].strip() or int(row["Idx"]) == 0:
        raise ValueError("it must have a number (Idx) from 1 and a name (Name)")
    return "object"


def _read_scenes(table: Path) -> dict[str, str]:
    """Scene of each image by the image's name without ending; {} where there is no such table."""
    scenes: dict[str, str] = {}
    for line, text in lines_of(table) if table.is_file() else ():
        match = re.fullmatch(r"(\S+)\s+(\S+)", text)
        if not match or scenes.setdefault(match[1], match[2]) != match[2]:
            raise DatasetError(f"{at(table, line)} must read NAME SCENE, one scene a name, got '{shown(text)}'.")
    return scenes
