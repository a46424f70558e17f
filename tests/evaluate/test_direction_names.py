"""What directions are called: by labels that fit, by numbers, by names.csv."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluate.direction_names import names_of, read_names, with_number
from evaluate.metrics import problem_of
from stores.errors import DatasetError


def test_directions_of_one_label_are_numbered_and_a_label_that_does_not_fit_gives_no_name(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text(
        "direction,name,comment\n3,striped fish,8 of 9 pictures\n1,,look again\n", encoding="utf-8"
    )
    labels, fits = ["mammal", "sky", "mammal", "sea", ""], [True, True, True, False, False]
    names = names_of(labels, fits, read_names(tmp_path / "d.safetensors", 5))
    assert [name.full for name in names] == ["mammal 1", "sky", "mammal 2", "striped fish", "direction 4"]
    assert [name.short for name in names] == ["mammal", "sky", "mammal", "striped fish", "direction 4"]
    assert [name.comment for name in names] == ["", "look again", "", "8 of 9 pictures", ""]
    assert [with_number(names, i) for i in (2, 3, 4)] == ["mammal 2 (2)", "striped fish (3)", "direction 4"]


def test_names_of_several_files_in_one_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        (tmp_path / file).touch()
    table = tmp_path / "names.csv"
    table.write_text("directions,direction,name\na,0,fish\nb,0,boat\n", encoding="utf-8")
    assert read_names(tmp_path / "a.safetensors", 2)[0].name == "fish"
    assert read_names(tmp_path / "b.safetensors", 2)[0].name == "boat"
    table.write_text("direction,name\n0,fish\n", encoding="utf-8")
    for file in ("a.safetensors", "b.safetensors"):
        assert read_names(tmp_path / file, 2) == {}
    (warning,) = caplog.messages
    assert "Add a column 'directions'" in warning


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("direction,name\n2,fish\n", "line 2.*from 0 to 1, got 2"),
        ("direction,name\n0,fish\n0,boat\n", "line 3.*has a row already"),
        ("direction,name\nfish,0\n", "line 2.*integer"),
        ("index;name\n0;fish\n", "lacks the column direction, name"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    (tmp_path / "names.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(DatasetError, match=words):
        read_names(tmp_path / "d.safetensors", 2)


def test_what_stands_against_a_label() -> None:
    assert problem_of("sky", 0.05, 5) == ""
    assert problem_of("sky", 0.04, 5) == "no label fits"
    assert problem_of("", 0.0, 0) == "no label fits"
    assert problem_of("sky", 0.5, 4) == "too few validation images"
