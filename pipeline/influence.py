"""Influence of several direction files, from a store to tables: the part of an evaluation that runs the network's head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluate.direction_names import numbered, with_names
from evaluate.direction_tables import with_found_again
from evaluate.influence.cavs import LabelUse, label_use, s3
from evaluate.influence.influence_study import (
    LONG,
    Influence,
    InfluenceConfig,
    Moving,
    effect_of,
    measure_influence,
    unit_columns,
)
from evaluate.influence.influence_tables import (
    claims_of,
    class_influence_rows,
    direction_influence_rows,
    influence_parts,
    influence_summary,
    steering_rows,
    steering_summary,
)
from evaluate.influence.permutation_nulls import precision_on
from evaluate.influence.shortcut_candidates import (
    OF_ONE_CLASS,
    labels_tested,
    no_suspects,
    of_one_class,
    suspect_rows,
    tested_words,
)
from evaluate.influence.significance import fewest_nulls
from evaluate.influence.steering import CONTROLS, Steering, random_units, sweep
from evaluate.number_format import number, percent, points
from evaluate.report.class_predictions import class_predictions
from extract.segmentation.base import ConceptSource
from pipeline.evaluation_parts import Dissected, Findings, Subject
from pipeline.evaluation_result import Label
from pipeline.logging import say
from stores.directions import FOUND, Directions
from stores.statistics import statistics
from stores.store import ActivationStore
from stores.tables import rows_to_columns

STRONGEST = 5  # directions that the terminal names
TABLES = ("influence_directions", "influence_classes", "steering", "suspects")


@dataclass(frozen=True)
class Studied:
    """What was found, and of each direction of a set the classes that its signal vector raises significantly at the summary's step, most first."""

    findings: Findings
    raised: dict[str, list[list[int]]]


