"""A correction from files to a folder: which detector, the images' activations, the choice, what it does, the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.concepts import activations_on
from evaluate.correct.correction_page import change_of, facts_of, write_page
from evaluate.correct.correction_study import CorrectConfig, Study, study_correction
from evaluate.correct.correction_tables import (
    class_rows,
    confusion_rows,
    correction_rows,
    correction_summary,
    held_out_words,
    problem_of,
    strength_rows,
)
from evaluate.correct.gates import measure_gates
from evaluate.correct.heldout_evaluation import judged
from evaluate.correct.probability_changes import (
    GROUPS,
    probability_change,
    probability_rows,
    probability_summary,
    split_by_detector,
    write_probability_page,
)
from evaluate.detector_bank import make_bank
from evaluate.direction_names import DirectionName, with_number
from evaluate.influence.shortcut_candidates import NO_SUSPECTS, of_one_class
from extract.classes import folder_numbers, image_classes, read_folder_classes
from extract.datasets import open_source
from extract.image_io import shown
from extract.image_source import ImageSource
from extract.network import check_trusted, open_head
from extract.store_images import rows_called
from pipeline.evaluation_result import EvaluationResult, Label
from pipeline.influence import class_names
from pipeline.table_writer import Tables
from stores.errors import MismatchError, UnknownNameError, UsageError, nearest
from stores.folders import Ours, check_replaceable, replacing
from stores.io import write_json
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.tables import rows_to_columns

SETS = ("clean", "poisoned")
OURS = Ours("summary.json", "eddp correct", "a correction")


@dataclass(frozen=True)
class Suspect:
    """Which directions are suppressed and why: numbers, name for people, and in words how they were found."""

    indices: list[int]
    title: str
    because: str
    class_name: str = ""


def choose_detector(
    labels: list[Label],
    names: Sequence[DirectionName],
    suspects: list[dict[str, Any]] | None,
    directions: Sequence[int] = (),
    label: str | None = None,
) -> Suspect:
    """The detectors asked for by numbers or by label; without either, all of the first suspect that is small and of one class.

    Raises UnknownNameError for numbers or labels that there are not, UsageError where nothing was asked for and nothing is suspicious.
    """
    if directions and label is not None:
        raise UsageError("Name directions (--direction) or a label (--label), not both.")
    if directions:
        directions = list(dict.fromkeys(directions))
        wrong = [i for i in directions if not 0 <= i < len(labels)]
        if wrong:
            raise UnknownNameError(f"There is no direction {wrong[0]}: they are numbered from 0 to {len(labels) - 1}.")
        return Suspect(list(directions), ", ".join(with_number(names, i) for i in directions), "asked for by number")
    if label is not None:
        mine = [i for i, (name, _) in enumerate(labels) if name == label]
        if not mine:
            there = ", ".join(sorted({name for name, _ in labels if name})[:20])
            raise UnknownNameError(f"No direction carries the label '{label}'. There are: {there or 'no labels'}.")
        return Suspect(mine, ", ".join(with_number(names, i) for i in mine), f"all that carry the label '{label}'")
    if suspects is None:
        raise UsageError(
            "No direction was named, and the evaluation did not look for suspects. Name one (--direction N or --label NAME), or evaluate "
            "with --broden and --influence first."
        )
    if not (small := of_one_class(suspects)):
        raise UsageError(f"No direction was named. {NO_SUSPECTS} Name one: --direction N or --label NAME.")
    first = small[0]
    why = (
        f"first of the evaluation's suspects: small ({100 * first['area']:.1f} % of an image), {100 * first['share_of_class']:.0f} % of the "
        f"images that show it are predicted as '{first['class_name']}', and {'it' if len(first['indices']) == 1 else 'the first of them'} raises that class by {100 * first['probability_change']:.1f} points"
    )
    return Suspect(
        first["indices"], ", ".join(with_number(names, i) for i in first["indices"]), why, str(first["class_name"])
    )


def correct_model(
    evaluated: EvaluationResult,
    name: str,
    suspect: Suspect,
    out: Path,
    *,
    clean: str | Path,
    poisoned: str | Path | None,
    given_classes: Path | None = None,
    held: float = 0.5,
    config: CorrectConfig | None = None,
    store: ActivationStore | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Choose and judge a correction; writes ``correction.safetensors``, ``summary.json``, tables and ``index.html``; returns the summary.

    ``given_classes``: a file that says which class a folder of images is. Images without class folders are judged by what becomes of the
    model's own predictions and probabilities.

    The activations of the images are stored next to the store, as those of concept datasets are: a second try goes at once. What an earlier
    run wrote to ``out`` is replaced when all is done, and not before. Raises StoreExistsError when ``out`` holds anything else.
    """
    config = config or CorrectConfig()
    store = store or evaluated.store()
    layer, directions = evaluated.layer, evaluated.directions(name)
    directions.check_store(layer, store.layer(layer).channels, store.provenance.get("weights_digest"))
    if "synthetic" in store.provenance:
        raise MismatchError(f"The store '{store.path}' is synthetic: it has no model to correct.")
    check_trusted(store)
    check_replaceable(out, OURS)
    places = {which: place for which, place in zip(SETS, (clean, poisoned), strict=True) if place is not None}
    sources = {which: open_source(place) for which, place in places.items()}
    numbers = _class_numbers(sources, store, given_classes)
    reader = LayerReader(store, layer)
    thresholds = make_bank({name: directions}, reader, device=device, progress=progress).thresholds.cpu().numpy()
    gates = measure_gates(directions, suspect.indices, thresholds, reader, progress)
    mend = "Repair it or take it out of its folder, then run eddp correct again: it continues where it stopped."
    seen = {
        which: activations_on(store, layer, source, mend=mend, device=device, progress=progress)
        for which, source in sources.items()
    }
    known = {
        which: one.logits.argmax(1) if numbers is None else image_classes(one, numbers[which])
        for which, one in seen.items()
    }
    sets = judged(seen, layer, known, held=held, seed=config.seed)
    if numbers is None and poisoned is None:
        sets = split_by_detector(sets["clean"], gates)
    head = open_head(store, layer, device=device)
    study = study_correction(
        gates, head, sets["clean" if "clean" in sets else "other"], None if numbers is None else sets.get("poisoned"),
        rectify=never_negative(reader), config=config if numbers else replace(config, randoms=0), device=device, progress=progress,
    )  # fmt: skip
    classes = class_names(store, study.clean.logits.shape[1])
    summary: dict[str, Any] = {
        "made_by": OURS.made_by,
        "direction": suspect.indices,
        "title": suspect.title,
        "because": suspect.because,
        "directions": name,
        "layer": layer,
        "held_out": sum(int(of.held.sum()) for of in sets.values()),
        "images": sum(len(of.held) for of in sets.values()),
        "activations": {which: str(one.path) for which, one in seen.items()},
    }
    if numbers is None:
        changes = {
            which: probability_change(of, head, study.correction, device)
            for which, of in sets.items()
            if not of.held.all()
        }
        rows = probability_rows(changes, classes)
        chosen = {key: value for key, value in correction_summary(study).items() if key not in SETS}
        summary |= {**chosen, "labelled": False, **probability_summary(changes, rows)}
    else:
        summary |= correction_summary(study)
    made = store.provenance
    about = {
        "model": made.get("model"),
        "weights_digest": made.get("weights_digest"),
        "directions": name,
        "method": directions.method,
        "index": suspect.indices,
        "title": suspect.title,
        "problem": problem_of(summary),
        **{which: summary[which] for which in GROUPS if which in summary},
    }
    with replacing(out, OURS) as folder:
        replace(study.correction, info=about).save(folder / "correction.safetensors")
        write_json(folder / "summary.json", summary)
        if numbers is None:
            tables = Tables(folder)
            tables.write("correction_probabilities", rows_to_columns(rows))
            tables.finish()
            write_probability_page(folder, summary, facts_of(summary, store), problem_of(summary), rows_called(store))
        else:
            _write_tables(study, classes, folder)
            write_page(folder, study, summary, classes, store)
    return summary


