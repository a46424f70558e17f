"""Concept datasets: images with label maps, whatever their layout on disk, and how the layouts are told apart.

| kind | is recognised by | read by |
|---|---|---|
| broden | ``index.csv`` or ``label.csv`` | ``extract.broden`` |
| voc | ``JPEGImages/``, ``SegmentationClass/`` | ``extract.voc`` |
| ade20k | ``images/``, ``annotations/training`` or ``/validation`` | ``extract.ade20k`` |
| cocostuff | ``images/``, ``annotations/train2017`` or ``/val2017`` | ``extract.cocostuff`` |
| masks | ``images/``, ``masks/`` | ``extract.masks`` |

In all of them label 0 is "unlabelled", and an image counts for a category only where it is annotated in it. A name in a
table may not lead out of the dataset (no ``..``, no absolute path); links on the disk are followed, wherever they lead: they
are the user's own, and large datasets are often put together from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from extract.images import ImageSource, guarded, scheme_of
from extract.reading import shown
from stores.errors import MissingPathError, UsageError


@dataclass(frozen=True)
class ConceptLabel:
    """One label: its number in the masks, its name and its (most frequent) category."""

    number: int
    name: str
    category: str


class ConceptSource(ImageSource, Protocol):
    """Images with label maps: all that labelling, scoring and supervised methods use of a concept dataset.

    ``categories`` in the dataset's order, ``labels`` all that may occur, ``by_number`` the same by their numbers.
    ``listing`` says, in a sentence, where the images and their splits stand. ``split`` is ``train`` (to label or learn on),
    ``val`` (to score on) or anything else (not used). ``image_size`` and ``mask_size`` are (height, width); maps cover the
    whole image, whatever their size.

    ``masks``: category -> (layers, h, w) int32 label maps, 0 where unlabelled, only for the categories that the image is
    annotated in; raises DatasetError naming the file for one that is missing, unreadable or holds an unknown label.
    """

    labels: list[ConceptLabel]
    categories: list[str]
    by_number: dict[int, ConceptLabel]
    listing: str

    def split(self, i: int) -> str: ...
    def image_size(self, i: int) -> tuple[int, int]: ...
    def mask_size(self, i: int) -> tuple[int, int]: ...
    def masks(self, i: int) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class _Kind:
    """``marks``: sets of names, one of which a folder of this kind holds; ``tables``: what it needs besides."""

    title: str
    marks: tuple[tuple[str, ...], ...]
    tables: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """What was looked for, in words."""
        return " or ".join(" with ".join(names) for names in self.marks) + f" ({self.title})"


_KINDS = {
    "broden": _Kind("Broden", (("index.csv",), ("label.csv",)), ("index.csv", "images")),
    "voc": _Kind("Pascal VOC", (("JPEGImages", "SegmentationClass"),), ("ImageSets/Segmentation",)),
    "ade20k": _Kind(
        "ADE20K", (("images", "annotations/training"), ("images", "annotations/validation")), ("objectInfo150.txt",)
    ),
    "cocostuff": _Kind(
        "COCO-Stuff", (("images", "annotations/train2017"), ("images", "annotations/val2017")), ("labels.txt",)
    ),
    "masks": _Kind("label maps of one's own", (("images", "masks"),), ("labels.csv",)),
}


def kind_of(root: Path) -> str | None:
    """Which kind of concept dataset a folder looks like, if any."""
    for name, kind in _KINDS.items():
        if any(all((root / mark).exists() for mark in marks) for marks in kind.marks):
            return name
    return None


def lacking(root: Path, kind: str) -> list[str]:
    """What such a folder needs besides and does not hold: without it, it may be something else."""
    return [table for table in _KINDS[kind].tables if not (root / table).exists()]


def images_of(kind: str) -> str:
    """The folder of such a dataset that holds its images."""
    return "JPEGImages" if kind == "voc" else "images"


def openers() -> dict[str, Callable[[Path], ConceptSource]]:
    """The readers by kind, imported when they are asked for: they are built on this module."""
    from extract.ade20k import Ade20kSource
    from extract.broden import BrodenSource
    from extract.cocostuff import CocoStuffSource
    from extract.masks import MasksSource
    from extract.voc import VocSource

    return {
        "broden": BrodenSource,
        "voc": VocSource,
        "ade20k": Ade20kSource,
        "cocostuff": CocoStuffSource,
        "masks": MasksSource,
    }


def open_concepts(data: str | Path) -> ConceptSource:
    """Find out which kind of concept dataset a folder is, and open it; ``KIND:DIR`` (see above) says which it is.

    Only names and tables are read, no image and no mask. Raises MissingPathError listing what was looked for when it is of
    no known kind, UsageError for ``KIND:`` of images without label maps, and the errors of the reader.
    """
    scheme, root = scheme_of(data)
    if scheme is not None and scheme not in _KINDS:
        raise UsageError(
            f"'{shown(data)}' is read as images without label maps ({scheme}). Give a concept dataset, one of "
            f"{', '.join(_KINDS)}."
        )
    return guarded(lambda place: _open(scheme, place), root)


def _open(scheme: str | None, root: Path) -> ConceptSource:
    if not root.is_dir():
        raise MissingPathError(
            f"There is no concept dataset at '{shown(root)}'. Give a folder of images with label maps: Broden, Pascal VOC, "
            "ADE20K, COCO-Stuff, or images/ with masks/ and labels.csv."
        )
    kind = scheme or kind_of(root)
    if kind is None:
        others = ", ".join(found.wanted for name, found in _KINDS.items() if name != "broden")
        raise MissingPathError(
            f"'{shown(root)}' is a folder without label maps of a known kind: index.csv is missing (Broden), and so are "
            f"{others}. Give a folder that holds one of these."
        )
    return openers()[kind](root)
