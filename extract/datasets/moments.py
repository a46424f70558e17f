"""Moments in Time (Monfort et al. 2019) as it is distributed: videos in class folders, and lists with their classes.

``training/CLASS/FILE.mp4`` and ``validation/CLASS/FILE.mp4`` in ``Moments_in_Time_256x256_30fps``, ``_Raw`` or ``_Mini``, with
``trainingSet.csv`` and ``validationSet.csv`` (``CLASS/FILE.mp4,LABEL,AGREE,DISAGREE``) and ``moments_categories.txt``
(``LABEL,NUMBER``).
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from extract.file_list import at, check_listed, find_near, inside, lines_of, nearby, not_listed, read_pairs
from extract.folder_listing import list_files, no_images
from extract.image_io import shown
from extract.image_source import PathSource, register
from extract.string_array import Names
from extract.video import VIDEO_ENDINGS
from stores.errors import DatasetError, MissingPathError

CATEGORIES = "moments_categories.txt"
SPLITS = ("training", "validation")
_LISTS_IN = ("", "annotations/")  # where some toolboxes put them
LEVELS = 2


def is_moments(root: Path) -> bool:
    """Whether a folder holds training/ or validation/, or is one of them, and the categories are near."""
    if _find(root, CATEGORIES) is None:
        return False
    return bool(_splits(root)) or nearby(root, 0)[0].name in SPLITS or _several_labels(root)


@register("mit", is_moments)
def open_moments(root: Path) -> PathSource:
    """Open Moments in Time: its root (training and validation videos are read), or one of both folders.

    A video's class is the label that trainingSet.csv or validationSet.csv gives it, numbered as in moments_categories.txt; a
    split without its list has the videos that are in its folder, of the classes that their folders are called by. Lists are
    looked for in the folder, in ``annotations/``, and up to two folders above. The version with several labels a video is refused.

    Raises MissingPathError without categories, NoImagesError, and DatasetError, naming list and line.
    """
    path = _find(root, CATEGORIES)
    if path is None:
        raise MissingPathError(f"'{shown(root)}' (--data) lacks {CATEGORIES} of Moments in Time: put it there.")
    if _several_labels(root):
        raise DatasetError(
            f"'{shown(root)}' (--data) is Multi-Moments in Time, whose videos have several classes each, which is not supported. "
            f"Give folder:{shown(root / 'videos')} to read its videos by their folders."
        )
    classes = _classes(path)
    left_out = Counter[str]()
    items: list[tuple[str, int]] = []
    for split in _splits(root) or [""]:
        prefix = f"{split}/" if split else ""
        if table := _find(root, f"{split or nearby(root, 0)[0].name}Set.csv"):
            items += _listed(root, prefix, table, classes)
        else:
            found = list_files(root, VIDEO_ENDINGS, below=prefix)
            left_out += found.left_out
            items += _by_folder(root, prefix, found.files, classes, path)
    if not items:
        raise no_images(root, left_out)
    return PathSource(root, items, list(classes), "mit", left_out=left_out)


def _find(root: Path, name: str) -> Path | None:
    return find_near(root, [place + name for place in _LISTS_IN], LEVELS)


def _splits(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir()]


def _several_labels(root: Path) -> bool:
    """Whether this is the version whose lists give several numbers a video: trainingSet.txt, videos/."""
    return not _splits(root) and (root / "videos").is_dir() and any(_find(root, f"{s}Set.txt") for s in SPLITS)


def _classes(path: Path) -> dict[str, int]:
    """Number of each class by its name."""
    pairs = read_pairs(path, r"(.*\S)\s*,\s*(\d{1,9})", "LABEL,NUMBER")
    ordered = sorted(pairs.items(), key=lambda pair: int(pair[1][0]))
    for k, (_, (number, line)) in enumerate(ordered):
        if int(number) != k:
            raise DatasetError(f"{at(path, line)}: the numbers must be 0 to {len(pairs) - 1}, each once, got {number}.")
    return {name: k for k, (name, _) in enumerate(ordered)}


def _listed(root: Path, prefix: str, table: Path, classes: dict[str, int]) -> Iterator[tuple[str, int]]:
    """What a list says, in its order; every video must be there, once."""
    labels, lines = array("i"), array("q")

    def names() -> Iterator[str]:
        for line, text in lines_of(table):
            match = re.fullmatch(r"(.*\S)\s*,([^,]+),\s*\d+\s*,\s*\d+", text)
            if not match:
                raise DatasetError(f"{at(table, line)} must read CLASS/FILE,LABEL,NUMBER,NUMBER, got '{shown(text)}'.")
            if (label := match[2].strip()) not in classes:
                raise DatasetError(f"{at(table, line)}: '{CATEGORIES}' lists no class '{shown(label)}'.")
            labels.append(classes[label])
            lines.append(line)
            yield prefix + inside(match[1], table, line)

    found = Names(names())
    check_listed(root, found, lines, table, "video", all_of=True)
    return zip(found, labels, strict=True)


def _by_folder(
    root: Path, prefix: str, files: list[str], classes: dict[str, int], table: Path
) -> Iterator[tuple[str, int]]:
    """The videos of a split without a list, of the classes that their folders are called by."""
    folders = [file.removeprefix(prefix).rpartition("/")[0] for file in files]
    if unknown := sorted({name for name in folders if name and name not in classes}):
        raise not_listed(root, table, unknown)
    return ((file, classes.get(name, -1)) for file, name in zip(files, folders, strict=True))
