"""One evaluation: stores and directions → one result → a folder of summary.json, tables, report.html and the pages of each set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.class_labels import ClassLabels, FewImagesError
from evaluate.direction_names import read_names
from evaluate.dissect import Resolution
from evaluate.influence.influence_study import InfluenceConfig
from evaluate.number_format import number
from evaluate.parallel import Scheduler
from evaluate.vocabulary import read_words
from extract.datasets import open_concepts
from extract.network import check_trusted
from extract.segmentation.base import ConceptSource
from pipeline.class_labelling import class_findings, class_lines, class_names_of, find_class_labels
from pipeline.evaluation_parts import (
    Dissected,
    Findings,
    Subject,
    compare_with_truth,
    dissect,
    measure_autocorrelation,
    measure_monosemanticity,
    measure_stability,
)
from pipeline.evaluation_result import MADE_BY, made_from
from pipeline.evidence import evidence_lines, measure_fidelity
from pipeline.firing_examples import find_examples, measure_meaning
from pipeline.influence import influence_lines, study_influence
from pipeline.pair_check import check_pairs_of, read_pairs
from pipeline.record_display import text_of
from pipeline.report import TITLE, write_evaluation_pages
from pipeline.table_writer import Tables
from pipeline.untrained import check_drawable, evaluate_untrained
from pipeline.vocabulary_labels import find_words, first_found, say_what_words_need, word_lines
from stores.attachments import read_truth
from stores.directions import Directions
from stores.errors import MissingPathError, UsageError
from stores.folders import Ours, check_replaceable, replacing
from stores.io import write_json
from stores.progress import Progress, silent
from stores.store import ActivationStore
from stores.tables import Columns

log = logging.getLogger(__name__)
OURS = Ours("summary.json", MADE_BY, "an evaluation")
SCORES = (
    "S1: sum of the IoU of all directions; S2: of the best one of each label; interpr.: directions with IoU above 0.04; distinct: their labels; "
    "again: share that most refits contain. All columns: dictionary.csv"
)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how.

    Parameters
    ----------
    broden : a concept dataset to label and score on. resolution : at which detectors and masks are compared.
    influence : how the influence on classes is measured; None: it is not.
    classes : label by the images' classes.
    monosemanticity : the store of embeddings for it, or ``OWN``. ground_truth : compare with a synthetic store's truth.
    encoder : of images, for measures of what directions fire on, as ``extract.image_text.open_encoder`` takes it. vocabulary : words that it
        names directions by, a text file or ``default``. pairs : a folder of pairs of images that differ in one thing.
    untrained : also evaluate an untrained network on ``broden``.
    seed : of what is drawn outside ``influence``. device : "cpu" or "cuda:n". title : of the pages.
    """

    broden: Path | None = None
    resolution: Resolution = "mask"
    influence: InfluenceConfig | None = None
    classes: bool = False
    monosemanticity: Path | None = None
    ground_truth: bool = False
    encoder: str | None = None
    vocabulary: str | None = None
    pairs: Path | None = None
    untrained: bool = False
    seed: int = 0
    device: str = "cpu"
    title: str = TITLE


@dataclass(frozen=True)
class Evaluation:
    """The result: each set's ``entries`` in the summary, ``tables`` in parts of the same columns, and what a concept dataset said; ``subject``
    with the labels found without masks, and with what was read of the store."""

    entries: dict[str, dict[str, Any]]
    tables: dict[str, Iterable[Columns]]
    dissected: Dissected | None
    subject: Subject


def load_sets(files: tuple[Path, ...] | list[Path]) -> dict[str, tuple[Path, Directions]]:
    """Direction files by their names without ending. Raises UsageError when two have the same name, or the same directions."""
    sets: dict[str, tuple[Path, Directions]] = {}
    for path in files:
        if path.stem in sets:
            raise UsageError(
                f"Two directions files are named '{path.stem}', '{sets[path.stem][0]}' and '{path}', and all results are listed by that name. "
                "Rename one."
            )
        found = Directions.load(path)
        for name, (_, other) in sets.items():
            if np.array_equal(found.filters, other.filters) and np.array_equal(found.signals, other.signals):
                raise UsageError(
                    f"'{name}' and '{path.stem}' hold the same directions (fitted on {found.fitted_on}): leave one out."
                )
        sets[path.stem] = (path, found)
    return sets


