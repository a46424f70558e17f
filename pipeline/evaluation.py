"""One evaluation from stores and directions to a folder: summary.json, tables, pictures, report.html."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.concepts import concept_store
from evaluate.detector_bank import make_bank
from evaluate.direction_tables import agreement, category_rows, direction_rows, label_rows, table_columns
from evaluate.dissect import Dissector, Resolution
from evaluate.glossary import definitions
from evaluate.ground_truth import against_truth
from evaluate.influence.influence_study import InfluenceConfig
from evaluate.metrics import INTERPRETABLE, Labelled, choose_labels, label_scores, score, summarise, union_rows
from evaluate.number_format import number
from evaluate.parallel import Scheduler
from evaluate.report.evaluation_cards import Candidate, Card, ReportData, Section
from evaluate.report.evaluation_page import write_report
from evaluate.top_images import draw_strips
from extract.datasets import open_concepts
from extract.image_io import to_mode
from extract.labels import align
from extract.network import check_trusted
from extract.segmentation.base import ConceptSource
from pipeline.comparison import add_monosemanticity, add_stability
from pipeline.evaluation_result import MADE_BY, made_from
from pipeline.influence import add_influence, influence_lines, steering_file
from pipeline.table_writer import Tables
from stores.attachments import read_truth
from stores.directions import Directions
from stores.errors import DatasetError, MissingPathError, UsageError
from stores.folders import Ours, check_replaceable, replacing
from stores.io import write_json
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import rows_to_columns

TILES = 8
TILE_SIZE = 132
OURS = Ours("summary.json", MADE_BY, "an evaluation")


def load_sets(files: tuple[Path, ...] | list[Path]) -> dict[str, tuple[Path, Directions]]:
    """Direction files by their names without ending. Raises UsageError when two have the same name."""
    sets: dict[str, tuple[Path, Directions]] = {}
    for path in files:
        if path.stem in sets:
            raise UsageError(
                f"Two directions files are named '{path.stem}'; summary.json is keyed by that name. Rename one."
            )
        sets[path.stem] = (path, Directions.load(path))
    return sets


def evaluate_directions(
    store: ActivationStore,
    sets: Mapping[str, tuple[Path, Directions]],
    out: Path,
    *,
    broden: Path | None = None,
    ground_truth: bool = False,
    influence: InfluenceConfig | None = None,
    encoder: Path | None = None,
    resolution: Resolution = "mask",
    device: str = "cpu",
    title: str = "What this layer's directions stand for",
    progress: Progress = silent,
    scheduler: Scheduler = None,
) -> dict[str, Any]:
    """Score direction files on a concept dataset, on a synthetic store's truth, or both; returns the summary.

    What an earlier evaluation wrote to ``out`` is replaced when all is written, and not before. Raises MismatchError for directions of
    another layer, StoreExistsError when ``out`` holds anything else, and the errors of the dataset and of the store.
    """
    layer = _one_layer(store, sets)
    source = _broden(broden) if broden is not None else None
    truth = read_truth(store.path) if ground_truth else None
    if source is not None or (influence is not None and store.affine_head(layer) is None):
        check_trusted(store)
    summary: dict[str, Any] = {
        "made_by": OURS.made_by,
        "directions": {
            name: {"method": d.method, "directions": d.count}
            | ({} if d.found_again is None else {"found_again": d.share_found_again})
            for name, (_, d) in sets.items()
        },
        "made_from": made_from(out, store, layer, {name: path for name, (path, _) in sets.items()}, broden),
    }
    check_replaceable(out, OURS, [store.path, *(path for path, _ in sets.values()), *([broden] if broden else [])])
    with replacing(out, OURS) as folder:
        tables = Tables(folder)
        plain = {name: directions for name, (_, directions) in sets.items()}
        cards: dict[str, list[Card]] = {name: [] for name in sets}
        facts = _facts(store, layer)
        if truth is not None:
            reader = LayerReader(store, layer)
            rows = []
            for name, (_, directions) in sets.items():
                found = against_truth(directions, reader, truth)
                match = found.pop("match")
                summary["directions"][name]["ground_truth"] = found
                rows += [
                    {
                        "directions": name,
                        "concept": i,
                        "direction": match[i],
                        "iou": found["iou"][i],
                        "cos": found["cos"][i],
                        "filter_cos": found["filter_cos"][i],
                    }
                    for i in range(len(match))
                ]
            tables.write("ground_truth", rows_to_columns(rows))
        if source is not None:
            cards = _dissect(
                store, layer, sets, tables, source, resolution, device, summary, facts, progress, scheduler
            )
        if influence is not None:
            nameless = {name: [("", "")] * d.count for name, (_, d) in sets.items()}
            labels = {
                name: [(c.label if c.category else "", c.category) for c in cards[name]] or nameless[name]
                for name in sets
            }
            pushes = add_influence(
                store, layer, plain, labels, tables, influence, summary, source=source, device=device, progress=progress
            )
            cards = {n: [replace(c, pushes=pushes[n][c.index]) for c in cards[n]] for n in cards}
        if encoder is not None:
            add_monosemanticity(store, layer, plain, encoder, summary, device=device, progress=progress)
        add_stability(store, layer, plain, tables, summary, device=device, progress=progress)
        if len(sets) > 1:
            tables.write_comparison(summary)
        tables.finish()
        sections = [
            Section(
                name=name,
                method=directions.method,
                summary=summary["directions"][name],
                cards=cards[name],
                log_picture=_log_picture(path, folder, name),
                steering_picture=steering_file(name) if influence is not None else "",
                diagnosis=directions.info.get("diagnosis", {}),
                refits=directions.refits,
            )
            for name, (path, directions) in sets.items()
        ]
        write_json(folder / OURS.file, summary)
        parts = ["labels", "pairs", "scores"] if source is not None else []
        parts += ["influence"] if influence is not None else []
        parts += ["refits"] if any(one.found_again is not None for one in plain.values()) else []
        write_report(folder, ReportData(title, facts, sections, TILE_SIZE, None, definitions(*parts)))
    return summary


def _dissect(
    store: ActivationStore,
    layer: str,
    sets: Mapping[str, tuple[Path, Directions]],
    folder: Tables,
    source: ConceptSource,
    resolution: Resolution,
    device: str,
    summary: dict[str, Any],
    facts: dict[str, str],
    progress: Progress,
    scheduler: Scheduler = None,
) -> dict[str, list[Card]]:
    """Label and score all sets on a Broden folder; fills in summary and facts, writes tables and pictures."""
    client = None if isinstance(scheduler, str) else scheduler
    concepts = concept_store(store, layer, source, device=device, progress=progress, client=client)
    reader = LayerReader(concepts, layer)
    alignment = align(concepts, source)
    bank = make_bank({name: d for name, (_, d) in sets.items()}, reader, device=device, progress=progress)
    dissector = Dissector(reader, bank, alignment, resolution, scheduler=scheduler)
    counts = dissector.count(progress)
    if not counts.label.any():
        raise DatasetError(
            f"No label of '{source.root}' occurs in any of its masks, where the network sees the images: there is nothing to score. "
            "Look at what the masks hold."
        )
    label_of = choose_labels(counts)
    second = dissector.second(label_of, progress=progress)
    ap = second.average_precision
    facts["Concepts"] = (
        f"{source.root.resolve().name}: {counts.images[0]} images to label on (train), {counts.images[1]} to score on (val), "
        f"{len(counts.labels)} labels"
    )
    facts["Resolution"] = f"{resolution}, {counts.raster[0]} × {counts.raster[1]} points per image"
    top = dissector.top(TILES, progress)
    predicted = _predictions(concepts)
    tables: dict[str, list[dict[str, Any]]] = {"directions": [], "labels": [], "categories": [], "unions": []}
    cards: dict[str, list[Card]] = {}
    for name, (_, directions) in sets.items():
        columns = bank.slices[name]
        scores = score(counts, columns, label_of, ap)
        refined = label_scores(counts, second, columns, limit=INTERPRETABLE)
        summary["directions"][name].update(summarise(counts, name, scores, refined))
        rows = direction_rows(name, directions, counts, columns, scores, refined)
        candidates = label_rows(name, directions, counts, scores)
        tables["directions"] += rows
        tables["labels"] += candidates
        tables["categories"] += category_rows(name, summary["directions"][name])
        tables["unions"] += union_rows(name, counts, second, columns)
        pictures = folder.folder / "pictures" / name
        files, tiles = draw_strips(
            reader, bank, top, columns, pictures,
            picture_of=lambda row: to_mode(source.image(alignment.rows[row]), "RGB", reader.store.provenance.get("grey_range")),
            box_of=lambda row: alignment.box_of(alignment.rows[row]),
            size=TILE_SIZE, prediction_of=predicted, progress=progress,
        )  # fmt: skip
        cards[name] = _cards(name, rows, candidates, files, tiles, directions, scores)
    for table, table_rows in tables.items():
        folder.write(table, table_columns(table, table_rows))
    return cards


def _cards(
    name: str,
    rows: list[dict[str, Any]],
    candidates: list[dict[str, Any]],
    files: list[str],
    tiles: list[Any],
    directions: Directions,
    scores: Labelled,
) -> list[Card]:
    by_direction: dict[int, list[Candidate]] = {}
    for row in candidates:
        entry = Candidate(row["label"], row["category"], row["iou_train"], row["iou_val"])
        by_direction.setdefault(row["index"], []).append(entry)
    cosine = agreement(directions)
    cards = []
    for i, row in enumerate(rows):
        ap = row["average_precision"]
        measures = {
            "IoU": row["iou_val"],
            "precision": row["precision"],
            "recall": row["recall"],
            "F1": row["f1"],
            "average precision": ap if ap is not None else float("nan"),
            "share": row["share"],
            "agreement": round(float(cosine[i]), 4),
        }
        cards.append(
            Card(
                index=i,
                label=row["label"] or "no label",
                category=row["category"],
                iou=row["iou_val"],
                interpretable=bool(scores.iou_val[i] > INTERPRETABLE),
                measures=measures,
                candidates=by_direction.get(i, []),
                strip=f"pictures/{name}/{files[i]}" if files[i] else "",
                tiles=tiles[i],
                found_again=float("nan") if row["found_again"] is None else row["found_again"],
            )
        )
    return cards


def _one_layer(store: ActivationStore, sets: Mapping[str, tuple[Path, Directions]]) -> str:
    """The layer all files belong to, which must be one of the store's; raises MismatchError or UsageError otherwise."""
    layers = {directions.layer for _, directions in sets.values()}
    if len(layers) > 1:
        raise UsageError(
            f"The directions belong to several layers ({', '.join(sorted(layers))}). Evaluate one layer at a time."
        )
    layer = next(iter(layers))
    for _, directions in sets.values():
        if layer not in store.layers:
            only = store.layer(next(iter(store.layers)))
            directions.check_store(only.name, only.channels)
        directions.check_store(layer, store.layer(layer).channels)
    return layer


