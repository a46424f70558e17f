"""Rows of the tables against the scores they are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from evaluate.average_precision import Overlap
from evaluate.counts import Counts
from evaluate.direction_tables import COLUMNS, category_rows, direction_rows, label_rows, table_columns
from evaluate.metrics import Labelled, LabelScores
from extract.segmentation.base import ConceptLabel
from stores.directions import Directions
from stores.tables import write_table


@pytest.fixture
def labelled() -> tuple[Counts, Labelled]:
    """Two directions, the second dead; labels sky, sea, tree."""
    train, val = np.array([[0.5, 0.2, 0.5], [0.0, 0.0, 0.0]]), np.array([[0.25, 0.1, 0.3], [0.0, 0.0, 0.0]])
    counts = Counts(
        labels=[ConceptLabel(n, name, "object") for n, name in ((4, "sky"), (5, "sea"), (9, "tree"))],
        categories=["object"],
        category_of=np.zeros(3, int),
        both=np.zeros((2, 3, 3)),
        detector=np.zeros((2, 3, 1)),
        label=np.zeros((2, 3)),
        points=np.zeros((2, 1)),
        images=np.zeros(2, int),
        resolution="mask",
        raster=(1, 1),
        shown=np.array([[0, 0, 0], [7, 3, 2]]),
        positions=8,
        positive=np.array([7, 1, 0]),  # the first belongs to another set
    )
    scores = Labelled(
        label=np.array([0, -1]),
        iou_train=np.array([0.5, 0.0]),
        iou_val=np.array([0.25, 0.0]),
        precision=np.array([1 / 3, 0.0]),
        recall=np.array([0.5, 0.0]),
        f1=np.array([0.4, 0.0]),
        average_precision=np.array([0.75, np.nan]),
        all_iou_train=train,
        all_iou_val=val,
    )
    return counts, scores


@pytest.fixture
def directions() -> Directions:
    filters = np.array([[2, 1], [0, 1]], np.float32)
    signals = np.array([[0.6, 0], [0.8, 0]], np.float32)
    return Directions(filters, signals, np.zeros(2, np.float32), np.zeros(2, np.float32), "eddp", "conv")


def test_agreement_is_the_cosine_and_zero_vectors_agree_with_nothing(directions: Directions) -> None:
    np.testing.assert_allclose(directions.agreement, [0.6, 0.0], atol=1e-7)


def test_one_row_a_direction(labelled: tuple[Counts, Labelled], directions: Directions) -> None:
    counts, scores = labelled
    first, dead = direction_rows("mine", directions, counts, slice(1, 3), scores)
    assert first == {
        "directions": "mine", "method": "eddp", "index": 0, "name": "sky", "label": "sky", "category": "object", "number": 4,
        "iou_train": 0.5, "iou_val": 0.25, "interpretable": True, "precision": 0.333333, "recall": 0.5, "f1": 0.4,
        "average_precision": 0.75, "share": 0.125, "agreement": 0.6,
        "images_val": 7, "positions_val": 0, "iou_low": None, "iou_high": None, "threshold_supervised": None, "iou_supervised": None, "f1_supervised": None,
        "found_again": None,
    }  # fmt: skip
    assert (dead["label"], dead["category"], dead["number"], dead["interpretable"]) == ("", "", 0, False)
    assert dead["average_precision"] is None
    assert tuple(first) == COLUMNS["directions"]


def test_what_the_second_pass_gave(labelled: tuple[Counts, Labelled], directions: Directions) -> None:
    counts, scores = labelled
    none = np.zeros(2)
    supervised = Overlap(np.array([0.5, 0.0]), none, none, np.array([2 / 3, 0.0]))
    refined = LabelScores(
        np.array([0.1, 0.0]), np.array([0.3, 0.0]), np.array([1.5, np.nan]), supervised, {}, supervised
    )
    first, dead = direction_rows("mine", directions, counts, slice(1, 3), scores, refined)
    names = ("iou_low", "iou_high", "threshold_supervised", "iou_supervised", "f1_supervised")
    assert [first[name] for name in names] == [0.1, 0.3, 1.5, 0.5, 0.666667]
    assert [dead[name] for name in names] == [0, 0, None, 0, 0]
    rows = label_rows("mine", directions, counts, scores, refined)
    assert [(row["label"], row["images_val"], row["as_good"]) for row in rows] == [
        ("sky", 7, True),
        ("tree", 2, True),
        ("sea", 3, True),
    ]
    narrow = dataclasses.replace(refined, iou_low=np.array([0.2, 0.0]))
    assert [row["as_good"] for row in label_rows("mine", directions, counts, scores, narrow)] == [True, True, False]


def test_how_often_each_direction_is_found_again(labelled: tuple[Counts, Labelled], directions: Directions) -> None:
    refitted = dataclasses.replace(directions, found_again=np.array([0.875, 0], np.float32))
    rows = direction_rows("mine", refitted, labelled[0], slice(1, 3), labelled[1])
    assert [row["found_again"] for row in rows] == [0.875, 0]


def test_the_best_labels_of_each_direction(labelled: tuple[Counts, Labelled], directions: Directions) -> None:
    counts, scores = labelled
    rows = label_rows("mine", directions, counts, scores)
    assert [(r["index"], r["rank"], r["label"], r["iou_train"], r["iou_val"]) for r in rows] == [
        (0, 1, "sky", 0.5, 0.25),  # tied with tree: the first, which is the direction's label
        (0, 2, "tree", 0.5, 0.3),
        (0, 3, "sea", 0.2, 0.1),
    ]  # and none of the dead direction
    assert len(label_rows("mine", directions, counts, scores, top=2)) == 2
    assert tuple(rows[0]) == COLUMNS["labels"]


def test_one_row_a_category() -> None:
    summary = {"per_category": {"object": {"distinct": 2, "detectors": 5}}}
    rows = category_rows("mine", summary)
    assert rows == [{"directions": "mine", "category": "object", "distinct": 2, "detectors": 5}]
    assert tuple(rows[0]) == COLUMNS["categories"]


@pytest.mark.parametrize("name", COLUMNS)
def test_an_empty_table_still_names_its_columns(tmp_path: Path, name: str) -> None:
    write_table(tmp_path, name, table_columns(name, []))
    assert (tmp_path / f"{name}.csv").read_text().strip().replace('"', "").split(",") == list(COLUMNS[name])
    assert pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").column_names == list(COLUMNS[name])


def test_csv_and_parquet_hold_the_same(
    tmp_path: Path, labelled: tuple[Counts, Labelled], directions: Directions
) -> None:
    counts, scores = labelled
    rows = direction_rows("mine", directions, counts, slice(1, 3), scores)
    write_table(tmp_path, "directions", table_columns("directions", rows))
    kept = pyarrow.parquet.read_table(tmp_path / "directions.parquet")
    assert kept.to_pylist() == rows
    options = pyarrow.csv.ConvertOptions(column_types=kept.schema)
    assert pyarrow.csv.read_csv(tmp_path / "directions.csv", convert_options=options).to_pylist() == rows
