"""WebDataset: images in tar files, the shards, together with their labels; read in place, nothing is ever extracted.

What a shard holds under one key, the name up to the first dot after its last slash, is a sample: ``0001.jpg`` and
``0001.cls``, wherever in the shard they are. Shards are scanned once for where each image begins; an image is then read
individually.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from extract.folder_listing import ending_of, label_maps, list_files, warn_of_maps
from extract.image_io import ENDINGS, decode_image, open_regular, reason, shown
from extract.image_source import Entry, PackedSource, digest_items, register, sample
from stores.errors import DatasetError, EDDPError, MissingPathError, NoImagesError, UsageError

log = logging.getLogger(__name__)

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 1_000_000
MOST_TEXT = 16 * 2**20  # bytes of a label's file; what is larger holds no label
BLOCK = tarfile.BLOCKSIZE
_TIME = 136  # byte of a header at which 12 bytes say when the member was changed


class WebDatasetSource(PackedSource):
    """Images within tar files, read one by one; the shards are scanned when it is made."""

    kind = "webdataset"

    def __init__(self, root: Path, shards: list[str]) -> None:
        left_out: Counter[str] = Counter()
        unused: list[str] = []
        map_files: list[str] = []

        def entries() -> Iterator[tuple[str, int, int, int, int]]:
            for k, name in enumerate(shards):
                members, others, lost = _scan(root / name)
                unused.extend(lost)
                left_out.update(others)
                maps = label_maps([member for member, *_ in members])
                left_out.update(maps.values())
                map_files.extend(f"{name}/{member}" for member in maps)
                for member, label, offset, size in members:
                    if member not in maps:
                        yield f"{name}/{member}", label, k, offset, size

        super().__init__(root, shards, entries())
        self.left_out = dict(left_out)
        warn_of_maps(root, map_files)
        if unused:
            log.warning(
                f"'{shown(root)}': {len(unused)} label files have no image, such as '{shown(unused[0])}'. An image and its label "
                "must have the same name up to the first dot (0001.jpg, 0001.cls) and be in the same shard"
            )

    def image(self, i: int) -> Image.Image:
        return decode_image(self.read(i), shown(self.name(i)))

    @cached_property
    def digest(self) -> str:
        return digest_items(self._entries())

    def _entries(self) -> Iterator[Entry]:
        """What the digest sees of each image: the time is that in its header, just before its bytes."""
        begins = np.searchsorted(self._file, np.arange(len(self.files) + 1))
        for k, name in enumerate(self.files):
            try:
                with open_regular(self.root / name) as file:
                    for i in range(*begins[k : k + 2].tolist()):
                        start, size = int(self._offset[i]), int(self._size[i])
                        changed = os.pread(file.fileno(), 12, start - BLOCK + _TIME)
                        yield self.name(i), self.label(i), size, 0, changed + sample(file.fileno(), start, size)
            except OSError as error:
                raise EDDPError(
                    f"'{shown(self.root / name)}' cannot be read: {reason(error)}. Run it again later."
                ) from error


def is_webdataset(root: Path) -> bool:
    """Whether a path is a tar file, or a name that stands for several: ``shard-{000000..000012}.tar``."""
    if _RANGE.search(str(root)) and not root.exists():
        return True
    return root.name.lower().endswith((".tar", *COMPRESSED)) and root.is_file()


def holds_shards(root: Path) -> bool:
    """Whether there are tar files in a folder or below it."""
    return bool(list_files(root, (".tar", *COMPRESSED)).files)


@register("webdataset", is_webdataset, files=True)
def open_webdataset(root: Path) -> WebDatasetSource:
    """Open a folder of ``.tar`` files (sorted, those in subfolders too), one such file, or ``shard-{000..012}.tar``.

    Every member whose name ends like an image's is an image, called ``SHARD.tar/MEMBER``, also where a sample has several.
    Its label is its sample's ``.cls``, an integer as text; else "label" or "cls" of its ``.json``; else -1. ``0001.left.cls``
    is only of ``0001.left.png``. Label files without an image are logged. Classes have no names. Label maps next to an image
    (``0001.seg.png``) are left out, and members that are no regular files are skipped.

    Raises MissingPathError, NoImagesError, and DatasetError, naming shard and member or offset.
    """
    root, shards = _shards(root)
    source = WebDatasetSource(root, shards)
    if not len(source):
        raise NoImagesError(
            f"There is no image in the {len(shards)} tar files of '{shown(root)}' (--data), '{shown(shards[0])}' the first. "
            f"Looked for members ending in {', '.join(ENDINGS)}."
        )
    return source


def _shards(root: Path) -> tuple[Path, list[str]]:
    """The folder that names are relative to, and the shards."""
    if root.is_dir():
        shards = list_files(root, (".tar",)).files
        if shards:
            return root, shards
        if packed := list_files(root, COMPRESSED).files:
            raise DatasetError(
                f"The tar files in '{shown(root)}' (--data) are compressed ('{shown(packed[0])}'). Unpack them."
            )
        raise NoImagesError(f"There is no .tar file in '{shown(root)}' (--data) or its subfolders.")
    if root.is_file():
        return root.parent, [root.name]
    found = sorted(_expanded(str(root)))
    missing = [name for name in found if not Path(name).is_file()]
    if missing:
        of = f"; {len(missing)} of the {len(found)} that '{shown(root)}' stands for are missing" * (len(found) > 1)
        raise MissingPathError(f"There is no file '{shown(missing[0])}' (--data){of}. Give a folder with .tar files.")
    above = Path(str(root).partition("{")[0] + "x").parent
    return above, [str(Path(name).relative_to(above)) for name in found]


def _expanded(pattern: str) -> list[str]:
    """``a-{00..12}.tar`` -> ``a-00.tar`` ... ``a-12.tar``, padded as the numbers in it are."""
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = (int(text) for text in match.groups())
    width = max(map(len, match.groups())) if any(len(t) > 1 and t[0] == "0" for t in match.groups()) else 0
    rest = _expanded(pattern[match.end() :])
    if first > last or (last - first + 1) * len(rest) > MOST_SHARDS:
        raise UsageError(f"'{shown(pattern)}' (--data) must count upwards, to at most {MOST_SHARDS} files.")
    return [f"{pattern[: match.start()]}{k:0{width}d}{end}" for k in range(first, last + 1) for end in rest]


def _scan(path: Path) -> tuple[list[tuple[str, int, int, int]], Counter[str], list[str]]:
    """(name, label, offset, size) of each image in a shard, in its order; counts of other members by ending; labels without an image."""
    left_out: Counter[str] = Counter()
    unused: list[str] = []
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int | DatasetError | None] = {}  # key and ending -> what the file says, None for nothing
    for member, file in _members(path):
        name = member.name.removeprefix("./")
        key, ending = _split(name)
        if not key:
            continue
        if ending.endswith(ENDINGS):
            if name in images:
                raise DatasetError(f"'{shown(path)}' holds '{shown(name)}' twice, again at byte {member.offset}.")
            images[name] = member.offset_data, member.size
        elif ending.endswith((".cls", ".json")):
            try:
                labels[key + ending] = _label(member, file, path)
            except DatasetError as error:  # raised where it is an image's
                labels[key + ending] = error
        else:
            left_out[ending_of(name) if ending else "no ending"] += 1
    found = []
    used: set[str] = set()
    for name, place in images.items():
        key, ending = _split(name)
        own = ending.rpartition(".")[0]  # .left of a.left.png
        files = [f"{key}{part}{kind}" for part in dict.fromkeys((own, "")) for kind in (".cls", ".json")]
        used.update(file for file in files if file in labels)
        label = next((given for file in files if (given := labels.get(file)) is not None), -1)
        if isinstance(label, DatasetError):
            raise label
        found.append((name, label, *place))
    for name, given in labels.items():
        if name not in used:
            left_out[ending_of(name)] += 1
            if name.endswith(".cls") or isinstance(given, int):
                unused.append(f"{path.name}/{name}")
    return found, left_out, unused


def _split(name: str) -> tuple[str, str]:
    """A member's key, and its ending in lower case: what begins at the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return (f"{folder}{slash}{stem}" if stem else "", f"{dot}{ending.lower()}")


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Regular members of a tar file, one after the other. Raises DatasetError where the file is not sound to its end."""
    try:
        with BufferedReader(open_regular(path)) as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(6)
            if how := next((how for magic, how in _MAGIC.items() if head.startswith(magic)), None):
                raise DatasetError(f"'{shown(path)}' is compressed by {how}. Decompress it: images are read in place.")
            file.seek(0)
            offset = 0
            try:
                tar: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  (closing it would close nothing)
                while (member := tar.next()) is not None:
                    tar.members.clear()  # else all of them stay in memory
                    if member.size < 0 or tar.offset <= offset:  # a crafted one would be read for ever
                        raise tarfile.ReadError(f"the header of '{shown(member.name)}' makes no sense")
                    if member.isreg() and not member.issparse():
                        if member.offset_data + member.size > size:
                            raise tarfile.ReadError(f"'{shown(member.name)}' continues past the end of the file")
                        yield member, file
                    offset = tar.offset
            except OSError:
                raise
            except Exception as error:  # damaged headers fail wherever they like
                raise DatasetError(
                    f"'{shown(path)}' is no tar file, or is damaged or cut short at byte {offset}: {reason(error)}."
                ) from error
            _check_end(file, tar.offset, size, path)
    except OSError as error:
        raise DatasetError(f"'{shown(path)}' cannot be read: {reason(error)}.") from error


def _check_end(file: BinaryIO, offset: int, size: int, path: Path) -> None:
    """A tar file ends with zeros; ``tarfile`` takes anything that is no header for its end."""
    file.seek(offset)
    first = file.read(BLOCK)
    if len(first) < BLOCK:
        raise DatasetError(f"'{shown(path)}' is cut short at byte {size}: the mark that ends a tar file is missing.")
    if any(first):
        raise DatasetError(f"'{shown(path)}' is damaged at byte {offset}: there is no header of a member.")
    while block := file.read(2**20):
        if any(block):
            raise DatasetError(
                f"'{shown(path)}' continues after its end at byte {offset}. Give joined files one by one."
            )


def _label(member: tarfile.TarInfo, file: BinaryIO, path: Path) -> int | None:
    """What a ``.cls`` or ``.json`` says; None for a ``.json`` that says nothing of a class."""
    where, must = f"'{shown(path)}', member '{shown(member.name)}'", "must be an integer from 0 (or -1), got"
    if member.size > MOST_TEXT:
        raise DatasetError(f"{where}: {member.size} bytes are no label.")
    file.seek(member.offset_data)
    text = file.read(member.size)
    if member.name.lower().endswith(".cls"):
        digits = text.strip()
        if not re.fullmatch(rb"\+?\d{1,9}|-0*[01]", digits):
            raise DatasetError(f"{where}: the label {must} '{_excerpt(digits)}'.")
        return int(digits)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: this is no JSON: {reason(error)}.") from error
    fields = ("label", "cls") if isinstance(value, dict) else ()
    given = {field: value[field] for field in fields if value.get(field) is not None}
    for field, number in given.items():
        if type(number) is int or (isinstance(number, float) and number.is_integer()):
            if not -1 <= number < 2**31:
                raise DatasetError(f"{where}: '{field}' {must} {number}.")
            return int(number)
    for field, number in given.items():
        text = json.dumps(number).encode()
        raise DatasetError(f"{where}: '{field}' {must} {_excerpt(text)}. Write the class's number, there or in a .cls.")
    return None


def _excerpt(text: bytes) -> str:
    return shown(text[:40].decode("utf-8", "replace")) + ("..." if len(text) > 40 else "")
