import csv
import math
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from stores.errors import StoreError
from stores.tables import rows_to_columns, write_table

COLUMNS = {
    "direction": [0, 1, 2],
    "name": ["plain", 'with "quotes", and commas', "new\nline 猫"],
    "iou": [0.25, 1e-17, 0.1 + 0.2],
    "rare": [None, 1.5, None],
    "kept": [True, False, True],
}


def test_both_files_hold_the_same(tmp_path: Path) -> None:
    paths = write_table(tmp_path / "out", "labels", COLUMNS)
    assert [path.name for path in paths] == ["labels.csv", "labels.parquet"]
    parquet = pyarrow.parquet.read_table(paths[1])
    assert parquet.column_names == list(COLUMNS)
    assert parquet.to_pydict() == COLUMNS
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert pyarrow.csv.read_csv(paths[0], parse_options=options).to_pydict() == COLUMNS
    with paths[0].open(newline="", encoding="utf-8") as file:  # and with Python's own reader
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == COLUMNS["name"]
    assert [float(row["iou"]) for row in rows] == COLUMNS["iou"]
    assert rows[0]["rare"] == ""


def test_numpy_values_and_not_a_number(tmp_path: Path) -> None:
    columns = {"a": np.arange(2), "b": np.array([1.5, np.nan], np.float32), "c": [np.float32(1), np.int64(2)]}
    paths = write_table(tmp_path, "t", columns)
    found = pyarrow.parquet.read_table(paths[1]).to_pydict()
    assert found["a"] == [0, 1]
    assert found["b"][0] == 1.5
    assert math.isnan(found["b"][1])
    assert found["c"] == [1, 2]
    assert "nan" in paths[0].read_text()


def test_a_file_name_of_any_bytes(tmp_path: Path) -> None:
    paths = write_table(tmp_path, "t", {"name": ["caf\udce9.jpg", "grün"]})
    assert pyarrow.parquet.read_table(paths[1]).to_pydict() == {"name": ["caf\\udce9.jpg", "grün"]}
    assert "caf\\udce9.jpg" in paths[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", [{"a": [], "b": []}, {"a": [None, None]}])
def test_tables_of_nothing(tmp_path: Path, columns: dict) -> None:
    paths = write_table(tmp_path, "t", columns)
    assert pyarrow.parquet.read_table(paths[1]).to_pydict() == columns
    assert paths[0].read_text().splitlines()[0] == ",".join(f'"{name}"' for name in columns)


def test_rows_become_columns_with_empty_cells() -> None:
    assert rows_to_columns([{"a": 1, "b": 2}, {"a": 3, "c": 4}]) == {"a": [1, 3], "b": [2, None], "c": [None, 4]}
    assert rows_to_columns([]) == {}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match=r"t\.csv' could not be written"):
        write_table(tmp_path / "out", "t", COLUMNS)
