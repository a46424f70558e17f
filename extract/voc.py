"""Pascal VOC's segmentations (Everingham et al. 2010), 2007 to 2012: ``VOCdevkit/VOC2012``, say.

``ImageSets/Segmentation/train.txt`` and ``val.txt`` name the images, ``JPEGImages/NAME.jpg``; ``SegmentationClass/NAME.png``
is a palette's indices: 0 the background, 1 to 20 the classes, 255 the void at objects' borders. A label's number is its
index; background is "none of the classes", not a concept, and is unlabelled like the void.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from extract.concepts import ConceptLabel
from extract.items import Names
from extract.listed import check_listed
from extract.lists import at, inside, lines_of
from extract.mapped import SPLITS, MapSource, stem
from extract.reading import shown
from stores.errors import DatasetError, MissingPathError, NoImagesError

CLASSES = (  # by their indices
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255
LISTS = "ImageSets/Segmentation"


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
