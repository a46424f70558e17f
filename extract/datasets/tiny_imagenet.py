"""Tiny ImageNet as it is distributed (``tiny-imagenet-200``): classes in ``wnids.txt``, validation labels in a list.

``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with ``val/val_annotations.txt``, ``test/images/*.JPEG`` without labels. A
``val/`` that was sorted into folders called by wnid is read as well.
"""

from __future__ import annotations

from pathlib import Path

from extract.classes import WNID
from extract.file_list import at, check_listed, find_near, lines_of, nearby, read_pairs
from extract.folder_listing import list_images
from extract.image_io import shown
from extract.image_source import PathSource, register
from extract.string_array import Names
from stores.errors import DatasetError, MissingPathError

CLASSES, WORDS, TRUTH = "wnids.txt", "words.txt", "val_annotations.txt"
SPLITS = ("test", "train", "val")


def is_tiny_imagenet(root: Path) -> bool:
    """Whether a folder is Tiny ImageNet's root or one of its splits: with wnids.txt in it or above, or val's own list."""
    if (root / "images").is_dir() and (root / TRUTH).is_file():
        return True
    if (root / CLASSES).is_file():
        return any((root / split).is_dir() for split in ("train", "val"))
    return any(path.name in SPLITS and (path.parent / CLASSES).is_file() for path in nearby(root, 0))


@register("tiny-imagenet", is_tiny_imagenet)
def open_tiny_imagenet(root: Path) -> PathSource:
    """Open Tiny ImageNet: its root (all splits are taken) or one split's folder.

    Classes are the sorted wnids of wnids.txt (of val_annotations.txt where val was given without it), called by wnid and the
    first of their words in words.txt: "n01443537 goldfish". Test images have no class (-1).
    Raises MissingPathError, NoImagesError, and DatasetError, naming file and line.
    """
    splits = [f"{split}/" for split in SPLITS if (root / split).is_dir()]
    found = list_images(root, *splits)
    val = root / "val" if splits else root
    form = "NAME, WNID and a box with tabs between"
    truth = read_pairs(val / TRUTH, r"([^/\\\t]+)\t(n\d{8})(?:\t.*)?", form) if (val / TRUTH).is_file() else {}
    table = find_near(root, (CLASSES,), 1)
    if table is None and not truth:
        raise MissingPathError(f"'{shown(root)}' (--data) lacks {CLASSES} of Tiny ImageNet: put it there.")
    wnids = sorted(read_pairs(table, r"(n\d{8})()", "a wnid such as n01443537") if table else dict(truth.values()))
    if not wnids:
        raise DatasetError(f"'{shown(table or val)}' lists no class.")
    number = {wnid: k for k, wnid in enumerate(wnids)}
    prefix = "val/images/" if splits else "images/"
    lines = [line for _, line in truth.values()]
    check_listed(root, Names(prefix + name for name in truth), lines, val / TRUTH)

    def label(file: str) -> int:
        wnid = next((part for part in reversed(file.split("/")[:-1]) if WNID.fullmatch(part)), "")
        where = f"'{shown(file)}'"
        if not wnid and truth and file.startswith(prefix):
            if (name := file.removeprefix(prefix)) not in truth:
                raise DatasetError(f"'{shown(val / TRUTH)}' does not list '{shown(file)}'. Remove it, or add its line.")
            wnid, where = truth[name][0], at(val / TRUTH, truth[name][1])
        if wnid and wnid not in number:
            raise DatasetError(f"{where}: '{shown(table or val / TRUTH)}' lists no class {wnid}.")
        return number.get(wnid, -1)

    listed = find_near(root, (WORDS,), 1)
    words = dict(text.partition("\t")[::2] for _, text in lines_of(listed)) if listed else {}
    names = [f"{wnid} {words.get(wnid, '').split(',')[0].strip()}".strip() for wnid in wnids]
    return PathSource(
        root, ((file, label(file)) for file in found.files), names, "tiny-imagenet", left_out=found.left_out
    )
