"""What ``evaluate`` leaves in its folder: every table in three formats, a word on every column, the comparison of several files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from command_line import Run, do, fails, ok
from tiny import write_broden

from evaluate.dictionary import check
from pipeline.table_writer import Tables
from stores.errors import StoreError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept dataset, a store made from it, and three files: one method with two seeds, and another method; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    broden, store = write_broden(folder / "broden").root, folder / "acts.zarr"
    do("extract --model tiny_net:build --layer second --data", broden, "--out", store)
    for name, options in (("one", "kmeans"), ("two", "kmeans --seed 5 --refits 2"), ("pca", "pca")):
        out = folder / f"{name}.safetensors"
        do("fit --store", store, "--directions 3 --out", out, f"--method {options}")
    return folder


@pytest.fixture
def fitted(made: Path, tmp_path: Path) -> tuple[Path, Path, list[object]]:
    """The concept dataset, the store and the options that name the files, in a copy."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    files = [word for name in ("one", "two", "pca") for word in ("--directions", tmp_path / f"{name}.safetensors")]
    return made / "broden", tmp_path / "acts.zarr", files


def _leaves(value: object, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every key of a document that holds no others, as a path, and its value."""
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from _leaves(one, (*key, inner))
    else:
        yield key, value


def _defined(key: tuple[str, ...], value: object, dictionary: dict[str, dict[str, str]]) -> bool:
    """Whether the dictionary has exactly one entry for a key, of its value's type; parts in capitals are any name."""
    paths = [path for path in dictionary if len(parts := path.split(".")) == len(key)
             and all(part.isupper() or part == name for part, name in zip(parts, key, strict=True))]  # fmt: skip
    kinds = {"string": str, "integer": int, "number": (int, float), "object": dict}
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    return len(paths) == 1 and all(isinstance(one, kinds[dictionary[paths[0]]["type"]]) for one in values)


def test_every_column_of_every_table_and_every_key_of_the_summary_is_defined(
    run: Run, fitted: tuple[Path, Path, list[object]], tmp_path: Path
) -> None:
    broden, store, files = fitted
    out = tmp_path / "evaluation"
    few = ("--influence", "--null-directions", 4, "--null-positions", 20, "--monosemanticity")
    ok(run("evaluate --store", store, *files, "--broden", broden, *few))
    headers = {}
    for path in sorted(out.glob("*.csv")):
        if path.stem != "dictionary":
            with path.open(encoding="utf-8", newline="") as file:
                headers[path.stem] = next(csv.reader(file))
            assert pyarrow.parquet.read_schema(path.with_suffix(".parquet")).names == headers[path.stem]
    assert {"directions", "labels", "categories", "influence", "stability", "comparison", "steering"} <= set(headers)
    assert check(headers) == []
    told = json.loads((out / "dictionary.json").read_bytes())
    assert set(told) >= set(headers) or {entry["table"] for entry in told} >= set(headers)
    for name in ("directions", "comparison", "stability"):
        text = (out / f"{name}.tex").read_text(encoding="utf-8")
        assert r"\toprule" in text
        assert text.rstrip().endswith((r"\end{table}", r"\end{longtable}"))
    summary = json.loads((out / "summary.json").read_bytes())
    found = dict(_leaves(summary))
    assert {"per_category", "influence", "found_again", "stability", "monosemanticity"} <= {
        k for key in found for k in key
    }
    assert [key for key, value in found.items() if not _defined(key, value, told["summary.json"]["columns"])] == []


def test_the_comparison_holds_all_files_and_stability_the_pair_of_one_method(
    run: Run, fitted: tuple[Path, Path, list[object]], tmp_path: Path
) -> None:
    broden, store, files = fitted
    told = ok(run("evaluate --store", store, *files, "--broden", broden, "--monosemanticity")).out
    out = tmp_path / "evaluation"
    compared = pyarrow.parquet.read_table(out / "comparison.parquet").to_pylist()
    assert [row["directions"] for row in compared] == ["one", "two", "pca"]
    summary = json.loads((out / "summary.json").read_bytes())["directions"]
    assert [row["s1"] for row in compared] == [summary[name]["s1"] for name in ("one", "two", "pca")]
    pairs = pyarrow.parquet.read_table(out / "stability.parquet").to_pylist()
    assert [(row["first"], row["second"]) for row in pairs] == [("one", "two")]
    assert (
        summary["one"]["stability"]
        == summary["two"]["stability"]
        == pytest.approx(pairs[0]["logit_correlation"], abs=1e-4)
    )
    assert "stability" not in summary["pca"]
    assert -1 <= summary["pca"]["monosemanticity"] <= 1
    for key in ("monosemanticity", "monosemanticity_baseline"):
        assert f"{summary['pca'][key]:.3f}" in next(line for line in told.splitlines() if "pca: monosem" in line)
    rows = pyarrow.parquet.read_table(out / "directions.parquet").to_pylist()
    again = {name: [row["found_again"] for row in rows if row["directions"] == name] for name in summary}
    assert again["one"] == again["pca"] == [None] * 3
    assert set(again["two"]) <= {0, 0.5, 1}
    assert summary["two"]["found_again"] == pytest.approx(np.mean([value >= 0.5 for value in again["two"]]), abs=1e-4)
    assert [row["found_again"] for row in compared] == [None, summary["two"]["found_again"], None]
    assert "found_again" not in summary["one"]
    assert "found again" in ok(run("eddp inspect", tmp_path / "two.safetensors")).out
    assert "found again" not in ok(run("eddp inspect", tmp_path / "one.safetensors")).out
    assert "second" in summary["pca"]["monosemanticity_encoder"]


def test_monosemanticity_only_in_the_features_of_another_store(
    run: Run, fitted: tuple[Path, Path, list[object]], tmp_path: Path
) -> None:
    broden, store, files = fitted
    other = tmp_path / "other.zarr"
    ok(run("extract --model tiny_net:build --layer first --data", broden, "--out", other))
    ended = ok(run("evaluate --store", store, *files, "--monosemanticity", other, "--json"))
    entry = json.loads(ended.out)["directions"]["one"]
    assert "first" in entry["monosemanticity_encoder"]
    both = ("--layer", "first", "--layer", "second", "--data", broden, "--out", tmp_path / "both.zarr")
    ok(run("extract --model tiny_net:build", *both))
    fails(run("evaluate --store", store, *files, "--monosemanticity", tmp_path / "both.zarr"), 2, "store of its own")
    fails(run("evaluate --store", store, *files, "--monosemanticity", tmp_path / "none.zarr"), 2, "none.zarr")


def test_an_earlier_evaluation_leaves_nothing_behind(
    run: Run, fitted: tuple[Path, Path, list[object]], tmp_path: Path
) -> None:
    broden, store, files = fitted
    ok(run("evaluate --store", store, *files, "--broden", broden))
    ok(run("evaluate --store", store, *files[:2], "--broden", broden))
    out = tmp_path / "evaluation"
    assert not list(out.glob("stability.*"))
    assert not list(out.glob("comparison.*"))


def test_two_halves_of_the_images_tell_how_stable_a_fit_is(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    ok(run("eddp synthetic --out", store, "--images 200"))
    for i in range(2):
        out = tmp_path / f"half{i}.safetensors"
        ok(run("fit --store", store, "--directions 3 --method kmeans --part", f"{i}/2", "--out", out))
        assert json.loads(out.with_suffix(".json").read_bytes())["store"]["part"] == {"index": i, "of": 2, "seed": 0}
    halves = [a for i in range(2) for a in ("--directions", tmp_path / f"half{i}.safetensors")]
    ended = ok(run("evaluate --store", store, *halves, "--ground-truth --json"))
    assert json.loads(ended.out)["directions"]["half0"]["stability"] > 0.8
    for wrong in ("2/2", "a/b", "1"):
        fails(run("fit --store", store, "--directions 3 --part", wrong), 2, "--part must be I/N")


def test_a_table_in_parts_is_the_table_in_one(tmp_path: Path) -> None:
    """Half-way through nothing has its name yet; what is short enough to be printed is there in LaTeX too."""
    folder = tmp_path / "out"
    parts = [
        {"rank": np.arange(3) + 3 * k, "label": np.array(["a, b", 'c"d', "caf\udce9"], object)} for k in range(100)
    ]

    def watched() -> Iterator[dict[str, np.ndarray]]:
        for part in parts:
            assert not (folder / "labels.csv").exists()
            yield part

    Tables(folder).write_parts("labels", watched())
    whole = {key: [value for part in parts for value in part[key].tolist()] for key in parts[0]}
    Tables(tmp_path / "whole").write("labels", whole)
    for ending in (".csv", ".tex"):
        assert (folder / f"labels{ending}").read_bytes() == (tmp_path / "whole" / f"labels{ending}").read_bytes()
    assert len(pyarrow.parquet.read_table(folder / "labels.parquet")) == 300
    Tables(tmp_path / "long").write_parts("labels", parts * 2)
    assert not (tmp_path / "long" / "labels.tex").exists()


def test_a_table_that_breaks_off_leaves_the_one_before(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.write("labels", {"rank": [1]})

    def broken() -> Iterator[dict[str, list[int]]]:
        yield {"rank": [2]}
        raise StoreError("the second part cannot be made")

    with pytest.raises(StoreError, match="second part"):
        tables.write_parts("labels", broken())
    assert (tmp_path / "labels.csv").read_text() == '"rank"\n1\n'
    assert not list(tmp_path.glob(".*.partial"))
