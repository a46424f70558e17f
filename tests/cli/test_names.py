"""Names of one's own, in names.csv next to the directions file, wherever directions are named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from command_line import Run, fails, ok
from shortcut_net import directions_arrays, write_masks
from small_report import small_evaluation

from pipeline.evaluation_result import EvaluationResult
from pipeline.model_correction import choose_detector
from stores.directions import Directions


def test_what_the_label_set_has_no_label_for_is_no_fault_of_the_direction(run: Run, tmp_path: Path) -> None:
    """Nine images carry a mark, which is no label: its direction shows these nine, and is said to have no label that fits."""
    concepts = write_masks(tmp_path / "concepts", 27, mark=False)
    store, file, out = tmp_path / "acts.zarr", tmp_path / "found.safetensors", tmp_path / "evaluation"
    ok(run("extract --model shortcut_net:with_transform --weights none --layer act --data", concepts, "--out", store))
    Directions(**directions_arrays(), method="eddp", layer="act").save(file)
    ended = ok(run("evaluate --store", store, "--directions", file, "--broden", concepts))
    with (out / "directions.csv").open(encoding="utf-8", newline="") as table:
        found = [(row["name"], row["label"], row["interpretable"]) for row in csv.DictReader(table)]
    assert found == [("direction 0", "water", "false"), ("grass", "grass", "true"), ("water", "water", "true")]
    pages = {path: path.read_text(encoding="utf-8") for path in out.rglob("*.html")}
    assert not [path for path, text in (*pages.items(), ("", ended.out)) if "not interpretable" in text]
    page = pages[out / "report" / "found" / "d" / "00000.html"]
    assert ">no label fits</bdi></h1>" in page
    shown = re.findall(r'alt="images/(\d+)\.png, with the region where direction 0 fires"', page)
    assert {int(k) for k in shown} == set(range(0, 54, 6))


def test_names_are_shown_in_place_of_labels(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluation = small_evaluation(tmp_path, directions=3)
    names = tmp_path / "names.csv"
    names.write_text(
        "directions,direction,name,comment\neddp,1,striped fish,on 8 of 9\nkmeans,0,,unsure\nedpp,2,boat,\nedpp,1,sea,\n",
        encoding="utf-8",
    )
    ok(run("eddp report", evaluation, "--visualize none --quiet"))
    assert caplog.text.count(f"rows of '{names}' with 'edpp' in the column 'directions' are left out") == 1
    page = (tmp_path / "report" / "d" / "00001.html").read_text(encoding="utf-8")
    assert ">striped fish</bdi></h1>" in page
    assert "on 8 of 9" in page
    picture = next((tmp_path / "broden" / "images").rglob("*.jpg"))
    ok(run("eddp explain", picture, "--evaluation", evaluation, "--out", tmp_path / "explanation", "--quiet"))
    numbers = next(
        path for path in (tmp_path / "explanation").rglob("*.json") if '"contributions":' in path.read_text()
    )
    assert "striped fish (1)" in {row["name"] for row in json.loads(numbers.read_bytes())["contributions"]}
    (evaluation / "names.csv").write_text("direction,name\n1,lost\n", encoding="utf-8")
    ok(run("eddp explain", picture, "--evaluation", evaluation, "--out", tmp_path / "explanation", "--quiet"))
    assert f"Move it to '{names}'" in caplog.text
    (evaluation / "names.csv").unlink()
    evaluated = EvaluationResult(evaluation)
    chosen = choose_detector(evaluated.labels("eddp"), evaluated.direction_names("eddp"), [], [1])
    assert chosen.title == "striped fish (1)"
    ok(
        run("evaluate --store", tmp_path / "acts.zarr", "--directions", tmp_path / "eddp.safetensors", "--broden", tmp_path / "broden",
            "--influence --null-directions 0", "--out", evaluation, "--quiet")
    )  # fmt: skip
    for table, roles in (("directions", {""}), ("steering", {"signal", "filter"})):
        with (evaluation / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            found = {(row["index"], row.get("role", "")): row["name"] for row in csv.DictReader(file)}
        assert {key for key, name in found.items() if name == "striped fish"} == {("1", role) for role in roles}
    assert {name for (_, role), name in found.items() if role == "random"} == {""}
    names.write_text("directions,direction,name\neddp,3,no such\n", encoding="utf-8")
    for command in (("eddp report", evaluation), ("eddp explain", picture, "--evaluation", evaluation)):
        fails(run(*command, "--quiet"), 2, "names.csv", "line 2", "from 0 to 2, got 3")
