"""Names of one's own, in names.csv next to the directions file, wherever directions are named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from command_line import Run, fails, ok
from small_report import small_evaluation

from pipeline.evaluation_result import Evaluated
from pipeline.model_correction import choose_detector


def test_names_are_shown_in_place_of_labels(run: Run, tmp_path: Path) -> None:
    evaluation = small_evaluation(tmp_path, directions=3)
    names = tmp_path / "names.csv"
    names.write_text(
        "directions,direction,name,comment\neddp,1,striped fish,on 8 of 9\nkmeans,0,,unsure\n", encoding="utf-8"
    )
    ok(run("eddp report", evaluation, "--visualize none --quiet"))
    page = (tmp_path / "report" / "d" / "00001.html").read_text(encoding="utf-8")
    assert ">striped fish</bdi></h1>" in page
    assert "on 8 of 9" in page
    picture = next((tmp_path / "broden" / "images").rglob("*.jpg"))
    ok(run("eddp explain", picture, "--evaluation", evaluation, "--out", tmp_path / "explanation", "--quiet"))
    numbers = next(path for path in (tmp_path / "explanation").rglob("*.json") if "contributions" in path.read_text())
    assert "striped fish (1)" in {row["name"] for row in json.loads(numbers.read_bytes())["contributions"]}
    evaluated = Evaluated(evaluation)
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
