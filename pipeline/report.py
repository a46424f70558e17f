"""Reports: the pages of sets of directions, from an evaluation's tables and one pass over a layer.

``evaluate`` writes them for all its sets, ``eddp report`` for one, with synthesised pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluate.compare import compare
from evaluate.detector_bank import Bank, make_bank
from evaluate.direction_tables import with_found_again
from evaluate.glossary import definitions
from evaluate.influence.shortcut_candidates import no_suspects, of_one_class
from evaluate.parallel import Scheduler
from evaluate.report.class_predictions import ClassPredictions, class_predictions
from evaluate.report.influence_reader import Pushes, median_steering, read_pushes, read_steering
from evaluate.report.logit_histograms import Survey, survey
from evaluate.report.page_layout import marks
from evaluate.report.provenance import fit_log, set_facts, settings_of, store_facts
from evaluate.report.report_contents import class_pages, direction_pages
from evaluate.report.report_data import Features, Site
from evaluate.report.report_images import draw_pictures
from evaluate.report.report_pages import pages, start_page
from evaluate.report.similarity_map import similarity_map
from extract.image_io import to_mode
from extract.network import open_model
from extract.store_images import StoreImages, crop, open_store_images, rows_called
from extract.video_rows import expanded
from fit.verdict import signal_twins, verdict
from pipeline.evaluation_parts import Dissected, Subject
from pipeline.evaluation_result import EvaluationResult
from pipeline.table_writer import Tables
from pipeline.visualization import draw_features
from stores.directions import Directions
from stores.errors import EDDPError, MismatchError
from stores.folders import Ours, check_replaceable, replacing, write_manifest
from stores.io import json_bytes
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import rows_to_columns

OURS = Ours("report.json", "eddp report", "a report")
TITLE = "What this layer's directions stand for"
EXAMPLES = 4  # of a class
BUDGET = 300.0  # seconds for synthesised pictures where no number of pairs is asked for


@dataclass(frozen=True)
class ReportConfig:
    """How a report is made.

    Parameters
    ----------
    tiles : images a direction. title : of the report. device : "cpu" or "cuda:n".
    visualize : how many directions are visualised, those of highest IoU first; −1 for all, None for the suspects and then
        as many as ``BUDGET`` allows.
    """

    tiles: int = 9
    visualize: int | None = None
    title: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class PageImages:
    """What pages show images of: a layer, its detectors, and from a row of its store to what the network saw, an image or the frames of
    a clip; None where the images are not at hand, and ``note`` says why."""

    reader: LayerReader
    bank: Bank
    frames: Callable[[int], Sequence[Image.Image]] | None
    note: str = ""


def write_site(
    evaluation: Path,
    out: Path,
    config: ReportConfig,
    *,
    name: str | None = None,
    store: Path | None = None,
    data: str | None = None,
    model: str | None = None,
    class_names: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the report on one set of directions to ``out``; returns what is in it.

    What was not measured, or is not at hand any more (images), is left out, and the pages say so.

    Parameters
    ----------
    evaluation : the folder that ``evaluate`` wrote. name : of the set shown in full, the first if None.
    store, data : where the store and its images are, if they were moved.
    model, class_names : see ``ActivationStore.open``.

    Raises the errors of ``EvaluationResult`` and of ``replacing``, and those of getting what was asked for by name (``data``,
    ``config.visualize``).
    """
    evaluated = EvaluationResult(evaluation)
    name = evaluated.one(name)
    check_replaceable(out, OURS)
    opened = evaluated.store(store, model=model, class_names=class_names)
    directions = evaluated.directions(name)
    reader = LayerReader(opened, evaluated.layer)
    directions.check_store(reader.spec.name, reader.spec.channels, opened.provenance.get("weights_digest"))
    frames, note = _images(opened, data)
    bank = make_bank({name: directions}, reader, device=config.device, progress=progress)
    pages = _Pages(evaluated, opened, PageImages(reader, bank, frames, note), config, progress)
    with replacing(out, OURS) as folder:
        (site,) = pages.write({name: directions}, {name: folder}, folder)
        about = {"made_by": OURS.made_by, "title": site.title, "set": name, "store": opened.fingerprint}
        (folder / OURS.file).write_bytes(json_bytes(about))
    tiles = [tile for d in site.directions for tile in d.tiles] + [tile for c in site.classes for tile in c.tiles]
    sizes = [file.stat().st_size for file in out.rglob("*") if file.is_file()]
    return {
        "set": name,
        "directions": directions.count,
        "classes": len(site.classes),
        "visualized": sum(d.features is not None for d in site.directions),
        "images_missing": len({tile.name for tile in tiles if not tile.file}),
        "files": len(sizes),
        "bytes": sum(sizes),
        "notes": site.notes,
    }


