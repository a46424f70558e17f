"""Do labels found without masks say what the masks say? Counted in the tables of one evaluation.

Of the directions that a label of the masks fits (IoU above 0.2 on val), a label found without masks *agrees* where

* it is among the direction's five best labels by masks, with an IoU above 0.2; of a formula of classes: one of those joined by OR is;
* or, a formula of classes: in the images that it holds for, the direction's label by masks covers at least twice the area that it covers in the others
  (its share of positions, mean over the images of val). A class's name as a word is a formula of one class.

Labels count whether they are significant or not; ``named`` counts significant words that agree. ``others``: the same labels, exchanged between directions.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extract.datasets import open_concepts

FITS = 0.2  # IoU


@dataclass(frozen=True)
class Agreement:
    """Of ``count`` directions the shares that agree, by classes (None: the images' classes are not the dataset's) and by words; None of fewer than two.
    ``sayable`` : how many have a label that a single class would agree with; ``classes_sayable`` : the share by classes of these."""

    count: int
    sayable: int | None = None
    classes_sayable: float | None = None
    classes: float | None = None
    classes_others: float | None = None
    words: float | None = None
    words_others: float | None = None
    named: float | None = None


def agreement(out: Path, name: str, root: Path, classes: tuple[str, ...] = ()) -> Agreement:
    """Of the directions ``name`` of an evaluation on the concept dataset ``root``, whose images' folders are named as their ``classes``."""
    found, labels, words = (
        _rows(out / f"{table}.csv", name) for table in ("directions", "labels", "vocabulary_labels")
    )
    formulas = [row["label"] for row in _rows(out / "class_labels.csv", name)]
    fitting: list[set[str]] = [set() for _ in found]
    for row in labels:
        if float(row["iou_val"] or 0) > FITS:
            fitting[int(row["index"])].add(row["label"])
    labelled = [i for i, row in enumerate(found) if float(row["iou_val"] or 0) > FITS]
    if len(labelled) < 2:
        return Agreement(len(labelled))
    shares, class_of = _areas(root) if classes else ({}, np.empty(0))

    def by_class(i: int, formula: str) -> bool:
        label, negated = found[i]["label"], formula.startswith("NOT ")
        among = formula.removeprefix("NOT ").strip("()").split(" OR ")
        if not negated and fitting[i] & set(among):
            return True
        if label in classes:
            return False
        holds = np.isin(class_of, among) != negated
        return bool(shares[label][holds].mean() >= 2 * shares[label][~holds].mean())

    def by_word(i: int, word: str) -> bool:
        return word in fitting[i] or (word in classes and by_class(i, word))

    def counted(agrees: Callable[[int, int], bool]) -> tuple[float, float]:
        table = np.array([[agrees(i, j) for j in labelled] for i in labelled])
        return float(table.diagonal().mean()), float(table[~np.eye(len(labelled), dtype=bool)].mean())

    sayable = [i for i in labelled if any(by_class(i, name) for name in classes)]
    of_sayable = float(np.mean([by_class(i, formulas[i]) for i in sayable])) if sayable else None
    named = np.mean([words[i]["significant"] == "true" and by_word(i, words[i]["word"]) for i in labelled])
    return Agreement(
        len(labelled),
        *((len(sayable), of_sayable) if classes else (None, None)),
        *(counted(lambda i, j: by_class(i, formulas[j])) if classes else (None, None)),
        *counted(lambda i, j: by_word(i, words[j]["word"])),
        float(named),
    )


def _rows(file: Path, name: str) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if row["directions"] == name]


def _areas(root: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of each label its share of positions in each image of val, and the class of each image."""
    source = open_concepts(root)
    val = [i for i in range(len(source)) if source.split(i) == "val"]
    shares = {label.name: np.zeros(len(val)) for label in source.labels}
    for k, i in enumerate(val):
        layers = [mask for category in source.masks(i).values() for mask in category]
        for number in {int(n) for mask in layers for n in np.unique(mask[mask > 0])}:
            shares[source.by_number[number].name][k] = np.any([mask == number for mask in layers], 0).mean()
    return shares, np.array([source.name(i).split("/")[0] for i in val])
