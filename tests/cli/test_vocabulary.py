"""``evaluate --vocabulary``: words for directions of a drawn world, none for random ones, and encoders of open_clip."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, do, fails, ok
from word_sight import CHANNELS, KINDS, WORDS, Encoder, draw_world

from evaluate.detector_bank import make_bank
from evaluate.examples import embed_examples
from evaluate.meaning import MEASURES, measure_examples
from evaluate.vocabulary import study_words
from extract.image_text import ImageTextEncoder, open_encoder
from extract.store_images import open_store_images
from stores.directions import Directions
from stores.readers import LayerReader
from stores.store import ActivationStore

ENCODER = "--encoder word_sight:Encoder"


def directions(filters: np.ndarray) -> Directions:
    filters = filters.astype(np.float32)
    return Directions(filters, filters, np.zeros(CHANNELS, np.float32), None, "by hand", "conv")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of the drawn world, a word list, and a direction for each kind of thing in it (``hand``)."""
    folder = tmp_path_factory.mktemp("world")
    draw_world(folder / "images")
    do(
        "extract",
        "--model word_sight:build --weights none --layer conv --data",
        folder / "images",
        "--out",
        folder / "acts.zarr",
    )
    (folder / "words.txt").write_text("# what there is, and what is not\n" + "\n".join(WORDS) + "\n")
    directions(np.eye(CHANNELS)[:, : len(KINDS)]).save(folder / "hand.safetensors")
    return folder


