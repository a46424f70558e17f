"""Labels from image-level classes: the part of an evaluation that needs no masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluate.class_labels import LEVEL, MOST_CLASSES, ClassLabels, label_by_classes
from evaluate.direction_names import DirectionName, Maskless, with_names
from evaluate.number_format import number
from pipeline.evaluation_parts import Findings, Subject
from pipeline.influence import class_names
from stores.tables import rows_to_columns

KIND = "class"
PERMUTATIONS = 999
SEPARATOR = "; "  # names of ImageNet's classes hold commas
Raised = Mapping[
    str, Sequence[Sequence[int]]
]  # by set, of each direction the classes that its signal vector raises, most first


def find_class_labels(subject: Subject, seed: int) -> dict[str, ClassLabels]:
    """The class labels of all sets. Raises FewImagesError where the images have too few classes."""
    filters = {name: directions.filters for name, directions in subject.sets.items()}
    return label_by_classes(subject.reader, filters, seed=seed, progress=subject.progress)


def class_names_of(found: ClassLabels) -> list[Maskless]:
    """What directions may be called: their significant labels."""
    return [
        (label, KIND) if good else ("", "")
        for label, good in zip(found.labels, found.significant.tolist(), strict=True)
    ]


def class_findings(
    subject: Subject,
    labels: Mapping[str, ClassLabels],
    names: Mapping[str, Sequence[DirectionName]],
    raised: Raised | None,
    seed: int,
) -> Findings:
    """The table ``class_labels`` and its summary; ``raised`` where influence was measured."""
    titles = class_names(subject.store, int(subject.store.attributes["n_classes"]))
    entries: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for name, found in labels.items():
        up = None if raised is None else [list(classes[:MOST_CLASSES]) for classes in raised[name]]
        mine = [
            {
                "directions": name,
                "index": i,
                "label": found.labels[i],
                **{key: round(float(getattr(found, key)[i]), 6) for key in ("auroc", "auroc_low", "auroc_high")},
                **{key: float(f"{getattr(found, key)[i]:.4g}") for key in ("p", "p_random", "q")},
                "significant": bool(found.significant[i]),
                "fires": SEPARATOR.join(titles[k] for k in found.fires[i]),
                **({} if up is None else _raised(up[i], found.fires[i], titles)),
            }
            for i in range(len(found.labels))
        ]
        rows += with_names(mine, names[name])
        entries[name] = {"class_labels": _summary(found) | ({} if up is None else _agreement(up, found.fires, seed))}
    return Findings(entries, {"class_labels": [rows_to_columns(rows)]})


def _raised(up: Sequence[int], fires: Sequence[int], titles: Sequence[str]) -> dict[str, Any]:
    """Columns that only influence fills: the classes that a signal vector raises, against those where its filter fires."""
    return {
        "raised": SEPARATOR.join(titles[k] for k in up),
        "agree": up[0] in fires[:1] if up else None,
        "overlap": round(len({*up} & {*fires}) / len(up), 4) if up else None,
    }


def _summary(found: ClassLabels) -> dict[str, Any]:
    mean = zip(("auroc", "auroc_low", "auroc_high"), found.mean, strict=True)
    return {
        "source": found.source,
        "images": found.images,
        "significant": round(float(found.significant.mean()), 4),
        **{key: round(value, 4) for key, value in mean},
        "randoms": found.randoms,
        "auroc_random": round(found.mean_random, 4),
        "median_reached": round(found.reached, 4),
    }


def _agreement(raised: Sequence[Sequence[int]], fires: Sequence[Sequence[int]], seed: int) -> dict[str, Any]:
    """How often the class that a signal vector raises most is the one where the filter fires most, and how often that of another direction is;
    its p is of permutations of the filters among all directions."""
    first = np.array([classes[0] if classes else -1 for classes in raised])
    at = np.array([classes[0] if classes else -2 for classes in fires])
    known = np.flatnonzero(first >= 0)
    same = first[known, None] == at[None]
    own = same[np.arange(len(known)), known]
    others = len(known) * (len(at) - 1)
    g = np.random.default_rng([seed, 0xA6])
    drawn = [int((first[known] == g.permutation(at)[known]).sum()) for _ in range(PERMUTATIONS)]
    reached = sum(count >= own.sum() for count in drawn)
    return {
        "raising": len(known),
        "agree": round(float(own.mean()), 4) if len(known) else None,
        "agree_others": round(float((same.sum() - own.sum()) / others), 4) if others else None,
        "agree_p": round(float(reached + 1) / (PERMUTATIONS + 1), 4) if len(known) else None,
    }


def class_lines(summary: Mapping[str, Any]) -> list[str]:
    """The class labels of each file for people."""
    lines = []
    for name, entry in summary["directions"].items():
        if (found := entry.get("class_labels")) is None:
            continue
        apart = ": they separate the classes, too" if found["median_reached"] > LEVEL else ""
        line = (
            f"{name}: {100 * found['significant']:.3g} % of directions have a significant class label ({found['source']} of {found['images']} "
            f"images, at {100 * LEVEL:g} %), mean AUROC {number(found['auroc'])} (random directions {number(found['auroc_random'])}, of which "
            f"{100 * found['median_reached']:.3g} % reach the directions' median{apart})"
        )
        if found.get("agree") is not None:
            line += (
                f"; of {found['raising']} signal vectors that raise a class, {100 * found['agree']:.3g} % raise most the one where their filter "
                f"fires most (p = {number(found['agree_p'])})"
            )
        lines.append(line)
    return lines
