"""ImageNet (ILSVRC2012) in the layouts people have it in: class folders named by wnid, or flat with the labels elsewhere."""

from __future__ import annotations

import logging
import re
import tarfile
from array import array
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from extract.classes import WNID
from extract.file_list import at, find_near, nearby, not_listed, peek, read_pairs
from extract.folder_listing import list_images
from extract.image_io import reason, shown, some
from extract.image_source import PathSource, register
from stores.errors import DatasetError

log = logging.getLogger(__name__)

BASES = ("", "Data/CLS-LOC/", "ILSVRC/Data/CLS-LOC/", "CLS-LOC/")  # Kaggle's archive, entered at any depth
SPLITS = ("", "train", "val", "test", "training", "validation")
LEVELS = 4  # Kaggle's lists are four above ILSVRC/Data/CLS-LOC/val
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\b")
_FLAT = re.compile(r"ILSVRC2012_(?:val|test)_\d{8}\b|n\d{8}_\d+")
_NAMED = re.compile(r"(n\d{8})_\d+|.*_(n\d{8})\.\w+")  # n01440764_10026.JPEG, ILSVRC2012_val_00000001_n01751748.JPEG

DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
MAPPING, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"  # Kaggle's
_KITS = (
    *(f"{place}{META}" for place in ("", "data/", "devkit/", "devkit/data/", f"{DEVKIT}/", f"{DEVKIT}/data/")),
    f"devkit/{DEVKIT}/data/{META}",
    f"{DEVKIT}.tar.gz",
    f"devkit/{DEVKIT}.tar.gz",
)


def is_imagenet(root: Path) -> bool:
    """Whether a folder is named by wnid, or it, or its train/ or val/, begins with such folders or ImageNet's own files."""
    if any(WNID.fullmatch(path.name) for path in nearby(root, 0)):
        return True
    entries = (entry for base in BASES for split in SPLITS for entry in peek(root / base / split))
    return any(WNID.fullmatch(entry.name) or _FLAT.match(entry.name) for entry in entries)


@register("imagenet", is_imagenet)
def open_imagenet(root: Path) -> PathSource:
    """Open ImageNet: its root (all splits are read), one split's folder, or the root of Kaggle's ``ILSVRC``.

    An image's class is the wnid (such as n01440764) of the folder it is in, or in its own name. Images in a flat validation
    folder get theirs from ILSVRC2012's development kit (its folder or its .tar.gz) or from Kaggle's LOC_val_solution.csv,
    next to them or up to four folders above; without either they have none (-1), with a warning. Test images have none.

    Classes are numbered by the sorted wnids, as torchvision does: by all 1000 where the kit or Kaggle's
    LOC_synset_mapping.txt is found, else by those that are here. ``class_names`` are the wnids, each with the first of its
    words where they are known: "n01440764 tench". Raises NoImagesError, and DatasetError, naming file and line.
    """
    base = next((base for base in BASES if any((root / base / split).is_dir() for split in SPLITS[1:])), "")
    found = list_images(root, base)
    files = found.files
    codes, wnids = _codes(files, nearby(root, 0)[0].name)
    flat = bool((codes < 0).any())
    if not wnids and not flat and not any(_FLAT.match(file.rpartition("/")[2]) for file in files):
        none = (
            f"none of its {len(files)} images is in a folder like n01440764 or called like ILSVRC2012_val_00000001.JPEG"
        )
        raise DatasetError(f"'{shown(root)}' (--data) is no ImageNet: {none}. Give folder:{shown(root)}.")
    # the lists may be next to the flat images; from there on up is the root, too
    start = root / files[int(np.argmax(codes < 0))].rpartition("/")[0] if flat else root / base
    kit = _find_kit(start)
    words, source = _classes(start, kit)
    truth = _validation(start, kit) if flat else None
    folders = {name for folder in found.folders if WNID.fullmatch(name := folder.rpartition("/")[2])}
    empty = sorted(folders.difference(wnids))
    if empty:
        log.warning(f"{len(empty)} class folders of '{shown(root)}' without an image keep their numbers: {some(empty)}")
    if source and (unknown := sorted(set(wnids) - words.keys())):
        raise not_listed(root, source, unknown)
    words = words or dict.fromkeys({*wnids, *empty, *(truth[0].values() if truth else ())}, "")
    number = {wnid: k for k, wnid in enumerate(sorted(words))}
    # codes: 0 none, k a wnid's place, -k a validation image's number
    labels = np.array([-1, *(number[wnid] for wnid in wnids)], np.int32)[np.maximum(codes, 0)]
    if truth:
        for i in np.flatnonzero(codes < 0).tolist():
            wnid = truth[0].get(-int(codes[i]), "")
            if wnid not in number:
                why = f"'{shown(source)}' does not list {wnid}" if wnid else "that image is not in it"
                raise DatasetError(f"'{shown(truth[1])}' does not give the class of '{shown(files[i])}': {why}.")
            labels[i] = number[wnid]
    elif flat:
        log.warning(
            f"the {int((codes < 0).sum())} validation images of '{shown(root)}' have no labels: put {DEVKIT}.tar.gz, or "
            f"{SOLUTION} of Kaggle, into '{shown(root / base)}'"
        )
    if lost := [
        file for file, code in zip(files, codes.tolist(), strict=True) if not code and not _is_test(root, file)
    ]:
        log.warning(f"{len(lost)} images of '{shown(root)}' are in no wnid's folder, without class: '{shown(lost[0])}'")
    called = {wnid: f"{wnid} {words[wnid].split(',')[0]}".strip() for wnid in number}
    return PathSource(
        root,
        zip(files, labels.tolist(), strict=True),
        list(called.values()) or None,
        "imagenet",
        left_out=found.left_out,
        empty_classes=[called[wnid] for wnid in empty if wnid in called],
    )