def evaluate_directions(
    store: ActivationStore,
    files: Mapping[str, tuple[Path, Directions]],
    out: Path,
    config: EvaluationConfig,
    *,
    progress: Progress = silent,
    scheduler: Scheduler = None,
) -> dict[str, Any]:
    """Evaluate direction files (``load_sets``) and write the folder ``out``; returns the summary.

    What an earlier evaluation wrote to ``out`` is replaced when all is written, and not before. Raises MismatchError for directions of
    another layer, StoreExistsError when ``out`` holds anything else, and the errors of the dataset and of the store.
    """
    layer = _one_layer(store, files)
    sets = {name: directions for name, (_, directions) in files.items()}
    given = {name: read_names(path, directions.count) for name, (path, directions) in files.items()}
    subject = Subject(store, layer, sets, config.device, progress, given)
    source = None if config.broden is None else _broden(config.broden)
    truth = read_truth(store.path) if config.ground_truth else None
    if (
        source is not None
        or config.encoder is not None
        or config.pairs is not None
        or (config.influence is not None and store.affine_head(layer) is None)
    ):
        check_trusted(store)
    if config.untrained:
        check_drawable(store)
    if config.pairs is not None:
        read_pairs(store, config.pairs)  # a folder that does not do ends it before the work
    paths = {name: path for name, (path, _) in files.items()}
    inputs = made_from(out, store, layer, files, config.broden)
    check_replaceable(out, OURS, [store.path, *paths.values(), *([config.broden] if config.broden else [])])
    with replacing(out, OURS) as folder:
        found = _evaluate(subject, config, source, truth, scheduler)
        summary = {"made_by": OURS.made_by, "directions": found.entries, "made_from": inputs}
        write_json(folder / OURS.file, summary)
        tables = Tables(folder)
        for name, parts in found.tables.items():
            tables.write_parts(name, parts)
        if len(sets) > 1:
            tables.write_comparison(summary)
        tables.finish(summary)
        notes = write_evaluation_pages(folder, found.subject, found.dissected, config.title, scheduler)
    for note in notes if "synthetic" not in store.provenance else []:
        log.warning("the pages are not complete: %s", note)
    return summary


