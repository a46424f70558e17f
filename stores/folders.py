"""Atomic replacement of a folder: filled under another name, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stores.documents import UNREADABLE, is_plain, parse_json, read_small
from stores.errors import EDDPError, StoreError, StoreExistsError
from stores.io import aside, asides, checksum, file_checksum, is_abandoned, json_bytes, sync, sync_folder
from stores.paths import is_remote

DAY = 86400  # seconds
MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # only writing fails like this


@dataclass(frozen=True)
class Ours:
    """How a folder is known that may be replaced: ``file`` in it is JSON whose ``made_by`` is the command that wrote it; ``what`` it is, in words."""

    file: str
    made_by: str
    what: str


def check_replaceable(out: Path, ours: Ours, inputs: Iterable[Path] = ()) -> None:
    """Raise StoreExistsError unless there is nothing at ``out``, an empty folder, or one of ours with none of the inputs, and no
    file of anybody else's, in it."""
    if out.is_symlink():
        raise StoreExistsError(f"'{out}' (--out) is a link, and is not changed. Give the folder itself, or another.")
    if out.exists() and not out.is_dir():
        raise StoreExistsError(f"'{out}' (--out) is no folder, and is not changed. Give another.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not _is_ours(out, ours):
        raise StoreExistsError(
            f"'{out}' (--out) holds other things than {ours.what}, and is not changed. Give another."
        )
    if foreign := _foreign_files(out):
        listed = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise StoreExistsError(
            f"'{out}' (--out) holds files of others ({listed}), and is not changed. Move them, or give another."
        )
    for path in inputs:
        if not is_remote(path) and path.resolve().is_relative_to(out.resolve()):
            raise StoreExistsError(
                f"'{out}' (--out) holds '{path}', which is needed, and is not changed. Give another."
            )


@contextmanager
def replacing(out: Path, ours: Ours) -> Iterator[Path]:
    """Give an empty folder next to ``out``; it replaces ``out`` when the block ends, and is deleted when the block fails.

    What was at ``out`` stays until all is on the disk; where a run was killed between the two renames that exchange them, the next one
    puts it back first. Raises StoreExistsError for a folder that is none of ours, StoreError when the disk is full or the place cannot
    be written to; other errors of the block, those of reading included, as they are.
    """
    check_replaceable(out, ours)
    out = out.absolute()
    inside = False
    new, old = aside(out), aside(out, "old")
    try:
        new.mkdir(parents=True)
        _tidy(out, ours)
        inside = True
        yield new
        write_manifest(new)
        inside = False
        _sync_all(new)
        if out.is_dir():
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if old.is_dir():
                old.rename(out)
            raise
        sync_folder(out.parent)
    except OSError as error:
        if isinstance(error, EDDPError) or (inside and not _of_writing(error, new, out)):
            raise
        where = error.filename or out
        raise StoreError(
            f"'{where}' could not be written: {error.strerror or error}. What was there before is left as it was; free some space "
            "or give another --out, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if out.is_dir():  # else it is all that there is
            shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """List all other files below a folder in ``manifest.json``: CRC-32C and bytes of each, and the CRC-32C of the list."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    files = {path.relative_to(folder).as_posix(): [file_checksum(path), path.stat().st_size] for path in paths}
    (folder / MANIFEST).write_bytes(json_bytes({"crc32c": checksum(json_bytes(files)), "files": files}))


def folder_problems(folder: Path) -> list[str]:
    """What is wrong with the files that a folder's manifest lists: one message each. Other files may be there."""
    try:
        listed = _listed(folder)
    except (OSError, *UNREADABLE) as error:
        return [f"'{folder / MANIFEST}' is missing or damaged ({error})"]
    return [p for path, (crc, size) in listed.items() if (p := file_problem(folder, path, crc, size))]


def file_problem(folder: Path, path: str, crc: int, size: int) -> str | None:
    """What is wrong with a file that a list names, or None; nothing but a file of the folder's own is read."""
    if not is_plain(path):
        return f"'{folder}' lists '{path}', which is no file of its own"
    where = f"'{folder / path}'"
    try:
        found = (folder / path).stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{where} is no regular file"
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            return f"{where} is a link that leads out of '{folder}'"
        if found.st_size != size:
            return f"{where} has {found.st_size} bytes instead of {size}"
        return None if file_checksum(folder / path) == crc else f"{where} does not match its checksum"
    except (OSError, ValueError) as error:
        return f"{where} cannot be read ({getattr(error, 'strerror', None) or error})"


def listed_problem(path: Path) -> str | None:
    """In what a file differs from what its folder's manifest lists, or None."""
    try:
        crc, size = _listed(path.parent)[path.name]
    except (OSError, *UNREADABLE):
        return f"{MANIFEST} is missing or damaged, or does not list it"
    return f"it is not as {MANIFEST} lists it" if file_problem(path.parent, path.name, crc, size) else None


def _listed(folder: Path) -> dict[str, tuple[int, int]]:
    """CRC-32C and bytes of each file, by a folder's manifest. Raises OSError, or one of ``UNREADABLE``."""
    data = read_small(folder / MANIFEST)
    document = parse_json(data)
    if json_bytes(document) != data or checksum(json_bytes(document["files"])) != document["crc32c"]:
        raise ValueError("it does not match its checksum")
    return {str(path): (int(crc), int(size)) for path, (crc, size) in document["files"].items()}


def _foreign_files(folder: Path) -> list[str]:
    """Files below a folder that its manifest does not list, but for the record of its run; all of them where it has none that is sound."""
    try:
        listed = {*_listed(folder), MANIFEST, "run.json"}
    except (OSError, *UNREADABLE):
        listed = {MANIFEST, "run.json"}
    there = (
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    )
    return sorted(name for name in there if name not in listed and not name.endswith(".partial"))


def _is_ours(folder: Path, ours: Ours) -> bool:
    try:
        return bool(parse_json(read_small(folder / ours.file))["made_by"] == ours.made_by)
    except (OSError, *UNREADABLE):
        return False


def _of_writing(error: OSError, *places: Path) -> bool:
    """Whether an error is about a full disk, or a file in one of these folders."""
    if error.errno in FULL:
        return True
    named = [Path(os.fsdecode(f)).absolute() for f in (error.filename, error.filename2) if isinstance(f, str | bytes)]
    return any(path.is_relative_to(place) for path in named for place in places)


def _tidy(out: Path, ours: Ours) -> None:
    """Put back what a run left that was killed between its renames, and delete what killed runs left: of other machines, what nothing
    was written to for a day."""
    if not out.exists():
        left = sorted((p for p in asides(out, "old") if _is_ours(p, ours)), key=_written)
        if left:
            left[-1].rename(out)
    for folder in [*asides(out), *asides(out, "old")]:
        if folder.suffix == ".old" and not _is_ours(folder, ours):
            continue
        if is_abandoned(folder) or time.time() - _written(folder) > DAY:  # who still fills a folder writes to it
            shutil.rmtree(folder, ignore_errors=True)


def _written(folder: Path) -> float:
    """When anything in a folder was written last, in seconds; now, where it is going away at this moment."""
    try:
        return max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:
        return time.time()


def _sync_all(folder: Path) -> None:
    """Wait until every file below a folder is on the disk, many at a time."""

    def wait(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)

    with ThreadPoolExecutor(16, thread_name_prefix="sync") as pool:
        for _ in pool.map(wait, [path for path in folder.rglob("*") if path.is_file()]):
            pass
    for below in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(below)
    sync_folder(folder)
