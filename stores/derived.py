"""Small arrays derived from a store and kept within it, every byte of them under a checksum.

Statistics, quantile sketches and the truth of synthetic data are not part of the ledger: they come later, or besides.
Each is a Zarr v3 group of plain arrays of one uncompressed chunk, which any Zarr reader opens::

    layers/<layer>/statistics/    zarr.json: attributes["eddp"] = {..., "files": {path: [CRC-32C, bytes]}, "crc32c"}
      mean/zarr.json, mean/c/0    covariance/zarr.json, covariance/c/0/0

``files`` covers every other file of the group, ``crc32c`` the rest of the group's own zarr.json, and that file must be
to the byte what ``json_bytes`` writes: so a flipped bit is found wherever it is, in a space between two brackets too.

A group is laid out under another name and renamed when it is whole: there is all of it or none, also when several
processes make the same one at once (one of them wins). Objects have no such name: of a remote store the group's own
zarr.json goes first and comes last, and a group whose files are of two makers fits no checksum, and counts as none.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from stores import objects
from stores.checksums import checksum, file_checksum
from stores.errors import CorruptStoreError, StoreError
from stores.files import aside, asides, is_abandoned, json_bytes, sync_folder, write_atomically
from stores.places import ObjectPath, is_remote
from stores.validate import UNREADABLE, is_plain, read_small

log = logging.getLogger(__name__)

# The attributes of groups from before there were checksums: the truth's, the statistics'. No flipped bit leads there.
BEFORE_CHECKSUMS: tuple[set[str], ...] = (set(), {"count", "crc32c", "key"})
ABANDONED_SECONDS = (
    3600.0  # a half-written group that has not grown for so long was left by a killed process, wherever that ran
)


def write_derived(folder: Path, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Write arrays, of any shape and numeric or boolean dtype, as the group ``folder``, replacing one that is there.

    ``attributes`` must be JSON values; the names "files" and "crc32c" are taken. Raises StoreError when the disk is full
    or the folder cannot be written to; what was there before then still is.
    """
    if is_remote(folder):
        _write_objects(folder, arrays, attributes)
        return
    new = aside(folder)
    files: dict[str, list[int]] = {}
    try:
        for name, value in arrays.items():
            for relative, data in _array_files(name, value):
                write_atomically(new / relative, data)
                files[relative] = [checksum(memoryview(data)), len(data)]
        write_atomically(new / "zarr.json", _head(attributes, files))  # last: without it there is no group
        _put_in_place(new, folder)
        sync_folder(folder.parent)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"'{folder}' could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)  # gone already, unless something went wrong
        _remove_abandoned(folder)


