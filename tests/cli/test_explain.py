"""``eddp explain`` as users run it: files, folders and rows, heads of both kinds, with and without an evaluation, and wrongly."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run, do, fails, ok
from PIL import Image
from tiny import write_images

from evaluate.explain.explainer import Explainer
from evaluate.explain.explanation_document import brief, describe
from extract.network import Network
from stores.directions import Directions

NETS = {
    "pooled": ("tiny_net:build", "second"),
    "bent": ("tiny_net:build", "first"),
    "tokens": ("tiny_net:tokens", "block"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for each kind, made when it is first asked for; not to be changed."""

    @functools.cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        net, layer = NETS[kind]
        images, store, out = write_images(folder / "data", 8), folder / "acts.zarr", folder / "kmeans.safetensors"
        do("extract --model", net, "--layer", layer, "--data", images, "--out", store)
        do("fit --store", store, "--directions 3 --method kmeans --out", out)
        return folder

    return make


@pytest.fixture
def made(originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], tuple[Path, Path, Path]]:
    """``made(kind)``: the images' folder, a store of them, directions."""

    def copy(kind: str) -> tuple[Path, Path, Path]:
        shutil.copytree(originals(kind), tmp_path, dirs_exist_ok=True)
        return tmp_path / "data", tmp_path / "acts.zarr", tmp_path / "kmeans.safetensors"

    return copy


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "explanation.json").read_bytes())


def document_of(folder: Path, short: dict[str, Any]) -> dict[str, Any]:
    return json.loads((folder / short["files"]["document"]).read_bytes())


def first(folder: Path) -> dict[str, Any]:
    return document_of(folder, read(folder)["images"][0])