def study_influence(subject: Subject, config: InfluenceConfig, dissected: Dissected | None) -> Studied:
    """What each set's directions do to classes; with labels also S3, and the concepts that may be shortcuts."""
    store, device, progress = subject.store, subject.device, subject.progress
    count = sum(directions.count for directions in subject.sets.values())
    moving = effect_of(store, subject.layer, config, count, device=device)
    config = moving.config
    if moving.forecast is not None:
        say(moving.forecast.text, "warning" if moving.forecast.seconds > LONG else "info")
    if config.training.count < (least := fewest_nulls(config.level)):
        say(
            f"With {config.training.count} null directions no pair can be significant, whatever the directions do. Give {least} or more (--null-directions).",
            "warning",
        )
    found = measure_influence(
        store, subject.layer, subject.sets, config, through=moving, device=device, progress=progress
    )
    classes = class_names(store, len(found.base))
    typical = _typical_distance(subject)
    use = None if dissected is None else _use_of_labels(subject, dissected)
    cavs = None if use is None else moving.effect(torch.from_numpy(use.cavs).to(device), config.alpha)
    units = random_units(subject.reader.channels, CONTROLS, config.seed).to(device)
    controls = sweep(moving.effect, units, alphas=moving.sweep)
    progress("steering", 1, 1 + len(subject.sets))
    entries: dict[str, dict[str, Any]] = {}
    plain: dict[str, list[str]] = {}
    titles: dict[str, list[str]] = {}
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for done, (name, directions) in enumerate(subject.sets.items(), 2):
        labels = [("", "")] * directions.count if dissected is None else dissected.labels[name]
        called = subject.names(name) if dissected is None else dissected.names[name]
        names = plain[name] = [label for label, _ in labels]
        titles[name] = [one.full for one in called]
        plain_rows = [
            {**row, "alpha_relative": _relative(row["alpha"], typical)}
            for row in direction_influence_rows(found, name, names, classes)
        ]
        of_directions = with_names(with_found_again(plain_rows, directions), called)
        rows["influence_directions"] += of_directions
        rows["influence_classes"] += with_names(class_influence_rows(found, name, names, classes), called)
        strongest = [
            row
            for row in of_directions
            if (row["role"], row["alpha"]) == ("signal", config.alpha) and row["strongest_class"] is not None
        ]
        often = [1.0] * directions.count if directions.found_again is None else directions.found_again
        strongest.sort(key=lambda row: often[row["index"]] < FOUND)  # what few refits contain comes last
        entry = entries[name] = influence_summary(found, name)
        entry["influence"]["strongest"] = strongest[:STRONGEST]
        entry["influence"]["alpha_relative"] = _relative(config.alpha, typical)
        entry["influence"]["null_precision"] = str(precision_on(torch.device(device))).removeprefix("torch.")
        curves = _steer(moving, found, name, directions, controls, device)
        progress("steering", done, 1 + len(subject.sets))
        rows["steering"] += steering_rows(name, names, titles[name], classes, curves)
        entry["influence"]["steering"] = steering_summary(curves)
        if dissected is not None and use is not None and cavs is not None:
            a, part = config.alphas.index(config.alpha), found.slices[name]
            columns = _columns(dissected.alignment.source, labels)
            score, probability = cavs.influence.cpu().numpy(), cavs.probability.cpu().numpy()
            entry["s3"] = _rounded(s3(columns, found.score[a, 0, part], score, use.known))
            entry["influence"]["s3_probability"] = _rounded(
                s3(columns, found.probability[a, 0, part], probability, use.known)
            )
            of_concepts = suspect_rows(found, name, labels, columns, use, classes)
            suspects = with_names(with_found_again(of_concepts, directions), called)
            entry["influence"]["suspects"] = suspects[:10]
            entry["influence"]["suspects_tested"] = labels_tested(columns, use)
            rows["suspects"] += [{**row, "indices": " ".join(map(str, row["indices"]))} for row in suspects]
    every = (part for name in subject.sets for part in influence_parts(found, name, plain[name], classes, titles[name]))
    tables = {table: [rows_to_columns(some)] for table, some in rows.items() if some}
    raised = {name: _raised(found, name) for name in subject.sets}
    return Studied(Findings(entries, {"influence": every, **tables}), raised)


def _raised(found: Influence, name: str) -> list[list[int]]:
    a = found.config.alphas.index(found.config.alpha)
    change = found.probability[a, 0, found.slices[name]]
    up = claims_of(found, name, a, 0)[1].significant & (change > 0)
    return [
        [k for k in np.argsort(-one, kind="stable").tolist() if sure[k]] for one, sure in zip(change, up, strict=True)
    ]


def _typical_distance(subject: Subject) -> float:
    """Root mean square distance of the layer's activations from their mean: what a step's length is held against."""
    moments = statistics(subject.reader, device=subject.device, progress=subject.progress)
    return math.sqrt(float(np.trace(moments.covariance)))


def _relative(alpha: float, typical: float) -> float | None:
    return float(f"{alpha / typical:.3g}") if typical > 0 else None


def class_names(store: ActivationStore, count: int) -> list[str]:
    """The classes' names, ``class k`` where the store has none."""
    names = list(store.class_names or [])
    return [names[k] if k < len(names) else f"class {k}" for k in range(count)]


def _steer(
    moving: Moving, found: Influence, name: str, directions: Directions, controls: Steering, device: str
) -> dict[str, Steering]:
    """Curves by role: the filters are followed on the class that the signal vector moves, the random ones on their own."""
    signals, filters = (
        unit_columns(torch.from_numpy(part).to(device)) for part in (directions.signals, directions.filters)
    )
    known = [dict(zip(found.config.alphas, found.probability[:, r, found.slices[name]], strict=True)) for r in (0, 1)]
    of_signals = sweep(moving.effect, signals, None, moving.sweep, known[0])
    of_filters = sweep(moving.effect, filters, of_signals.target, moving.sweep, known[1])
    return {"signal": of_signals, "filter": of_filters, "random": controls}