def write_evaluation_pages(
    folder: Path, subject: Subject, dissected: Dissected | None, title: str, scheduler: Scheduler = None
) -> list[str]:
    """Write ``report.html`` and ``report/SET/`` for each set into an evaluation's folder, in which its tables are.

    Returns notes on images that they lack.

    Images are those of the concept dataset, whose activations were read for the scores, and without one those of the store.
    """
    write_manifest(folder)  # tables are read back by it
    if dissected is None:
        shown = PageImages(subject.reader, subject.bank, *_images(subject.store))
    else:
        shown = PageImages(dissected.reader, dissected.bank, _labelled_images(dissected))
    config = ReportConfig(visualize=0, title=title, device=subject.device)
    pages = _Pages(EvaluationResult(folder), subject.store, shown, config, subject.progress, scheduler)
    shared = folder / "report"
    written = pages.write(subject.sets, {name: shared / name for name in subject.sets}, shared)
    sites = [replace(site, directions=[], classes=[]) for site in written]  # not all of all sets in memory
    facts = store_facts(subject.store, subject.layer) | ({} if dissected is None else dissected.facts)
    (folder / "report.html").write_bytes(start_page(title, facts, sites))
    return next((site.notes for site in sites if site.notes), [])


@dataclass(frozen=True)
class _Pages:
    """What the pages of several sets of an evaluation have in common."""

    evaluated: EvaluationResult
    store: ActivationStore
    shown: PageImages
    config: ReportConfig
    progress: Progress
    scheduler: Scheduler = None

    def write(self, sets: Mapping[str, Directions], folders: Mapping[str, Path], shared: Path) -> Iterator[Site]:
        """Write each set's pages into its folder, and pictures of classes into ``shared``: that folder, or the one around all."""
        predicted = class_predictions(self.shown.reader.store, EXAMPLES)
        found = survey(self.shown.reader, self.shown.bank, self.config.tiles, self.progress, self.scheduler)
        missing: set[int] = set()
        for k, (name, directions) in enumerate(sets.items()):
            folders[name].mkdir(parents=True, exist_ok=True)
            examples = [] if k else predicted.rows  # the same for all sets
            missing |= self._draw(name, found[name], examples, folders[name], shared)
            root = "" if folders[name] == shared else "../"
            site = self._site(name, directions, found[name], predicted, missing, root)
            site = self._with_features(site, directions, folders[name])
            _write(site, folders[name], self.progress)
            yield site

    def _draw(self, name: str, found: Survey, examples: list[list[int]], folder: Path, shared: Path) -> set[int]:
        """Draw top images and examples; returns the rows of the store of which there is no picture."""
        if self.shown.frames is None:
            return set(np.unique(found.rows).tolist()) | {row for rows in examples for row in rows}
        bank = self.shown.bank.of([name])
        return draw_pictures(
            self.shown.reader,
            bank,
            found.rows,
            len(found.top.rows),
            examples,
            folder,
            shared,
            self.shown.frames,
            self.progress,
        )

    def _site(
        self,
        name: str,
        directions: Directions,
        found: Survey,
        predicted: ClassPredictions,
        missing: set[int],
        root: str,
    ) -> Site:
        called = rows_called(self.shown.reader.store)
        evaluated, entry = self.evaluated, self.evaluated.summary["directions"][name]
        pushes, influence = self._influence(name, directions.count, len(predicted.count))
        curves, random = read_steering(evaluated.arrow("steering", name), directions.count) if influence else ([], None)
        rows = {row["index"]: row for row in evaluated.table("directions", name)}
        truth = evaluated.table("ground_truth", name) if "ground_truth" in entry else []
        by_class = {row["index"]: row for row in evaluated.table("class_labels", name)}
        by_word = {row["index"]: row for row in evaluated.table("vocabulary_labels", name)}
        meaning = {row["index"]: row for row in evaluated.table("meaning", name)}
        stability = [row for row in evaluated.table("stability") if name in (row["first"], row["second"])]
        diagnosis = directions.info.get("diagnosis", {})
        judged, twins = verdict(directions), signal_twins(directions).tolist()
        facts = store_facts(self.store, evaluated.layer) | set_facts(directions, entry, rows_called(self.store))
        if evaluated.concepts is not None:
            facts["Labels from"] = Path(evaluated.concepts).name
        if self.shown.reader.store.path != self.store.path:
            facts["Images shown"] = f"{self.shown.reader.n_images} of the concept dataset"
        facts[f"On these {called}"] = (
            f"{100 * found.coverage:.3g} % of positions covered, {found.redundancy:.3g} detectors on each of these"
        )
        wanted = set(np.unique(found.rows[found.rows >= 0]).tolist()) | {row for some in predicted.rows for row in some}
        note = f"{len(missing & wanted)} of the {len(wanted)} {called} to be shown are not where they were, or cannot be read any more. Put them back and run the command again."
        notes = [self.shown.note] if self.shown.note else [note] if missing & wanted else []
        suspects = evaluated.suspects(name)
        self.progress("map", 0, 1)
        places = similarity_map(directions.signals)
        self.progress("map", 1, 1)
        parts = {
            "labels": rows, "scores": rows, "pairs": True, "site": True, "clips": self.shown.reader.time > 1, "diagnosis": marks(diagnosis, twins), "diagnosis numbers": diagnosis, "refits": directions.found_again is not None,
            "stability": stability, "truth": truth, "influence": influence, "influence pages": influence, "class labels": by_class, "words": by_word, "meaning": meaning, "selection": "selection" in directions.info,
        }  # fmt: skip
        return Site(
            title=self.config.title or TITLE,
            name=name,
            method=directions.method,
            facts=facts,
            settings=settings_of(directions),
            notes=notes,
            comparison=compare(evaluated.summary),
            per_category=[(k, v["distinct"], v["detectors"]) for k, v in entry.get("per_category", {}).items()],
            directions=direction_pages(
                directions, found, predicted, self.shown.reader.store.names, missing,
                labels=evaluated.labels(name), called=evaluated.direction_names(name), rows=rows, candidates=evaluated.table("labels", name), pushes=pushes, curves=curves, classes=by_class, words=by_word, meaning=meaning, twins=twins, steps=self.shown.reader.time,
            ),
            classes=class_pages(self.shown.reader.store, predicted, missing, pushes.get("signal"), root),
            places=[(round(float(x), 4), round(float(y), 4)) for x, y in places],
            definitions=definitions(*(part for part, there in parts.items() if there)),
            influence=influence,
            meaning=entry.get("meaning"),
            random=random,
            steering=median_steering(curves),
            suspects=suspects or [],
            no_suspects="" if suspects is None or of_one_class(suspects) else no_suspects(entry["influence"].get("suspects_tested")),
            truth=truth,
            diagnosis=diagnosis,
            log=fit_log(evaluated.directions_path(name)),
            refits=directions.refits,
            selection=directions.info.get("selection", {}),
            stability=stability,
            verdict=judged.lines,
            problems=judged.problems,
            start=f"{root}../report.html" if root else "",
            rows=called,
            steps=self.shown.reader.time,
            key=evaluated.made_from["digests"][name].removeprefix("sha256:")[:16],
        )  # fmt: skip

    def _influence(self, name: str, directions: int, classes: int) -> tuple[dict[str, Pushes], dict[str, Any] | None]:
        evaluated = self.evaluated
        measured = evaluated.summary["directions"][name].get("influence")
        if measured is None or not evaluated.has("influence"):
            return {}, None
        if measured["classes"] != classes:
            raise MismatchError(
                f"'{evaluated.folder}' is about {measured['classes']} classes, and the store has {classes}. Run evaluate again."
            )
        pushes = read_pushes(evaluated.path("influence"), name, float(measured["alpha"]), directions, classes)
        evaluated.check("influence")
        return pushes, measured

    def _with_features(self, site: Site, directions: Directions, folder: Path) -> Site:
        """Synthesise pictures into ``v/``; where that cannot be done and it was not asked for, a note says why."""
        config = self.config
        chosen = _to_visualize(config, site)
        if not chosen or (config.visualize is None and "synthetic" in self.store.provenance):
            return site
        (folder / "v").mkdir()
        try:
            found = draw_features(
                self.store, directions, chosen, folder / "v",
                thresholds=self.shown.bank.thresholds.cpu().numpy(), limit=BUDGET if config.visualize is None else None, device=config.device, progress=self.progress,
            )  # fmt: skip
        except EDDPError as error:
            if config.visualize is not None:
                raise
            return replace(site, notes=[*site.notes, f"No pictures were synthesised. {error}"])
        _write_responses(site, directions, found, folder)
        beyond = sum(one.beyond_random == 1 for one in found.values())
        fact = f"of {len(found)} pairs; in {beyond} the signal vector's drives the detector more than any random direction's"
        return replace(
            site,
            facts=site.facts | {"Synthesised pictures": fact},
            directions=[replace(d, features=found.get(d.index)) for d in site.directions],
            definitions=site.definitions | definitions("visualization"),
        )


