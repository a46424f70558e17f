"""What is in a folder: its images, its subfolders, and how many files of which kind are left out.

Label maps are no images. Left out are files named like another one with a suffix (``a_seg.png`` next to ``a.jpg``; suffixes
that photos have, too, such as ``_part`` and ``_color``, only where the other has another ending), and folders of maps
(``masks/``, ``annotations/``, ``gtFine/``) next to a folder of images (``images/``, ``train/``). All are counted in ``Listing``.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

from extract.image_io import ENDINGS, reason, shown
from extract.video import VIDEO_ENDINGS
from stores.errors import NoImagesError, UsageError

log = logging.getLogger(__name__)

# folders of file managers, archives and notebooks; those whose names begin with "." are not entered either
_NO_DATA = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
# What a folder's name says. That it is a split: train, val2017, test_set, videos_val
is_split = re.compile(
    r"(?:(?:seg|videos?)[_-])?(?:train(?:ing|val)?|val(?:id|idation)?|test(?:ing)?|dev|eval|pred)(?:[_-]?(?:set|data|images?|imgs?|videos?|\d+))?",
    re.IGNORECASE,
).fullmatch
# only that images, or videos, are in it: images, JPEGImages, data, videos
holds_images = re.compile(
    r"(?:jpeg|rgb|left)?(?:images?|imgs?)(?:8bit)?(?:[_-]?\d+)?|pictures?|pics|photos?|data(?:sets?)?(?:[_-]\d+)?|jpe?gs?|raw|videos?|clips",
    re.IGNORECASE,
).fullmatch
# that label maps or annotations are in it: masks, gtFine, SegmentationClass
_MAP_WORDS = (
    r"(?:seg|segm|segmim|segmentations?|semantic(?:_rgb)?|instances?|panoptic|masks?|annot|annotations?|labels?|labelmaps?|label_?(?:train)?ids|"
    r"instance_?ids|trimaps?|gt|ground_?truths?|gt(?:fine|coarse)(?:_\w+)?)"
)
holds_maps = re.compile(
    rf"{_MAP_WORDS}(?:[_-]\d+)?|segmentation(?:class|object)\w*|object_?masks?|labels?_?maps?", re.IGNORECASE
).fullmatch
_maps_of = re.compile(rf"(.+?)[_-]?{_MAP_WORDS}", re.IGNORECASE).fullmatch  # train_masks next to train
_images_of = re.compile(
    r"(.+?)[_-](?:images?|imgs?)", re.IGNORECASE
).fullmatch  # DUTS-TR-Image, next to which is DUTS-TR-Mask
_MAP_FILE = re.compile(
    rf"(.+?)([_.-](?:{_MAP_WORDS}|(?P<weak>parts?|objects?|material|colou?rs?(?=(?:[_-]?\d+)?\.png$))))"
    r"(?:(?P<dash>[_-])\d+)?(?P<ending>\.\w+)",
    re.IGNORECASE,
)
_PLAIN_ENDING = re.compile(r"\.(?=\w*[a-z])\w{1,9}")


@dataclass
class Listing:
    """What is below a folder: ``files`` that are read, sorted, ``folders``, and the number of files left out by ending."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Listing) -> Listing:
        folders = self.folders + other.folders
        return Listing(sorted(self.files + other.files), folders, self.left_out + other.left_out)


def list_images(root: Path, *folders: str) -> Listing:
    """The images below a folder, or below some folders in it ("train/"). Raises NoImagesError where there is none."""
    found = sum((list_files(root, below=below) for below in folders or ("",)), Listing())
    if not found.files:
        raise no_images(root, found.left_out)
    return found


def list_images_or_videos(root: Path, below: str = "") -> tuple[Listing, str]:
    """The images below a folder, or its videos where it has no image, and which of both ("image", "video").

    Videos next to images are logged. Raises NoImagesError where there is neither.
    """
    found = list_files(root, below=below)
    if not (videos := sum(found.left_out[ending] for ending in VIDEO_ENDINGS)):
        if not found.files:
            raise no_images(root, found.left_out)
        return found, "image"
    if not found.files:
        return list_files(root, VIDEO_ENDINGS, below=below), "video"
    log.warning(
        f"'{shown(root)}' holds images and {videos} videos: only the images are read. To read the videos, give a folder that "
        "holds no image"
    )
    return found, "image"


def no_images(root: Path, left_out: Counter[str]) -> NoImagesError:
    """The error for a folder in which no file is read."""
    other = ", ".join(f"{ending} ({count})" for ending, count in left_out.most_common(8))
    return NoImagesError(
        f"There is no image in '{shown(root)}' (--data) or its subfolders{other and f', only other files: {other}'}. Give a "
        "folder of image files such as .jpg, .png or .tif; archives must be unpacked."
    )