def _use_of_labels(subject: Subject, dissected: Dissected) -> LabelUse:
    reader = dissected.reader
    predicted, n_classes = class_predictions(reader.store, 0).prediction, int(reader.store.attributes["n_classes"])
    return label_use(
        reader, dissected.alignment, predicted, n_classes, device=subject.device, progress=subject.progress
    )


def _columns(source: ConceptSource, labels: Sequence[Label]) -> np.ndarray:
    """(I,) place of each direction's label among the dataset's, −1 for none."""
    place = {(label.name, label.category): k for k, label in enumerate(source.labels)}
    return np.array([place.get(label, -1) for label in labels], np.int64)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _effect_line(row: dict[str, Any]) -> str:
    """What a direction does to the class that it moves most, from its row of ``influence_directions``."""
    often = row.get("found_again")
    again = "" if often is None else f", found again in {percent(often)} of refits"
    change = points(row["strongest_probability_change"])
    return f"  {numbered(row['name'], row['index'])} → {row['strongest_class_name']}: {change}{again}"


def influence_lines(summary: dict[str, Any]) -> list[str]:
    """The influence of each file as a table for people."""
    studied = {n: e for n, e in summary["directions"].items() if "influence" in e}
    if not studied:
        return []
    first = next(iter(studied.values()))["influence"]
    width = max(len(n) for n in [*studied, "set"]) + 2
    relative = first["alpha_relative"]
    scale = "" if relative is None else f" ({number(relative)} of the typical distance of an activation from the mean)"
    lines = [
        f"Influence at α = {first['alpha']:g}{scale}, of signal vectors | filters: {first['images']} images, {first['classes']} classes, "
        f"{first['nulls']} null and {first['randoms']} random directions. Significant: beyond both, each tested at a level of "
        f"{100 * first['level']:g} % for any false claim; other rules: influence.csv.",
        f"{'set':<{width}}"
        + "".join(f"{h:>26}" for h in ("significant pairs", "their directions", "mean |Δ probability|")),
        f"{'':<{width}}" + 3 * f"{'signal | filter':>26}",
    ]
    for name, entry in studied.items():
        both = [entry["influence"][role][f"{first['alpha']:g}"] for role in ("signal", "filter")]
        cells = [" | ".join(str(one[key]) for one in both) for key in ("significant", "significant_directions")]
        cells.append(" | ".join(f"{one['mean_absolute_probability_change']:.1e}" for one in both))
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>26}" for cell in cells))
    for name, entry in studied.items():
        strongest = entry["influence"].get("strongest", [])[: max(1, STRONGEST // len(studied))]
        if strongest:
            lines.append(f"{name}: strongest significant effects, first of directions that most refits contain")
            lines += map(_effect_line, strongest)
        if "suspects" in entry["influence"]:
            lines += [f"{name}: {line}" for line in _suspect_lines(entry["influence"])]
    return lines


def _suspect_lines(influence: dict[str, Any]) -> list[str]:
    """The suspects of a set: small ones, and what most images of a class show."""
    rows, tested = influence["suspects"], influence.get("suspects_tested")
    rows = [{"kind": OF_ONE_CLASS, **row} for row in rows]  # an older eddp's are all of one class
    small = of_one_class(rows)
    named = dict.fromkeys(f"{row['label']} → {row['class_name']}" for row in small)
    words = f"{OF_ONE_CLASS}, and used for it: {', '.join(list(named)[:5])}. {tested_words(tested)}".rstrip(". ") + "."
    lines = [words if small else no_suspects(tested)]
    for row in [row for row in rows if row not in small][:5]:
        lines.append(
            f"{row['label']} → {row['class_name']}: used for it, {row['kind']} ({percent(row['share_of_images'])} of its images show it, "
            f"{percent(row['usual_share'])} of all)"
        )
    return lines
