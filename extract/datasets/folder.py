"""Which folders of images are classes: the level at which they are, their order, and what looks wrong about them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extract.folder_listing import Listing, files_below, holds_images, holds_maps, is_split, no_images, some
from extract.image_io import shown
from extract.image_source import PathSource, register

log = logging.getLogger(__name__)

_ABOUT_DATA = {"meta", "metadata", "lists", "docs", "scripts", "code", "devkit", "imagesets", "imdb"}


@dataclass(frozen=True)
class ClassFolders:
    """The classes ``names`` are the folders at ``depth`` (0: those in the root); ``empty`` are those without an image."""

    depth: int
    names: list[str]
    empty: list[str]

    def labels(self, files: Sequence[str]) -> list[int]:
        """Class number of each file, -1 for one that is in no class folder."""
        number = {name: k for k, name in enumerate(self.names)}
        parts = (file.split("/") for file in files)
        return [number[p[self.depth]] if len(p) > self.depth + 1 else -1 for p in parts]


def find_class_folders(root: Path, files: Sequence[str], folders: Sequence[str]) -> ClassFolders:
    """The class folders among ``folders``, which hold ``files``; what looks wrong about them is logged.

    Splits (train, val2017), containers (images) and a folder that is alone on its level and holds only folders are no
    classes: what is in them is.
    A folder without an image is a class as well, so that it does not shift the numbers of the others.
    """
    holding = Counter(file.rpartition("/")[0] for file in files)  # folder -> its own images
    paths = [folder.split("/") if folder else [] for folder in holding]
    depth = _level(paths)
    full = {path[depth] for path in paths if len(path) > depth}
    if not full:
        passed = sorted({path[0] for path in paths if path and not is_split(path[0])})
        if len(passed) > 1:
            log.warning(
                "the folders %s of '%s' are not taken as classes, since such names only say that images are inside: rename them "
                "if they are classes",
                some(passed),
                shown(root),
            )
        return ClassFolders(depth, [], [])
    above = {tuple(path[:depth]) for path in paths if len(path) > depth}
    siblings = {
        parts[depth] for f in folders if len(parts := f.split("/")) == depth + 1 and tuple(parts[:depth]) in above
    }
    empty = {name for name in siblings - full if not _is_word(name) and name.lower() not in _ABOUT_DATA}
    names = _ordered(root, full | empty)
    if empty:
        log.warning(
            "%d class folders of '%s' hold no image that is read, but keep their numbers: %s. Fill or remove them",
            len(empty),
            shown(root),
            some(sorted(empty)),
        )
    _check(
        root,
        depth,
        paths,
        full | empty,
        loose=sum(n for f, n in holding.items() if len(f.split("/")) - (not f) <= depth),
    )
    return ClassFolders(depth, names, [name for name in names if name in empty])


def _level(paths: list[list[str]]) -> int:
    """At which level the classes are, by the folders that hold images."""
    depth = 0
    while names := {path[depth] for path in paths if len(path) > depth}:
        words = all(is_split(name) or holds_images(name) for name in names)
        alone = len(names) == 1 and all(len(path) > depth + 1 for path in paths)
        if not words and not alone:
            break
        depth += 1
    return depth


def _ordered(root: Path, names: set[str]) -> list[str]:
    """Sorted as text; folders that are exactly 0 … K - 1 are the class numbers."""
    ordered = sorted(names)
    if all(re.fullmatch(r"[0-9]+", name) for name in ordered):
        by_number = sorted(ordered, key=int)
        if [int(name) for name in by_number] == list(range(len(by_number))):
            return by_number
        if by_number != ordered:
            log.warning(
                "the class folders of '%s' are numbers (%s) but not 0 to %d: they are sorted as text. Write them with as many "
                "digits each, or rename them to the classes' names",
                shown(root),
                some(ordered),
                len(ordered) - 1,
            )
    return ordered


def _check(root: Path, depth: int, paths: list[list[str]], classes: set[str], loose: int) -> None:
    """Log what looks like another layout than class folders."""
    if loose:
        log.warning(
            "%d images of '%s' are next to its class folders (%s): they have no class",
            loose,
            shown(root),
            some(sorted(classes)),
        )
    deeper = [path for path in paths if len(path) > depth + 1]
    shallow = {path[depth] for path in paths if len(path) == depth + 1}
    odd = sorted(filter(_is_word, classes - shallow))
    inner = deeper[0][: depth + 1] if deeper else []
    if odd:
        log.warning(
            "the class folders of '%s' include %s, which usually hold no single class: if the classes are inside, give one of "
            "them (--data %s), and take the others out",
            shown(root),
            some(odd),
            shown(root.joinpath(*(inner[:depth]), odd[0])),
        )
    elif not shallow:
        log.warning(
            "the %d class folders of '%s' (%s) hold only folders: if those are the classes, give one of the upper ones "
            "(--data %s)",
            len(classes),
            shown(root),
            some(sorted(classes)),
            shown(root.joinpath(*inner)),
        )
    elif len(classes) == 1 and not loose:
        log.warning(
            "the images of '%s' are all in one folder (%s), so there is only one class%s. If that folder is no class, give it "
            "(--data %s)",
            shown(root),
            some(sorted(classes)),
            ", which includes its subfolders" * bool(deeper),
            shown(root.joinpath(*paths[0][:depth], *classes)),
        )
    if maps := sorted(filter(holds_maps, classes)):
        log.warning(
            "the class folders of '%s' include %s: if these are label maps, take them out", shown(root), some(maps)
        )
    if "BACKGROUND_Google" in classes:
        log.warning(
            "'%s' holds BACKGROUND_Google of Caltech-101, taken as a class: torchvision numbers the classes without it. Move "
            "it elsewhere if the model was trained so",
            shown(root),
        )


def _is_word(name: str) -> bool:
    return is_split(name) or holds_images(name) or holds_maps(name)


@register("folder", lambda root: False)  # what no other reader recognises
def open_folder(root: Path, part: str = "") -> PathSource:
    """Open a folder of images: flat, one subfolder a class, or such class folders below ``train/``, ``val/``, ``images/``, ...

    ``part`` is a subfolder: only that is read, and names stay relative to ``root``. Classes are numbered in the order of
    their sorted names, or by their numbers where these are 0 to K - 1 (``extract.class_folders``). Label maps next to images
    are left out (``extract.listing``). Raises NoImagesError, and UsageError for a folder that cannot be listed.
    """
    found = Listing()
    prefix = f"{part}/" if part else ""
    files = sorted(prefix + file for file in files_below(root / part, found=found))
    if not files:
        raise no_images(root, found)
    if holds_maps(root.name) or holds_maps(os.path.basename(os.path.realpath(root))):  # noqa: PTH119
        log.warning("'%s' is called like a folder of label maps; they are read as images", shown(root))
    classes = find_class_folders(root, files, [part] * bool(part) + [prefix + folder for folder in found.folders])
    return PathSource(
        root,
        zip(files, classes.labels(files), strict=True),
        classes.names or None,
        "class folders" if classes.names else "flat folder",
        left_out=found.left_out,
        empty_classes=classes.empty,
    )