def _is_test(root: Path, file: str) -> bool:
    """Whether an image is of the test set, which has no labels."""
    folder, _, name = file.rpartition("/")
    return "test" in (root.name, *folder.split("/")) or name.startswith("ILSVRC2012_test_")


def _codes(files: list[str], root: str) -> tuple[np.ndarray, list[str]]:
    """For each file 0, or the place (from 1) of its wnid among those found, or minus its number as a validation image.

    ``root`` is the name of the folder they are all in: that of one class may have been given.
    """
    places: dict[str, int] = {}
    of_folder: dict[str, int] = {}
    codes = array("q")
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in of_folder:
            wnid = next((part for part in (root, *folder.split("/")) if WNID.fullmatch(part)), None)
            of_folder[folder] = places.setdefault(wnid, len(places) + 1) if wnid else 0
        code = of_folder[folder]
        if not code and (named := _NAMED.match(name)):
            code = places.setdefault(named[1] or named[2], len(places) + 1)
        elif not code and (image := _VALIDATION.match(name)):
            code = -int(image[1])
        codes.append(code)
    return np.array(codes, np.int64), list(places)


@dataclass(frozen=True)
class _Kit:
    """A development kit, of a folder or of the archive as it is distributed."""

    where: str
    synsets: dict[int, tuple[str, str]]  # ILSVRC2012_ID -> (wnid, words)
    truth: list[str] | None


def _classes(folder: Path, kit: _Kit | None) -> tuple[dict[str, str], str]:
    """wnid -> words of the 1000 classes, of a kit, else of Kaggle's mapping, and the file that says so; empty without any."""
    if kit:
        return dict(kit.synsets.values()), f"{kit.where}/{META}"
    mapping = find_near(folder, (MAPPING,), LEVELS)
    pairs = read_pairs(mapping, r"(n\d{8})(?: (.*))?", "WNID WORDS") if mapping else {}
    return {wnid: words for wnid, (words, _) in pairs.items()}, str(mapping or "")


def _validation(folder: Path, kit: _Kit | None) -> tuple[dict[int, str], str] | None:
    """Validation image number -> wnid, and the file that says so.

    The kit numbers classes by ILSVRC2012_ID, in an order of its own; Kaggle's list has the wnid first and then a box:
    ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``.
    """
    if kit and kit.truth is not None:
        labels: dict[int, str] = {}
        for line, text in enumerate(kit.truth, 1):
            if not (text := text.strip()):
                continue
            if not re.fullmatch(r"\d{1,9}", text) or int(text) not in kit.synsets:
                where = at(f"{kit.where}/{TRUTH}", line)
                raise DatasetError(f"{where}: '{shown(text)}' is no ILSVRC2012_ID of a class in '{META}'.")
            labels[len(labels) + 1] = kit.synsets[int(text)][0]
        return labels, f"{kit.where}/{TRUTH}"
    path = find_near(folder, (SOLUTION,), LEVELS)
    if path is None:
        return None
    form = "ILSVRC2012_val_NUMBER,WNID BOX"
    pairs = read_pairs(path, r"ILSVRC2012_val_(\d{8}),(n\d{8})(?: [^,]*)?", form, header="ImageId,PredictionString")
    return {int(image): wnid for image, (wnid, _) in pairs.items()}, str(path)


def _find_kit(folder: Path) -> _Kit | None:
    path = find_near(folder, _KITS, LEVELS)
    if path is None:
        return None
    where = str(path.parent) if path.name == META else f"{path}/{DEVKIT}/data"
    files = _kit_files(path)
    if META not in files:
        raise DatasetError(f"'{shown(path)}' holds no {META}: it is no development kit of ILSVRC2012.")
    truth = files[TRUTH].decode("utf-8-sig", "replace").split("\n") if TRUTH in files else None
    return _Kit(where, _synsets(files[META], f"{where}/{META}"), truth)


def _kit_files(path: Path) -> dict[str, bytes]:
    """The two files of a kit, next to each other or in its archive, of which nothing is unpacked to disk."""
    try:
        if path.name == META:
            files = (path.parent / name for name in (META, TRUTH))
            return {file.name: file.read_bytes() for file in files if file.is_file()}
        found: dict[str, bytes] = {}
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                wanted = name in (META, TRUTH) and member.isreg() and member.size < 2**26
                if wanted and (content := tar.extractfile(member)):
                    found[name] = content.read()
        return found
    except Exception as error:  # damaged archives fail wherever they like
        raise DatasetError(f"'{shown(path)}' is damaged or unreadable: {reason(error)}. Download it again.") from error


def _synsets(meta: bytes, where: str) -> dict[int, tuple[str, str]]:
    """ILSVRC2012_ID -> (wnid, words) of the classes: those synsets of meta.mat that have none below them."""
    from scipy.io import loadmat

    try:
        table: Any = loadmat(BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = [row for row in table.ravel() if int(row["num_children"]) == 0]
        found = {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in rows}
    except Exception as error:  # a file that is something else fails wherever it likes
        raise DatasetError(f"'{shown(where)}' is no meta.mat of ILSVRC2012: {reason(error)}.") from error
    wnids = [wnid for wnid, _ in found.values()]
    wrong = [wnid for wnid in wnids if not WNID.fullmatch(wnid)]
    if not found or wrong or len(set(wnids)) < len(wnids):
        what = f"'{shown(wrong[0])}' is no wnid" if wrong else "its classes are missing or there twice"
        raise DatasetError(f"'{shown(where)}' is no meta.mat of ILSVRC2012: {what}.")
    return found
