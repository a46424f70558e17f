"""``eddp correct`` as users run it: the shortcut found by the evaluation's own ranking, taken out, saved, applied; and wrong use."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, do, fails, ok
from PIL import Image
from shortcut_net import CLASSES, ToUnit, build, directions_arrays, write_masks, write_scenes
from tiny import contents

from evaluate.correct import Correction
from evaluate.direction_names import names_of
from evaluate.influence.shortcut_candidates import LARGE, OF_ONE_CLASS
from pipeline.model_correction import choose_detector
from stores.directions import Directions
from stores.errors import UsageError
from stores.folders import MANIFEST, write_manifest

INFLUENCE = "--influence --null-directions 5 --null-positions 40"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its directions, their evaluation with influence, and clean and poisoned images; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    masks = write_masks(folder / "concepts", 20)
    store, file = folder / "acts.zarr", folder / "found.safetensors"
    do("extract --model shortcut_net:with_transform --weights none --layer act --data", masks, "--out", store)
    Directions(**directions_arrays(), method="eddp", layer="act").save(file)
    do("evaluate --store", store, "--directions", file, "--broden", masks, INFLUENCE)
    write_scenes(folder / "clean", 20, marked=False)
    write_scenes(folder / "poisoned", 20, marked=True)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def data(place: Path) -> tuple[object, ...]:
    images = ("--data", place / "clean", "--poisoned", place / "poisoned")
    return ("eddp", "correct", place / "evaluation", *images, "--random", 4)


def test_the_shortcut_is_found_and_taken_out(run: Run, place: Path) -> None:
    ended = ok(run(*data(place)))
    assert "mark (0)" in ended.out
    assert "first of the evaluation's suspects" in ended.out
    out = place / "correction"
    assert ended.out.splitlines()[-1] == str(out / "index.html")
    for path in (out, out / "correction.safetensors"):
        assert ok(run("eddp verify", path)).out == f"{path}: sound\n"
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["direction"] == [0]
    assert summary["poisoned"]["before"] < 0.7
    assert summary["poisoned"]["after"] == 1
    assert summary["clean"]["after"] == 1
    assert summary["rectify"] is True
    assert {row["vector"] for row in table_of(out / "correction.csv")} == {"none", "signal", "filter", "random"}
    described = {(row["table"], row["column"]) for row in table_of(out / "dictionary.csv")}
    for table in ("correction", "correction_strengths", "correction_classes", "correction_confusion"):
        assert (out / f"{table}.parquet").is_file()
        assert (table, "set") in described or table == "correction_strengths"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Without <bdi>mark (0)</bdi>" in page
    assert page.count("<img ") == len(list((out / "pictures").glob("*.jpg"))) > 0
    assert "http" not in page.replace("http-equiv", "")

    corrected = Correction.load(out / "correction.safetensors").apply(build().eval())
    for k, scene in enumerate(CLASSES):
        for folder in ("clean", "poisoned"):
            images = [ToUnit()(Image.open(p)) for p in sorted((place / folder / scene).glob("*.png"))]
            assert (corrected(torch.stack(images)).argmax(1) == k).all()

    again = ok(run(*data(place), "--json"))  # the activations are kept
    assert json.loads(again.out) == {**summary, "out": str(out)}


def test_all_directions_of_the_first_suspect_are_taken_out(run: Run, place: Path) -> None:
    """The mark's direction twice: one row of the suspects, and neither is left in."""
    arrays = {k: v if k == "mean" else np.concatenate([v, v[..., :1]], -1) for k, v in directions_arrays().items()}
    file, out = place / "found.safetensors", place / "correction"
    Directions(**arrays, method="eddp", layer="act").save(file)  # type: ignore[arg-type]
    ok(run("evaluate --store", place / "acts.zarr", "--directions", file, "--broden", place / "concepts",
           "--influence --null-directions 5 --null-positions 40"))  # fmt: skip
    suspects = table_of(place / "evaluation" / "suspects.csv")
    assert [(row["label"], row["indices"], row["name"]) for row in suspects] == [("mark", "0 3", "mark 1")]
    ended = ok(run(*data(place)))
    assert "Suppressing mark 1 (0), mark 2 (3): first of the evaluation's suspects" in ended.out
    assert "95th percentile" in ended.out
    summary = json.loads((out / "summary.json").read_bytes())
    assert (summary["direction"], summary["poisoned"]["after"], summary["problem"]) == ([0, 3], 1, None)
    flags = ok(run("eddp report", place / "evaluation", "--visualize 0 --out", place / "report"))
    assert flags.code == 0
    for number in (0, 3):
        assert "suspect for" in next((place / "report" / "d").glob(f"*{number}.html")).read_text(encoding="utf-8")


