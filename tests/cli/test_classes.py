"""``evaluate --classes`` as users run it: labels without masks, in tables, names and pages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from tiny import write_store

from pipeline.class_labelling import class_findings, find_class_labels
from pipeline.evaluation_parts import Subject
from pipeline.evaluation_result import EvaluationResult
from stores.directions import Directions
from stores.store import ActivationStore

NAMES = ["cat", "dog", "<i>sea</i>"]


@pytest.fixture
def seen(tmp_path: Path) -> tuple[Path, Path]:
    """A store of 64 channels in front of a pooling head: channel k says how much of class k an image shows, and its logit is the channel's;
    directions along channels 0, 1, 2 and one more that says nothing."""
    g = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 80)
    x = g.normal(size=(240, 2, 64)).astype(np.float32)
    x[:, :, :3] = 0.5 * x[:, :, :3] + 4 * np.eye(3)[labels][:, None]
    weight = np.eye(3, 64, dtype=np.float32)
    logits = x.mean(1) @ weight.T
    write_store(
        tmp_path / "acts.zarr", {"conv": x}, labels=labels, logits=logits, n_classes=3, class_names=NAMES, chunk_images=50,
        heads={"conv": (weight, np.zeros(3, np.float32))}, provenance={"model": "by hand", "dataset": {"class_names": NAMES, "kind": "folder", "path": "gone", "images": 240}},
    )  # fmt: skip
    filters = np.eye(64, dtype=np.float32)[:, [0, 1, 2, 9]]
    file = tmp_path / "d.safetensors"
    Directions(filters, filters, np.zeros(64, np.float32), np.full(4, 2, np.float32), "toy", "conv").save(file)
    return tmp_path / "acts.zarr", file


def test_directions_are_called_by_their_classes(run: Run, seen: tuple[Path, Path], tmp_path: Path) -> None:
    store, file = seen
    (tmp_path / "names.csv").write_text("direction,name\n1,barker\n", encoding="utf-8")
    ended = ok(run("evaluate --store", store, "--directions", file, "--classes --influence --influence-images 40"))
    assert "75 % of directions have a significant class label (labels of 240 images" in ended.out
    folder = tmp_path / "evaluation"
    with (folder / "class_labels.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["name"] for row in rows] == ["cat", "barker", "<i>sea</i>", "direction 3"]
    assert [row["label"] for row in rows[:3]] == NAMES
    assert [row["significant"] for row in rows] == ["true", "true", "true", "false"]
    assert [row["auroc"] for row in rows[:3]] == ["1"] * 3
    assert [row["fires"] for row in rows[:3]] == NAMES
    entry = json.loads((folder / "summary.json").read_bytes())["directions"]["d"]["class_labels"]
    reached = round(1001 * float(rows[0]["p_random"]) - 1) / 10  # of 1000 random directions, and the median is 1
    assert entry["median_reached"] == reached / 100
    assert f"of which {reached:.3g} % reach the directions' median" in ended.out
    assert (entry["significant"], entry["images"], entry["source"]) == (0.75, 240, "labels")
    assert entry["auroc"] == pytest.approx(np.mean([float(row["auroc"]) for row in rows]), abs=1e-4)
    assert [name.full for name in EvaluationResult(folder).direction_names("d")] == [row["name"] for row in rows]
    page = (folder / "report" / "d" / "d" / "00002.html").read_text(encoding="utf-8")
    assert '<bdi id="called">&lt;i&gt;sea&lt;/i&gt;</bdi></h1>' in page
    assert '<span class="chip cnone">class</span>' in page
    assert ">Classes<" in page
    overview = (folder / "report" / "d" / "index.html").read_text(encoding="utf-8")
    assert 'data-label="cat ' in overview  # what the search looks in
    with (folder / "influence_directions.csv").open(encoding="utf-8", newline="") as table:
        assert {row["name"] for row in csv.DictReader(table)} == {row["name"] for row in rows}


def test_what_it_needs_is_said(run: Run, seen: tuple[Path, Path], tmp_path: Path) -> None:
    store = write_store(tmp_path / "few.zarr", {"conv": np.ones((30, 2, 64), np.float32)}, n_classes=3)
    fails(
        run("evaluate --store", store, "--directions", seen[1], "--classes"),
        2,
        "two classes of at least 20 images each",
    )
    out = tmp_path / "more"
    ok(run("evaluate --store", store, "--directions", seen[1], "--classes --monosemanticity", store, "--out", out))
    assert "monosemanticity" in json.loads((out / "summary.json").read_bytes())["directions"]["d"]


def test_signal_vector_and_filter_agree_where_their_first_classes_are_one(seen: tuple[Path, Path]) -> None:
    """The filters of directions 0, 1, 2 fire on cat, dog and sea; the signal vectors of two of them raise something."""
    store = ActivationStore.open(seen[0])
    subject = Subject(store, "conv", {"d": Directions.load(seen[1])})
    labels = find_class_labels(subject, 0)
    last = labels["d"].fires[3][0]
    (table,) = class_findings(subject, labels, {"d": subject.names("d")}, None, 0).tables["class_labels"]
    assert not {"raised", "agree", "overlap"} & set(table)  # nothing raised them yet
    found = class_findings(subject, labels, {"d": subject.names("d")}, {"d": [[0], [2, 1], [], []]}, 0)
    (table,) = found.tables["class_labels"]
    assert table["raised"] == ["cat", "<i>sea</i>; dog", "", ""]
    assert table["agree"] == [True, False, None, None]
    assert table["overlap"] == [1, 0.5, None, None]
    entry = found.entries["d"]["class_labels"]
    assert (entry["raising"], entry["agree"]) == (2, 0.5)
    assert entry["agree_others"] == round((1 + (last in (0, 2))) / 6, 4)  # direction 1 raises what direction 2 fires on
    assert 0.1 < entry["agree_p"] <= 1
