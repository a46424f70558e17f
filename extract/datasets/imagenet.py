"""What is known of ImageNet's classes and validation labels: from ILSVRC2012's development kit, or from Kaggle's lists.

ImageNet (ILSVRC2012) in the layouts people have it in: class folders named by wnid, or flat with the labels elsewhere.
"""

from __future__ import annotations

import csv
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
from extract.file_list import at, find_near, lines_of, nearby, peek
from extract.folder_listing import Listing, files_below, no_images
from extract.image_io import reason, shown
from extract.image_source import PathSource, register
from extract.string_array import Items
from stores.errors import DatasetError

DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
MAPPING, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
LEVELS = 4  # Kaggle's lists are four above ILSVRC/Data/CLS-LOC/val
_PLACES = ("", "data/", "devkit/", "devkit/data/", f"{DEVKIT}/", f"{DEVKIT}/data/", f"devkit/{DEVKIT}/data/")
_ARCHIVES = (f"{DEVKIT}.tar.gz", f"devkit/{DEVKIT}.tar.gz")


@dataclass(frozen=True)
class Classes:
    """All classes: ``words`` maps each wnid to its words; ``file`` says where that is written."""

    words: dict[str, str]
    file: str


def find_classes(folder: Path) -> Classes | None:
    """The 1000 classes, from a development kit in a folder or its parents, else from Kaggle's mapping. Raises DatasetError."""
    kit = _find_kit(folder)
    if kit is not None:
        return Classes(dict(_synsets(kit).values()), kit.where(META))
    mapping = find_near(folder, (MAPPING,), LEVELS)
    if mapping is None:
        return None
    found: dict[str, str] = {}
    for line, text in lines_of(mapping):
        wnid, _, words = text.partition(" ")
        if not WNID.fullmatch(wnid) or wnid in found:
            raise DatasetError(f"{at(mapping, line)} must read WNID WORDS, each wnid once, got '{shown(text)}'.")
        found[wnid] = words.strip()
    return Classes(found, str(mapping))


def find_validation(folder: Path) -> tuple[dict[int, str], str] | None:
    """Validation image number -> wnid, and the file that says so; None where nobody does. Raises DatasetError.

    The kit numbers classes by ILSVRC2012_ID, in an order of its own, and translates these to wnids in meta.mat.
    """
    kit = _find_kit(folder)
    if kit is not None and kit.holds(TRUTH):
        where = kit.where(TRUTH)
        synsets = _synsets(kit)
        labels: dict[int, str] = {}
        for line, text in enumerate(kit.read(TRUTH).decode("utf-8-sig", "replace").split("\n"), 1):
            if not (text := text.strip()):
                continue
            if not re.fullmatch(r"\d{1,9}", text) or int(text) not in synsets:
                raise DatasetError(
                    f"{at(where, line)}: '{shown(text)}' is no ILSVRC2012_ID of a class in '{shown(kit.where(META))}'."
                )
            labels[len(labels) + 1] = synsets[int(text)][0]
        return labels, where
    solution = find_near(folder, (SOLUTION,), LEVELS)
    return None if solution is None else (_solution(solution), str(solution))


def _solution(path: Path) -> dict[int, str]:
    """Kaggle's CSV: ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``, the wnid first and then a box."""
    found: dict[int, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file)
            for row in reader:
                if not row or row == ["ImageId", "PredictionString"]:
                    continue
                image = re.fullmatch(r"ILSVRC2012_val_(\d{8})", row[0].strip())
                wnid = row[1].split(" ")[0] if len(row) == 2 else ""
                if not image or not WNID.fullmatch(wnid) or int(image[1]) in found:
                    raise DatasetError(
                        f"{at(path, reader.line_num)} must read ILSVRC2012_val_NUMBER,WNID BOX, each image once, got "
                        f"'{shown(','.join(row))[:80]}'."
                    )
                found[int(image[1])] = wnid
    except (OSError, csv.Error) as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error
    return found


@dataclass(frozen=True)
class _Kit:
    """A development kit: a folder, or the archive as it is distributed, of which nothing is unpacked to disk."""

    folder: Path | None
    archive: Path | None
    files: dict[str, bytes]

    def where(self, name: str) -> str:
        return str(self.folder / name if self.folder else f"{self.archive}/{DEVKIT}/data/{name}")

    def holds(self, name: str) -> bool:
        return (self.folder / name).is_file() if self.folder else name in self.files

    def read(self, name: str) -> bytes:
        if self.folder is None:
            return self.files[name]
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise DatasetError(f"'{shown(self.folder / name)}' cannot be read: {reason(error)}.") from error


def _find_kit(folder: Path) -> _Kit | None:
    found = find_near(folder, [*(place + META for place in _PLACES), *_ARCHIVES], LEVELS)
    if found is None:
        return None
    if found.name == META:
        return _Kit(found.parent, None, {})
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(found, "r|gz") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if (
                    name in (META, TRUTH)
                    and member.isreg()
                    and member.size < 2**26
                    and (file := tar.extractfile(member))
                ):
                    files[name] = file.read()
    except Exception as error:  # damaged archives fail wherever they like
        raise DatasetError(f"'{shown(found)}' is damaged: {reason(error)}. Download it again.") from error
    if META not in files:
        raise DatasetError(f"'{shown(found)}' holds no {META}: it is no development kit of ILSVRC2012.")
    return _Kit(None, found, files)


def _synsets(kit: _Kit) -> dict[int, tuple[str, str]]:
    """ILSVRC2012_ID -> (wnid, words) of the classes: those synsets of meta.mat that have none below them."""
    from scipy.io import loadmat

    where = shown(kit.where(META))
    found: dict[int, tuple[str, str]] = {}
    try:
        table: Any = loadmat(BytesIO(kit.read(META)), squeeze_me=True, variable_names=["synsets"])["synsets"]
        for row in table.ravel():
            if int(row["num_children"]) == 0:
                found[int(row["ILSVRC2012_ID"])] = str(row["WNID"]), str(row["words"])
    except DatasetError:
        raise
    except Exception as error:  # a file that is something else fails wherever it likes
        raise DatasetError(f"'{where}' is no meta.mat of ILSVRC2012: {reason(error)}.") from error
    wnids = [wnid for wnid, _ in found.values()]
    wrong = [wnid for wnid in wnids if not WNID.fullmatch(wnid)]
    if not found or wrong or len(set(wnids)) < len(wnids):
        what = f"'{shown(wrong[0])}' is no wnid" if wrong else "its classes are missing or there twice"
        raise DatasetError(f"'{where}' is no meta.mat of ILSVRC2012: {what}.")
    return found


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


@register("imagenet", is_imagenet)
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