def test_directions_are_called_by_what_they_fire_on(run: Run, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--store", world / "acts.zarr", "--directions", world / "hand.safetensors", "--out", out)
    ended = ok(run("evaluate", *given, "--vocabulary", world / "words.txt", ENCODER))
    assert "6 of 6 directions have a word" in ended.out
    with (out / "vocabulary_labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows] == list(KINDS)
    assert {row["p"] for row in rows} == {"0.004975"}  # beyond all of 200
    found = json.loads((out / "summary.json").read_text())["directions"]["hand"]["vocabulary"]
    assert (found["significant"], found["words"], found["images"], found["randoms"]) == (6, len(WORDS), 24, 200)
    page = (out / "report/hand/d/00004.html").read_text(encoding="utf-8")
    assert "horizontal stripes</bdi></h1>" in page
    assert '<span class="chip cnone">word</span>' in page
    assert found["seed"] == 0
    assert f"{float(rows[4]['score']):.3f}" in page
    defined = json.loads((out / "dictionary.json").read_text(encoding="utf-8"))
    assert set(defined["vocabulary_labels"]["columns"]) == set(rows[0])


def test_what_directions_fire_on_is_one_thing(run: Run, world: Path, tmp_path: Path) -> None:
    """An encoder of pictures without texts. The last direction is the sum of two others, and shows the things of both."""
    two = np.eye(CHANNELS)[:, [0, 4, 5, 4]]
    two[:, 3] += np.eye(CHANNELS)[:, 5]
    directions(two).save(tmp_path / "two.safetensors")
    out = tmp_path / "out"
    given = ("--store", world / "acts.zarr", "--directions", tmp_path / "two.safetensors", "--out", out)
    ended = ok(run("evaluate", *given, "--encoder word_sight:Sight"))
    line = next(line for line in ended.out.splitlines() if line.startswith("two, where it fires"))
    with (out / "meaning.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clarity = [float(row["clarity"]) for row in rows]
    assert min(clarity[:3]) > 0.9 > clarity[3]
    assert max(float(row["polysemanticity"]) for row in rows[:3]) < 0.1 < float(rows[3]["polysemanticity"])
    assert rows[3]["nearest"] in ("1", "2")
    summary = json.loads((out / "summary.json").read_text())["directions"]["two"]
    chance = summary["meaning"]
    assert summary["clarity"] == pytest.approx(np.mean(clarity), abs=1e-4)
    assert f"clarity {summary['clarity']:.3f}" in line
    assert chance["clarity"]["random_images"] < chance["clarity"]["random"] < min(clarity[:3])
    assert chance["clarity"]["beyond"] == sum(value > chance["clarity"]["random_high"] for value in clarity) >= 3
    assert chance["firing_monosemanticity"]["random_images"] == pytest.approx(0, abs=0.02)
    defined = json.loads((out / "dictionary.json").read_text(encoding="utf-8"))
    assert set(defined["meaning"]["columns"]) == set(rows[0])
    page = (out / "report/two/index.html").read_text(encoding="utf-8")
    assert line.partition(": ")[2] in page
    page = (out / "report/two/d/00003.html").read_text(encoding="utf-8")
    assert f">{clarity[3]:.3f}<" in page
    assert f"{chance['clarity']['random_low']:.3f} to {chance['clarity']['random_high']:.3f}" in page
    assert f'href="../d/{int(rows[3]["nearest"]):05d}.html"' in page


def test_an_image_that_cannot_be_read_is_left_out(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = draw_world(tmp_path / "images", 120)
    do("extract --model word_sight:build --weights none --layer conv --data", images, "--out", tmp_path / "acts.zarr")
    directions(np.eye(CHANNELS)[:, : len(KINDS)]).save(tmp_path / "hand.safetensors")
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    given = (
        "--store",
        tmp_path / "acts.zarr",
        "--directions",
        tmp_path / "hand.safetensors",
        "--vocabulary",
        tmp_path / "words.txt",
    )
    files = sorted(images.rglob("*.png"))
    for file in files[:3]:
        file.write_bytes(b"no image")
    ended = ok(run("evaluate", *given, ENCODER))
    assert "3 of 120 images" in caplog.text
    assert "6 of 6 directions have a word" in ended.out
    for file in files:
        file.write_bytes(b"no image")
    fails(run("evaluate", *given, ENCODER), 1, "can be read", "acts.zarr")


def test_random_directions_get_no_name(world: Path) -> None:
    """200 of them: p is uniform, what a file of them gets by chance stays below the level, and so does what is beyond the random ones."""
    store = ActivationStore.open(world / "acts.zarr", model="word_sight:build")
    reader, images = LayerReader(store, "conv"), open_store_images(store)
    drawn = np.random.default_rng(5).normal(size=(CHANNELS, 200))
    sets = {"hand": Directions.load(world / "hand.safetensors"), "random": directions(drawn)}
    bank, encoder = make_bank(sets, reader), ImageTextEncoder("toy", "1", Encoder())
    examples = embed_examples(reader, bank, images.frames, images.source.digest, encoder)
    found = study_words(examples, WORDS).labels
    assert [one.words[0] for one in found["hand"] if one.significant] == list(KINDS)
    p = np.array([one.p for one in found["random"]])
    assert not any(one.significant for one in found["random"])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.045)  # three standard deviations
    assert np.mean(p) == pytest.approx(0.5, abs=0.1)
    chance = measure_examples(examples)["random"].summary()["meaning"]
    assert (
        0 < np.mean([chance[key]["beyond"] / 200 for key in MEASURES]) < 0.06
    )  # 0.025, and the ends of the range are estimates


def test_an_encoder_of_open_clip(run: Run, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its real code on a tiny network with random weights, from a checkpoint file; the weights decide what is embedded."""
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{seed}.pt")
        torch.save(open_clip.create_model("tiny-clip").state_dict(), files[-1])
    first, second = (open_encoder(f"open_clip:tiny-clip:{file}") for file in files)
    assert first.digest != second.digest
    module = first.inner.module
    expected = module.encode_text(open_clip.get_tokenizer("tiny-clip")(["a dog"])).numpy()
    assert first.texts(["a dog"]) == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    given = ("--store", world / "acts.zarr", "--directions", world / "hand.safetensors", "--out", tmp_path / "out")
    words = ("--vocabulary", world / "words.txt")
    ok(run("evaluate", *given, *words, "--encoder", f"open_clip:tiny-clip:{files[0]}"))
    assert json.loads((tmp_path / "out/summary.json").read_text())["directions"]["hand"]["vocabulary"]["words"] == 11
    fails(run("evaluate", *given, *words, "--encoder open_clip:tiny-clap:x"), 2, "tiny-clap", "tiny-clip")
    fails(run("evaluate", *given, *words, "--encoder open_clip:tiny-clip:none.pt"), 2, "none.pt", "no file")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    fails(
        run("evaluate", *given, *words, "--encoder", f"open_clip:tiny-clip:{tmp_path / 'bad.pt'}"),
        2,
        "cannot load",
        "bad.pt",
    )


def test_what_cannot_be_an_encoder(run: Run, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--store", world / "acts.zarr", "--directions", world / "hand.safetensors", "--out", tmp_path / "out")
    words = ("--vocabulary", world / "words.txt")
    fails(run("evaluate", *given, *words), 2, "--encoder")
    fails(run("evaluate", *given, *words, "--encoder clip"), 2, "open_clip:NAME:CHECKPOINT")
    fails(run("evaluate", *given, *words, "--encoder word_sight:build"), 2, "preprocess")
    fails(run("evaluate", *given, *words, "--encoder word_sight:Sight"), 2, "encode_text")
    fails(run("evaluate", *given, "--vocabulary none.txt", ENCODER), 2, "none.txt")
    monkeypatch.setenv("EDDP_EVALUATE_ENCODER", "word_sight:Encoder")  # code to be run is typed
    fails(run("evaluate", *given, *words), 2, "command line", "EDDP_EVALUATE_ENCODER")
    assert not (tmp_path / "out").exists()