def _images(store: ActivationStore, data: str | None = None) -> tuple[Callable[[int], list[Image.Image]] | None, str]:
    """The store's images by row; None and why where they are not at hand and were not asked for."""
    if data is None and "synthetic" in store.provenance:
        return None, "The store is synthetic: there are no images to show."
    try:
        return open_store_images(store, data=data).frames, ""
    except EDDPError as error:
        if data is not None:
            raise
        return None, f"The images are not shown. {error}"


def _labelled_images(dissected: Dissected) -> Callable[[int], list[Image.Image]]:
    """The images of a concept dataset as the network saw them, by the rows of the store that they are scored on."""
    alignment, store = dissected.alignment, dissected.reader.store
    made = store.provenance
    if "clip" in made or made["dataset"].get("rows"):
        source = expanded(alignment.source, made["dataset"].get("rows") or {})
        return StoreImages(source, open_model(store).transform, store).frames
    grey = made.get("grey_range")

    def frames(row: int) -> list[Image.Image]:
        number = alignment.rows[row]
        return [crop(to_mode(alignment.source.image(number), "RGB", grey), alignment.box_of(number))]

    return frames


def _to_visualize(config: ReportConfig, site: Site) -> list[int]:
    """Directions to synthesise pictures of: those of highest IoU (without labels the first); before them the suspects, where no number is asked for."""
    best = sorted(range(len(site.directions)), key=lambda i: -site.directions[i].iou if site.labelled else 0)
    if config.visualize is None:
        return list(dict.fromkeys([*(i for row in of_one_class(site.suspects) for i in row["indices"]), *best]))
    return sorted(best if config.visualize < 0 else best[: config.visualize])


def _write_responses(site: Site, directions: Directions, found: Mapping[int, Features], folder: Path) -> None:
    """The table of what detectors make of the synthesised pictures, with its dictionary."""
    rows = [
        {"directions": site.name, "index": i, "name": site.directions[i].name.full, "label": site.directions[i].label,
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
