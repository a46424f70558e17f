"""Places365 (Zhou et al. 2018) as it is distributed: image folders with lists beside them, or the easy directory layout.

An image folder is ``data_256`` (or ``data_large``; training images), ``val_256`` or ``test_256``; the lists say which images
are in it and of which class. The easy layout has ``train/`` and ``val/`` with a folder a class.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from extract.file_list import at, check_present, find_near, inside, lines_of, nearby, peek
from extract.folder_listing import Listing, files_below, is_folder, no_images
from extract.image_io import shown
from extract.image_source import PathSource, register
from extract.string_array import Items
from stores.errors import DatasetError

log = logging.getLogger(__name__)

CATEGORIES = "categories_places365.txt"
LEVELS = 3
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
        self.number: dict[str, int] = {}
        for line, text in lines_of(path):
            name, _, number = text.rpartition(" ")
            if not re.fullmatch(r"/\w/[^ ]+", name) or number != str(len(self.number)) or name in self.number:
                raise DatasetError(
                    f"{at(path, line)} must read /LETTER/NAME {len(self.number)}, each name once, got '{shown(text)}'."
                )
            self.number[name] = int(number)
        self.names = [name[3:] for name in self.number]
        self.easy = {name.replace("/", "-"): k for k, name in enumerate(self.names)}


def is_places365(root: Path) -> bool:
    """Whether a folder is, or holds, image folders of Places365, or class folders that its categories name."""
    for _, folder, kind, _ in _image_folders(root):
        pattern = r"\w" if kind == "data" else rf"Places365_{kind}_\d{{8}}\b.*"
        if any(re.fullmatch(pattern, entry.name) for entry in peek(folder)):
            return True
    path = _find(root, (CATEGORIES,))
    if path is None:
        return False
    known = _Categories(path).easy
    folders = {entry.name for split in _easy_splits(root) for entry in peek(root / split) if is_folder(entry)}
    return bool(folders) and folders <= known.keys()


@register("places365", is_places365)
def open_places365(root: Path) -> PathSource:
    """Open Places365: its root (all image folders in it are taken), one image folder, or the easy layout or a split of it.

    Labels are those of places365_train_standard.txt (or _challenge), places365_val.txt; test images have none (-1). Without
    a list, training images get the class of their folder, and validation images none, with a warning that says what to put
    where. In the easy layout the class is the folder's; train.txt and val.txt, where they are, say which images there are.
    Lists are looked for in the folder, in ``filelist_places365-standard/`` or ``-challenge/``, and up to three folders above.

    Classes are numbered as in categories_places365.txt, their names are those in it without the letter
    ("apartment_building/outdoor"); where it is missing, by the lists' own numbers, or by the folders' sorted names.

    Raises NoImagesError, and DatasetError, naming list and line, for lines that make no sense or point elsewhere, for
    classes that there are not, and for images that are listed and not on disk.
    """
    path = _find(root, (CATEGORIES,))
    categories = _Categories(path) if path else None
    folders, found = _image_folders(root), Listing()
    if folders:
        classes = categories.number if categories else _folder_classes(folders)
        items = Items(chain.from_iterable(_of_folder(root, *folder, classes, categories, found) for folder in folders))
        names = categories.names if categories else [name[3:] for name in classes]
        if not categories and any(_list_of(*folder[1:]) for folder in folders):
            names = []  # the lists' numbers need not be those of the folders that are here
    else:
        items, names = _easy(root, categories, found)
    if not len(items):
        raise no_images(root, found)
    return PathSource(root, items, names or None, "places365", left_out=found.left_out)


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return find_near(root, [place + name for name in names for place in _LISTS_IN], LEVELS)


def _image_folders(root: Path) -> list[tuple[str, Path, str, str]]:
    """(prefix of names, folder, data / val / test, standard / challenge / nothing) of a folder that is one or holds some."""
    for path in nearby(root, 0):
        if path.name in FOLDERS:
            return [("", root, *FOLDERS[path.name])]
    return [(f"{name}/", root / name, *FOLDERS[name]) for name in sorted(FOLDERS) if (root / name).is_dir()]


def _list_of(folder: Path, kind: str, variant: str) -> Path | None:
    if kind != "data":
        return _find(folder, (f"places365_{kind}.txt",))
    return _find(
        folder, tuple(f"places365_train_{v}.txt" for v in ([variant] if variant else ["standard", "challenge"]))
    )


def _folder_classes(folders: list[tuple[str, Path, str, str]]) -> dict[str, int]:
    """Classes by the training images' folders, where neither categories nor a list number them."""
    unlisted = [
        folder for _, folder, kind, variant in folders if kind == "data" and not _list_of(folder, kind, variant)
    ]
    found = {"/" + file.rpartition("/")[0] for folder in unlisted for file in files_below(folder) if "/" in file}
    return {name: k for k, name in enumerate(sorted(found))}