def _write_objects(folder: ObjectPath, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """``write_derived`` into an object store."""
    made = {relative: data for name, value in arrays.items() for relative, data in _array_files(name, value)}
    objects.remove([folder / "zarr.json"])
    objects.put({folder / relative: data for relative, data in made.items()})
    files = {relative: [checksum(memoryview(data)), len(data)] for relative, data in made.items()}
    objects.put({folder / "zarr.json": _head(attributes, files)})


def _head(attributes: dict[str, Any], files: dict[str, list[int]]) -> bytes:
    """A group's own zarr.json."""
    entry = {**attributes, "files": files}
    entry["crc32c"] = checksum(memoryview(json_bytes(_document(entry))))
    return json_bytes(_document(entry))


def is_there(folder: Path) -> bool:
    """Whether there is a group, sound or not; without its own zarr.json objects are none, but what a writer is busy with."""
    return (folder / "zarr.json").exists() if is_remote(folder) else folder.exists()


def read_derived(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays of a group by name and its attributes; None when there is no such folder.

    Raises CorruptStoreError naming the first file that is missing, damaged, or has no checksum.
    """
    if not is_there(folder):
        return None
    arrays, attributes, problems = _read(folder)
    if problems:
        raise CorruptStoreError(f"{problems[0]}. Restore '{folder}' from a copy, or make it anew.")
    return arrays, attributes


def check_derived(folder: Path) -> list[str]:
    """One sentence, without its full stop, for each file of a group that is missing or damaged.

    None when there is no such folder, nor for a group from before there were checksums: nothing is known of its bytes.
    """
    if not is_there(folder) or is_unchecked(folder):
        return []
    return _load(folder, keep=False)[2]


def is_unchecked(folder: Path) -> bool:
    """Whether a group was written before there were checksums (a damaged group never looks like one)."""
    try:
        document = json.loads(read_small(folder / "zarr.json"))
        attributes = document["attributes"]
        return document == _group(attributes) and set(attributes) in BEFORE_CHECKSUMS
    except (OSError, *UNREADABLE):
        return False


def read_cache(folder: Path, key: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """What ``keep_cache`` kept under the same key, or None: never an error, for it can be computed anew."""
    if not is_there(folder) or is_unchecked(folder):
        return None
    arrays, attributes, problems = _read(folder)
    if problems:
        log.warning("What is kept in '%s' is of no use and computed anew: %s", folder, "; ".join(problems))
        return None
    return (arrays, attributes) if attributes.get("key") == key else None


def keep_cache(folder: Path, key: dict[str, Any], arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Keep what can be computed anew; where nothing can be written (a full or read-only disk), only a log entry says so."""
    try:
        write_derived(folder, arrays, {**attributes, "key": key})
    except OSError as error:
        log.info("'%s' is not kept with the store: %s", folder, error)


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def _document(entry: dict[str, Any]) -> dict[str, Any]:
    return _group({"eddp": entry})


def _array_files(name: str, value: np.ndarray) -> list[tuple[str, bytes]]:
    """Path and bytes of an array's files. Zarr writes the metadata, but no chunk that holds nothing but the fill value."""
    value = np.asarray(value)
    made: dict[str, Any] = {}
    zarr.create_array(
        store=MemoryStore(store_dict=made),
        shape=value.shape,
        chunks=tuple(max(1, size) for size in value.shape),
        dtype=value.dtype.newbyteorder("="),
        compressors=None,
    )
    files = [(f"{name}/zarr.json", made["zarr.json"].to_bytes())]
    if value.size:
        files.append((_chunk(name, value.ndim), value.astype(value.dtype.newbyteorder("<")).tobytes()))
    return files


def _chunk(name: str, axes: int) -> str:
    return "/".join([name, "c", *["0"] * axes])


def _names(files: dict[str, bytes]) -> list[str]:
    return [path.removesuffix("/zarr.json") for path in files if path.endswith("/zarr.json")]


def _decode(name: str, files: dict[str, bytes]) -> np.ndarray:
    metadata = json.loads(files[f"{name}/zarr.json"])
    shape = tuple(metadata["shape"])
    stored = np.dtype(metadata["data_type"]).newbyteorder("<")
    data = files[_chunk(name, len(shape))] if 0 not in shape else b""
    return np.frombuffer(data, stored).reshape(shape).astype(stored.newbyteorder("="))  # a copy: it may be written to


def _read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """A group's arrays and attributes, and what is wrong; with anything wrong, neither."""
    entry, files, problems = _load(folder)
    arrays = {}
    if not problems:
        try:
            arrays = {name: _decode(name, files) for name in _names(files)}
        except UNREADABLE as error:
            problems = [f"'{folder}' holds arrays that cannot be read ({type(error).__name__}: {error})"]
    if problems:
        return {}, {}, problems
    return arrays, {key: value for key, value in entry.items() if key not in ("files", "crc32c")}, []


def _load(folder: Path, *, keep: bool = True) -> tuple[dict[str, Any], dict[str, bytes], list[str]]:
    """The group's own entry, the bytes of its other files, and what is wrong; with anything wrong, use nothing of it.

    With ``keep`` off the files are only checked, a few bytes of them in memory at a time.
    """
    file = folder / "zarr.json"
    try:
        data = read_small(file)
        document = json.loads(data)
        entry = dict(document["attributes"]["eddp"])
        rest = {key: value for key, value in entry.items() if key != "crc32c"}
        if json_bytes(document) != data or document != _document(entry):
            raise ValueError("it was changed since it was written")
        if checksum(memoryview(json_bytes(_document(rest)))) != entry["crc32c"]:
            raise ValueError("it does not match its checksum")
        listed = {str(path): (int(crc), int(size)) for path, (crc, size) in entry["files"].items()}
    except (OSError, *UNREADABLE) as error:
        return {}, {}, [f"'{file}' is missing or damaged ({_reason(error)})"]
    if is_remote(folder):
        return entry, *_fetched(folder, listed)
    files: dict[str, bytes] = {}
    problems = []
    for path, (crc, size) in listed.items():
        if problem := file_problem(folder, path, crc, size, files if keep else None):
            problems.append(problem)
    return entry, files, problems


def file_problem(folder: Path, path: str, crc: int, size: int, files: dict[str, bytes] | None = None) -> str | None:
    """What is wrong with a file that a list names, or None; its bytes are added to ``files`` if given."""
    try:
        if problem := _foreign(folder, path, size):
            return problem
        if files is not None:
            files[path] = (folder / path).read_bytes()
        found = file_checksum(folder / path) if files is None else checksum(files[path])
    except (OSError, ValueError, MemoryError) as error:
        return f"'{folder / path}' cannot be read ({_reason(error)})"
    return None if found == crc else f"'{folder / path}' does not match its checksum"


def _fetched(folder: ObjectPath, listed: dict[str, tuple[int, int]]) -> tuple[dict[str, bytes], list[str]]:
    """The listed files of a group of objects, fetched together, and what is wrong."""
    odd = [path for path in listed if not is_plain(path)]
    if odd:
        return {}, [f"'{folder}' lists '{path}', which is no file of its own" for path in odd]
    most = max((size for _, size in listed.values()), default=0)
    files: dict[str, bytes] = {}
    problems = []
    for path, data in zip(listed, objects.fetch_all([folder / path for path in listed], most), strict=True):
        crc, size = listed[path]
        if data is None:
            problems.append(f"'{folder / path}' cannot be read (no such object)")
        elif len(data) != size:
            problems.append(
                f"'{folder / path}' has {'more' if len(data) > size else len(data)} bytes instead of {size}"
            )
        elif checksum(data) != crc:
            problems.append(f"'{folder / path}' does not match its checksum")
        else:
            files[path] = data
    return files, problems


def _foreign(folder: Path, path: str, size: int) -> str | None:
    """What keeps a listed file from being one of the group's, before a byte of it is read. Raises OSError, ValueError."""
    if not is_plain(path):
        return f"'{folder}' lists '{path}', which is no file of its own"
    found = (folder / path).stat()
    if stat.S_ISDIR(found.st_mode):
        return f"'{folder / path}' is a folder"
    if not stat.S_ISREG(found.st_mode):
        return f"'{folder / path}' is no regular file"
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        return f"'{folder / path}' is a link that leads out of '{folder}'"
    if found.st_size != size:
        return f"'{folder / path}' has {found.st_size} bytes instead of {size}"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    return str(getattr(error, "strerror", None) or error)


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename a whole group to its name; one that is there is renamed out of the way first, and then deleted."""
    for _ in range(16):  # more than once only while other processes put theirs there
        try:
            new.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = aside(folder)
        with suppress(FileNotFoundError):
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    raise StoreError(f"'{folder}' could not be written: other processes keep replacing it.")


def _remove_abandoned(folder: Path) -> None:
    for left in asides(folder):
        with suppress(OSError):
            if is_abandoned(left) or time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