def never_negative(reader: LayerReader) -> bool:
    """Whether no activation of a store is below 0: then the layer ends in a ReLU or something like it."""
    return all(float(block.min()) >= 0 for _, block in reader.blocks() if block.size)


def _class_numbers(
    sources: dict[str, ImageSource], store: ActivationStore, given: Path | None
) -> dict[str, np.ndarray] | None:
    """The model's class of each source's labels; None where no image has a label.

    Raises MismatchError for folders that are no class of the model, UsageError where only one of the sets has labels, or a class is given to
    folders that there are not: all before anything is run.
    """
    largest = {which: max((of.label(i) for i in range(len(of))), default=-1) for which, of in sources.items()}
    bare = [which for which, of in sources.items() if not of.class_names and largest[which] < 0]
    if bare and len(bare) < len(sources):
        raise UsageError(
            f"The images of '{shown(sources[bare[0]].root)}' have no classes, and the others have. Give both in class folders, or both without."
        )
    meant = {} if given is None else read_folder_classes(given)
    folders = [name for of in sources.values() for name in of.class_names or []]
    unknown = [name for name in meant if name not in folders]
    if unknown:
        raise UsageError(
            f"There is no class folder '{shown(unknown[0])}' that '{given}' names{nearest(unknown[0], folders)}."
        )
    if bare:
        return None
    return {
        which: folder_numbers(of.class_names, store, meant, place=of.root, largest=largest[which], kind=of.kind)
        for which, of in sources.items()
    }