def _of_folder(
    root: Path,
    prefix: str,
    folder: Path,
    kind: str,
    variant: str,
    classes: dict[str, int],
    categories: _Categories | None,
    found: Listing,
) -> Iterator[tuple[str, int]]:
    path = _list_of(folder, kind, variant)
    if path is not None:
        yield from _listed(root, prefix, path, kind, categories)
        return
    files = sorted(files_below(folder, found=found))
    if kind == "val" and files:
        log.warning(
            "the %d images of '%s' have no labels: put places365_val.txt into '%s'",
            len(files),
            shown(folder),
            shown(folder.absolute().parent),
        )
    for file in files:
        name = "/" + file.rpartition("/")[0]
        if kind == "data" and name != "/" and name not in classes:
            raise DatasetError(f"'{shown(categories.path if categories else root)}' lists no class '{shown(name)}'.")
        yield prefix + file, classes.get(name, -1)


def _listed(root: Path, prefix: str, path: Path, kind: str, categories: _Categories | None) -> Items:
    """What a list says: ``/a/airfield/00000001.jpg 0``, or without a number for test images. The order is the list's."""
    lines = array("q")

    def entries() -> Iterator[tuple[str, int]]:
        for line, text in lines_of(path):
            name, number = text, "-1"
            if kind != "test":
                name, number = text.rsplit(maxsplit=1) if len(text.split()) > 1 else (text, "")
                if not re.fullmatch(r"\d{1,9}", number):
                    raise DatasetError(f"{at(path, line)} must read PATH NUMBER, got '{shown(text)}'.")
                if categories and int(number) >= len(categories.names):
                    raise DatasetError(
                        f"{at(path, line)}: there is no class {number}; '{shown(categories.path)}' lists 0 to "
                        f"{len(categories.names) - 1}."
                    )
            lines.append(line)
            # the lists write the image folder as the root of all
            yield prefix + inside(name.removeprefix("/"), path, line), int(number)

    items = Items(entries())
    check_present(root, items.names, lines, path)
    return items


def _easy_splits(root: Path) -> list[str]:
    """The splits below a folder, or the folder itself where there are none."""
    return [split for split in _EASY if (root / split).is_dir()] or [""]


def _easy(root: Path, categories: _Categories | None, found: Listing) -> tuple[Items, list[str]]:
    """The easy layout: ``train/apartment_building-outdoor/00000001.jpg``."""
    files: list[str] = []
    for split in _easy_splits(root):
        # a split that was given alone has its list in the folder above, where it is called like the split
        own = split or nearby(root, 0)[0].name
        path = find_near(root / split, (f"{own}.txt",), 1) if own in _EASY else None
        prefix = f"{split}/" if split else ""
        if path:
            files += _easy_listed(root, own, prefix, path)
        else:
            files += [prefix + file for file in sorted(files_below(root / split, found=found))]
    depth = 1 if _easy_splits(root) != [""] else 0
    folders = [parts[depth] if len(parts := file.split("/")) > depth + 1 else "" for file in files]
    here = sorted(set(folders) - {""})
    if categories is None:
        number = {name: k for k, name in enumerate(here)}
        return Items((f, number.get(name, -1)) for f, name in zip(files, folders, strict=True)), here
    unknown = [name for name in here if name not in categories.easy]
    if unknown:
        raise DatasetError(
            f"'{shown(root)}' (--data) holds {len(unknown)} class folders that '{shown(categories.path)}' does not list, "
            f"'{shown(unknown[0])}' the first. Give folder:{shown(root)} to number the classes by its own folders."
        )
    return Items((f, categories.easy.get(name, -1)) for f, name in zip(files, folders, strict=True)), categories.names


def _easy_listed(root: Path, split: str, prefix: str, path: Path) -> list[str]:
    """What train.txt or val.txt lists, ``train/airfield/00000001.jpg``, relative to the root."""
    lines = array("q")
    names = []
    for line, text in lines_of(path):
        name = inside(
            re.sub(r"(\.\w+) \d+$", r"\1", text), path, line
        )  # a number may follow; the class is the folder's
        if not name.startswith(f"{split}/"):
            raise DatasetError(f"{at(path, line)} must begin with '{split}/', got '{shown(text)}'.")
        names.append(prefix + name.removeprefix(f"{split}/"))
        lines.append(line)
    items = Items((name, -1) for name in names)
    check_present(root, items.names, lines, path)
    return names
