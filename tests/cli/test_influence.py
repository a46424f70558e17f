"""``evaluate --influence`` as users run it: alone, with a concept dataset, through heads of both kinds, and wrongly."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from html import unescape
from io import StringIO
from pathlib import Path

import pytest
from command_line import Run, do, fails, ok

from evaluate.number_format import points

FEW = ("--null-directions", 8, "--null-positions", 40, "--influence-images", 20)
SOME = ("--influence --influence-images 20 --null-positions 40 --null-directions",)


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("net", "layer", "through", "classes"),
    [
        ("tiny_net:build", "second", "pooling and an affine map", 5),
        ("tiny_net:build", "first", "the model's own head", 5),
        ("tiny_net:tokens", "block", "the model's own head", 3),
    ],
)
def test_with_a_concept_dataset(
    run: Run, tiny_broden: Callable[..., object], tmp_path: Path, net: str, layer: str, through: str, classes: int
) -> None:
    broden, store = tiny_broden().root, tmp_path / "acts.zarr"
    ok(run("extract --model", net, "--layer", layer, "--data", broden, "--out", store))
    for method in ("kmeans", "pca"):
        out = tmp_path / f"{method}.safetensors"
        ok(run("fit --store", store, "--directions 3 --method", method, "--out", out))
    files = ("--directions", tmp_path / "kmeans.safetensors", "--directions", tmp_path / "pca.safetensors")
    ended = ok(run("evaluate --store", store, *files, "--broden", broden, "--influence", *FEW))
    assert "Influence at α = 2 (" in ended.out
    assert re.search(r"significant pairs .*\n +signal \| filter", ended.out)
    rebuilt = re.findall(r"^(\w+), logits rebuilt: (.+)$", ended.out, re.MULTILINE)
    assert len(rebuilt) == (2 if through.startswith("pooling") else 0)
    for name, text in rebuilt:
        page = (tmp_path / "evaluation" / "report" / name / "index.html").read_text(encoding="utf-8")
        assert text in unescape(page)
    assert "SDC" not in ended.out  # other rules are in the table influence
    assert "With 8 null directions no pair can be significant" in ended.err
    folder = tmp_path / "evaluation"
    summary = json.loads((folder / "summary.json").read_bytes())["directions"]
    for entry in summary.values():
        for key in ("sdc", "scdp", "s3", "significant_bh", "significant", "significant_directions"):
            assert key in entry
        assert entry["influence"]["through"] == through
        assert entry["influence"]["images"] == 6
        assert entry["influence"]["alpha_relative"] > 0
        assert entry["influence"]["signal"]["5"]["largest_probability_change"] > 1e-6
        assert set(entry["influence"]["steering"]) == {"signal", "filter", "random"}
    table = rows(folder / "influence.csv")
    assert len(table) == 2 * 3 * 2 * 3 * classes  # files, directions, roles, steps, classes
    for row in table:
        assert -1 <= float(row["score"]) <= 1
        assert 0 < float(row["p"]) <= 1
    for name in ("influence", "influence_directions", "influence_classes", "steering"):
        assert (folder / f"{name}.parquet").is_file()
    assert "Classes pushed further" in (folder / "report" / "pca" / "index.html").read_text(encoding="utf-8")
    again = tmp_path / "again"
    ok(run("evaluate --store", store, *files, "--broden", broden, "--influence", *FEW, "--out", again))
    assert (again / "influence.csv").read_bytes() == (folder / "influence.csv").read_bytes()
    ok(run("evaluate --store", store, *files, "--broden", broden, "--out", again))
    assert "Classes pushed further" not in (again / "report" / "pca" / "index.html").read_text(encoding="utf-8")
    assert not (again / "influence.csv").exists()  # of the earlier evaluation: nothing contradicts what is written now


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a store, directions and their evaluation, in which some pairs are significant, and what the terminal said."""
    folder = tmp_path_factory.mktemp("judged")
    do("eddp synthetic --channels 256 --images 1000 --out", folder / "s.zarr")
    do("fit --store", folder / "s.zarr", "--directions 5 --method pca --out", folder / "d.safetensors")
    with redirect_stdout(StringIO()) as said:
        do("evaluate --store", folder / "s.zarr", "--directions", folder / "d.safetensors", *SOME, 40)
    return folder, said.getvalue()


