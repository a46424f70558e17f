"""Influence of several direction files, from a store to tables: the part of an evaluation that runs the network's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evaluate.concepts import concept_store
from evaluate.direction_tables import with_found_again
from evaluate.influence.cavs import LabelUse, label_use, s3
from evaluate.influence.influence_study import (
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
from evaluate.influence.shortcut_candidates import suspect_rows
from evaluate.influence.steering import Steering, random_units, sweep
from evaluate.report.evaluation_cards import Push
from evaluate.report.steering_curves import steering_picture
from extract.labels import align
from extract.segmentation.base import ConceptSource
from pipeline.table_writer import Tables
from stores.directions import Directions
from stores.progress import Progress
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import rows_to_columns

TABLES = ("influence_directions", "influence_classes", "steering", "suspects")
RANDOM = 64  # random directions that the steering curves are held against

Labels = Sequence[tuple[str, str]]  # (label, category) of each direction, empty where it has none


def add_influence(
    store: ActivationStore,
    layer: str,
    sets: Mapping[str, Directions],
    labels: Mapping[str, Labels],
    tables: Tables,
    config: InfluenceConfig,
    summary: dict[str, Any],
    *,
    source: ConceptSource | None,
    device: str,
    progress: Progress,
) -> dict[str, list[list[Push]]]:
    """Measure, write the tables, and fill in each file's entry of the summary; returns what each direction moves most."""
    moving = effect_of(store, layer, images=config.images, seed=config.seed, device=device)
    found = measure_influence(store, layer, sets, config, through=moving, device=device, progress=progress)
    classes = class_names(store, len(found.base))
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    use = None if source is None else _use_of_labels(store, layer, source, device, progress)
    cavs = None if use is None else moving.effect(torch.from_numpy(use.cavs).to(device), config.alpha)
    controls = sweep(moving.effect, random_units(store.layer(layer).channels, RANDOM, config.seed).to(device))
    plain = {name: [label for label, _ in labels[name]] for name in sets}
    for name, directions in sets.items():
        names = plain[name]
        rows["influence_directions"] += with_found_again(
            direction_influence_rows(found, name, names, classes), directions
        )
        rows["influence_classes"] += class_influence_rows(found, name, names, classes)
        entry = summary["directions"][name]
        entry.update(influence_summary(found, name))
        entry["influence"]["null_precision"] = str(precision_on(torch.device(device))).removeprefix("torch.")
        curves = _steer(moving, directions, controls, device)
        rows["steering"] += steering_rows(name, names, classes, curves)
        entry["influence"]["steering"] = steering_summary(curves)
        (tables.folder / "pictures").mkdir(exist_ok=True)
        drawn = {role: (curve.alphas, curve.probability) for role, curve in curves.items()}
        steering_picture(drawn, tables.folder / steering_file(name))
        if source is not None and use is not None and cavs is not None:
            a, part = config.alphas.index(config.alpha), found.slices[name]
            columns = _columns(source, labels[name])
            score, probability = cavs.influence.cpu().numpy(), cavs.probability.cpu().numpy()
            entry["s3"] = _rounded(s3(columns, found.score[a, 0, part], score, use.known))
            entry["influence"]["s3_probability"] = _rounded(
                s3(columns, found.probability[a, 0, part], probability, use.known)
            )
            suspects = with_found_again(suspect_rows(found, name, labels[name], columns, use, classes), directions)
            entry["influence"]["suspects"] = suspects[:10]
            rows["suspects"] += [{**row, "indices": " ".join(map(str, row["indices"]))} for row in suspects]
    tables.write_parts("influence", (p for name in sets for p in influence_parts(found, name, plain[name], classes)))
    for table in TABLES:
        if rows[table]:
            tables.write(table, rows_to_columns(rows[table]))
    return {name: _pushes(found, name, classes) for name in sets}


def _pushes(found: Influence, name: str, classes: Sequence[str], most: int = 3) -> list[list[Push]]:
    """Of each signal vector, the classes whose probability it changes most, at the summary's step."""
    a, part = found.config.alphas.index(found.config.alpha), found.slices[name]
    change = found.probability[a, 0, part]
    beyond = claims_of(found, name, a, 0)[1].random
    order = np.argsort(-np.abs(change), axis=1, kind="stable")[:, :most]
    return [[Push(classes[k], float(change[i, k]), bool(beyond[i, k])) for k in row] for i, row in enumerate(order)]


def steering_file(name: str) -> str:
    """Where the picture of a file's steering lies, from the folder of the evaluation."""
    return f"pictures/{name}.steering.png"


def class_names(store: ActivationStore, count: int) -> list[str]:
    """The classes' names, ``class k`` where the store has none."""
    names = list(store.class_names or [])
    return [names[k] if k < len(names) else f"class {k}" for k in range(count)]


def _steer(moving: Moving, directions: Directions, controls: Steering, device: str) -> dict[str, Steering]:
    """Curves by role: the filters are followed on the class that the signal vector moves, the random ones on their own."""
    signals, filters = (
        unit_columns(torch.from_numpy(part).to(device)) for part in (directions.signals, directions.filters)
    )
    of_signals = sweep(moving.effect, signals)
    return {"signal": of_signals, "filter": sweep(moving.effect, filters, of_signals.target), "random": controls}


def _use_of_labels(
    store: ActivationStore, layer: str, source: ConceptSource, device: str, progress: Progress
) -> LabelUse:
    concepts = concept_store(store, layer, source, device=device, progress=progress)
    logits = concepts.array("images/logits")
    parts = logits.each(range(concepts.n_chunks))  # all images by all classes would be much
    predicted = np.concatenate([np.nan_to_num(part, nan=-np.inf).argmax(1) for part in parts])
    reader = LayerReader(concepts, layer)
    alignment = align(concepts, source)
    n_classes = int(logits.shape[1])
    return label_use(reader, alignment, predicted, n_classes, device=device, progress=progress)


def _columns(source: ConceptSource, labels: Labels) -> np.ndarray:
    """(I,) place of each direction's label among the dataset's, −1 for none."""
    place = {(label.name, label.category): k for k, label in enumerate(source.labels)}
    return np.array([place.get(label, -1) for label in labels], np.int64)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def influence_lines(summary: dict[str, Any]) -> list[str]:
    """The influence of each file as a table for people."""
    studied = {n: e for n, e in summary["directions"].items() if "influence" in e}
    if not studied:
        return []
    first = next(iter(studied.values()))["influence"]
    width = max(len(n) for n in [*studied, "directions"]) + 2
    lines = [
        f"Influence at α = {first['alpha']:g}, of signal vectors | filters: {first['images']} images, {first['classes']} classes, "
        f"{first['nulls']} null directions",
        f"{'directions':<{width}}"
        + "".join(f"{h:>20}" for h in ("SDC", "SCDP", "beyond nulls", "beyond random", "mean |Δp|")),
    ]
    for name, entry in studied.items():
        both = [entry["influence"][role][f"{first['alpha']:g}"] for role in ("signal", "filter")]
        cells = [
            " | ".join(str(one[key]) for one in both)
            for key in ("sdc", "scdp", "significant_max", "significant_random")
        ]
        cells.append(" | ".join(f"{one['mean_absolute_probability_change']:.1e}" for one in both))
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
        suspects = entry["influence"].get("suspects", [])
        if suspects:
            named = dict.fromkeys(f"{row['label']} → {row['class_name']}" for row in suspects)
            lines.append(f"{'':<{width}}  small, of one class, and used for it: {', '.join(list(named)[:5])}")
    return lines
