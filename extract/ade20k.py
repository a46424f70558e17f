"""ADE20K as the Scene Parsing benchmark distributes it (Zhou et al. 2017): the folder ``ADEChallengeData2016``.

``images/training/NAME.jpg`` has ``annotations/training/NAME.png``, and so in ``validation``: 8 bits, 0 "other objects" and
so unlabelled, else the number (``Idx``) of one of the 150 objects of ``objectInfo150.txt``, a table with tabs. Where there is
a ``sceneCategories.txt`` (``NAME SCENE`` a line), scenes are a category of their own, each over its whole image; they are
numbered after the objects, in the order of their names.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from extract.concepts import ConceptLabel
from extract.lists import at, lines_of
from extract.mapped import VALUES, TwinSource, stem, twins
from extract.reading import shown
from stores.errors import DatasetError, MissingPathError

OBJECTS, SCENES = "objectInfo150.txt", "sceneCategories.txt"
FOLDERS = {"train": "training", "val": "validation"}


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
        names, splits, left_out = twins(root, FOLDERS)
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
