"""The folder of explanations: written at once, with nothing left of an earlier explanation and everything left of anybody else's."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from stores.documents import UNREADABLE, parse_json, read_small
from stores.errors import StoreError, UsageError
from stores.folders import MANIFEST, write_manifest
from stores.io import aside, asides, is_abandoned, json_bytes, write_atomically

MADE_BY = "eddp explain"
DOCUMENT, PAGE, PICTURES = "explanation.json", "index.html", "pictures"
DAY = 86400  # seconds


class Folder:
    """The folder that is written; a context manager. Files get their places in it all at once, by ``publish``.

    Left without, nothing stays of them; what an earlier explanation left there is there until then, and goes with it: the files that its
    ``explanation.json`` lists, and no others.

    Raises UsageError for a file, and for a folder that holds other things than an explanation.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not out.is_dir():
            raise UsageError(f"'{out}' (--out) is a file; name a folder.")
        self.out = out
        earlier = _document(out)
        if earlier is None and out.is_dir() and set(out.iterdir()) - set(asides(out / DOCUMENT)):
            raise UsageError(
                f"The folder '{out}' (--out) holds other things than an explanation, and is left alone. Name another folder."
            )
        self._aside = aside(out / DOCUMENT)
        self._listed = set(_listed(earlier or {}))
        self._names: list[str] = []
        self._made = not out.exists()

    def add(self, name: str, data: bytes) -> str:
        """Write one file, of that name relative to the folder; gives the name. Raises UsageError where somebody else's has that name."""
        if name not in self._listed and (self.out / name).exists():
            raise UsageError(
                f"'{self.out / name}' is there, and no explanation wrote it: it is left alone. Name another --out."
            )
        write_atomically(self._aside / name, data)
        self._names.append(name)
        return name

    def publish(self, result: dict[str, Any], page: str) -> dict[str, Any]:
        """Give all files their names, the page last, and take away what is left of an earlier explanation.

        ``result`` is written as ``explanation.json``, with the names of all files, for the next to know them; it is given back as written.
        """
        written = {"made_by": MADE_BY, **result, "files": sorted(self._names)}
        stale = self._listed - set(self._names)
        try:
            write_atomically(self._aside / DOCUMENT, json_bytes(written))
            write_atomically(self._aside / PAGE, page.encode("utf-8", "replace"))
            write_manifest(self._aside)
            for name in (PAGE, MANIFEST):  # they are of the earlier images
                (self.out / name).unlink(missing_ok=True)
            for name in stale:
                if (path := self.out / name).is_file() and not path.parent.is_symlink():
                    path.unlink()
            (self._aside / DOCUMENT).replace(
                self.out / DOCUMENT
            )  # before what it lists: stopped here, the next knows them
            (self.out / PICTURES).mkdir(parents=True, exist_ok=True)
            for name in (*self._names, PAGE, MANIFEST):
                (self._aside / name).replace(self.out / name)
        except OSError as error:
            raise StoreError(f"'{self.out}' could not be written: {error.strerror or error}.") from error
        return written

    def __enter__(self) -> Folder:
        _forget_killed(self.out)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)
        if self._made:
            with suppress(OSError):  # something is in it: it stays
                self.out.rmdir()


def _document(out: Path) -> dict[str, Any] | None:
    """What an earlier explanation wrote of itself; None where there is none of ours."""
    try:
        found = parse_json(read_small(out / DOCUMENT))
        return found if found["made_by"] == MADE_BY else None
    except (OSError, *UNREADABLE):
        return None


def _listed(earlier: dict[str, Any]) -> list[str]:
    """Files that an earlier explanation says are its own: plain names, in the folder or among its pictures, that lead nowhere else."""
    names = earlier.get("files")
    return [name for name in names if isinstance(name, str) and _plain(name)] if isinstance(names, list) else []


def _plain(name: str) -> bool:
    last = name.removeprefix(f"{PICTURES}/")
    return bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", last)) and last != DOCUMENT


def _forget_killed(out: Path) -> None:
    """Delete what killed runs left: of other machines, more than a day ago."""
    for left in asides(out / DOCUMENT):
        with suppress(OSError):
            if is_abandoned(left) or time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
