"""Pascal VOC's segmentations (Everingham et al. 2010), 2007 to 2012: ``VOCdevkit/VOC2012``, say.

``ImageSets/Segmentation/train.txt`` and ``val.txt`` name the images, ``JPEGImages/NAME.jpg``; ``SegmentationClass/NAME.png``
is a palette's indices: 0 the background, 1 to 20 the classes, 255 the void at objects' borders. A label's number is its
index; background is "none of the classes", not a concept, and is unlabelled like the void.

ADE20K as the Scene Parsing benchmark distributes it (Zhou et al. 2017): the folder ``ADEChallengeData2016``.

``images/training/NAME.jpg`` has ``annotations/training/NAME.png``, and so in ``validation``: 8 bits, 0 "other objects" and
so unlabelled, else the number (``Idx``) of one of the 150 objects of ``objectInfo150.txt``, a table with tabs. Where there is
a ``sceneCategories.txt`` (``NAME SCENE`` a line), scenes are a category of their own, each over its whole image; they are
numbered after the objects, in the order of their names.

COCO-Stuff's pixel maps (Caesar et al. 2018), the "stuffthingmaps" of COCO 2017.

``images/train2017/NAME.jpg`` has ``annotations/train2017/NAME.png``, and so in ``val2017``; ``labels.txt`` has a line
``number: name`` a label. The maps are **one off** from that file: they were made for Caffe, with 0 to 181 for the labels
1 to 182 and 255 for its 0, unlabelled. So a pixel's value is the label's number less one.

A later version of ``labels.txt`` lists the values of the pixels themselves (0 person, ... 255 unlabeled). It is told by its
number 0, which is a label there and not ``unlabeled``. Labels are numbered 1 to 182 either way: the pixel's value and one.
"""

from __future__ import annotations

import re
from array import array
from pathlib import Path

import numpy as np

from extract.file_list import at, check_listed, inside, lines_of
from extract.image_io import shown
from extract.image_source import register
from extract.segmentation.base import SPLITS, VALUES, ConceptLabel, MapSource, TwinSource, holds, stem, twins
from extract.string_array import Names
from stores.errors import DatasetError, MissingPathError, NoImagesError

