"""Records of runs on the disk: where they are, how they are read whatever they hold, and how several attempts make one.

The record of a result is that of the run that made it. Other attempts, earlier and later ones, are stored with it in brief.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.logging import plain
from stores.errors import EDDPError

MOST_BYTES = 32 * 2**20  # of a record that is read: it lists every image that could not be
MOST_ATTEMPTS = 50
BRIEF = ("begun", "ended", "seconds", "outcome", "error", "host", "pid", "job", "done_now", "reached")
OUTCOMES = ("done", "failed", "interrupted", "running")
SHARD = re.compile(r"\.shard-(\d{1,9})-of-(\d{1,9})\.run\.json")


class UnreadableRecord(EDDPError):
    """A file that should be a record of a run is none; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where the record of a result is: at ``path``, or ``aside`` of a folder as long as there is no ``document`` in it.

    So a run that failed leaves no folder, and nothing in one, that the next run would not know for its own.
    """

    path: Path
    aside: Path | None = None
    document: Path | None = None

    def target(self, *, done: bool) -> Path:
        """Where a record is to be written."""
        if self.aside is None or self.document is None or done or self.document.is_file():
            return self.path
        return self.aside

    def read(self) -> dict[str, Any] | None:
        """The record that is there, attempts of both files in it; None where there is none that can be read."""
        found = []
        for path in (self.path, self.aside):
            with suppress(EDDPError, OSError):
                if path is not None:
                    found.append(read_record(path))
        if len(found) == 2:
            found[0]["attempts"] = [*attempts_of(found[0]), *attempts_of(found[1]), brief(found[1])]
        return found[0] if found else None

    def write(self, data: bytes, *, done: bool) -> Path:
        """Write a record; the one aside goes when there is one in the folder. Raises StoreError where the disk takes none."""
        from stores.io import write_atomically

        target = self.target(done=done)
        write_atomically(target, data)
        if self.aside is not None and target != self.aside:
            with suppress(OSError):
                self.aside.unlink(missing_ok=True)
        return target


def beside(result: Path, ending: str = ".run.json") -> Place | None:
    """The record's place next to a result, ``acts.zarr.run.json`` of ``acts.zarr``; None next to the root of a disk, which has no name."""
    there = result.absolute()
    return Place(there.with_name(there.name + ending)) if there.name else None


def within(folder: Path, document: str) -> Place | None:
    """The record's place in a folder of results, which holds ``document`` when it is complete."""
    side = beside(folder)
    return Place(folder / "run.json", None if side is None else side.path, folder / document)


def read_record(path: Path) -> dict[str, Any]:
    """Read a record, whatever is there. Raises FileNotFoundError, or UnreadableRecord for anything but a JSON object."""
    try:
        if not path.is_file():
            if path.exists():
                raise UnreadableRecord("it is no file")
            raise FileNotFoundError(path)
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UnreadableRecord(f"it has {size} bytes, and a record has {MOST_BYTES} at most")
        found = plain(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableRecord(error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(f"it is no JSON ({str(error)[:100]})") from error
    if not isinstance(found, dict):
        raise UnreadableRecord("it is no JSON object")
    return found


def shards_of(store: Path) -> dict[tuple[int, int], Path]:
    """The records of a store's shards that are next to it: (number, of how many) → file, in order."""
    name = store.absolute().name
    found = {}
    with suppress(OSError):
        for path in store.absolute().parent.iterdir():
            match = SHARD.fullmatch(path.name.removeprefix(name)) if path.name.startswith(name) else None
            if match:
                found[int(match[1]), int(match[2])] = path
    return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0])))


def merged(kept: Mapping[str, Any] | None, new: dict[str, Any], *, stands: bool) -> dict[str, Any]:
    """One record of what is stored and of a new run; ``stands``: what the stored run made is as it was.

    The new run's comes first, unless it changed nothing of what a run before has made or is making. What is stored of the new
    run itself, from when it was under way, is replaced.
    """
    attempts = [one for one in attempts_of(kept) if not _same(one, new)]
    before = None if kept is None or _same(kept, new) else dict(kept)
    first = dict(new)
    if before is not None:
        if stands and (before.get("outcome", "done") == "done" or is_alive(before)):
            before, first = dict(new), before
        attempts.append(brief(before))
    first.pop("attempts", None)
    attempts.sort(key=lambda one: str(one.get("begun")))
    return {**first, "attempts": attempts[-MOST_ATTEMPTS:]} if attempts else first


def attempts_of(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Other attempts at a record's result, briefly, in the order in which they began."""
    found = (record or {}).get("attempts")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether a run without an end may still be under way: it does not if it was this machine's and its process has ended."""
    if record.get("outcome") != "running":
        return False
    pid = record.get("pid")
    if record.get("host") != platform.node() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except OSError:  # somebody else's process
        pass
    return True


def outcome_of(record: Mapping[str, Any]) -> str:
    """How a run ended, in a word: done, failed, interrupted, running, or lost where nothing is known of its end."""
    outcome = record.get("outcome", "done")  # older records are all of runs that were done
    if outcome == "running" and not is_alive(record):
        return "lost"
    return outcome if outcome in (*OUTCOMES, "lost") else "unknown"


def stopped_at(record: Mapping[str, Any]) -> str | None:
    """Where the latest of a record's runs stopped, for people; None where it is done, or may still be under way."""
    latest = max([record, *attempts_of(record)], key=lambda one: str(one.get("begun", "")))
    return None if outcome_of(latest) in ("done", "running") else str(latest.get("reached") or "its start")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two are of the same run."""
    return all(one.get(key) == other.get(key) for key in ("begun", "host", "pid"))


def brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of a run next to that of another one."""
    found = {key: record[key] for key in BRIEF if key in record}
    result = record.get("result")
    if "done_now" not in found and isinstance(result, dict) and "done_now" in result:
        found["done_now"] = result["done_now"]
    return {**found, "outcome": outcome_of(record)}
