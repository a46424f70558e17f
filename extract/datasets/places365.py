"""Places365 (Zhou et al. 2018) as it is distributed: image folders with lists next to them, or the easy directory layout.

An image folder is ``data_256`` (or ``data_large``; training images), ``val_256`` or ``test_256``; the lists say which images
are in it and of which class. The easy layout has ``train/`` and ``val/`` with a folder a class.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from extract.file_list import at, check_listed, find_near, inside, lines_of, nearby, not_listed, peek, read_pairs
from extract.folder_listing import is_folder, list_files, no_images
from extract.image_io import shown
from extract.image_source import PathSource, register
from extract.string_array import Names
from stores.errors import DatasetError

log = logging.getLogger(__name__)

CATEGORIES = "categories_places365.txt"
_LISTS_IN = ("", "filelist_places365-standard/", "filelist_places365-challenge/")
FOLDERS = {  # what is in them: data / val / test, and standard / challenge where the name says so
    **{f"data_{size}{v and '_'}{v}": ("data", v) for size in ("256", "large") for v in ("", "standard", "challenge")},
    **{f"{kind}_{size}": (kind, "") for kind in ("test", "val") for size in ("256", "large")},
}
_EASY = ("test", "train", "val")


class _Categories:
    """Number of each class by its path, such as ``/a/apartment_building/outdoor``, from categories_places365.txt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pairs = read_pairs(path, r"(/\w/[^ ]+) (\d{1,9})", "/LETTER/NAME NUMBER")
        for k, (number, line) in enumerate(pairs.values()):
            if int(number) != k:
                raise DatasetError(f"{at(path, line)} must have the number {k}, got {number}.")
        self.number = {name: k for k, name in enumerate(pairs)}
        self.names = [name[3:] for name in pairs]
        self.easy = {name.replace("/", "-"): k for k, name in enumerate(self.names)}


class _Folder(NamedTuple):
    """An image folder: the prefix of its images' names, and what is in it."""

    prefix: str
    path: Path
    kind: str
    variant: str

    def list(self) -> Path | None:
        """The file that lists its images."""
        if self.kind != "data":
            return _find(self.path, f"places365_{self.kind}.txt")
        variants = [self.variant] if self.variant else ["standard", "challenge"]
        return _find(self.path, *(f"places365_train_{variant}.txt" for variant in variants))


def is_places365(root: Path) -> bool:
    """Whether a folder is, or holds, image folders of Places365, or class folders that its categories name."""
    for folder in _image_folders(root):
        pattern = r"\w" if folder.kind == "data" else rf"Places365_{folder.kind}_\d{{8}}\b.*"
        if any(re.fullmatch(pattern, entry.name) for entry in peek(folder.path)):
            return True
    path = _find(root, CATEGORIES)
    if path is None:
        return False
    folders = {entry.name for split in _easy_splits(root) for entry in peek(root / split) if is_folder(entry)}
    return bool(folders) and folders <= _Categories(path).easy.keys()


@register("places365", is_places365)
def open_places365(root: Path) -> PathSource:
    """Open Places365: its root (all image folders in it are read), one image folder, or the easy layout or a split of it.

    Labels are those of places365_train_standard.txt (or _challenge) and places365_val.txt; test images have none (-1).
    Without a list, training images get the class of their folder, and validation images none, with a warning. In the easy
    layout the class is the folder's; train.txt and val.txt, where they exist, say which images there are. Lists are looked
    for in the folder, in ``filelist_places365-standard/`` or ``-challenge/``, and up to three folders above.

    Classes are numbered and named as in categories_places365.txt ("apartment_building/outdoor"); where it is missing, by
    the lists' own numbers, or by the folders' sorted names. Raises NoImagesError, and DatasetError, naming list and line.
    """
    path = _find(root, CATEGORIES)
    categories = _Categories(path) if path else None
    if folders := _image_folders(root):
        classes = categories.number if categories else _folder_classes(folders)
        names = categories.names if categories else [name[3:] for name in classes]
        if not categories and any(folder.list() for folder in folders):
            names = []  # the lists' numbers need not be those of the folders that are here
        parts = [_of_folder(root, folder, classes, categories) for folder in folders]
        items: Iterable[tuple[str, int]] = chain.from_iterable(pairs for pairs, _ in parts)
        left_out = sum((left for _, left in parts), Counter[str]())
    else:
        items, names, left_out = _easy(root, categories)
    source = PathSource(root, items, names or None, "places365", left_out=left_out)
    if not len(source):
        raise no_images(root, left_out)
    return source


def _find(root: Path, *names: str) -> Path | None:
    return find_near(root, [place + name for name in names for place in _LISTS_IN], 3)


def _image_folders(root: Path) -> list[_Folder]:
    """The folder itself if it is an image folder, else those that it holds."""
    for path in nearby(root, 0):
        if path.name in FOLDERS:
            return [_Folder("", root, *FOLDERS[path.name])]
    return [_Folder(f"{name}/", root / name, *FOLDERS[name]) for name in sorted(FOLDERS) if (root / name).is_dir()]


