"""What is evaluated, and the parts of an evaluation: labels and their scores, known truth, monosemanticity, stability of fits."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evaluate.autocorrelation import autocorrelation, has_time
from evaluate.concepts import concept_store
from evaluate.detector_bank import Bank, make_bank, slices_of
from evaluate.direction_names import DirectionName, Given, Maskless, names_of
from evaluate.direction_tables import category_rows, direction_rows, label_rows, table_columns
from evaluate.dissect import Dissector, Resolution
from evaluate.ground_truth import against_truth
from evaluate.label_tests import TESTS, label_test_rows
from evaluate.metrics import INTERPRETABLE, choose_labels, label_scores, score, summarise, union_rows
from evaluate.monosemanticity import monosemanticity
from evaluate.parallel import Scheduler
from evaluate.stability import firing_iou, stability_of, stability_rows
from extract.labels import Alignment, align
from extract.segmentation.base import ConceptSource
from extract.video_rows import has_videos
from pipeline.evaluation_result import Label
from stores.directions import Directions
from stores.errors import DatasetError, UsageError
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.statistics import statistics
from stores.store import ActivationStore
from stores.tables import Columns, rows_to_columns

log = logging.getLogger(__name__)
OWN = "own"  # --monosemanticity without a store: the model's own features


@dataclass(frozen=True)
class Subject:
    """Sets of directions, by name, of one layer of a store; ``device``: where they are evaluated; ``given``: names that people gave, by set;
    ``maskless``: labels found without masks, of each direction, by set."""

    store: ActivationStore
    layer: str
    sets: Mapping[str, Directions]
    device: str = "cpu"
    progress: Progress = silent
    given: Mapping[str, Mapping[int, Given]] = field(default_factory=dict)
    maskless: Mapping[str, Sequence[Maskless]] = field(default_factory=dict)

    @cached_property
    def reader(self) -> LayerReader:
        return LayerReader(self.store, self.layer)

    @cached_property
    def bank(self) -> Bank:
        """The detectors of all sets; thresholds of methods without any are quantiles over the store."""
        return make_bank(self.sets, self.reader, device=self.device, progress=self.progress)

    def called(self, maskless: Mapping[str, Sequence[Maskless]]) -> Subject:
        """The same with other labels found without masks; what was read of the store is not read again."""
        other = replace(self, maskless=maskless)
        vars(other).update({key: vars(self)[key] for key in ("reader", "bank") if key in vars(self)})
        return other

    def names(self, name: str) -> list[DirectionName]:
        """What a set's directions are called without a concept dataset."""
        count = self.sets[name].count
        return names_of([""] * count, [False] * count, self.given.get(name), self.maskless.get(name))


@dataclass(frozen=True)
class Findings:
    """What a part of an evaluation finds: entries of each set in the summary, and tables, each in parts of the same columns."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Mapping[str, Iterable[Columns]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dissected:
    """What a concept dataset says: ``labels`` and names of each set's directions, and the activations and detectors that were scored on it."""

    findings: Findings
    labels: dict[str, list[Label]]
    names: dict[str, list[DirectionName]]
    reader: LayerReader
    bank: Bank
    alignment: Alignment
    facts: dict[str, str]


def dissect(subject: Subject, source: ConceptSource, resolution: Resolution, scheduler: Scheduler = None) -> Dissected:
    """Label and score all sets on a concept dataset. Raises DatasetError when no label occurs in its masks."""
    client = None if isinstance(scheduler, str) else scheduler
    device, progress = subject.device, subject.progress
    concepts = concept_store(subject.store, subject.layer, source, device=device, progress=progress, client=client)
    own = concepts.path == subject.store.path
    reader = subject.reader if own else LayerReader(concepts, subject.layer)
    bank = subject.bank if own else make_bank(subject.sets, reader, device=device, progress=progress)
    alignment = align(concepts, source)
    dissector = Dissector(reader, bank, alignment, resolution, scheduler=scheduler)
    counts = dissector.count(progress)
    if not counts.label.any():
        raise DatasetError(
            f"No label of '{source.root}' occurs in any of its masks, where the network sees the images: there is nothing to score. "
            "Look at what the masks hold."
        )
    label_of = choose_labels(counts)
    second = dissector.second(label_of, progress=progress)
    entries: dict[str, dict[str, Any]] = {}
    labels: dict[str, list[Label]] = {}
    names: dict[str, list[DirectionName]] = {}
    rows: dict[str, list[dict[str, Any]]] = {
        "directions": [],
        "labels": [],
        "categories": [],
        "unions": [],
        "label_tests": [],
    }
    for name, directions in subject.sets.items():
        columns = bank.slices[name]
        scores = score(counts, columns, label_of, second.average_precision)
        refined = label_scores(counts, second, columns, limit=INTERPRETABLE)
        entries[name] = summarise(counts, name, scores, refined)
        given, maskless = subject.given.get(name), subject.maskless.get(name)
        mine = direction_rows(name, directions, counts, columns, scores, refined, given, maskless)
        names[name] = names_of([row["label"] for row in mine], [row["interpretable"] for row in mine], given, maskless)
        labels[name] = [(row["label"] if row["category"] else "", row["category"]) for row in mine]
        rows["directions"] += mine
        rows["labels"] += label_rows(name, directions, counts, scores, refined)
        rows["categories"] += category_rows(name, entries[name])
        tests = label_test_rows(name, second, columns)
        rows["label_tests"] += tests
        entries[name]["label_tests"] = {
            test: {row["metric"]: row["holds"] for row in tests if row["test"] == test} for test in TESTS
        }
        rows["unions"] += union_rows(name, counts, second, columns)
    clip, repeated = concepts.provenance.get("clip"), ""
    if clip and not has_videos(source):
        repeated = f"; each image is repeated {clip['frames']} times, so nothing moves in it"
        log.warning("'%s' holds still images, and the network takes clips%s", source.root, repeated)
    facts = {
        "Concepts": f"{source.root.resolve().name}: {counts.images[0]} images to label on (train), {counts.images[1]} to score on (val), "
        f"{len(counts.labels)} labels{repeated}",
        "Resolution": f"{resolution}, {counts.raster[0]} × {counts.raster[1]} points per "
        + (f"step, {reader.time} steps per clip" if reader.time > 1 else "image"),
    }
    tables = {table: [table_columns(table, some)] for table, some in rows.items()}
    return Dissected(Findings(entries, tables), labels, names, reader, bank, alignment, facts)