@pytest.mark.parametrize("kind", NETS)
def test_sums_come_out_at_the_models_own_logits(run: Run, made: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    images, store, directions = made(kind)
    out = tmp_path / "out"
    files = sorted(images.rglob("*.png"))
    chosen = files[1:3] if kind == "pooled" else files[:1]
    ended = ok(run("eddp explain", *chosen, "--store", store, "--directions", directions, "--out", out, "--top 2"))
    result = read(out)
    assert result["exact"] == (kind == "pooled")
    net, layer = NETS[kind]
    network = Network.load(net, "none", layer)
    for number, (file, short) in enumerate(zip(chosen, result["images"], strict=True), 1):
        assert short["image"] == str(file)
        document = document_of(out, short)
        with Image.open(file) as image:
            logits = network.logits(network.transform(image.convert("RGB"))[None])[0]
        probabilities = torch.softmax(logits, 0)
        for j, k in enumerate(document["classes"]):
            total = document["base"][j] + document["residual"][j] + sum(c["to"][j] for c in document["contributions"])
            assert total == pytest.approx(float(logits[k["number"]]), abs=1e-4)
            assert k["logit"] == pytest.approx(total, abs=1e-6)
            assert k["probability"] == pytest.approx(float(probabilities[k["number"]]), abs=1e-5)
        assert document["predicted"]["number"] == int(logits.argmax())
        assert {c["direction"] for c in document["contributions"]} == {0, 1, 2}
        stem = f"{number:04d}-{file.stem}"
        assert short["files"] == document["files"] == {"sheet": f"{stem}.png", "document": f"{stem}.json"}
        assert short == brief(document)
        assert document["reads_positions"] == (kind != "tokens")
        assert (out / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"{stem}.png" in (out / "index.html").read_text(encoding="utf-8")
        assert f"{file}: predicted as class {document['predicted']['number']}" in ended.out
    assert ended.out.splitlines()[-1] == str(out / "index.html")
    assert json.loads((out / "run.json").read_bytes())["options"]["top"] == 2
    assert ok(run("eddp verify", out)).out == f"{out}: sound\n"
    (out / f"{stem}.png").write_bytes(b"\x89PNG")
    assert f"{stem}.png" in run("eddp verify", out).err
    assert not list(out.glob(".*"))


def test_rows_classes_targets_and_what_is_printed(run: Run, made: Callable[..., Any], tmp_path: Path) -> None:
    _, store, directions = made("pooled")
    given = ("--store", store, "--directions", directions, "--values", "paper", "--concepts-shown", 2, "--json")
    ended = ok(run("eddp explain --row 3 --row 0", *given, "--class 1 --to", "class 2", "--out", tmp_path / "o"))
    result = json.loads(ended.out)
    assert result == read(tmp_path / "o")
    assert [d["row"] for d in result["images"]] == [3, 0]
    assert result["images"][0]["image"] == "cat/003.png"
    assert result["values"] == "paper"
    for short in result["images"]:
        document = document_of(tmp_path / "o", short)
        assert document["explained"]["number"] == 1
        assert document["against"]["number"] == 2
        turned = document["counterfactual"]
        assert turned is None or turned["target"]["number"] == 2
        assert {1, 2} <= {k["number"] for k in document["classes"]}
    assert len(list((tmp_path / "o" / "pictures").iterdir())) == 2 * (2 + 2)
    least = min(document["classes"], key=lambda k: k["logit"])["number"]
    ok(run("eddp explain --row 0", *given, "--to", least, "--out", tmp_path / "o"))
    document = first(tmp_path / "o")
    assert document["explained"] == document["predicted"]
    assert document["against"]["number"] == least  # not the second most probable


def test_again_into_the_same_folder(run: Run, made: Callable[..., Any], tmp_path: Path) -> None:
    images, store, directions = made("pooled")
    out = tmp_path / "out"
    files = sorted(images.rglob("*.png"))
    given = ("--store", store, "--directions", directions, "--out", out)
    ok(run("eddp explain", *files[:2], *given))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"}
    ok(run("eddp explain", *files[:2], *given))
    assert {p: p.read_bytes() for p in before} == before
    ok(run("eddp explain", files[5], *given))
    names = {"0001-005.json", "0001-005.png", "explanation.json", "index.html", "manifest.json", "pictures", "run.json"}
    assert {p.name for p in out.iterdir()} == names
    assert {p.name.split(".")[0] for p in (out / "pictures").iterdir()} == {"0001-005"}


@pytest.mark.parametrize("name", ["mine.txt", "pictures/mine.png", "deep/er/c.png", ".hidden"])
def test_a_folder_with_other_files_is_left_as_it_is(
    run: Run, made: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    images, store, directions = made("pooled")
    out, image = tmp_path / "out", min(images.rglob("*.png"))
    given = ("--store", store, "--directions", directions, "--out", out)
    ok(run("eddp explain", image, *given))
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    fails(run("eddp explain", image, *given), 2, name)
    assert (out / name).read_text() == "mine"


@pytest.mark.parametrize("text", ['{"made_by": "me"}', "[]"])
def test_a_folder_of_other_things_is_left_as_it_is(
    run: Run, made: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    images, store, directions = made("pooled")
    out = tmp_path / "out"
    out.mkdir()
    (out / "explanation.json").write_text(text)
    ended = run("eddp explain", min(images.rglob("*.png")), "--store", store, "--directions", directions, "--out", out)
    assert ended.code == 2
    assert {p.name: p.read_text() for p in out.iterdir()} == {"explanation.json": text}


def test_what_was_written_is_not_explained(
    run: Run, made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, store, directions = made("pooled")
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(min(images.rglob("*.png")), photos)
    monkeypatch.chdir(photos)
    given = ("--store", store, "--directions", directions, "--concepts-shown", 1)
    names = []
    (photos / "linked").symlink_to(photos / "explanation")
    for _ in range(3):
        ok(run("eddp explain .", *given))
        names.append([short["image"] for short in read(photos / "explanation")["images"]])
    assert len(names[0]) == 1
    assert names[1:] == names[:1] * 2
    assert run("eddp explain explanation/pictures", *given).code == 2
    ok(run("eddp explain explanation/pictures", *given, "--out", tmp_path / "other"))


def test_more_images_than_a_page_shows(
    run: Run, made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, store, directions = made("pooled")
    monkeypatch.setattr("pipeline.explanation.MOST", 7)
    given = ("--store", store, "--directions", directions, "--out", tmp_path / "out")
    fails(run("eddp explain", images, *given), 2, "8 images are more than a page can show, which is 7")
    assert not (tmp_path / "out").exists()


def test_a_head_that_reads_a_class_token_only(run: Run, made: Callable[..., Any], tmp_path: Path) -> None:
    images, store, directions = made("tokens")
    out = tmp_path / "out"
    ended = ok(
        run("eddp explain", min(images.rglob("*.png")), "--store", store, "--directions", directions, "--out", out)
    )
    assert "does not depend on the positions of this layer; choose an earlier layer" in ended.out
    document = first(out)
    assert {value for c in document["contributions"] for value in c["to"]} == {0}
    assert document["base"] == [k["logit"] for k in document["classes"]]
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "does not depend on the positions of this layer" in text
    assert "Where these concepts are" not in text
    assert "class token" in text
    assert [p.name for p in (out / "pictures").iterdir()] == ["0001-000.seen.jpg"]


def test_numbers_of_an_image_are_not_held(
    run: Run, made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is written of an image, nothing but a few words and file names is alive when the next one is drawn."""
    images, store, directions = made("pooled")
    alive: list[weakref.ref[Any]] = []
    counts: list[int] = []

    class Rows(list[Any]):
        """A list that can be watched."""

    def described(*arguments: Any) -> dict[str, Any]:
        counts.append(sum(ref() is not None for ref in alive))
        found = describe(*arguments)
        found["contributions"] = Rows(found["contributions"])
        alive.append(weakref.ref(found["contributions"]))
        return found

    monkeypatch.setattr("evaluate.explain.explanation_page.describe", described)
    given = ("--store", store, "--directions", directions, "--out", tmp_path / "out", "--concepts-shown", 1)
    ok(run("eddp explain", images, *given))
    assert len(counts) == 8
    assert max(counts) <= 1


def test_names_come_from_an_evaluation(
    run: Run, tiny_broden: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broden, store, directions = tiny_broden().root, tmp_path / "acts.zarr", tmp_path / "kmeans.safetensors"
    ok(run("extract --model tiny_net:build --layer second --data", broden, "--out", store))
    ok(run("fit --store", store, "--directions 3 --method kmeans --out", directions))
    ok(run("evaluate --store", store, "--directions", directions, "--broden", broden))
    given = ("--row", 0, "--out", tmp_path / "out")
    ok(run("eddp explain", *given, "--store", store, "--directions", directions))
    named = first(tmp_path / "out")
    assert all(c["label"] for c in named["contributions"])
    ok(run("eddp explain", *given, "--evaluation", tmp_path / "evaluation"))
    assert first(tmp_path / "out") == named
    other = tmp_path / "other.safetensors"
    shutil.copy(directions, other)
    ok(run("eddp explain", *given, "--store", store, "--directions", other))
    assert not any(c["label"] for c in first(tmp_path / "out")["contributions"])
    ended = run("eddp explain", *given, "--directions", other, "--evaluation", tmp_path / "evaluation")
    fails(ended, 2, "no directions 'other'; it has kmeans")
    for moved, others in (("a", ()), ("b", ("--seed", 7))):
        (tmp_path / moved).mkdir()
        copy = tmp_path / moved / directions.name
        shutil.copy(directions, copy)
        shutil.copy(directions.with_suffix(".json"), copy.with_suffix(".json"))
        if others:
            ok(run("fit --overwrite --store", store, "--directions 3 --method kmeans --out", copy, *others))
        ended = run("eddp explain", *given, "--directions", copy, "--evaluation", tmp_path / "evaluation")
        assert ended.code == (2 if others else 0), ended.err
        assert ("holds other directions" in ended.err) == bool(others)
    for count in (3, 4):  # the same number of others, and more of them
        ok(
            run(
                "fit --overwrite --store", store, "--directions", count, "--method kmeans --out", directions, "--seed 7"
            )
        )
        ok(run("eddp explain", *given, "--store", store, "--directions", directions))
        assert "concepts go without names" in caplog.text
        caplog.clear()
        assert first(tmp_path / "out")["contributions"][0]["name"].startswith("direction ")
        for named_too in ((), ("--directions", directions)):
            fails(run("eddp explain", *given, "--evaluation", tmp_path / "evaluation", *named_too), 2, "fitted again")


def test_class_names_given_after_the_extraction(run: Run, made: Callable[..., Any], tmp_path: Path) -> None:
    """By evaluate, which report and explain take over, or by each of them."""
    data, store, directions = made("pooled")
    names, others, two = tmp_path / "names.txt", tmp_path / "others.txt", tmp_path / "two.txt"
    names.write_text("ant\nbee\ncod\ndoe\nelk\n")
    others.write_text("axe\nbow\ncup\ndie\nelm\n")
    two.write_text("ant\nbee\n")
    evaluation, out, image = tmp_path / "evaluation", tmp_path / "x", sorted(data.rglob("*.png"))[0]
    asked = ("evaluate --store", store, "--directions", directions, "--influence --null-directions 0 --out", evaluation)
    fails(run(*asked, "--class-names", two), 2, "2 class names", "5 classes")
    ok(run(*asked, "--class-names", names))
    with (evaluation / "influence.csv").open(encoding="utf-8") as file:
        assert {row["class_name"] for row in csv.DictReader(file)} == {"ant", "bee", "cod", "doe", "elk"}
    ok(run("eddp report", evaluation, "--visualize none --out", tmp_path / "pages"))
    assert "doe" in (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    ok(run("eddp report", evaluation, "--visualize none --out", tmp_path / "pages", "--class-names", others))
    assert "die" in (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    ok(run("eddp explain", image, "--evaluation", evaluation, "--out", out))
    assert first(out)["predicted"]["name"] in names.read_text()
    ok(run("eddp explain", image, "--store", store, "--directions", directions, "--out", out, "--class-names", others))
    assert first(out)["predicted"]["name"] in others.read_text()


def test_wrong_use(run: Run, made: Callable[..., Any], tmp_path: Path) -> None:
    images, store, directions = made("pooled")
    image = next(images.rglob("*.png"))
    both = ("--store", store, "--directions", directions)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    text = tmp_path / "text.png"
    text.write_text("no image")
    swapped = Directions.load(directions)
    Directions(**{**vars(swapped), "layer": "first"}).save(tmp_path / "elsewhere.safetensors")
    for arguments, code, word in (
        (both, 2, "--row N"),
        ((image, "--store", store), 2, "--evaluation"),
        ((image, "--evaluation", tmp_path), 2, "no evaluation"),
        ((tmp_path / "nothing.png", *both), 2, "nothing.png"),
        ((tmp_path / "empty", *both), 2, "no image"),
        ((image, text, *both), 1, "text.png"),
        ((image, *both, "--class", "clas 3"), 2, "class 3"),
        ((image, *both, "--to", 5), 2, "0 to 4"),
        ((image, *both, "--layer", "secnd"), 2, "second"),
        (
            (image, "--store", store, "--directions", tmp_path / "elsewhere.safetensors", "--layer", "second"),
            2,
            "'first'",
        ),
        ((image, *both, "--out", tmp_path / "file"), 2, "is no folder"),
        ((*both, "--row", 8), 2, "0 to 7"),
        ((*both, "--row", -1), 2, "0 to 7"),
        ((image, "--store", store, "--directions", tmp_path / "d"), 2, "no directions file"),
        ((image, *both, "--device", "gpu"), 2, "--device"),
    ):
        out = () if "--out" in arguments else ("--out", tmp_path / "out")
        ended = run("eddp explain", *arguments, *out)
        assert ended.code == code, (arguments, ended.err)
        assert word in ended.err, (arguments, ended.err)
        assert "Traceback" not in ended.err
        assert ended.err.splitlines()[-1].startswith("Error: ")
        assert not (tmp_path / "out").exists(), arguments


def test_bad_images_of_a_folder_are_left_out(run: Run, made: Callable[..., Any], tmp_path: Path) -> None:
    _, store, directions = made("pooled")
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.png").write_text("no image")
    given = ("--store", store, "--directions", directions, "--out", tmp_path / "out")
    fails(run("eddp explain", folder, *given), 1, "None of the 1 images")
    assert not (tmp_path / "out").exists()
    Image.new("L", (9, 30)).save(folder / "b b'.png")
    ok(run("eddp explain", folder, *given))
    result = read(tmp_path / "out")
    assert [d["image"] for d in result["images"]] == [str(folder / "b b'.png")]
    assert result["images"][0]["files"]["sheet"] == "0001-b-b.png"
    assert result["skipped"][0]["name"] == str(folder / "a.png")


def test_what_fails_leaves_nothing_behind(
    run: Run, made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, store, directions = made("bent")
    files = sorted(images.rglob("*.png"))
    out = tmp_path / "out"
    given = ("--store", store, "--directions", directions, "--out", out)
    ok(run("eddp explain", files[0], *given))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    networks: list[Network] = []
    load = Network.load

    def loaded(*arguments: Any, **options: Any) -> Network:
        networks.append(load(*arguments, **options))
        return networks[-1]

    monkeypatch.setattr(Network, "load", loaded)
    explain, calls = Explainer.explain, []

    def failing(self: Explainer, x: np.ndarray, **options: Any) -> Any:
        calls.append(x)
        found = explain(self, x if len(calls) < 2 else np.full_like(x, np.nan), **options)
        return found

    monkeypatch.setattr(Explainer, "explain", failing)
    ended = run("eddp explain", *files[:3], *given)
    assert ended.code == 1
    assert files[1].name in ended.err
    assert "NaN" in ended.err
    assert len(calls) == 2
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    kept, added = json.loads(before.pop(out / "run.json")), json.loads(after.pop(out / "run.json"))
    assert after == before
    assert [one["outcome"] for one in added.pop("attempts")] == ["failed"]
    assert added == kept
    for network in networks:
        for module in network.module.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._backward_hooks
        assert not any(p.requires_grad for p in network.module.parameters())


def test_stores_without_images_or_with_samples(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    images, store, directions = tiny_images(6), tmp_path / "s.zarr", tmp_path / "d.safetensors"
    ok(run("eddp synthetic --out", store, "--images 60"))
    ok(run("fit --store", store, "--directions 3 --method pca --out", directions))
    given = ("--store", store, "--directions", directions, "--out", tmp_path / "out")
    for arguments in (("--row", 0), (images,)):
        ended = run("eddp explain", *arguments, *given)
        assert ended.code == 2
        assert "synthetic" in ended.err or "not made from images" in ended.err
    sampled = tmp_path / "sampled.zarr"
    net = ("--model", "tiny_net:build", "--layer", "second")
    ok(run("extract", *net, "--data", images, "--out", sampled, "--positions 2"))
    ok(run("fit --overwrite --store", sampled, "--directions 2 --method kmeans --out", directions))
    ended = run("eddp explain", images, "--store", sampled, "--directions", directions, "--out", tmp_path / "out")
    fails(ended, 2, "--positions all")
    assert not (tmp_path / "out").exists()