def _folder_classes(folders: list[_Folder]) -> dict[str, int]:
    """Classes by the training images' folders, where neither categories nor a list number them."""
    unlisted = [folder.path for folder in folders if folder.kind == "data" and not folder.list()]
    found = {"/" + file.rpartition("/")[0] for folder in unlisted for file in list_files(folder).files if "/" in file}
    return {name: k for k, name in enumerate(sorted(found))}


def _of_folder(
    root: Path, folder: _Folder, classes: dict[str, int], categories: _Categories | None
) -> tuple[Iterable[tuple[str, int]], Counter[str]]:
    """Names and labels of an image folder, by its list or else by its own folders, and what is left out."""
    if path := folder.list():
        return _listed(root, folder.prefix, path, partial(_in_list, folder.kind, categories, path)), Counter()
    found = list_files(folder.path)
    files = found.files
    if folder.kind == "val" and files:
        log.warning(
            f"the {len(files)} images of '{shown(folder.path)}' have no labels: put places365_val.txt into "
            f"'{shown(folder.path.absolute().parent)}'"
        )
    names = ["/" + file.rpartition("/")[0] for file in files]
    unknown = {name for name in names if name != "/"} - classes.keys() if folder.kind == "data" else set()
    if unknown:
        table = categories.path if categories else root
        raise DatasetError(f"'{shown(table)}' lists no class '{shown(min(unknown))}'.")
    pairs = ((folder.prefix + file, classes.get(name, -1)) for file, name in zip(files, names, strict=True))
    return pairs, found.left_out


def _in_list(kind: str, categories: _Categories | None, path: Path, text: str, line: int) -> tuple[str, int]:
    """An entry of an image folder's list: ``/a/airfield/00000001.jpg 0``, or without a number for test images."""
    name, label = text, -1
    if kind != "test":
        match = re.fullmatch(r"(.*\S)\s+(\d{1,9})", text)
        if not match:
            raise DatasetError(f"{at(path, line)} must read PATH NUMBER, got '{shown(text)}'.")
        name, label = match[1], int(match[2])
        if categories and label >= len(categories.names):
            known = f"'{shown(categories.path)}' lists 0 to {len(categories.names) - 1}"
            raise DatasetError(f"{at(path, line)}: there is no class {label}; {known}.")
    return name.removeprefix("/"), label  # the lists write the image folder as the root of all


def _listed(
    root: Path, prefix: str, path: Path, parsed: Callable[[str, int], tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    """What a list says, in its order; every image must be there, once."""
    labels, lines = array("i"), array("q")

    def names() -> Iterator[str]:
        for line, text in lines_of(path):
            name, label = parsed(text, line)
            labels.append(label)
            lines.append(line)
            yield prefix + inside(name, path, line)

    found = Names(names())
    check_listed(root, found, lines, path, all_of=True)
    return zip(found, labels, strict=True)


def _easy_splits(root: Path) -> list[str]:
    """The splits below a folder, or the folder itself where there are none."""
    return [split for split in _EASY if (root / split).is_dir()] or [""]


def _easy(root: Path, categories: _Categories | None) -> tuple[Iterator[tuple[str, int]], list[str], Counter[str]]:
    """The easy layout, ``train/apartment_building-outdoor/00000001.jpg``: images, classes, and what is left out."""
    files: list[str] = []
    left_out: Counter[str] = Counter()
    for split in _easy_splits(root):
        # a split that was given without the others has its list in the folder above, where it is called like the split
        own = split or nearby(root, 0)[0].name
        path = find_near(root / split, (f"{own}.txt",), 1) if own in _EASY else None
        prefix = f"{split}/" if split else ""
        if path:
            files += (name for name, _ in _listed(root, prefix, path, partial(_in_split, own, path)))
        else:
            found = list_files(root, below=prefix)
            files, left_out = files + found.files, left_out + found.left_out
    depth = 1 if _easy_splits(root) != [""] else 0
    folders = [parts[depth] if len(parts := file.split("/")) > depth + 1 else "" for file in files]
    here = sorted(set(folders) - {""})
    number = categories.easy if categories else {name: k for k, name in enumerate(here)}
    unknown = [name for name in here if name not in number]
    if unknown and categories:
        raise not_listed(root, categories.path, unknown)
    items = ((file, number.get(name, -1)) for file, name in zip(files, folders, strict=True))
    return items, categories.names if categories else here, left_out


def _in_split(split: str, path: Path, text: str, line: int) -> tuple[str, int]:
    """An entry of train.txt or val.txt, relative to the split; a number may follow, but the class is the folder's."""
    name = re.sub(r"(\.\w+) \d+$", r"\1", text)
    if not name.startswith(f"{split}/"):
        raise DatasetError(f"{at(path, line)} must begin with '{split}/', got '{shown(text)}'.")
    return name.removeprefix(f"{split}/"), -1
