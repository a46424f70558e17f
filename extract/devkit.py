"""What is known of ImageNet's classes and validation labels: from ILSVRC2012's development kit, or from Kaggle's lists."""

from __future__ import annotations

import csv
import re
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from extract.lists import at, find_near, lines_of
from extract.reading import reason, shown
from stores.errors import DatasetError

DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
MAPPING, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
WNID = re.compile(r"n\d{8}")
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
