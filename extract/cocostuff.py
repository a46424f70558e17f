"""COCO-Stuff's pixel maps (Caesar et al. 2018), the "stuffthingmaps" of COCO 2017.

``images/train2017/NAME.jpg`` has ``annotations/train2017/NAME.png``, and so in ``val2017``; ``labels.txt`` has a line
``number: name`` a label. The maps are **one off** from that file: they were made for Caffe, with 0 to 181 for the labels
1 to 182 and 255 for its 0, unlabelled. So a pixel's value is the label's number less one.

A later version of ``labels.txt`` lists the values of the pixels themselves (0 person, ... 255 unlabeled). It is told by its
number 0, which is a label there and not ``unlabeled``. Labels are numbered 1 to 182 either way: the pixel's value and one.
"""

from __future__ import annotations

import re
from pathlib import Path

from extract.concepts import ConceptLabel
from extract.lists import at, lines_of
from extract.mapped import TwinSource, twins
from extract.reading import shown
from stores.errors import DatasetError, MissingPathError

LABELS = "labels.txt"
FOLDERS = {"train": "train2017", "val": "val2017"}
UNLABELLED = 255  # of a pixel


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
        names, splits, left_out = twins(root, FOLDERS)
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
