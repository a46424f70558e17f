"""An evaluation read back from its folder: what its tables say, and where the files are that it was made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from msgspec import UNSET, Meta, Struct, UnsetType

from evaluate.compare import compare
from evaluate.dictionary import kinds_of
from evaluate.direction_names import FILE, DirectionName, Maskless, names_of, read_names, warn_once
from evaluate.report.report_images import strip_file
from stores.directions import Directions
from stores.documents import (
    MOST_IMAGES,
    MOST_NUMBER,
    UNREADABLE,
    Number,
    Text,
    Whole,
    brief,
    check,
    parse_json,
    read_small,
)
from stores.errors import MismatchError, MissingPathError, StoreError, UnknownNameError
from stores.folders import listed_problem
from stores.notebook import html_table, picture
from stores.paths import as_path, is_remote
from stores.store import ActivationStore
from stores.tables import column_problem, read_table, reading_table

Label = tuple[str, str]  # (label, category), both empty where a direction has none
MADE_BY = "eddp evaluate"
MOST_DIRECTIONS = 10**7  # of a set
SHOWN = 8  # directions in a notebook
MOST_NAME = 255  # characters: sets are called like files
Numbers = Annotated[list[Number], Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=MOST_NAME, pattern=r"^[^\0]*$")]


class MadeFrom(Struct, frozen=True):
    """``made_from`` of a summary."""

    store: Text
    fingerprint: Text
    layer: Text
    directions: dict[str, Text]
    digests: dict[str, Text]
    concepts: Text | None
    class_names: list[Text] | None = None


class TestedLabels(Struct, frozen=True):
    labels: Whole
    small: Whole


class InfluenceSummary(Struct, frozen=True):
    alpha: Number
    images: Whole
    through: Text
    classes: Whole
    nulls: Whole
    randoms: Whole
    alpha_relative: Number | None
    suspects_tested: TestedLabels | None = None


class GroundTruth(Struct, frozen=True):
    iou: Numbers
    cos: Numbers
    filter_cos: Numbers
    matched: Whole
    distinct_matches: Number
    rmse: Number


class TestedScores(Struct, frozen=True):
    iou: Number | None
    f1: Number | None
    average_precision: Number | None


class LabelTestSummary(Struct, frozen=True):
    missing: TestedScores
    extra: TestedScores


class UntrainedSummary(Struct, frozen=True):
    s1: Number
    interpretable: Whole
    distinct: Whole


class RebuiltError(Struct, frozen=True):
    value: Number
    random_low: Number
    random_high: Number
    constant: Number


class RebuiltSummary(Struct, frozen=True):
    mae: RebuiltError


class PairSummary(Struct, frozen=True):
    attributes: Whole
    named: Whole
    moving: Whole
    agreeing: Whole
    p: Number
    precision: Number | None
    precision_low: Number | None
    precision_high: Number | None
    recall: Number | None
    recall_low: Number | None
    recall_high: Number | None


class ByChance(Struct, frozen=True):
    random: Number | None
    random_low: Number | None
    random_high: Number | None
    beyond: Whole | None


class MeaningSummary(Struct, frozen=True):
    encoder: Text
    images: Whole
    firing_monosemanticity: ByChance
    clarity: ByChance
    polysemanticity: ByChance
    semantic_redundancy: ByChance


class Category(Struct, frozen=True):
    distinct: Whole
    detectors: Whole


class DirectionSet(Struct, frozen=True):
    """The entries of a set of directions that are read; others may be anything."""

    method: Text
    directions: Annotated[int, Meta(ge=1, le=MOST_DIRECTIONS)]
    influence: InfluenceSummary | UnsetType = UNSET
    ground_truth: GroundTruth | UnsetType = UNSET
    label_tests: LabelTestSummary | UnsetType = UNSET
    untrained: UntrainedSummary | UnsetType = UNSET
    fidelity: RebuiltSummary | UnsetType = UNSET
    pairs: PairSummary | UnsetType = UNSET
    meaning: MeaningSummary | UnsetType = UNSET
    firing_monosemanticity: Number | None = None
    clarity: Number | None = None
    polysemanticity: Number | None = None
    semantic_redundancy: Number | None = None
    per_category: dict[str, Category] = {}
    intervals: dict[str, tuple[Any, Any] | None] = {}


class Summary(Struct, frozen=True):
    made_by: Literal["eddp evaluate"]
    made_from: MadeFrom
    directions: Annotated[dict[Name, DirectionSet], Meta(min_length=1)]

    def __post_init__(self) -> None:
        for name, entry in self.directions.items():
            if name not in self.made_from.directions or name not in self.made_from.digests:
                raise ValueError(f"made_from has no entry {brief(name)}")
            truth = entry.ground_truth
            if isinstance(truth, GroundTruth) and len({len(x) for x in (truth.iou, truth.cos, truth.filter_cos)}) > 1:
                raise ValueError(f"ground_truth of {brief(name)} has lists of several lengths")


# columns that are read: (without an empty cell, others)
READ: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "directions": (
        ("directions", "index", "label", "category", "interpretable", "iou_val"),
        ("precision", "recall", "f1", "average_precision", "iou_low", "iou_high", "images_val", "positions_val"),
    ),
    "labels": (("directions", "index", "rank", "label", "category", "iou_train", "iou_val"), ("as_good",)),
    "ground_truth": (("directions", "concept", "direction"), ("iou", "cos", "filter_cos")),
    "suspects": (
        ("directions", "indices", "class", "class_name", "label", "kind", "area", "share_of_class", "images", "share_of_images", "usual_share",
         "probability_change"), (),
    ),
    "stability": (
        ("first", "second"),
        (
            "mutual", "nearest_first", "nearest_second",
            *(f"{m}{part}" for m in ("detector_iou", "logit_correlation", "signal_cos") for part in ("", "_chance", "_kappa")),
        ),
    ),
    "class_labels": (("directions", "index", "label", "auroc", "q", "significant", "fires"), ("auroc_low", "auroc_high")),
    "vocabulary_labels": (("directions", "index", "word", "score", "cosine", "q_bh", "significant", "second", "third"), ()),
    "meaning": (("directions", "index", "firing_monosemanticity", "clarity", "polysemanticity"), ("semantic_redundancy", "nearest")),
    "steering": (("directions", "index", "role", "alpha", "class", "probability", "monotone_up_to"), ()),
}  # fmt: skip


class EvaluationError(StoreError):
    """An evaluation's folder is damaged, or of an older version."""


