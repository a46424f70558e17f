"""No table without definitions: every column of every table that the code makes is in the data dictionary."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from evaluate.compare import KEYS, compare, comparison_columns
from evaluate.dictionary import SUMMARY, TABLES, check, entry_of, summary_keys, write_dictionary
from evaluate.direction_tables import COLUMNS
from evaluate.glossary import COMMON, PARTS
from evaluate.influence.influence_study import InfluenceConfig, measure_influence
from evaluate.influence.influence_tables import class_influence_rows, direction_influence_rows, influence_parts
from evaluate.stability import STABILITY, stability_rows
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions
from stores.statistics import Statistics
from stores.store import ActivationStore
from stores.tables import rows_to_columns

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict}
Columns = Mapping[str, Iterable[object]]


@pytest.fixture(scope="session")
def influence_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Columns]:
    """The tables of a small study."""
    path = tmp_path_factory.mktemp("study") / "acts.zarr"
    make_synthetic(path, SyntheticConfig(channels=6, images=40))
    store = ActivationStore.open(path)
    layer = next(iter(store.layers))
    g = np.random.default_rng(0)
    filters = g.normal(size=(6, 2)).astype(np.float32)
    directions = Directions(filters, filters, np.zeros(6, np.float32), np.zeros(2, np.float32), "toy", layer)
    config = InfluenceConfig(images=10, nulls=4, null_positions=20, null_epochs=2)
    found = measure_influence(store, layer, {"a": directions}, config)
    labels, classes = ["sky", ""], [f"class {k}" for k in range(len(found.base))]
    return {
        "influence": {
            key: values.tolist() for key, values in next(influence_parts(found, "a", labels, classes)).items()
        },
        "influence_directions": rows_to_columns(direction_influence_rows(found, "a", labels, classes)),
        "influence_classes": rows_to_columns(class_influence_rows(found, "a", labels, classes)),
    }


@pytest.fixture
def made_tables(influence_tables: dict[str, Columns], make_directions: Callable[..., Directions]) -> dict[str, Columns]:
    """Tables that the code makes here and now, with values."""
    sets = {"a": make_directions(np.eye(2)), "b": make_directions(np.eye(2)[:, :1])}
    slices = {"a": slice(0, 2), "b": slice(2, 3)}
    entry = {"method": "eddp", **dict.fromkeys(KEYS, 0.5), "intervals": {key: [0.25, 0.75] for key in KEYS}}
    return {
        **influence_tables,
        "stability": rows_to_columns(stability_rows(sets, Statistics(np.zeros(2), np.eye(2), 9), np.eye(3), slices)),
        "comparison": comparison_columns(compare({"directions": {"a": entry, "b": entry}})),
    }


def test_every_column_of_every_table_has_a_definition(made_tables: dict[str, Columns]) -> None:
    assert check(COLUMNS) == []
    assert check({"stability": STABILITY}) == []
    assert check(made_tables) == []


def test_what_has_no_definition_is_named_and_not_written(tmp_path: Path) -> None:
    tables = {"directions": {"index": [0], "mood": [1]}, "weather": ["index", "rain"]}
    assert check(tables) == ["directions.mood", "weather.index", "weather.rain"]
    with pytest.raises(ValueError, match=r"dictionary\.py: directions\.mood, weather\.index, weather\.rain\."):
        write_dictionary(tmp_path, tables)
    assert not list(tmp_path.iterdir())
    summary = {"made_by": "", "directions": {"one.v2": {"s1": 1.0, "influence": {"signal": {"0.5": {"mood": 1}}}}}}
    assert check({SUMMARY: summary_keys(summary)}) == ["summary.json.directions.FILE.influence.signal.ALPHA.mood"]


def test_values_are_of_the_type_that_is_said(made_tables: dict[str, Columns]) -> None:
    wrong = []
    for table, columns in made_tables.items():
        for column, values in columns.items():
            entry = entry_of(table, column)
            assert entry is not None
            allowed = TYPES[entry.type]
            wrong += [
                f"{table}.{column}: {value!r}"
                for value in values
                if value is not None
                and (table, column) not in {("comparison", key) for key in KEYS}  # all 0.5 here
                and not (isinstance(value, allowed) and (entry.type == "boolean" or not isinstance(value, bool)))
            ]
    assert not wrong


def test_definitions_are_complete() -> None:
    tables = {**{name: table.columns for name, table in TABLES.items()}, "common": COMMON}
    wrong = [
        f"{table}.{column}"
        for table, columns in tables.items()
        for column, entry in columns.items()
        if entry.type not in TYPES
        or not entry.definition.endswith(".")
        or not (entry.source == "ours" or entry.source.startswith("paper: "))
    ]
    assert not wrong
    assert all(text.endswith(".") for part in PARTS.values() for text in part.values())


def test_a_tables_own_definition_goes_before_the_common_one() -> None:
    assert entry_of("steering", "class") != COMMON["class"]
    assert entry_of("influence", "class") == COMMON["class"]
    assert entry_of("nothing", "class") is None


def test_both_files_say_the_same(tmp_path: Path) -> None:
    paths = write_dictionary(
        tmp_path / "out", {"categories": ["directions", "category", "distinct"], "labels": ["rank"]}
    )
    assert [path.name for path in paths] == ["dictionary.json", "dictionary.csv"]
    document = json.loads(paths[0].read_text(encoding="utf-8"))
    assert list(document) == ["categories", "labels"]
    assert list(document["categories"]["columns"]) == ["directions", "category", "distinct"]
    assert set(document["categories"]["columns"]["distinct"]) == {"type", "unit", "definition", "source"}
    with paths[1].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["table"], row["column"]) for row in rows] == [
        ("categories", "directions"), ("categories", "category"), ("categories", "distinct"), ("labels", "rank"),
    ]  # fmt: skip
    for row in rows:
        entry = document[row.pop("table")]["columns"][row.pop("column")]
        assert row == entry


def test_a_folder_without_tables(tmp_path: Path) -> None:
    paths = write_dictionary(tmp_path, {})
    assert json.loads(paths[0].read_text()) == {}
    assert paths[1].read_text().strip() == '"table","column","type","unit","definition","source"'
