"""Tiny ImageNet as it is distributed (``tiny-imagenet-200``): classes in ``wnids.txt``, validation labels in a list.

``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with ``val/val_annotations.txt``, ``test/images/*.JPEG`` without labels. A
``val/`` that was sorted into folders called by wnid is read as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from extract.classes import WNID
from extract.file_list import at, find_near, lines_of, nearby
from extract.folder_listing import Listing, files_below, no_images
from extract.image_io import shown
from extract.image_source import PathSource, register
from extract.string_array import Items
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

    Raises MissingPathError, NoImagesError, and DatasetError, naming file and line, for lists that contradict themselves, the
    classes or the images.
    """
    found = Listing()
    splits = [split for split in SPLITS if (root / split).is_dir()]
    below = [f"{split}/" for split in splits] or [""]
    files = sorted(prefix + file for prefix in below for file in files_below(root / prefix, found=found))
    if not files:
        raise no_images(root, found)
    folder = root / "val" if splits else root
    truth = _read_truth(folder) if (folder / TRUTH).is_file() else {}
    table = find_near(root, (CLASSES,), 1)
    if table is None and not truth:
        raise MissingPathError(f"'{shown(root)}' (--data) lacks {CLASSES} of Tiny ImageNet: put it there.")
    wnids = sorted(_read_classes(table) if table else {wnid for wnid, _ in truth.values()})
    number = {wnid: k for k, wnid in enumerate(wnids)}
    prefix = "val/images/" if splits else "images/"
    missing = sorted(truth.keys() - {file.removeprefix(prefix) for file in files if file.startswith(prefix)})
    if missing:
        raise DatasetError(
            f"{at(folder / TRUTH, truth[missing[0]][1])}: there is no image '{shown(root / prefix / missing[0])}' (missing: "
            f"{len(missing)} of {len(truth)} listed). Unpack them all, or give folder:DIR to take those that are there."
        )

    def label(file: str) -> int:
        wnid = next((part for part in reversed(file.split("/")[:-1]) if WNID.fullmatch(part)), "")
        where = f"'{shown(file)}'"
        if not wnid and truth and file.startswith(prefix):
            if (name := file.removeprefix(prefix)) not in truth:
                raise DatasetError(
                    f"'{shown(folder / TRUTH)}' does not list '{shown(file)}'. Remove it, or add its line."
                )
            wnid, line = truth[name]
            where = at(folder / TRUTH, line)
        if wnid and wnid not in number:
            raise DatasetError(f"{where}: '{shown(table or folder / TRUTH)}' lists no class {wnid}.")
        return number.get(wnid, -1)

    words = _read_words(find_near(root, (WORDS,), 1), number)
    names = [f"{wnid} {words.get(wnid, '')}".strip() for wnid in wnids]
    items = Items((file, label(file)) for file in files)
    return PathSource(root, items, names, "tiny-imagenet", left_out=found.left_out)


def _read_classes(table: Path) -> list[str]:
    wnids: dict[str, int] = {}
    for line, text in lines_of(table):
        if not WNID.fullmatch(text) or text in wnids:
            raise DatasetError(f"{at(table, line)} must be a wnid such as n01443537, each once, got '{shown(text)}'.")
        wnids[text] = line
    if not wnids:
        raise DatasetError(f"'{shown(table)}' lists no class.")
    return list(wnids)


def _read_truth(folder: Path) -> dict[str, tuple[str, int]]:
    """Name of each validation image -> its wnid and the line that gives it."""
    truth: dict[str, tuple[str, int]] = {}
    for line, text in lines_of(folder / TRUTH):
        name, _, rest = text.partition("\t")
        wnid = rest.partition("\t")[0]
        if not re.fullmatch(r"[^/\\]+", name) or not WNID.fullmatch(wnid) or name in truth:
            raise DatasetError(
                f"{at(folder / TRUTH, line)} must read NAME, WNID and a box with tabs between, each image once, got "
                f"'{shown(text)}'."
            )
        truth[name] = wnid, line
    return truth


def _read_words(table: Path | None, wanted: dict[str, int]) -> dict[str, str]:
    """The first word of each class, where there is a table of them."""
    pairs = (text.partition("\t") for _, text in lines_of(table)) if table else iter(())
    return {wnid: words.split(",")[0].strip() for wnid, _, words in pairs if wnid in wanted}