def _broden(folder: Path) -> ConceptSource:
    if ":" not in str(folder) and not folder.is_dir():
        raise MissingPathError(f"There is no Broden folder, nor another concept dataset, at '{folder}' (--broden).")
    return open_concepts(folder)


def _facts(store: ActivationStore, layer: str) -> dict[str, str]:
    made, spec = store.provenance, store.layer(layer)
    dataset = made.get("dataset", {})
    facts = {
        "Model": str(made.get("model")),
        "Weights": f"{made.get('weights_source', made.get('weights'))} ({str(made.get('weights_digest', ''))[:19]}…)",
        "Layer": f"{layer}: {spec.grid[0]} × {spec.grid[1]} positions, {spec.channels} channels",
        "Store": f"{store.path.name}, {int(store.valid.sum())} images, {store.fingerprint[:19]}…",
    }
    if "synthetic" in made:
        facts["Weights"] = "a pooled affine head, trained on the data"
        facts["Synthetic"] = ", ".join(f"{k} {v}" for k, v in made["synthetic"].items())
    elif dataset:
        facts["Images"] = f"{Path(dataset['path']).name} ({dataset['kind']}, {dataset['images']} images)"
    return facts


def _predictions(store: ActivationStore) -> Any:
    """From a store row to the name of the class the model takes it for."""
    logits = store.array("images/logits")
    parts = logits.each(range(store.n_chunks))  # all images by all classes would be much
    best = np.concatenate([np.nan_to_num(part, nan=-np.inf).argmax(1) for part in parts])
    names = store.class_names
    return lambda row: names[best[row]] if names and best[row] < len(names) else f"class {best[row]}"


