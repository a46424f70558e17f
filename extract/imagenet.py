"""ImageNet (ILSVRC2012) in the layouts people have it in: class folders named by wnid, or flat with the labels elsewhere."""

from __future__ import annotations

import logging
import re
from array import array
from pathlib import Path

import numpy as np

from extract.devkit import DEVKIT, SOLUTION, WNID, Classes, find_classes, find_validation
from extract.images import PathSource, files_below, no_images
from extract.items import Items
from extract.listing import Listing
from extract.lists import nearby, peek
from extract.reading import shown
from stores.errors import DatasetError

log = logging.getLogger(__name__)

BASES = ("", "Data/CLS-LOC/", "ILSVRC/Data/CLS-LOC/", "CLS-LOC/")  # Kaggle's archive, entered at any depth
SPLITS = ("", "train", "val", "test", "training", "validation")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\b")
_FLAT = re.compile(r"ILSVRC2012_(?:val|test)_\d{8}\b|n\d{8}_\d+")
_NAMED = re.compile(r"(n\d{8})_\d+|.*_(n\d{8})\.\w+")  # n01440764_10026.JPEG, ILSVRC2012_val_00000001_n01751748.JPEG


def is_imagenet(root: Path) -> bool:
    """Whether a folder is named by wnid, or it, or its train/ or val/, begins with such folders or ImageNet's own files."""
    if any(WNID.fullmatch(path.name) for path in nearby(root, 0)):
        return True
    for base in BASES:
        for split in SPLITS:
            for entry in peek(root / base / split):
                if WNID.fullmatch(entry.name) or _FLAT.match(entry.name):
                    return True
    return False


def open_imagenet(root: Path) -> PathSource:
    """Open ImageNet: its root (all splits are taken), one split's folder, or the root of Kaggle's ``ILSVRC``.

    An image's class is the wnid (such as n01440764) of the folder it lies in, or in its own name. Images in a flat
    validation folder get theirs from ILSVRC2012's development kit (its folder or its .tar.gz) or from Kaggle's
    LOC_val_solution.csv, beside them or up to four folders above; without either they have none (-1) and a warning says what
    to put where. Test images have none.

    Classes are numbered by the sorted wnids, as torchvision and its models do: by all 1000 where the kit or Kaggle's
    LOC_synset_mapping.txt is found, also if only some of them are here; else by those that are here. ``class_names`` are
    the wnids, each with the first of its words where they are known: "n01440764 tench".

    Raises NoImagesError, and DatasetError for a folder that is no ImageNet, for class folders that the kit does not list and
    for damaged lists, naming file and line.
    """
    base = next((base for base in BASES if any((root / base / split).is_dir() for split in SPLITS[1:])), "")
    found = Listing()
    files = sorted(base + file for file in files_below(root / base, found=found))
    if not files:
        raise no_images(root, found)
    codes, wnids, flat = _codes(files, nearby(root, 0)[0].name)
    if not wnids and not flat and not any(_FLAT.match(file.rpartition("/")[2]) for file in files):
        raise DatasetError(
            f"'{shown(root)}' (--data) is no ImageNet: none of its {len(files)} images lies in a folder like n01440764 or "
            f"is called like ILSVRC2012_val_00000001.JPEG. Give folder:{shown(root)} to read its own folders as classes."
        )
    # the lists may be beside the flat images; from there on up is the root, too
    start = root / files[int(np.argmax(codes < 0))].rpartition("/")[0] if flat else root / base
    known = find_classes(start)
    truth = find_validation(start) if flat else None
    folders = {name for folder in found.folders if WNID.fullmatch(name := folder.rpartition("/")[2])}
    empty = sorted(folders.difference(wnids))
    if empty:
        log.warning(
            "%d class folders of '%s' hold no image that is read, but keep their numbers: %s the first",
            len(empty),
            shown(root),
            empty[0],
        )
    if known is None:
        words = dict.fromkeys({*wnids, *empty, *(truth[0].values() if truth else ())}, "")
    else:
        words = known.words
        _check_known(root, wnids, known)
    number = {wnid: k for k, wnid in enumerate(sorted(words))}
    # codes: 0 none, k a wnid's place, -k a validation image's number
    table = np.array([-1, *(number[wnid] for wnid in wnids)], np.int32)
    labels = table[np.maximum(codes, 0)]
    if truth:
        labels[codes < 0] = _looked_up(files, codes, truth, number, known)
    elif flat:
        log.warning(
            "the %d validation images of '%s' have no labels: put %s.tar.gz, or %s of Kaggle, into '%s'",
            int((codes < 0).sum()),
            shown(root),
            DEVKIT,
            SOLUTION,
            shown(root / base),
        )
    lost = [file for file, code in zip(files, codes.tolist(), strict=True) if not code and not _is_test(root, file)]
    if lost:
        log.warning(
            "%d images of '%s' are in no wnid's folder and have no class: '%s'", len(lost), shown(root), shown(lost[0])
        )
    called = {wnid: f"{wnid} {words[wnid].split(',')[0]}".strip() for wnid in number}
    return PathSource(
        root,
        Items(zip(files, labels.tolist(), strict=True)),
        list(called.values()) or None,
        "imagenet",
        left_out=found.left_out,
        empty_classes=[called[wnid] for wnid in empty if wnid in called],
    )


def _is_test(root: Path, file: str) -> bool:
    """Whether an image is of the test set, which has no labels."""
    folder, _, name = file.rpartition("/")
    return "test" in (root.name, *folder.split("/")) or name.startswith("ILSVRC2012_test_")


def _codes(files: list[str], root: str) -> tuple[np.ndarray, list[str], bool]:
    """For each file 0, or the place (from 1) of its wnid among those found, or minus its number as a validation image.

    ``root`` is the name of the folder they are all in: that of one class may have been given.
    """
    places: dict[str, int] = {}
    of_folder: dict[str, int] = {}
    codes = array("q")
    flat = False
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in of_folder:
            wnid = next((part for part in (root, *folder.split("/")) if WNID.fullmatch(part)), None)
            of_folder[folder] = places.setdefault(wnid, len(places) + 1) if wnid else 0
        code = of_folder[folder]
        if not code and (named := _NAMED.match(name)):
            code = places.setdefault(named[1] or named[2], len(places) + 1)
        elif not code and (image := _VALIDATION.match(name)):
            code, flat = -int(image[1]), True
        codes.append(code)
    return np.array(codes, np.int64), list(places), flat


def _check_known(root: Path, wnids: list[str], known: Classes) -> None:
    unknown = sorted(set(wnids) - set(known.words))
    if unknown:
        raise DatasetError(
            f"'{shown(root)}' (--data) holds {len(unknown)} classes that '{shown(known.file)}' does not list, {unknown[0]} "
            f"the first. Give folder:{shown(root)} to number the classes by its own folders."
        )


def _looked_up(
    files: list[str],
    codes: np.ndarray,
    truth: tuple[dict[int, str], str],
    number: dict[str, int],
    known: Classes | None,
) -> list[int]:
    wnids, where = truth
    labels = []
    for i in np.flatnonzero(codes < 0).tolist():
        wnid = wnids.get(-int(codes[i]), "")
        if wnid not in number:
            what = f"none of its {len(wnids)} images is that one"
            if wnid and known:
                what = f"'{shown(known.file)}' does not list its class {wnid}"
            raise DatasetError(f"'{shown(where)}' does not tell the class of '{shown(files[i])}': {what}.")
        labels.append(number[wnid])
    return labels
