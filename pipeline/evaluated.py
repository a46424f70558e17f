"""An evaluation read back from its folder: what its tables say, and where the files lie that it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from stores.activations import ActivationStore
from stores.directions import Directions
from stores.errors import MismatchError, MissingPathError, UnknownNameError, UsageError
from stores.places import is_remote, place

Label = tuple[str, str]  # (label, category), both empty where a direction has none


def made_from(
    out: Path, store: ActivationStore, layer: str, files: Mapping[str, Path], concepts: Path | None
) -> dict[str, Any]:
    """What ``summary.json`` keeps of an evaluation's inputs: paths relative to its folder, so that both may be moved together."""
    return {
        "store": _relative(store.path, out),
        "fingerprint": store.fingerprint,
        "layer": layer,
        "directions": {name: _relative(path, out) for name, path in files.items()},
        "digests": {name: _digest(path) for name, path in files.items()},
        "concepts": None if concepts is None else str(concepts if ":" in str(concepts) else _relative(concepts, out)),
    }


class Evaluated:
    """The folder that ``evaluate`` wrote.

    Raises MissingPathError when there is none, UsageError when it is of an eddp that did not keep what it was made from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "summary.json"
        if not path.is_file():
            raise MissingPathError(
                f"There is no evaluation in '{folder}' (no summary.json). Make one: evaluate --store … --directions … --out {folder}"
            )
        try:
            self.summary: dict[str, Any] = json.loads(path.read_bytes())
            self.made_from: dict[str, Any] = self.summary["made_from"]
            self.names: list[str] = list(self.summary["directions"])
            self.layer = str(self.made_from["layer"])
            lacking = {"store", "fingerprint", "directions", "digests", "concepts"} - set(self.made_from)
            if lacking or not self.names or set(self.names) - set(self.made_from["digests"]):
                raise KeyError(", ".join(sorted(lacking)) or "directions")
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"'{path}' is damaged or was written by an older eddp ({type(error).__name__}: {error}). Run evaluate again."
            ) from error

    def one(self, name: str | None = None) -> str:
        """The set of directions asked for, the first without a name. Raises UnknownNameError listing what there is."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise UnknownNameError(
                f"The evaluation '{self.folder}' has no directions '{name}'; it has {', '.join(self.names)}."
            )
        return name

    def store(self, path: Path | None = None, *, model: str | None = None) -> ActivationStore:
        """Open the store that was evaluated, where it lay or at ``path``, as ``ActivationStore.open`` does.

        Raises MismatchError when it is another one.
        """
        found = ActivationStore.open(path or self._place(self.made_from["store"]), model=model)
        if found.fingerprint != self.made_from["fingerprint"]:
            raise MismatchError(
                f"'{found.path}' is not the store that '{self.folder}' is about. Run evaluate again on it."
            )
        return found

    def directions(self, name: str) -> Directions:
        """Load one of the directions files that were evaluated. Raises MismatchError when it is another one by now."""
        path = self.directions_path(name)
        found = Directions.load(path)
        if _digest(path) != self.made_from["digests"][name]:
            raise MismatchError(
                f"'{path}' is not the file that '{self.folder}' is about: it was fitted again since. Run evaluate again."
            )
        return found

    def directions_path(self, name: str) -> Path:
        return self._place(self.made_from["directions"][name])

    @property
    def concepts(self) -> str | None:
        """The concept dataset that labels are from, as ``--broden`` takes it."""
        kept = self.made_from["concepts"]
        if kept is None or ":" in kept:
            return kept
        return str(self._place(kept))

    def has(self, table: str) -> bool:
        return (self.folder / f"{table}.parquet").is_file()

    def table(self, table: str, name: str | None = None) -> list[dict[str, Any]]:
        """Rows of one of the tables, those of one set of directions if it is named; none where the table was not written."""
        return self.arrow(table, name).to_pylist() if self.has(table) else []

    def arrow(self, table: str, name: str | None = None) -> pa.Table:
        """The same as an Arrow table, for the long ones. Raises MissingPathError when it was not written."""
        path = self.folder / f"{table}.parquet"
        if not path.is_file():
            raise MissingPathError(f"There is no table '{path}'. Run evaluate again, with what it is about.")
        filters = None if name is None else pa.compute.field("directions") == name
        try:
            return pa.parquet.read_table(path, filters=filters)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"'{path}' is damaged ({error}). Run evaluate again.") from error

    @cached_property
    def _labels(self) -> dict[str, dict[int, Label]]:
        found: dict[str, dict[int, Label]] = {}
        for row in self.table("directions"):
            found.setdefault(row["directions"], {})[int(row["index"])] = (row["label"], row["category"])
        return found

    def labels(self, name: str) -> list[Label]:
        """(label, category) of each direction of a set, empty where it has none."""
        mine = self._labels.get(name, {})
        return [mine.get(i, ("", "")) for i in range(int(self.summary["directions"][name]["directions"]))]

    def suspects(self, name: str) -> list[dict[str, Any]]:
        """Concepts that may be shortcuts, the worst first: what ``evaluate --influence`` ranked; ``indices``: the directions of each."""
        return [{**row, "indices": [int(i) for i in row["indices"].split()]} for row in self.table("suspects", name)]

    def _place(self, kept: str) -> Path:
        found = place(kept)
        return found if is_remote(found) else Path(os.path.normpath(self.folder.absolute() / kept))


def _relative(path: Path, folder: Path) -> str:
    if is_remote(path):
        return str(path)
    try:
        return os.path.relpath(path.absolute(), folder.absolute())
    except ValueError:  # another drive
        return str(path.absolute())


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def title_of(labels: list[Label], index: int) -> str:
    """A direction's name for people: its label and number, or its number alone."""
    label = labels[index][0] if index < len(labels) else ""
    return f"{label} ({index})" if label else f"direction {index}"