def list_files(root: Path, endings: tuple[str, ...] = ENDINGS, *, below: str = "") -> Listing:
    """All files with an ending below a folder, or below ``below`` ("train/") in it; paths are relative to ``root``.

    Label maps next to images are left out of ``ENDINGS``. Links to folders are followed, after all folders that are none and
    in the order of their names; but no folder is listed twice, and links that lead back up are not followed. How many are left
    out for that is logged.

    Raises UsageError for a folder that cannot be listed.
    """
    found = Listing()
    images = endings is ENDINGS
    listed: set[object] = set()
    # a heap: (whether it is a link, path, prefix of names, the real folders on the way, the folder of label maps it is in)
    ahead: list[tuple[bool, str, str, tuple[str, ...], str]] = [(False, str(root / below), below, (), "")]
    links = 0
    map_files: list[str] = []
    while ahead:
        _, path, prefix, above, maps_folder = heappop(ahead)
        real = os.path.realpath(path)
        leads_up = any(f"{other}/".startswith(f"{real.rstrip('/')}/") for other in above)
        if leads_up or (identity := _identity(path, real)) in listed:
            links += 1
            continue
        listed.add(identity)
        folders, files = _entries(path)
        maps = _map_folders([entry.name for entry in folders]) if images and not maps_folder else set()
        for entry in folders:
            below = maps_folder or (prefix + entry.name if entry.name in maps else "")
            heappush(ahead, (entry.is_symlink(), entry.path, f"{prefix}{entry.name}/", (*above, real), below))
        read = [name for name in files if name.lower().endswith(endings)]
        if maps_folder:
            found.left_out[f"{maps_folder.rpartition('/')[2]}/"] += len(files)
            continue
        if prefix != below:
            found.folders.append(prefix[:-1])
        found.left_out.update(ending_of(name) for name in files if not name.lower().endswith(endings))
        left = label_maps(read) if images else {}
        found.left_out.update(left.values())
        map_files += (prefix + name for name in left)
        found.files += (f"{prefix}{name}" for name in read if name not in left)
    if links:
        log.warning(f"'{shown(root)}' holds {links} links to folders that are listed already or lead back up; left out")
    warn_of_maps(root, map_files)
    found.files.sort()
    return found


def warn_of_maps(root: Path, files: Collection[str]) -> None:
    """Log the files that are left out since they are named like label maps of images next to them."""
    if files:
        log.warning(
            f"'{shown(root)}': {len(files)} image files left out as label maps of the images next to them, such as "
            f"'{shown(min(files))}'. Rename them if they are images"
        )


def label_maps(names: Collection[str]) -> dict[str, str]:
    """Those of some files that are label maps of another one, and what they are counted as: ``a_seg.png`` -> ``_seg.png``."""
    candidates = [(name, match) for name in names if (match := _MAP_FILE.fullmatch(name))]
    if not candidates:
        return {}
    endings: dict[str, set[str]] = {}  # stem -> those of its files
    for name in names:
        stem, _, ending = name.rpartition(".")
        for known in {stem, stem.removesuffix("_leftImg8bit")}:
            endings.setdefault(known, set()).add(f".{ending.lower()}")
    return {
        name: match[2].lower() + (f"{match['dash']}N" if match["dash"] else "") + match["ending"].lower()
        for name, match in candidates
        if endings.get(match[1], set()) - ({match["ending"].lower()} if match["weak"] else set())
    }


def ending_of(name: str) -> str:
    """A file's ending in lower case, as it is counted; numbers and long tails are none."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return ending if _PLAIN_ENDING.fullmatch(ending) else "no ending"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a listing is a folder, or a link to one. Raises OSError where the disk does not answer."""
    try:
        return entry.is_dir()  # known from the listing itself, without another look at the disk for each file
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def names_in(folder: Path) -> set[str]:
    """The names in a folder; none where there is no such folder. Raises OSError where the disk does not answer."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208  (only names, by the hundred thousand)
    except ValueError:  # a name that no disk takes
        return set()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return set()
        raise


def _entries(path: str) -> tuple[list[os.DirEntry[str]], list[str]]:
    """The subfolders and the names of the files of a folder, without those that are no data."""
    try:
        with os.scandir(path) as scanned:
            entries = [entry for entry in scanned if not entry.name.startswith(".")]
        folders = [entry for entry in entries if is_folder(entry)]
    except OSError as error:
        then = "Fix its permissions, or run again once the disk is back"
        raise UsageError(f"The folder '{shown(path)}' cannot be listed: {reason(error)}. {then}.") from error
    skipped = {entry.name for entry in folders}
    files = [entry.name for entry in entries if entry.name not in skipped and entry.name.lower() not in _SYSTEM_FILES]
    return [entry for entry in folders if entry.name.lower() not in _NO_DATA], files


def _map_folders(names: Collection[str]) -> set[str]:
    """Those of the folders next to each other that hold label maps of others."""
    images = {name.lower() for name in names if is_split(name) or holds_images(name)}
    of = images | {match[1].lower() for name in names if (match := _images_of(name))}
    maps = {name for name in names if (match := _maps_of(name)) and match[1].lower() in of}
    maps |= {name for name in names if images and holds_maps(name)}
    return {name for name in maps if name.lower() not in images}


def _identity(path: str, real: str) -> object:
    """What a folder is, whatever way led to it."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # reported when it is listed
        return real
    return (found.st_dev, found.st_ino) if found.st_ino else real