def made_from(
    out: Path, store: ActivationStore, layer: str, files: Mapping[str, tuple[Path, Directions]], concepts: Path | None
) -> dict[str, Any]:
    """What ``summary.json`` keeps of an evaluation's inputs: paths relative to its folder, so that both may be moved together."""
    return {
        "store": _relative(store.path, out),
        "fingerprint": store.fingerprint,
        "layer": layer,
        "directions": {name: _relative(path, out) for name, (path, _) in files.items()},
        "digests": {name: _digest(found) for name, (_, found) in files.items()},
        "concepts": None if concepts is None else str(concepts if ":" in str(concepts) else _relative(concepts, out)),
        **({"class_names": store.given_class_names} if store.given_class_names else {}),  # else the store has them
    }


class EvaluationResult:
    """The folder that ``evaluate`` wrote: ``summary``, ``table(NAME)``, and what directions are called.

    Parameters
    ----------
    folder : str or Path
        The folder.
    model : str, optional
        The store's model, where you trust it as code of your own: for what runs it (``explain``, ``correct``).

    Raises MissingPathError when there is none, EvaluationError when its summary lacks what is read of it: it is damaged, or older.
    """

    def __init__(self, folder: str | Path, model: str | None = None) -> None:
        self.folder = folder = Path(folder)
        self.model = model
        path = folder / "summary.json"
        if not path.exists():
            raise MissingPathError(
                f"There is no evaluation in '{folder}' (no summary.json). Make one: evaluate --store … --directions … --out {folder}"
            )
        try:
            self.summary: dict[str, Any] = parse_json(read_small(path))
            check(self.summary, Summary)
            problem = listed_problem(path)
        except (OSError, *UNREADABLE) as error:
            problem = brief(error)
        if problem:
            raise self._damaged(problem)
        self.made_from: dict[str, Any] = self.summary["made_from"]
        self.names: list[str] = list(self.summary["directions"])
        self.layer: str = self.made_from["layer"]

    def __repr__(self) -> str:
        return f"EvaluationResult({str(self.folder)!r}: {', '.join(self.names)} of layer {self.layer!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the comparison of all files, and the first one's best directions with their strongest images."""
        found = compare(self.summary)
        measures = [m for m in found.measures if m.shown]
        scores = html_table(
            [[row.name, row.method, *(row.values.get(m.key) for m in measures)] for row in found.rows],
            ["directions", "method", *(m.title for m in measures)],
        )
        first = self.names[0]
        names = self.direction_names(first)
        iou = {row["index"]: row["iou_val"] or 0.0 for row in self.table("directions", first)}
        again = self.directions(first).found_again
        best = sorted(range(len(names)), key=lambda i: -iou.get(i, 0.0))[:SHOWN]
        rows = [
            [i, names[i].full, iou.get(i), None if again is None else float(again[i]), picture(self.folder / "report" / first / strip_file(i), 64)]
            for i in best
        ]  # fmt: skip
        pages = html_table([["pages", str(self.folder / "report.html")]])
        return scores + html_table(rows, [first, "name", "IoU", "found again", "strongest images"]) + pages

    def _damaged(self, problem: str) -> EvaluationError:
        return EvaluationError(
            f"'{self.folder / 'summary.json'}' is damaged or was made by an older eddp ({problem}). Run evaluate again."
        )

    def one(self, name: str | None = None) -> str:
        """The set of directions asked for, the first without a name. Raises UnknownNameError listing what there is."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise UnknownNameError(
                f"The evaluation '{self.folder}' has no directions '{name}'; it has {brief(', '.join(self.names))}."
            )
        return name

    def store(
        self, path: Path | None = None, *, model: str | None = None, class_names: Sequence[str] | None = None
    ) -> ActivationStore:
        """Open the store that was evaluated, where it lay or at ``path``, as ``ActivationStore.open`` does.

        Raises MismatchError when it is another one.
        """
        names = class_names or self.made_from.get("class_names")
        found = ActivationStore.open(path or self._place(self.made_from["store"]), model=model, class_names=names)
        if found.fingerprint != self.made_from["fingerprint"]:
            raise MismatchError(
                f"'{found.path}' is not the store that '{self.folder}' is about. Run evaluate again on it."
            )
        return found

    def directions(self, name: str) -> Directions:
        """Load one of the directions files that were evaluated. Raises MismatchError when it holds other directions by now."""
        path = self.directions_path(name)
        found = Directions.load(path)
        if _digest(found) != (known := self.made_from["digests"][name]):
            if known == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}":  # of the file, as before
                raise MismatchError(f"An older eddp made the evaluation '{self.folder}'. Run evaluate again.")
            raise MismatchError(
                f"'{path}' does not hold the directions that '{self.folder}' is about: it was fitted again since, with another result. Run "
                "evaluate again."
            )
        if found.layer != self.layer or found.count != self.count(name):
            raise self._damaged(f"'{path}' holds {found.count} directions of layer {found.layer!r}")
        return found

    def count(self, name: str) -> int:
        """How many directions a set has."""
        return int(self.summary["directions"][name]["directions"])

    def directions_path(self, name: str) -> Path:
        """Where the file of a set is. Raises UnknownNameError listing what there is."""
        return self._place(self.made_from["directions"][self.one(name)])

    @property
    def concepts(self) -> str | None:
        """The concept dataset that labels are from, as ``--broden`` takes it."""
        kept = self.made_from["concepts"]
        if kept is None or ":" in kept:
            return kept
        return str(self._place(kept))

    def has(self, table: str) -> bool:
        return self.path(table).exists()

    def path(self, table: str) -> Path:
        """Where a table is, if it was written."""
        return self.folder / f"{table}.parquet"

    def table(self, table: str, name: str | None = None) -> list[dict[str, Any]]:
        """Rows of one of the tables, those of one set of directions if it is named; none where the table was not written."""
        return self.arrow(table, name).to_pylist() if self.has(table) else []

    def arrow(self, table: str, name: str | None = None) -> pa.Table:
        """The same as an Arrow table, for the long ones. Raises MissingPathError when it was not written, TableError for wrong columns."""
        path = self.path(table)
        if not path.exists():
            raise MissingPathError(f"There is no table '{path}'. Run evaluate again, with what it is about.")
        found = read_table(path)
        full, others = READ.get(table, ((), ()))
        with reading_table(path):
            problem = column_problem(found.schema, kinds_of(table, (*full, *others)))
            if not problem and name is not None:
                found = found.filter(pa.compute.field("directions") == name)
                problem = self._rows_problem(table, found, name)
            if problem := problem or listed_problem(path):
                raise ValueError(problem)
        return found

    def check(self, table: str) -> None:
        """Raise TableError where a table was changed after it was written."""
        with reading_table(path := self.path(table)):
            if problem := listed_problem(path):
                raise ValueError(problem)

    def _rows_problem(self, table: str, found: pa.Table, name: str) -> str | None:
        """What is wrong with a set's rows, or None: no empty cell where a value is read, numbers of what there is."""
        full, others = READ.get(table, ((), ()))
        for column in full:
            if found[column].null_count:
                return f"its column {column} has empty cells"
        for column in (*full, *others):
            values = found[column]
            if pa.types.is_floating(values.type):
                span = pa.compute.min_max(
                    pa.compute.abs(values)
                ).as_py()  # NaN, an empty cell to the pages, is left out
                if (span["max"] or 0) > MOST_NUMBER:
                    return f"its column {column} holds infinite or huge numbers"
        measured = self.summary["directions"][name].get("influence", {})
        limits = {
            "direction": (-1, self.count(name)),
            "class": (0, measured.get("classes", 0)),
            "concept": (0, MOST_IMAGES),
        }
        if table != "steering":  # random directions have numbers, too
            limits["index"] = limits["nearest"] = (0, self.count(name))
        for column in limits.keys() & set(found.column_names):
            span = pa.compute.min_max(found[column]).as_py()
            if span["min"] is not None and not limits[column][0] <= span["min"] <= span["max"] < limits[column][1]:
                return f"its column {column} has numbers from {span['min']} to {span['max']}, out of range"
        return None

    def labels(self, name: str) -> list[Label]:
        """(label, category) of each direction of a set, empty where it has none."""
        count = self.count(name)
        if not self.has("directions"):
            return [("", "")] * count
        found = {row["index"]: (row["label"], row["category"]) for row in self.table("directions", name)}
        with reading_table(self.path("directions")):
            if len(found) != count:
                raise ValueError(f"it has rows for {len(found)} of the {count} directions '{name}'")
        return [found[i] for i in range(count)]

    def direction_names(self, name: str, path: Path | None = None) -> list[DirectionName]:
        """What each direction of a set is called: by ``names.csv`` next to the directions file (``path`` if it was moved) as it is now, or by
        its label where that fits."""
        labels = [label for label, _ in self.labels(name)]
        fits = {row["index"]: row["interpretable"] for row in self.table("directions", name)}
        path = path or self.directions_path(name)
        if (stray := self.folder / FILE).is_file() and self.folder.absolute() != path.parent.absolute():
            warn_once(
                f"'{stray}' is not read: names belong next to the directions file. Move it to '{path.parent / FILE}'"
            )
        given = read_names(path, self.count(name))
        return names_of(labels, [fits.get(i, False) for i in range(len(labels))], given, self._maskless(name))

    def _maskless(self, name: str) -> list[Maskless]:
        """Significant labels of each direction that were found without masks."""
        found: dict[int, Maskless] = {}
        for table, column, kind in (("vocabulary_labels", "word", "word"), ("class_labels", "label", "class")):
            found |= {row["index"]: (row[column], kind) for row in self.table(table, name) if row["significant"]}
        return [found.get(i, ("", "")) for i in range(self.count(name))]

    def suspects(self, name: str) -> list[dict[str, Any]] | None:
        """Concepts that may be shortcuts, the worst first: what ``evaluate --influence`` ranked; ``indices``: the directions of each; ``kind``:
        those small and of one class come first, then what most images of a class show.

        None where they were not looked for.
        """
        if not self.has("suspects"):  # of any set
            return [] if "suspects" in self.summary["directions"][name].get("influence", {}) else None
        with reading_table(self.path("suspects")):
            rows = [
                {**row, "indices": [int(i) for i in row["indices"].split()]} for row in self.table("suspects", name)
            ]
            if not all(row["indices"] and all(0 <= i < self.count(name) for i in row["indices"]) for row in rows):
                raise ValueError("its column indices names directions that there are not")
        return rows

    def _place(self, kept: str) -> Path:
        found = as_path(kept)
        return found if is_remote(found) else Path(os.path.normpath(self.folder.absolute() / kept))


def _relative(path: Path, folder: Path) -> str:
    if is_remote(path):
        return str(path)
    try:
        return os.path.relpath(path.absolute(), folder.absolute())
    except ValueError:  # another drive
        return str(path.absolute())


def _digest(directions: Directions) -> str:
    """Of what directions compute: another fit with the same result is as good."""
    digest = hashlib.sha256(str((directions.filters.shape, directions.quantile)).encode())
    for part in (directions.filters, directions.signals, directions.mean, directions.thresholds):
        digest.update(b"" if part is None else np.ascontiguousarray(part, np.float32).tobytes())
    return f"sha256:{digest.hexdigest()}"