def _write_tables(study: Study, classes: Sequence[str], out: Path) -> None:
    tables = Tables(out)
    tables.write("correction", rows_to_columns(correction_rows(study)))
    tables.write("correction_strengths", rows_to_columns(strength_rows(study)))
    tables.write("correction_classes", rows_to_columns(class_rows(study, classes)))
    tables.write("correction_confusion", rows_to_columns(confusion_rows(study, classes)))
    tables.finish()


def correction_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [f"Suppressing {summary['title']}: {summary['because']}."]
    shift = f" − {summary['shift']:.3g}" if summary["shift"] else ""
    inside = f"x − {summary['strength']:.4g} · sigmoid(z{shift}) · s"
    lines += [
        f"At every position x becomes {f'relu({inside})' if summary['rectify'] else inside}",
        f"  x: activation; s: signal vector, what the concept adds to it; z: logit of the concept's detector; strength {summary['strength']:.4g}, where "
        f"the concept's typical signal value is {summary['typical_signal_value']:.4g}"
        + f"; threshold raised by {summary['shift']:.3g}"
        * bool(shift),
    ]
    if "held_out" in summary:
        lines.append(
            f"{summary['held_out']} of {summary['images']} images are held out to choose the correction on (--held-out, a share of each class); the "
            "figures are of the others"
        )
    if "activations" in summary:
        lines.append(
            f"The images' activations are stored for another try: {', '.join(summary['activations'].values())}"
        )
    if not summary.get("labelled", True):
        return lines + _probability_lines(summary)
    width = 30
    shown = [which for which in SETS if which in summary]
    counts = [f"{which} ({summary[which]['images']})" for which in shown]
    lines.append(f"{'accuracy':<{width}}" + "".join(f"{head:>26}" for head in counts))

    def line(label: str, values: list[float | None]) -> str:
        return f"{label:<{width}}" + "".join(f"{'–' if v is None else f'{100 * v:.1f} %':>26}" for v in values)

    lines.append(line("before", [summary[which]["before"] for which in shown]))
    lines.append(line("along the signal vector", [summary[which]["after"] for which in shown]))
    lines.append(
        f"{'  change in points, 95 %':<{width}}" + "".join(f"{change_of(summary[which]):>26}" for which in shown)
    )
    for name, key in (
        ("along the filter", "filter"),
        ("along random directions: mean", "random_mean"),
        ("  95th percentile", "random_percentile_95"),
        ("  best", "random_best"),
    ):
        lines.append(line(name, [summary[which]["own_strength"][key] for which in shown]))
    return lines + _warning(summary)


def _probability_lines(summary: dict[str, Any]) -> list[str]:
    lines = [] if summary["problem"] or "lost" not in summary else [f"At this strength {held_out_words(summary)}"]
    for which, title in GROUPS.items():
        if which in summary:
            of = summary[which]
            lines.append(
                f"{title}: {of['predicted_otherwise']} of {of['images']} images are predicted as another class"
            )
            lines += [
                f"  {row['class_name']:<28}{100 * row['before']:.1f} % → {100 * row['after']:.1f} %"
                for row in of["classes"][:3]
            ]
    return lines + _warning(summary)


def _warning(summary: dict[str, Any]) -> list[str]:
    problem = problem_of(summary)
    if not problem:
        return []
    return [f"Warning: {problem} Do not use it unchecked: correction.safetensors says so when it is loaded."]