def compare_with_truth(subject: Subject, truth: Any) -> Findings:
    """Match directions with the true concepts of a synthetic store."""
    entries, rows = {}, []
    for name, directions in subject.sets.items():
        found = against_truth(directions, subject.reader, truth)
        match = found.pop("match")
        entries[name] = {"ground_truth": found}
        measured = zip(match, found["iou"], found["cos"], found["filter_cos"], strict=True)
        rows += [
            {"directions": name, "concept": i, "direction": direction, "iou": iou, "cos": cos, "filter_cos": filter_cos}
            for i, (direction, iou, cos, filter_cos) in enumerate(measured)
        ]
    return Findings(entries, {"ground_truth": [rows_to_columns(rows)]})


def measure_stability(subject: Subject) -> Findings:
    """Match the files of each method pair by pair, if any method has several: two seeds, two halves of the data."""
    methods = [directions.method for directions in subject.sets.values()]
    several = {name: d for name, d in subject.sets.items() if methods.count(d.method) > 1}
    if not several:
        return Findings()
    moments = statistics(subject.reader, device=subject.device, progress=subject.progress)
    bank = subject.bank.of(several)
    rows = stability_rows(several, moments, firing_iou(subject.reader, bank, subject.progress), bank.slices)
    return Findings(stability_of(rows), {"stability": [rows_to_columns(rows)]})


def measure_autocorrelation(subject: Subject) -> Findings:
    """How steadily directions fire from frame to frame; nothing for a store of images."""
    if not has_time(subject.reader):
        return Findings()
    found = autocorrelation(subject.reader, subject.bank, subject.progress)
    entries, rows = {}, []
    for name, part in subject.bank.slices.items():
        own = [round(value, 6) if math.isfinite(value) else None for value in found[part].tolist()]
        known = [value for value in own if value is not None]
        entries[name] = {"autocorrelation": sum(known) / len(known) if known else None}
        rows += [{"directions": name, "index": i, "autocorrelation": value} for i, value in enumerate(own)]
    return Findings(entries, {"autocorrelation": [rows_to_columns(rows)]})


def measure_monosemanticity(subject: Subject, encoder: Path) -> Findings:
    """Monosemanticity over the store's images, in the features of the store ``encoder``, or in the model's own for ``OWN``."""
    embeddings = None if str(encoder) == OWN else _embeddings(encoder)
    # the score does not see a threshold: activations are scaled by each direction's own least and largest
    filters = torch.cat([torch.from_numpy(d.filters) for d in subject.sets.values()], 1).to(subject.device)
    slices = slices_of({name: directions.count for name, directions in subject.sets.items()})
    bank = Bank(filters, torch.zeros(filters.shape[1], device=subject.device), slices)
    found = monosemanticity(subject.reader, bank, embeddings, progress=subject.progress)
    return Findings({name: found.summary(part) for name, part in slices.items()})


def _embeddings(path: Path) -> LayerReader:
    store = ActivationStore.open(path)
    if len(store.layers) > 1:
        raise UsageError(
            f"The store '{path}' (--monosemanticity) holds several layers ({', '.join(store.layers)}), and one gives the "
            "embeddings. Extract that one into a store of its own."
        )
    return LayerReader(store)