def _log_picture(path: Path, out: Path, name: str) -> str:
    """Copy the picture of a fit's losses, if there is one, to the report."""
    picture = path.with_suffix(".log.png")
    if not picture.is_file():
        return ""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    target = out / "pictures" / f"{name}.log.png"
    shutil.copyfile(picture, target)
    return f"pictures/{name}.log.png"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary as a table for people."""
    lines = []
    scored = {n: e for n, e in summary["directions"].items() if "s1" in e}
    if scored:
        keys = ["s1", "s2", "interpretable", "distinct", "coverage", "precision", "recall", "f1", "average_precision"]
        heads = ["S1", "S2", "interpr.", "distinct", "coverage", "precision", "recall", "F1", "AP"]
        if any("found_again" in entry for entry in scored.values()):
            keys.append("found_again")
            heads.append("again")
        width = max(len(n) for n in [*scored, "directions"]) + 2
        lines.append(f"{'directions':<{width}}" + "".join(f"{h:>10}" for h in heads))
        for name, entry in scored.items():
            cells = (f"{number(entry.get(k)):>10}" for k in keys)
            lines.append(f"{name:<{width}}" + "".join(cells))
    lines += influence_lines(summary)
    for name, entry in summary["directions"].items():
        if "ground_truth" in entry:
            found = entry["ground_truth"]
            lines.append(
                f"{name}: {found['matched']} of {len(found['iou'])} concepts found, IoU {min(found['iou']):.3f} at worst "
                f"(mean {np.mean(found['iou']):.3f}), cos {min(found['cos']):.3f} (mean {np.mean(found['cos']):.3f}), of filters "
                f"{min(found['filter_cos']):.3f} (mean {np.mean(found['filter_cos']):.3f}), distinct matches {found['distinct_matches']:.3f}, "
                f"RMSE {found['rmse']:.3f}"
            )
    return lines
