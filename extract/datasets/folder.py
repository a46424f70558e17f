"""Folders of images, or of videos: flat, or with a subfolder a class; which folders are classes, and what looks wrong about them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path

from extract.folder_listing import holds_images, holds_maps, is_split, list_images_or_videos
from extract.image_io import shown, some
from extract.image_source import PathSource, register

log = logging.getLogger(__name__)

_ABOUT_DATA = {"meta", "metadata", "lists", "docs", "scripts", "code", "devkit", "imagesets", "imdb"}


@register("folder", lambda root: False)  # open_source takes it for what no other reader recognises
def open_folder(root: Path, part: str = "") -> PathSource:
    """Open a folder of images, or of videos where it holds no image: flat, one subfolder a class, or such class
    folders below ``train/``, ``val/``, ``images/``, ...

    ``part`` is a subfolder: only that is read, and names stay relative to ``root``. Splits (train, val2017), containers
    (images) and the only folder on its level, which holds only folders, are no classes: what is in them is. A folder
    without an image is a class too, so that it does not shift the numbers of the others. Classes are numbered in the order
    of their sorted names, or by their numbers where these are 0 to K - 1. Label maps next to images are left out
    (``extract.folder_listing``). Raises NoImagesError, and UsageError for a folder that cannot be listed.
    """
    prefix = f"{part}/" if part else ""
    found, what = list_images_or_videos(root, prefix)
    files = found.files
    if holds_maps(root.name) or holds_maps(Path(os.path.realpath(root)).name):
        log.warning("'%s' is called like a folder of label maps; they are read as %ss", shown(root), what)
    folders = [part] * bool(part) + found.folders
    depth, names, empty = _class_folders(root, Counter(file.rpartition("/")[0] for file in files), folders, what)
    number = {name: k for k, name in enumerate(names)}
    parts = (file.split("/") for file in files)
    labels = (number[path[depth]] if names and len(path) > depth + 1 else -1 for path in parts)
    return PathSource(
        root,
        zip(files, labels, strict=True),
        names or None,
        "class folders" if names else "flat folder",
        left_out=found.left_out,
        empty_classes=empty,
    )


def _class_folders(root: Path, images: Counter[str], folders: list[str], what: str) -> tuple[int, list[str], list[str]]:
    """(level, classes in order, those without an image); ``images`` counts those directly in each folder, ``what`` names one."""
    paths = [folder.split("/") if folder else [] for folder in images]
    depth = _level(paths)
    full = {path[depth] for path in paths if len(path) > depth}
    if not full:
        passed = sorted({path[0] for path in paths if path and not is_split(path[0])})
        if len(passed) > 1:
            log.warning(
                f"the folders {some(passed)} of '{shown(root)}' are not taken as classes, since such names only say that {what}s "
                "are inside: rename them if they are classes"
            )
        return depth, [], []
    above = {tuple(path[:depth]) for path in paths if len(path) > depth}
    siblings = {p[depth] for f in folders if len(p := f.split("/")) == depth + 1 and tuple(p[:depth]) in above}
    empty = {name for name in siblings - full if not _is_word(name) and name.lower() not in _ABOUT_DATA}
    names = _ordered(root, full | empty)
    if empty:
        unused = some(sorted(empty))
        log.warning(
            f"{len(empty)} class folders of '{shown(root)}' without {'an' if what == 'image' else 'a'} {what} keep their numbers: {unused}"
        )
    loose = sum(n for folder, n in images.items() if len(folder.split("/")) - (not folder) <= depth)
    for message in _oddities(root, depth, paths, full | empty, loose, what):
        log.warning(message)
    return depth, names, [name for name in names if name in empty]


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
                f"the class folders of '{shown(root)}' are numbers ({some(ordered)}) but not 0 to {len(ordered) - 1}: they are "
                "sorted as text. Write them with as many digits each, or rename them to the classes' names"
            )
    return ordered


def _oddities(root: Path, depth: int, paths: list[list[str]], classes: set[str], loose: int, what: str) -> list[str]:
    """What looks like another layout than class folders."""
    place, listed, found = shown(root), some(sorted(classes)), []
    if loose:
        found.append(f"{loose} {what}s of '{place}' are next to its class folders ({listed}): they have no class")
    deeper = [path for path in paths if len(path) > depth + 1]
    shallow = {path[depth] for path in paths if len(path) == depth + 1}
    odd = sorted(filter(_is_word, classes - shallow))
    inner = deeper[0][: depth + 1] if deeper else []
    if odd:
        better = shown(root.joinpath(*inner[:depth], odd[0]))
        found.append(
            f"the class folders of '{place}' include {some(odd)}, which usually hold no single class: if the classes are "
            f"inside, give one of them (--data {better}), and take the others out"
        )
    elif not shallow:
        found.append(
            f"the {len(classes)} class folders of '{place}' ({listed}) hold only folders: if those are the classes, give one "
            f"of the upper ones (--data {shown(root.joinpath(*inner))})"
        )
    elif len(classes) == 1 and not loose:
        found.append(
            f"the {what}s of '{place}' are all in one folder ({listed}), so there is only one class"
            f"{', which includes its subfolders' * bool(deeper)}. If that folder is no class, give it "
            f"(--data {shown(root.joinpath(*paths[0][:depth], *classes))})"
        )
    if maps := sorted(filter(holds_maps, classes)):
        found.append(f"the class folders of '{place}' include {some(maps)}: if these are label maps, take them out")
    return found


def _is_word(name: str) -> bool:
    return bool(is_split(name) or holds_images(name) or holds_maps(name))