CLASSES = (  # by their indices
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255
LISTS = "ImageSets/Segmentation"


@register(
    "voc",
    holds("JPEGImages", "SegmentationClass"),
    maps="JPEGImages with SegmentationClass (Pascal VOC)",
    needs=("ImageSets/Segmentation",),
    images="JPEGImages",
)
class VocSource(MapSource):
    """Such a folder. Raises MissingPathError, NoImagesError, and DatasetError naming list and line."""

    kind = "voc"

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        names: list[str] = []
        splits: list[int] = []
        for split in ("train", "val"):
            file = root / LISTS / f"{split}.txt"
            if not file.is_file():
                raise MissingPathError(
                    f"'{shown(root)}' lacks {LISTS}/{split}.txt: Pascal VOC names there the images that are segmented."
                )
            listed, lines = [], array("q")
            for line, text in lines_of(file):
                listed.append(inside(text, file, line))
                lines.append(line)
            check_listed(root, Names(f"JPEGImages/{name}.jpg" for name in listed), lines, file, "image")
            check_listed(root, Names(f"SegmentationClass/{name}.png" for name in listed), lines, file, "mask")
            both = set(names).intersection(listed)
            if both:
                k = next(k for k, name in enumerate(listed) if name in both)
                raise DatasetError(
                    f"{at(file, lines[k])}: '{shown(listed[k])}' is in train.txt too. An image is of one split: take one of "
                    "the lines out."
                )
            names += listed
            splits += [SPLITS.index(split)] * len(listed)
        if not names:
            raise NoImagesError(f"'{shown(root / LISTS)}' names no image: train.txt and val.txt are empty.")
        labels = [ConceptLabel(k, name, "object") for k, name in enumerate(CLASSES) if k]
        super().__init__(
            root,
            (f"JPEGImages/{name}.jpg" for name in names),
            splits,
            labels,
            {**{k: k for k in range(len(CLASSES))}, VOID: 0},
            unknown=f"which is no class of Pascal VOC (0 to {len(CLASSES) - 1}, and {VOID} for void): mend the mask",
            listing=f"'{shown(root / LISTS)}'",
        )

    def map_files(self, i: int) -> dict[str, Path]:
        return {"object": self.root / "SegmentationClass" / f"{stem(self.names[i].removeprefix('JPEGImages/'))}.png"}


OBJECTS, SCENES = "objectInfo150.txt", "sceneCategories.txt"
ADE_FOLDERS = {"train": "training", "val": "validation"}


@register(
    "ade20k",
    lambda root: any(holds("images", f"annotations/{folder}")(root) for folder in ADE_FOLDERS.values()),
    maps="images with annotations/training or annotations/validation (ADE20K)",
    needs=("objectInfo150.txt",),
)
class Ade20kSource(TwinSource):
    """Such a folder. Raises MissingPathError, NoImagesError, and DatasetError naming file and line."""

    kind = "ade20k"

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        if not (root / OBJECTS).is_file():
            raise MissingPathError(
                f"'{shown(root)}' lacks {OBJECTS}, which names the labels of ADE20K's masks. It comes with the images: put it "
                "there."
            )
        objects = _read_objects(root / OBJECTS)
        first = max(label.number for label in objects) + 1
        scene_of = _read_scenes(root / SCENES) if (root / SCENES).is_file() else {}
        scenes = {name: first + k for k, name in enumerate(sorted(set(scene_of.values())))}
        names, splits, left_out = twins(root, ADE_FOLDERS)
        super().__init__(
            root,
            names,
            splits,
            objects + [ConceptLabel(number, name, "scene") for name, number in scenes.items()],
            {0: 0, **{label.number: label.number for label in objects}},
            unknown=f"which '{shown(root / OBJECTS)}' does not list: mend the mask",
            listing=f"'{shown(root / 'images')}'",
            left_out=left_out,
        )
        of = (scene_of.get(stem(name.rpartition("/")[2])) for name in names)
        self._scenes = np.array([0 if scene is None else scenes[scene] for scene in of], np.int32)

    def masks(self, i: int) -> dict[str, np.ndarray]:
        found = super().masks(i)
        if self._scenes[i]:
            size = found["object"].shape[1:] if found else self.mask_size(i)
            found["scene"] = np.full((1, *size), self._scenes[i], np.int32)
        return found


def _read_objects(table: Path) -> list[ConceptLabel]:
    labels: dict[int, ConceptLabel] = {}
    columns: list[str] = []
    for line, text in lines_of(table):
        cells = [cell.strip() for cell in text.split("\t")]
        if not columns:
            columns = cells
            if not {"Idx", "Name"} <= set(columns):
                raise DatasetError(
                    f"{at(table, line)} must name the columns, Idx and Name among them, with tabs between."
                )
            continue
        row = dict(zip(columns, cells, strict=False))
        number, name = row["Idx"], row.get("Name", "")
        if not re.fullmatch(r"[1-9]\d{0,4}", number) or int(number) >= VALUES or not name:
            raise DatasetError(
                f"{at(table, line)} must begin with a number (Idx) and end in a name, got '{shown(text)}'."
            )
        if int(number) in labels:
            raise DatasetError(
                f"{at(table, line)}: number {number} is already taken by '{shown(labels[int(number)].name)}'."
            )
        labels[int(number)] = ConceptLabel(int(number), name, "object")
    if not labels:
        raise DatasetError(f"'{shown(table)}' lists no object.")
    return list(labels.values())


def _read_scenes(table: Path) -> dict[str, str]:
    """Scene of each image by the image's name without ending."""
    scenes: dict[str, str] = {}
    for line, text in lines_of(table):
        name, *scene = text.split()
        if len(scene) != 1:
            raise DatasetError(f"{at(table, line)} must read NAME SCENE, got '{shown(text)}'.")
        if scenes.setdefault(name, scene[0]) != scene[0]:
            raise DatasetError(f"{at(table, line)}: '{shown(name)}' is '{shown(scenes[name])}' in a line above.")
    return scenes


LABELS = "labels.txt"
COCO_FOLDERS = {"train": "train2017", "val": "val2017"}
UNLABELLED = 255  # of a pixel


@register(
    "cocostuff",
    lambda root: any(holds("images", f"annotations/{folder}")(root) for folder in COCO_FOLDERS.values()),
    maps="images with annotations/train2017 or annotations/val2017 (COCO-Stuff)",
    needs=("labels.txt",),
)
class CocoStuffSource(TwinSource):
    """Such a folder. Raises MissingPathError, NoImagesError, and DatasetError naming file and line."""

    kind = "cocostuff"

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        if not (root / LABELS).is_file():
            raise MissingPathError(
                f"'{shown(root)}' lacks {LABELS}, which names the labels of COCO-Stuff's maps. Put that of its repository there."
            )
        labels, less = _read_labels(root / LABELS)
        names, splits, left_out = twins(root, COCO_FOLDERS)
        super().__init__(
            root,
            names,
            splits,
            labels,
            {UNLABELLED: 0, **{label.number - 1: label.number for label in labels}},
            unknown=f"for which '{shown(root / LABELS)}' has no label"
            + (" (its number would be one more)" if less else "")
            + ": mend the mask, or take the list that it was made with",
            listing=f"'{shown(root / 'images')}'",
            left_out=left_out,
        )


def _read_labels(file: Path) -> tuple[list[ConceptLabel], bool]:
    """The labels, numbered by their pixels' values and one, and whether the file's own numbers are those."""
    names: dict[int, str] = {}
    for line, text in lines_of(file):
        match = re.fullmatch(r"(\d{1,3})\s*:\s*(.+)", text)
        if not match or int(match[1]) > UNLABELLED:
            raise DatasetError(
                f"{at(file, line)} must read NUMBER: NAME, with a number up to 255, got '{shown(text)}'."
            )
        if int(match[1]) in names:
            raise DatasetError(
                f"{at(file, line)}: number {match[1]} is already taken by '{shown(names[int(match[1])])}'."
            )
        names[int(match[1])] = match[2]
    less = names.get(0, "unlabeled").lower() in ("unlabeled", "unlabelled")
    unlabelled = 0 if less else UNLABELLED
    labels = [
        ConceptLabel(number if less else number + 1, name, "object")
        for number, name in names.items()
        if number != unlabelled
    ]
    if not labels:
        raise DatasetError(f"'{shown(file)}' lists no label.")
    return labels, less