def test_one_significance_leads_and_other_rules_are_in_the_table(
    run: Run, judged: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules differ in what they claim. Too few null directions for any claim are warned of before anything is measured."""
    folder, said = judged
    out = folder / "evaluation"
    table = [row for row in rows(out / "influence.csv") if (row["role"], row["alpha"]) == ("signal", "2")]
    counts = {rule: sum(row[rule] == "true" for row in table) for rule in table[0] if rule.startswith("significant")}
    claimed = counts["significant"]
    assert claimed == sum(float(row["p_max"]) <= 0.05 and float(row["p_random"]) <= 0.05 for row in table)
    assert counts["significant_random"] > claimed > counts["significant_holm"] == 0
    assert len(counts) == 7
    entry = json.loads((out / "summary.json").read_bytes())["directions"]["d"]
    assert (entry["significant"], entry["scdp"], entry["significant_bh"]) == (
        claimed, counts["significant_paper"], counts["significant_bh"],
    )  # fmt: skip
    assert re.search(rf"^d +{claimed} \| ", said, re.MULTILINE)
    assert "at a level of 5 % for any false claim" in said
    page = (out / "report" / "d" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r">Significant pairs<.*?</th><td.*?<(?:b|span)>(\d+)<", page) == [str(claimed)]
    assert not re.search("significant_|SDC|SCDP", page + said)
    assert "at a level of 5 % for any false claim" in (out / "report" / "d" / "definitions.html").read_text(
        encoding="utf-8"
    )
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.influence.measure_influence", stop)
        for nulls, few in ((18, True), (20, False)):
            ended = run("evaluate --store", folder / "s.zarr", "--directions", folder / "d.safetensors", *SOME, nulls)
            assert (ended.code, "no pair can be significant" in ended.err) == (130, few)


def test_directions_of_largest_significant_influence_come_first_each_with_its_strongest_significant_class(
    judged: tuple[Path, str],
) -> None:
    out = judged[0] / "evaluation"
    changes, claims = defaultdict(list), defaultdict(list)
    for row in rows(out / "influence.csv"):
        key, change = (row["role"], row["alpha"], row["index"]), abs(float(row["probability_change"]))
        changes[key].append(change)
        claims[key] += [(change, row["class"], row["class_name"])] * (row["significant"] == "true")
    table = rows(out / "influence_directions.csv")
    order = defaultdict(list)
    for row in table:
        key = (row["role"], row["alpha"], row["index"])
        assert float(row["largest_probability_change"]) == max(changes[key])
        strongest = max(claims[key], default=(0.0, "", ""))
        assert (row["strongest_class"], row["strongest_class_name"]) == strongest[1:]
        assert abs(float(row["strongest_probability_change"] or 0)) == strongest[0]
        order[key[:2]].append((strongest[0], max(changes[key])))
    assert {row["strongest_class"] == "" for row in table} == {True, False}
    wanted = [
        (row["index"], row["strongest_class_name"], points(float(row["strongest_probability_change"])))
        for row in table
        if (row["role"], row["alpha"]) == ("signal", "2") and row["strongest_class"]
    ]
    assert re.findall(r"^  direction (\d+) → (.+): (.+ pp)$", judged[1], re.MULTILINE) == wanted[:5]
    page = (out / "report" / "d" / "index.html").read_text(encoding="utf-8")
    listed = page.split('id="strongest"')[1].split("</section>")[0]
    found = re.findall(
        r'<span class="number">(\d+)<.*? → <a .*?<bdi>(.+?)</bdi>.*?<p>(\S+ pp) for the class', listed, re.DOTALL
    )
    assert found == wanted[:5]
    assert all(sizes == sorted(sizes, reverse=True) for sizes in order.values())


def test_ground_truth_only(run: Run, tmp_path: Path) -> None:
    store, out = tmp_path / "s.zarr", tmp_path / "k.safetensors"
    ok(run("eddp synthetic --out", store, "--images 100"))
    ok(run("fit --store", store, "--directions 3 --method kmeans --out", out))
    ended = ok(run("evaluate --store", store, "--directions", out, "--influence --alphas 1", *FEW, "--seed 3 --json"))
    entry = json.loads(ended.out)["directions"]["k"]
    assert entry["influence"]["alpha"] == 1
    assert "s3" not in entry
    assert rows(tmp_path / "evaluation" / "influence_directions.csv")[0]["label"] == ""


def test_a_run_after_one_that_stopped_says_what_is_done_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = tmp_path / "s.zarr", tmp_path / "k.safetensors"
    ok(run("eddp synthetic --out", store, "--images 100"))
    ok(run("fit --store", store, "--directions 3 --method kmeans --out", out))
    command = ("evaluate --store", store, "--directions", out, "--influence", *FEW)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.evaluation.measure_stability", stop)  # all but the last part is done
        ended = run(*command)
    assert (ended.code, "computes all else again" in ended.err) == (130, True)
    assert not (tmp_path / "evaluation").exists()
    assert (
        "An earlier run did not end (last recorded: steering, 2 of 2). Its results were not stored"
        in ok(run(*command)).err
    )
    assert "earlier run" not in ok(run(*command)).err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--influence", "--alphas", "1,two"), "--alphas"),
        (("--influence", "--alphas", "0"), "positive"),
        (("--influence", "--influence-images", 0), "images"),
        (("--influence", "--null-directions", -1), "nulls"),
        ((), "--influence"),
    ],
)
def test_wrong_use(run: Run, tmp_path: Path, arguments: tuple[object, ...], word: str) -> None:
    ended = run("evaluate --store", tmp_path / "s", "--directions", tmp_path / "d", *arguments)
    fails(ended, 2, word)
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--alphas", "1,1e308"), "up to 1e"),
        (("--alphas", "1,1.0000001"), "differ"),
        (("--alphas", "nan"), "positive"),
        (("--alphas", ""), "--alphas"),
        (("--seed", -1), "seed"),
    ],
)
def test_numbers_that_cannot_be_meant(run: Run, tmp_path: Path, arguments: tuple[object, ...], word: str) -> None:
    test_wrong_use(run, tmp_path, ("--influence", *arguments), word)