def test_what_cannot_be_corrected_is_said(run: Run, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images given as poisoned that do not show the mark: there is nothing to gain."""
    ended = ok(run(*data(place)[:5], "--poisoned", place / "clean", "--random", 0))
    assert "Warning: It cannot be corrected like this: no setting" in ended.out
    with caplog.at_level("WARNING"):
        Correction.load(place / "correction" / "correction.safetensors")
    assert "no setting that was tried" in caplog.text
    page = (place / "correction" / "index.html").read_text(encoding="utf-8")
    assert "It cannot be corrected like this: no setting" in page


def test_a_direction_may_be_named_and_its_strength_given(run: Run, place: Path) -> None:
    out = place / "o"
    ended = ok(run("eddp correct", place / "evaluation", "--data", place / "poisoned",
                   "--label mark --strength 1 --shift 0 --random 0 --out", out, "--json"))  # fmt: skip
    summary = json.loads(ended.out)
    assert (summary["strength"], summary["shift"], summary["direction"]) == (1, 0, [0])
    assert "poisoned" not in summary
    assert summary["clean"]["after"] == 1  # given as clean, but marked
    given = ("--data", place / "poisoned", "--direction 0 --random 0 --out", out)
    named = ok(run("eddp correct", place / "evaluation", *given))
    assert "asked for by number" in named.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--direction", 7), "numbered from 0 to 2"),
        (("--label", "cow"), "grass, mark, water"),
        (("--directions", "pca"), "it has found"),
        (("--data", "nowhere"), "nowhere"),
        (("--strength", -1), "strength"),
        (("--out", "EVALUATION"), "not changed"),
        (("--out", "clean"), "not changed"),
        (("--direction", 0, "--label", "mark"), "not both"),
        (("--held-out", 0.999, "--poisoned", "poisoned"), "held out"),
        (("--direction", 1, "--poisoned", "concepts/images"), "Give both in class folders"),
    ],
)
def test_wrong_use(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], word: str
) -> None:
    monkeypatch.chdir(place)
    replaced = [place / "evaluation" if a == "EVALUATION" else a for a in arguments]
    ended = run("eddp correct evaluation", *(() if "--data" in arguments else ("--data", "clean")), *replaced)
    fails(ended, 2, word)
    assert ended.err.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in ended.err
    assert (place / "evaluation" / "summary.json").is_file()
    assert not (place / "correction" / "summary.json").exists()


def test_misnamed_class_folders_are_refused_at_once_and_may_be_given_their_classes(run: Run, place: Path) -> None:
    before = json.loads(ok(run(*data(place), "--json")).out)
    shutil.rmtree(place / "correction")
    for folder in ("clean", "poisoned"):
        (place / folder / "meadow").rename(place / folder / "medow")
        (place / folder / "sea").rename(place / folder / "wet")
    stores = set(place.glob("*.zarr"))
    ended = run(*data(place))
    fails(ended, 2, "'medow' (nearest: meadow), 'wet'", "--classes")
    assert set(place.glob("*.zarr")) == stores  # nothing was computed
    file = place / "classes.csv"
    file.write_text("medow,meadow\nwet,1\n")
    after = json.loads(ok(run(*data(place), "--classes", file, "--json")).out)
    assert (after["clean"]["before"], after["poisoned"]["after"]) == (1, 1)
    assert after["poisoned"]["before"] < 0.7
    file.write_text(json.dumps({"medow": "meadow", "wet": "meadow"}))  # all are meadows now
    assert json.loads(ok(run(*data(place), "--classes", file, "--json")).out)["clean"]["before"] < 0.7
    file.write_text("medow,meadow\nwte,sea\n")
    fails(run(*data(place), "--classes", file), 2, "'wte'", "wet")
    assert before["clean"]["before"] == 1


def test_without_classes_probabilities_are_reported(run: Run, place: Path) -> None:
    """Meadows, half of them marked, in one folder: the detector decides which show the mark; and in two folders."""
    flat = place / "flat"
    flat.mkdir()
    for folder in ("clean", "poisoned"):
        for picture in (place / folder / "meadow").glob("*.png"):
            shutil.copy(picture, flat / f"{folder}{picture.name}")
    out = place / "correction"
    given = ("eddp correct", place / "evaluation", "--strength 1 --shift 0")
    ended = ok(run(*given, "--data", flat))
    assert "images where the concept is detected: " in ended.out
    assert "images are predicted as another class" in ended.out
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["other"]["predicted_otherwise"] == 0
    assert summary["detected"]["predicted_otherwise"] == summary["detected"]["images"] > 0
    assert "poisoned" not in summary
    assert summary["other"]["images"] + summary["detected"]["images"] + summary["held_out"] == len([*flat.iterdir()])
    assert f"{summary['held_out']} of {summary['images']} images are held out" in ended.out
    assert (summary["problem"], summary["lost"]) == (None, 0)  # what changes where the mark is seen is no cost
    assert f"0 of {summary['tried_on']} held-out images where the concept is not detected" in ended.out
    assert summary["activations"]["clean"] in ended.out
    assert Path(summary["activations"]["clean"]).is_dir()
    corrected = Correction.load(out / "correction.safetensors").apply(build().eval())
    images = torch.stack([ToUnit()(Image.open(p)) for p in sorted(flat.glob("poisoned*"))])
    wanted = torch.softmax(corrected(images), 1)[:, 0].tolist()
    table = table_of(out / "correction_probabilities.csv")
    row = next(row for row in table if row["set"] == "detected" and row["class_name"] == "meadow")
    assert min(wanted) <= float(row["after"]) <= max(wanted)
    assert "<bdi>meadow</bdi>" in (out / "index.html").read_text(encoding="utf-8")
    assert "another class" in ok(run("eddp inspect", out)).out
    for name in ("clean", "poisoned"):
        (place / "two" / name).mkdir(parents=True)
        for picture in flat.glob(f"{name}*"):
            shutil.copy(picture, place / "two" / name)
    ended = ok(run(*given, "--data", place / "two" / "clean", "--poisoned", place / "two" / "poisoned", "--json"))
    assert json.loads(ended.out)["poisoned"]["predicted_otherwise"] > 0
    ended = ok(run(*given, "--data", place / "two" / "poisoned"))  # all show the mark
    assert "Too few images to tell what it costs" in ended.out


def test_a_run_that_fails_leaves_an_earlier_correction_as_it_was(run: Run, place: Path) -> None:
    ok(run(*data(place)))
    before = contents(place / "correction")
    assert run(*data(place)[:3], "--data", place / "typo").code == 2
    assert run(*data(place), "--shift", "nan").code == 2
    assert contents(place / "correction") == before
    ok(run(*data(place), "--strength", 0.5))
    assert contents(place / "correction") != before


def test_directions_that_were_fitted_again_are_distinguished(run: Run, place: Path) -> None:
    arrays = directions_arrays()
    again = Directions(**arrays, method="eddp", layer="act", info={"run": {"begun": "later"}})  # type: ignore[arg-type]
    again.save(place / "found.safetensors")  # another file of the same directions
    ok(run(*data(place)))
    turned = {k: (v[..., ::-1].copy() if k != "mean" else v) for k, v in arrays.items()}
    Directions(**turned, method="eddp", layer="act").save(place / "found.safetensors")  # type: ignore[arg-type]
    ended = run(*data(place))
    assert (ended.code, "fitted again" in ended.err) == (2, True)
    path = place / "evaluation" / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    file = (place / "found.safetensors").read_bytes()
    summary["made_from"]["digests"]["found"] = f"sha256:{hashlib.sha256(file).hexdigest()}"  # of the file, as before
    path.write_text(json.dumps(summary), encoding="utf-8")
    (place / "evaluation" / MANIFEST).unlink()
    write_manifest(place / "evaluation")
    ended = run(*data(place))
    assert (ended.code, "older eddp" in ended.err, "fitted again" in ended.err) == (2, True, False)


def test_no_evaluation_none_of_ours_and_nothing_suspicious(run: Run, place: Path) -> None:
    arguments = ("--data", place / "clean")
    ended = run("eddp correct", place / "nothing", *arguments)
    assert (ended.code, "There is no evaluation" in ended.err) == (2, True)
    summary = place / "evaluation" / "summary.json"
    whole = json.loads(summary.read_bytes())
    del whole["made_from"]
    summary.write_text(json.dumps(whole))
    ended = run("eddp correct", place / "evaluation", *arguments)
    assert (ended.code, "older eddp" in ended.err) == (1, True)
    given = ("--store", place / "acts.zarr", "--directions", place / "found.safetensors")
    ok(run("evaluate", *given, "--broden", place / "concepts"))
    ended = run("eddp correct", place / "evaluation", *arguments)
    assert (ended.code, "--influence" in ended.err) == (2, True)
    arrays = {k: v if k == "mean" else v[..., 1:] for k, v in directions_arrays().items()}  # without the mark
    Directions(**arrays, method="eddp", layer="act").save(place / "found.safetensors")  # type: ignore[arg-type]
    ended = ok(run("evaluate", *given, "--broden", place / "concepts", INFLUENCE))
    assert "No suspects: of the labels on at most 10 % of an image" in ended.out
    assert "0 of 2 labels are small enough to be tested" in ended.out
    for page in ("report.html", "report/found/index.html"):
        assert "No suspects: " in (place / "evaluation" / page).read_text(encoding="utf-8")
    ended = run("eddp correct", place / "evaluation", *arguments)
    fails(ended, 2, "No direction was named. No suspects: ", "--direction N")
    assert "--influence" not in ended.err


def test_what_most_images_of_a_class_show_is_not_suppressed_unasked() -> None:
    labels = [("coins", "texture"), ("mark", "object")]
    names = names_of(["coins", "mark"], [True, True])
    figures = {"area": 0.05, "share_of_class": 1.0, "probability_change": 0.1}
    coins = {"indices": [0], "kind": LARGE, "class_name": "pick", **figures}
    mark = {"indices": [1], "kind": OF_ONE_CLASS, "class_name": "sea", **figures}
    assert choose_detector(labels, names, [coins, mark]).indices == [1]
    with pytest.raises(UsageError, match="No suspects"):
        choose_detector(labels, names, [coins])


def test_a_store_and_an_evaluation_may_move_together(run: Run, place: Path) -> None:
    moved = place / "moved"
    moved.mkdir()
    for name in ("acts.zarr", "found.safetensors", "found.json", "evaluation"):
        (place / name).rename(moved / name)
    images = ("--data", place / "clean", "--poisoned", place / "poisoned")
    arguments = ("eddp correct", moved / "evaluation", *images, "--random 0")
    ok(run(*arguments))
    assert (moved / "correction" / "index.html").is_file()
    (moved / "acts.zarr").rename(place / "elsewhere.zarr")
    assert run(*arguments).code == 2
    ok(run(*arguments, "--store", place / "elsewhere.zarr"))