def _evaluate(
    subject: Subject, config: EvaluationConfig, source: ConceptSource | None, truth: Any, scheduler: Scheduler
) -> Evaluation:
    """All parts that are asked for, put together in their order."""
    parts: list[Findings] = []
    if truth is not None:
        parts.append(compare_with_truth(subject, truth))
    by_class = _class_labels(subject, config) if config.classes else {}
    maskless = {name: class_names_of(found) for name, found in by_class.items()}
    examples = None
    if config.encoder is not None:
        words = None if config.vocabulary is None else read_words(config.vocabulary)
        if words is not None:
            say_what_words_need(subject.bank.slices)
        examples = find_examples(subject, config.encoder, config.seed, texts=words is not None, scheduler=scheduler)
    if examples is not None and words is not None:
        named = find_words(subject, examples, words, config.seed)
        parts.append(named.findings)
        maskless = {name: first_found(maskless.get(name), words) for name, words in named.names.items()}
    subject = subject.called(maskless)
    dissected = None if source is None else dissect(subject, source, config.resolution, scheduler)
    if dissected is not None:
        parts.append(dissected.findings)
    if source is not None and config.untrained:
        parts.append(evaluate_untrained(subject, source, config.resolution, scheduler, config.seed))
    parts.append(measure_fidelity(subject, config.seed))
    studied = None if config.influence is None else study_influence(subject, config.influence, dissected)
    if studied is not None:
        parts.append(studied.findings)
    names = dissected.names if dissected else {name: subject.names(name) for name in subject.sets}
    if config.pairs is not None:
        parts.append(check_pairs_of(subject, config.pairs, names, config.seed))
    if by_class:
        parts.append(class_findings(subject, by_class, names, studied.raised if studied else None, config.seed))
    if examples is not None:
        parts.append(measure_meaning(subject, examples, config.seed))
    if config.monosemanticity is not None:
        parts.append(measure_monosemanticity(subject, config.monosemanticity))
    parts.append(measure_autocorrelation(subject))
    parts.append(measure_stability(subject))
    entries: dict[str, dict[str, Any]] = {}
    for name, directions in subject.sets.items():
        again = {} if directions.found_again is None else {"found_again": directions.share_found_again}
        fingerprint = directions.info.get("store", {}).get("fingerprint") or subject.store.fingerprint
        other = "" if fingerprint == subject.store.fingerprint else " (not the store evaluated)"
        about = {"method": directions.method, "directions": directions.count, "fitted_on": directions.fitted_on + other}
        entries[name] = {**about, **again}
        for part in parts:
            entries[name] |= part.entries.get(name, {})
    tables = {table: rows for part in parts for table, rows in part.tables.items()}
    return Evaluation(entries, tables, dissected, subject)


def _class_labels(subject: Subject, config: EvaluationConfig) -> dict[str, ClassLabels]:
    """Labels by classes; none, with a warning, where images are too few and something else is evaluated."""
    try:
        return find_class_labels(subject, config.seed)
    except FewImagesError as error:
        if not (
            config.broden
            or config.influence
            or config.encoder
            or config.monosemanticity
            or config.ground_truth
            or config.pairs
        ):
            raise
        log.warning("directions go without labels by classes: %s", error)
        return {}


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
        directions.check_store(layer, store.layer(layer).channels, store.provenance.get("weights_digest"))
    return layer


def _broden(folder: Path) -> ConceptSource:
    if ":" not in str(folder) and not folder.is_dir():
        raise MissingPathError(f"There is no Broden folder, nor another concept dataset, at '{folder}' (--broden).")
    return open_concepts(folder)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary as a table for people."""
    lines = [
        f"{name}: fitted on {text_of(entry['fitted_on'])}"
        for name, entry in summary["directions"].items()
        if entry.get("fitted_on", "unknown") != "unknown"
    ]
    scored = {n: e for n, e in summary["directions"].items() if "s1" in e}
    if scored:
        keys = ["s1", "s2", "interpretable", "distinct", "coverage", "precision", "recall", "f1", "average_precision"]
        heads = ["S1", "S2", "interpr.", "distinct", "coverage", "precision", "recall", "F1", "AP"]
        if any("found_again" in entry for entry in scored.values()):
            keys.append("found_again")
            heads.append("again")
        controls = {f"{n}, untrained": e["untrained"] for n, e in scored.items() if "untrained" in e}
        width = max(len(n) for n in [*scored, *controls, "directions"]) + 2
        lines.append(f"{'directions':<{width}}" + "".join(f"{h:>10}" for h in heads))
        for name, entry in (scored | controls).items():
            cells = (f"{number(entry.get(k)):>10}" for k in keys)
            lines.append(f"{name:<{width}}" + "".join(cells))
        lines.append(SCORES)
    lines += word_lines(summary)
    lines += influence_lines(summary)
    lines += evidence_lines(summary)
    lines += class_lines(summary)
    lines += [
        f"{name}: monosemanticity {number(entry.get('monosemanticity'))} (over all pairs of images "
        f"{number(entry.get('monosemanticity_baseline'))}), in the features of {entry['monosemanticity_encoder']}"
        for name, entry in summary["directions"].items()
        if "monosemanticity_encoder" in entry
    ]
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
