"""``eddp report`` as users run it: with everything, with nothing, again, interrupted, and wrongly."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from command_line import Run, ok
from small_report import small_evaluation
from tiny import contents, write_store

import pipeline.report
from fit.verdict import verdict
from pipeline.visualization import Features
from stores.directions import Directions
from stores.errors import MismatchError

PLAIN = ("--visualize", "none")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluation of two sets, influence included; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    small_evaluation(folder)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """A copy of it, without its images, which are found where they were."""
    for name in ("acts.zarr", "evaluation"):
        shutil.copytree(made / name, tmp_path / name)
    for file in made.glob("*.*"):
        if file.is_file():
            shutil.copy(file, tmp_path)
    return tmp_path


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_everything_is_in_it(run: Run, world: Path) -> None:
    ended = ok(run("eddp report", world / "evaluation", *PLAIN, "--json"))
    out = world / "report"
    told = json.loads(ended.out)
    assert (told["set"], told["directions"], told["classes"], told["visualized"]) == ("eddp", 6, 5, 0)
    files = contents(out)
    assert told["files"] == len(files)
    assert told["bytes"] == sum(map(len, files.values()))
    assert told["notes"] == []
    assert ok(run("eddp verify", out)).out == f"{out}: sound\n"
    assert sum(name.startswith("d/") for name in files) == 6
    assert sum(name.startswith("c/") for name in files) == 5
    drawn = [name for name in files if name.startswith("t/")]
    assert sum(int(name[8:-5]) < 9 for name in drawn) == 6 * 9  # the strongest
    pages = "".join(text_of(out / name) for name in files if name.startswith("d/"))
    assert all(name in pages for name in drawn)
    assert sum(name.startswith("s/") for name in files) == 6
    page = text_of(out / "index.html")
    for word in ("eddp", "kmeans", "tiny_net:build", "second: 4 × 4 positions, 8 channels", "12 images"):
        assert word in page
    assert "<svg" in text_of(out / "fit.html")  # the log lies beside the directions
    assert "refine steps" in text_of(out / "fit.html")
    judged = verdict(Directions.load(world / "eddp.safetensors"))
    assert judged.problems
    for shown in (out / "fit.html", out / "index.html"):
        assert all(line in unescape(text_of(shown)) for line in judged.lines + judged.problems)
    assert all(line in unescape(text_of(world / "evaluation" / "report.html")) for line in judged.problems)
    again = Directions.load(world / "eddp.safetensors").found_again
    assert again is not None
    for i, share in enumerate(again):
        assert f"{8 * share:.0f} of 8" in text_of(out / "d" / f"{i:05d}.html")
    ok(run("eddp report", world / "evaluation", *PLAIN, "--directions kmeans"))  # fitted without refits
    assert "of 8" not in "".join(text_of(page) for page in out.rglob("*.html"))
    tables = ("directions", "influence_directions")
    for table in (pyarrow.parquet.read_table(world / "evaluation" / f"{name}.parquet").to_pylist() for name in tables):
        assert all(r["found_again"] == again[r["index"]] for r in table if r["directions"] == "eddp")
        assert all(r["found_again"] is None for r in table if r["directions"] == "kmeans")


def test_numbers_are_those_of_the_tables(run: Run, world: Path) -> None:
    ok(run("eddp report", world / "evaluation", *PLAIN, "--directions kmeans"))
    rows = pyarrow.parquet.read_table(world / "evaluation" / "directions.parquet").to_pylist()
    for row in (r for r in rows if r["directions"] == "kmeans"):
        page = text_of(world / "report" / "d" / f"{row['index']:05d}.html")
        called = (
            row["name"] if row["interpretable"] else "too few validation images" if row["label"] else "no label fits"
        )
        assert f">{called}</bdi></h1>" in page
        assert f"<b>{row['iou_val']:.3f}</b>" in page or row["iou_val"] < 0.01
    diagram = pyarrow.parquet.read_table(world / "evaluation" / "influence_classes.parquet").to_pylist()
    for k in range(5):
        mine = [r for r in diagram if r["directions"] == "kmeans" and r["class"] == k]
        expected = [r["index"] for sign in ("positive", "negative") for r in mine if r["sign"] == sign]
        page = text_of(world / "report" / "c" / f"{k:04d}.html")
        shown = [int(i) for i in re.findall(r'<li class="(?:un)?sure">.*?<a href="\.\./d/(\d+)\.html"', page)]
        assert shown == expected
        assert page.count('<span class="claims">significant') == sum(r["significant"] for r in mine)


def test_evaluate_wrote_the_same_pages(run: Run, world: Path) -> None:
    ok(run("eddp report", world / "evaluation", *PLAIN))
    found, expected = contents(world / "evaluation" / "report" / "eddp"), contents(world / "report")
    way_back = re.compile(rb'<a href="[./]*report.html">All files</a>\n')
    shared = [name for name in expected if name[:2] in ("d/", "t/", "s/") or name == "fit.html"]
    assert len(shared) >= 6 + 6 * 9 + 6 + 1
    for name in shared:
        assert b"".join(way_back.split(found[name])) == expected[name], name
    pages = (b"".join(files[name] for name in files if name.startswith("c/")) for files in (found, expected))
    assert (
        next(pages).count(b'src="../../e/') == next(pages).count(b'src="../e/') > 0
    )  # of classes: the same for all sets


def test_the_same_evaluation_gives_the_same_bytes_and_replaces_what_was_there(run: Run, world: Path) -> None:
    ok(run("eddp report", world / "evaluation", *PLAIN))
    first = contents(world / "report")
    ok(run("eddp report", world / "evaluation", *PLAIN))
    assert contents(world / "report") == first
    (world / "report" / "d" / "mine.html").write_text("mine")
    assert run("eddp report", world / "evaluation", *PLAIN).code == 2
    assert (world / "report" / "d" / "mine.html").read_text() == "mine"
    ok(run("eddp report", world / "evaluation", *PLAIN, "--tiles 2 --out", world / "other"))
    assert sum(name.startswith("t/") and int(name[8:-5]) < 2 for name in contents(world / "other")) == 12
    assert not [p for p in world.iterdir() if p.name.startswith(".")]


def test_no_path_of_the_machine_is_reported(run: Run, world: Path, made: Path) -> None:
    ok(run("eddp report", world / "evaluation", *PLAIN))
    for name, content in contents(world / "report").items():
        assert str(world).encode() not in content, name
        assert str(made).encode() not in content, name


def test_images_that_are_missing_are_reported(run: Run, world: Path, made: Path, tmp_path: Path) -> None:
    images, hidden, there = made / "broden", made / "hidden", tmp_path / "elsewhere"
    shutil.copytree(images, there)
    images.rename(hidden)
    try:
        ended = ok(run("eddp report", world / "evaluation", *PLAIN))
    finally:
        hidden.rename(images)
    assert "The images are not shown" in ended.err
    page = text_of(world / "report" / "index.html")
    assert "The images are not shown" in page
    assert "<img" not in page
    assert "sub/image" in text_of(world / "report" / "d" / "00000.html")  # their names still are
    for k in range(0, 12, 2):
        (there / "images" / "sub" / f"image {k}.jpg").write_bytes(b"no image")
    ended = ok(run("eddp report", world / "evaluation", *PLAIN, "--data", there))
    assert re.search(r"[1-6] of the \d+ images to be shown are not where they were", ended.err)
    page = text_of(world / "report" / "index.html")
    assert "<img" in page
    assert "are not where they were" in page
    wrong = run("eddp report", world / "evaluation", *PLAIN, "--data", tmp_path / "nowhere")
    assert wrong.code == 2


def test_a_store_that_has_moved(run: Run, world: Path) -> None:
    (world / "acts.zarr").rename(world / "moved.zarr")
    assert run("eddp report", world / "evaluation", *PLAIN).code == 2
    ok(run("eddp report", world / "evaluation", *PLAIN, "--store", world / "moved.zarr"))
    assert (world / "report" / "index.html").is_file()


def test_labels_only(run: Run, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    given = ("--store", made / "acts.zarr", "--directions", made / "eddp.safetensors", "--broden", made / "broden")
    ok(run("evaluate", *given, "--out", out))
    ok(run("eddp report", out, *PLAIN))
    page = text_of(tmp_path / "report" / "index.html")
    assert 'id="least"' in page
    assert 'id="class"' not in page
    assert "Influence was not measured" in text_of(tmp_path / "report" / "classes.html")
    assert "steering" not in text_of(tmp_path / "report" / "d" / "00000.html")


def test_influence_only(run: Run, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "influence"
    few = ("--influence", "--null-directions", 8, "--null-positions", 40)
    ok(run("evaluate --store", made / "acts.zarr", "--directions", made / "eddp.safetensors", *few, "--out", out))
    ok(run("eddp report", out, *PLAIN))
    page = text_of(tmp_path / "report" / "index.html")
    assert 'id="least"' not in page
    assert 'id="class"' in page
    assert "IoU" not in text_of(tmp_path / "report" / "d" / "00000.html")


def test_a_synthetic_store_has_no_images(run: Run, tmp_path: Path) -> None:
    store, out = tmp_path / "s.zarr", tmp_path / "k.safetensors"
    ok(run("eddp synthetic --out", store, "--images 100"))
    ok(run("fit --store", store, "--directions 3 --method kmeans --out", out))
    ok(run("evaluate --store", store, "--directions", out, "--ground-truth"))
    ended = ok(run("eddp report", tmp_path / "evaluation"))  # nothing to synthesise either
    assert "synthetic" in ended.err
    page = text_of(tmp_path / "report" / "c" / "0000.html")
    assert "images that carry its label" in page
    found = json.loads((tmp_path / "evaluation" / "summary.json").read_bytes())["directions"]["k"]["ground_truth"]
    page = text_of(tmp_path / "report" / "index.html")
    assert (
        f"{found['matched']} of 3 concepts found; IoU {min(found['iou']):.3f} at worst, mean {sum(found['iou']) / 3:.3f}"
        in page
    )
    assert f"distinct matches {found['distinct_matches']:.3f}; RMSE {found['rmse']:.3f}" in page
    rows = pyarrow.parquet.read_table(tmp_path / "evaluation" / "ground_truth.parquet").to_pylist()
    table = text_of(tmp_path / "report" / "fit.html").partition('<table class="truth">')[2]
    assert [float(v) for v in re.findall(r"<td>(\d\.\d+)</td><td>", table)] == pytest.approx(
        [r["iou"] for r in rows], abs=6e-4
    )
    for row in rows:
        page = text_of(tmp_path / "report" / "d" / f"{row['direction']:05d}.html")
        assert re.search(rf"true concept<span.*</a> {row['concept']}: IoU {row['iou']:.3f}", page)
    assert run("eddp report", tmp_path / "evaluation", "--visualize 1").code == 2


def test_hostile_names_of_images_and_classes(run: Run, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    x = np.random.default_rng(0).random((6, 2, 3)).astype(np.float32)
    names = [f"{evil} {k}.jpg" for k in range(6)]
    made = {"model": "tiny_net:build", "weights": "none", "dataset": {"kind": "folder", "path": "gone", "images": 6}}
    head = {"conv": (np.eye(3, dtype=np.float32), np.zeros(3, np.float32))}
    store = write_store(
        tmp_path / "s.zarr", {"conv": x}, names=names, provenance=made, class_names=[evil, "b", "c"], heads=head
    )
    w = np.eye(3, dtype=np.float32)
    Directions(w, w, x.mean((0, 1)), None, "toy", "conv").save(tmp_path / "d.safetensors")
    ok(run("evaluate --store", store, "--directions", tmp_path / "d.safetensors", "--influence --null-directions 0"))
    ok(run("eddp report", tmp_path / "evaluation", *PLAIN, "--title", evil))
    for name, content in contents(tmp_path / "report").items():
        assert evil.encode() not in content or name == "report.json", name
    assert evil in unescape(text_of(tmp_path / "report" / "d" / "00000.html"))


def test_an_interrupted_run_leaves_the_old_report(run: Run, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(run("eddp report", world / "evaluation", *PLAIN))
    before = contents(world / "report")

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.report, "pages", stop)
    assert run("eddp report", world / "evaluation", *PLAIN, "--title new").code == 130
    assert contents(world / "report") == before
    assert not [p for p in world.iterdir() if p.name.startswith(".")]


def test_pictures_that_are_synthesised_are_shown(run: Run, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def draw(store, directions, indices, folder, *, thresholds, **options):
        asked.append(list(indices))
        assert thresholds.shape == (directions.count,)
        for i in indices:
            for role in ("s", "f"):
                (folder / f"{role}{i}.jpg").write_bytes(b"picture")
        return {i: Features(f"s{i}.jpg", f"f{i}.jpg", 4.25, 2.5, 0.5, 0.75, 0.25, 0.125, 0.875) for i in indices}

    monkeypatch.setattr(pipeline.report, "draw_features", draw)
    ok(run("eddp report", world / "evaluation", "--visualize 2 --device cpu"))
    rows = pyarrow.parquet.read_table(world / "evaluation" / "directions.parquet").to_pylist()
    best = sorted((r for r in rows if r["directions"] == "eddp"), key=lambda r: -r["iou_val"])[:2]
    assert asked == [sorted(r["index"] for r in best)]
    page = text_of(world / "report" / "d" / f"{asked[0][0]:05d}.html")
    for word in (
        f'src="../v/s{asked[0][0]}.jpg"',
        "4.25",
        "fires at 75 %",
        "2.50",
        "fires at 25 %",
        "0.500",
        "88 % of them",
    ):
        assert word in page
    ok(run("eddp report", world / "evaluation", "--visualize all"))
    ok(run("eddp report", world / "evaluation", "--device cpu"))
    assert [sorted(one) for one in asked[1:]] == [list(range(6))] * 2

    def cannot(*given: object, **options: object) -> None:
        raise MismatchError("The network is another one now.")

    monkeypatch.setattr(pipeline.report, "draw_features", cannot)
    ended = ok(run("eddp report", world / "evaluation", "--device cpu"))
    assert "No pictures were synthesised. The network is another one now." in ended.err
    assert run("eddp report", world / "evaluation", "--visualize all").code == 2


def test_pictures_are_synthesised_for_real(run: Run, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no time, of one pair."""
    monkeypatch.setattr(pipeline.report, "BUDGET", 0.0)
    ended = ok(run("eddp report", world / "evaluation", "--device cpu --json"))
    assert json.loads(ended.out)["visualized"] == 1
    assert "1 of 6 pairs" in ended.err
    pictures = list((world / "report" / "v").iterdir())
    assert len(pictures) == 2
    assert all(p.read_bytes()[:2] == b"\xff\xd8" for p in pictures)


def test_wrong_use_is_one_message_and_nothing_is_written(run: Run, world: Path) -> None:
    good = world / "evaluation"
    (world / "thesis").mkdir()
    (world / "thesis" / "text").write_text("precious")
    shutil.copytree(good, world / "old")
    summary = json.loads((world / "old" / "summary.json").read_bytes())
    del summary["made_from"]
    (world / "old" / "summary.json").write_text(json.dumps(summary))
    wrong = {
        "no evaluation in": (world / "nowhere",),
        "no directions 'ica'": (good, "--directions", "ica"),
        "--tiles must be": (good, "--tiles", 0),
        "--visualize takes": (good, "--visualize", "some"),
        "is not changed": (good, "--out", world / "thesis"),
        "older eddp": (world / "old",),
        "--device must be": (good, "--device", "abacus"),
    }
    for words, arguments in wrong.items():
        ended = run("eddp report", *arguments)
        assert ended.code == (1 if words == "older eddp" else 2), words
        assert words in ended.err, ended.err
        assert "Traceback" not in ended.err
    assert not (world / "report").exists()
    assert contents(world / "thesis") == {"text": b"precious"}
