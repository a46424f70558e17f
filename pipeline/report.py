"""One report from an evaluation's folder to a folder of pages: reads the tables and the store, draws, and writes the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.compare import compare
from evaluate.detector_bank import Bank, make_bank
from evaluate.direction_tables import with_found_again
from evaluate.glossary import definitions
from evaluate.page_layout import marks
from evaluate.site.class_predictions import ClassPredictions, class_predictions
from evaluate.site.influence_reader import Pushes, read_pushes, read_steering
from evaluate.site.logit_histograms import survey
from evaluate.site.similarity_map import cosines, similarity_map
from evaluate.site.site_data import Features, Influence, Picture, Site
from evaluate.site.site_images import draw_pictures
from evaluate.site.site_pages import pages
from evaluate.top_images import Top
from extract.store_images import StoreImages, open_store_images
from pipeline.evaluation_result import Evaluated, Label
from pipeline.report_parts import class_pages, concepts_of, direction_pages
from pipeline.report_provenance import facts_of, fit_log, log_picture, settings_of
from pipeline.table_writer import Tables
from pipeline.visualization import Features as Drawn
from pipeline.visualization import draw_features
from stores.directions import Directions
from stores.errors import EDDPError, MismatchError
from stores.folders import Ours, check_replaceable, replacing
from stores.io import json_bytes
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import rows_to_columns

OURS = Ours("report.json", "eddp report", "a report")
TITLE = "What this layer's directions stand for"
EXAMPLES = 4  # of a class
DRAWN_ON_CPU = 8  # pairs of highest IoU, and of the worst suspects, of which pictures are synthesised by default


@dataclass(frozen=True)
class ReportConfig:
    """How a report is made.

    Parameters
    ----------
    tiles : images a direction. title : of the report. device : "cpu" or "cuda:n".
    visualize : how many directions are visualised, those of highest IoU first; −1 for all, None for what the device allows.
    """

    tiles: int = 9
    visualize: int | None = None
    title: str | None = None
    device: str = "cpu"


def write_site(
    evaluation: Path,
    out: Path,
    config: ReportConfig,
    *,
    name: str | None = None,
    store: Path | None = None,
    data: str | None = None,
    model: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the site of one set of directions to ``out``; returns what is in it.

    What was not measured, or is not at hand any more (images), is left out, and the pages say so.

    Parameters
    ----------
    evaluation : the folder that ``evaluate`` wrote. name : of the set shown in full, the first if None.
    store, data : where the store and its images lie, if not where they lay.
    model : the store's, if it is code that you trust (see ``ActivationStore.open``).

    Raises the errors of ``Evaluated`` and of ``replacing``, and those of getting what was asked for by name (``data``,
    ``config.visualize``).
    """
    evaluated = Evaluated(evaluation)
    name = evaluated.one(name)
    check_replaceable(out, OURS)
    opened, directions = evaluated.store(store, model=model), evaluated.directions(name)
    reader = LayerReader(opened, evaluated.layer)
    directions.check_store(reader.spec.name, reader.spec.channels)
    notes: list[str] = []
    seen = _seen(opened, data, notes)
    predicted = class_predictions(opened, EXAMPLES)
    pushes, influence = _influence(evaluated, name, directions.count, len(predicted.count))
    curves, random = read_steering(evaluated.arrow("steering", name), directions.count) if influence else ([], None)
    labelled = name, evaluated.labels(name)
    rows = {row["index"]: row for row in evaluated.table("directions", name)}
    candidates, suspects = evaluated.table("labels", name), evaluated.suspects(name)
    entry = evaluated.summary["directions"][name]
    truth = concepts_of(evaluated.table("ground_truth", name)) if "ground_truth" in entry else []
    stability = [row for row in evaluated.table("stability") if name in (row["first"], row["second"])]
    bank = make_bank({name: directions}, reader, device=config.device, progress=progress)
    found = survey(reader, bank, config.tiles, progress)
    chosen = _to_visualize(config, rows, directions.count, suspects)
    path = evaluated.directions_path(name)
    with replacing(out, OURS) as folder:
        gone = _draw(reader, bank, found.top, predicted, folder, seen, notes, progress)
        features = _features(opened, directions, chosen, folder, bank, config, notes, labelled, progress)
        log = fit_log(path)
        diagnosis = directions.info.get("diagnosis", {})
        progress("map", 0, 1)
        places = similarity_map(cosines(directions.signals))
        progress("map", 1, 1)
        parts = {
            "labels": rows, "pairs": True, "site": True, "diagnosis": marks(diagnosis), "refits": directions.found_again is not None,
            "stability": stability, "truth": truth, "influence": influence, "influence pages": influence, "visualization": features,
        }  # fmt: skip
        site = Site(
            title=config.title or TITLE,
            name=name,
            method=directions.method,
            facts=facts_of(opened, evaluated, name, directions, found) | _checked(features),
            settings=settings_of(directions),
            notes=notes,
            comparison=compare(evaluated.summary),
            per_category=[(k, v["distinct"], v["detectors"]) for k, v in entry.get("per_category", {}).items()],
            directions=direction_pages(
                directions, found, predicted, opened.names, gone,
                rows=rows, candidates=candidates, pushes=pushes, curves=curves, features=features,
            ),
            classes=class_pages(opened, predicted, gone, pushes.get("signal")),
            places=[(round(float(x), 4), round(float(y), 4)) for x, y in places],
            definitions=definitions(*(part for part, there in parts.items() if there)),
            influence=influence,
            random=random,
            suspects=suspects,
            truth=truth,
            diagnosis=diagnosis,
            log=log,
            log_picture="" if log else log_picture(path, folder),
            refits=directions.refits,
            stability=stability,
        )  # fmt: skip
        _write(site, folder, progress)
        about = {"made_by": OURS.made_by, "title": site.title, "set": name, "store": opened.fingerprint}
        (folder / OURS.file).write_bytes(json_bytes(about))
    sizes = [file.stat().st_size for file in out.rglob("*") if file.is_file()]
    return {
        "set": name,
        "directions": directions.count,
        "classes": len(site.classes),
        "visualized": len(features),
        "images_missing": len(gone),
        "files": len(sizes),
        "bytes": sum(sizes),
        "notes": notes,
    }


def _seen(store: ActivationStore, data: str | None, notes: list[str]) -> StoreImages | None:
    """The store's images; None, and a note, where they are not at hand and they were not asked for."""
    if data is None and "synthetic" in store.provenance:
        notes.append("The store is synthetic: there are no images to show.")
        return None
    try:
        return open_store_images(store, data=data)
    except EDDPError as error:
        if data is not None:
            raise
        notes.append(f"The images are not shown. {error}")
        return None


def _influence(
    evaluated: Evaluated, name: str, directions: int, classes: int
) -> tuple[dict[str, Pushes], Influence | None]:
    measured = evaluated.summary["directions"][name].get("influence")
    if measured is None or not evaluated.has("influence"):
        return {}, None
    if measured["classes"] != classes:
        raise MismatchError(
            f"'{evaluated.folder}' is about {measured['classes']} classes, and the store has {classes}. Run evaluate again."
        )
    about = Influence(float(measured["alpha"]), measured["images"], measured["nulls"], measured["randoms"])
    pushes = read_pushes(evaluated.path("influence"), name, about.alpha, directions, classes)
    evaluated.check("influence")
    return pushes, about


def _draw(
    reader: LayerReader,
    bank: Bank,
    top: Top,
    predicted: ClassPredictions,
    folder: Path,
    seen: StoreImages | None,
    notes: list[str],
    progress: Progress,
) -> set[int]:
    """Draw top images and examples; returns the rows of the store of which there is no picture."""
    wanted = set(np.unique(top.rows).tolist()) | {row for rows in predicted.rows for row in rows}
    if seen is None:
        return wanted
    gone = draw_pictures(reader, bank, top, predicted.rows, folder, seen.image, progress)
    if gone:
        notes.append(
            f"{len(gone)} of the {len(wanted)} images to be shown are not where they were, or cannot be read any more."
        )
    return gone


def _to_visualize(
    config: ReportConfig, rows: dict[int, Any], count: int, suspects: Sequence[dict[str, Any]]
) -> list[int]:
    """Directions to synthesise pictures of: those of highest IoU (without labels the first), and on a CPU the suspects as well."""
    best = sorted(range(count), key=lambda i: -rows[i]["iou_val"] if i in rows else 0)
    if config.visualize is None and config.device == "cpu":
        return sorted({*best[:DRAWN_ON_CPU], *[i for row in suspects for i in row["indices"]][:DRAWN_ON_CPU]})
    return sorted(best if config.visualize is None or config.visualize < 0 else best[: config.visualize])


def _features(
    store: ActivationStore,
    directions: Directions,
    chosen: list[int],
    folder: Path,
    bank: Bank,
    config: ReportConfig,
    notes: list[str],
    labelled: tuple[str, Sequence[Label]],
    progress: Progress,
) -> dict[int, Features]:
    """Synthesise pictures into ``v/``; where that cannot be done and it was not asked for, a note says why."""
    if not chosen or (config.visualize is None and "synthetic" in store.provenance):
        return {}
    (folder / "v").mkdir()
    try:
        found = draw_features(
            store, directions, chosen, folder / "v",
            thresholds=bank.thresholds.cpu().numpy(), device=config.device, progress=progress,
        )  # fmt: skip
    except EDDPError as error:
        if config.visualize is not None:
            raise
        notes.append(f"No pictures were synthesised. {error}")
        return {}
    _write_responses(directions, labelled, found, folder)
    return {
        i: Features(
            Picture(f"v/{one.signal}", one.response_signal, one.fires_signal),
            Picture(f"v/{one.filter}", one.response_filter, one.fires_filter),
            one.response_random,
            one.fires_random,
            one.beyond_random,
        )
        for i, one in found.items()
    }


def _checked(features: Mapping[int, Features]) -> dict[str, str]:
    """Whether signal vectors produce what filters detect, over all pairs of which pictures were synthesised (EDDP's check)."""
    if not features:
        return {}
    beyond = sum(one.beyond_random == 1 for one in features.values())
    return {
        "Synthesised pictures": f"of {len(features)} pairs; in {beyond} the signal vector's drives the detector more than any random direction's"
    }


def _write_responses(
    directions: Directions, labelled: tuple[str, Sequence[Label]], found: Mapping[int, Drawn], folder: Path
) -> None:
    """The table of what detectors make of the synthesised pictures, with its dictionary."""
    name, labels = labelled
    rows = [
        {"directions": name, "index": i, "label": labels[i][0],
         **{k: v for k, v in vars(one).items() if k not in ("signal", "filter")}}
        for i, one in sorted(found.items())
    ]  # fmt: skip
    tables = Tables(folder)
    tables.write("visualization", rows_to_columns(with_found_again(rows, directions)))
    tables.finish()


def _write(site: Site, folder: Path, progress: Progress) -> None:
    total = len(site.directions) + len(site.classes) + 5
    for done, (file, content) in enumerate(pages(site), 1):
        target = folder / file
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
        progress("pages", min(done, total), total)
