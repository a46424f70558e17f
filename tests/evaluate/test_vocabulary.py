"""Words for directions: the score by a literal loop, what is cut out of images, chance, and what is kept between runs."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import noise

from evaluate import crop_embeddings
from evaluate.crop_embeddings import Embeddings, embed_crops
from evaluate.detector_bank import Bank
from evaluate.image_crops import box_of, crop_picture, crops_of
from evaluate.influence.significance import bh_adjusted
from evaluate.vocabulary import TEMPLATES, embed_words, evidence, least_beyond, name_by_words, read_words
from extract.image_text import ImageTextEncoder, open_encoder
from pipeline.vocabulary_labels import say_what_words_need
from stores.errors import DatasetError, ImageError, MissingPathError, StoreError, UsageError
from stores.format import LayerSpec
from stores.readers import LayerReader


def units(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def slow_evidence(images: np.ndarray, words: np.ndarray, first: int) -> list[float]:
    """CLIP-Dissect's soft-WPMI before anything is subtracted, one image and one word at a time, over every second image."""
    n, total = len(images), [0.0] * len(words)
    for rank in range(first, n, 2):
        powers = [math.exp(10 * float(images[rank] @ word)) for word in words]
        w = 0.998 - (0.998 - 0.97) * rank / n
        for t, power in enumerate(powers):
            total[t] += math.log(1 + w * (power / sum(powers) - 1) + 1e-7)
    return total


def test_evidence_is_that_of_a_literal_loop() -> None:
    images, words = units(7, 5), units(4, 5, seed=1)
    found = evidence(torch.from_numpy(images), torch.from_numpy(words)).numpy()
    for half in (0, 1):
        assert found[half] == pytest.approx(slow_evidence(images, words, half), abs=1e-4)


def test_words_are_chosen_on_one_half_and_scored_on_the_other() -> None:
    """All of the way by a literal loop: two directions, four random ones, each random one against the others."""
    images, words = units(30, 6), units(5, 6, seed=1)
    number = np.random.default_rng(2).integers(0, 30, (8, 6))
    embedded = Embeddings(30)
    for crops in np.array_split(np.random.default_rng(3).permutation(30), 4):  # in any order
        embedded.add(crops, images[crops])
    found = name_by_words(embedded, number, words, randoms=4)
    all_of = [[slow_evidence(images[number[:, j]], words, half) for half in (0, 1)] for j in range(6)]

    def scores(j: int, half: int) -> list[float]:
        others = [r for r in range(2, 6) if r != j]
        deviation = [statistics.pstdev(all_of[r][half][t] for r in others) for t in range(5)]
        mean = [statistics.mean(all_of[r][half][t] for r in others) for t in range(5)]
        return [(all_of[j][half][t] - mean[t]) / (deviation[t] + statistics.mean(deviation)) for t in range(5)]

    expected = []
    for j in range(6):
        chosen = int(np.argmax(scores(j, 0)))
        expected.append((chosen, scores(j, 1)[chosen]))
    null = [score for _, score in expected[2:]]
    for j in (0, 1):
        word, score = expected[j]
        assert found["word"][j, 0] == word
        assert found["score"][j] == pytest.approx(score, abs=1e-4)
        assert found["p"][j] == (1 + sum(other >= score for other in null)) / 5
        held_out = images[number[1::2, j]]
        assert found["cosine"][j] == pytest.approx(float(np.mean(held_out @ words[word])), abs=1e-6)


def test_how_many_directions_must_stand_out_before_any_gets_a_word(caplog: pytest.LogCaptureFixture) -> None:
    for directions, randoms, least in ((10, 200, 1), (11, 200, 2), (20, 200, 2), (64, 200, 7), (512, 512, 20)):
        assert least_beyond(directions, randoms) == least
        for beyond in (least - 1, least):
            p = np.where(np.arange(directions) < beyond, 1 / (randoms + 1), 1.0)
            assert (bh_adjusted(p) <= 0.05).any() == (beyond == least)
    with caplog.at_level(logging.INFO):
        say_what_words_need({"few": slice(0, 10), "many": slice(10, 74)})
    said = caplog.text
    assert "few" not in said
    assert "many: any of its 64 directions gets a word only where at least 7" in said
    assert "200 random" in said


def test_the_box_around_what_fires_and_the_rest_blurred() -> None:
    fires = np.zeros((8, 8), bool)
    assert box_of(fires) == (0, 0, 8, 8)  # nowhere: all of the image
    fires[3, 4] = fires[4, 4] = True
    assert box_of(fires) == (2, 3, 6, 6)
    fires[0, 0] = True
    assert box_of(fires) == (0, 0, 6, 6)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(crop_picture(image, (0, 0, 8, 8), (8, 8)), pixels)
    assert np.array_equal(crop_picture(image, (2, 3, 6, 7), (8, 8)), pixels[20:60, 30:70])
    tall = np.asarray(crop_picture(image, (2, 3, 6, 6), (8, 8)))  # 40 × 30 pixels, in a square of 40
    assert tall.shape == (40, 40, 3)
    assert np.array_equal(tall[:, 5:35], pixels[20:60, 30:60])
    assert tall[:, :5].std() < 0.5 * pixels.std()
    assert crop_picture(image.resize((2000, 1000)), (0, 0, 8, 8), (8, 8)).size == (448, 224)


def test_words_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# colours\nred\n  navy   blue # dark\n\nred\nfaçade\n", encoding="utf-8")
    assert read_words(str(file)) == ["red", "navy blue", "façade"]
    shipped = read_words("default")
    assert len(shipped) > 2000
    assert {"red", "striped fur", "dog", "kitchen", "fog"} <= set(shipped)
    with pytest.raises(MissingPathError, match="a word a line"):
        read_words(str(tmp_path / "none.txt"))
    for content in (b"", b"# nothing\nred\n", b"\xff\xfe\x00", b"a\x00b\nc\n", b"x" * 200 + b"\ny\n"):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=r"words\.txt"):
            read_words(str(file))


class Spoken:
    """Embeds texts by their letters, pictures by their mean colour; counts the pictures."""

    def __init__(self) -> None:
        self.seen = self.read = 0

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image, np.float32).mean((0, 1)) / 255)

    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen += len(batch)
        return batch

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.read += len(texts)
        return torch.tensor([[1.0 + text.count(c) for c in "abe"] for text in texts])


def test_a_word_is_what_it_adds_to_the_templates() -> None:
    encoder = ImageTextEncoder("spoken", "1", Spoken())

    def unit(text: str) -> np.ndarray:
        x = np.array([1.0 + text.count(c) for c in "abe"])
        return x / np.linalg.norm(x)

    added = np.mean([unit(t.format("bee")) - unit(t.format("")) for t in TEMPLATES], axis=0)
    assert embed_words(encoder, ["axe", "bee"])[1] == pytest.approx(added / np.linalg.norm(added), abs=1e-6)


def test_embeddings_of_words_are_stored(tmp_path: Path) -> None:
    inner, file = Spoken(), tmp_path / "words.safetensors"
    asked = [("1", ["axe", "bee"]), ("1", ["axe", "bee"]), ("1", ["bee", "axe"]), ("2", ["bee", "axe"])]
    read = []
    for weights, words in asked:
        encoder = ImageTextEncoder("spoken", weights, inner)
        assert np.array_equal(embed_words(encoder, words, file), embed_words(encoder, words, file))
        read.append(inner.read)
    once = len(TEMPLATES) * 3  # two words and the empty template
    assert read == [once, once, 2 * once, 3 * once]


def test_a_clips_crop_is_of_the_step_of_its_largest_logit(tiny_store: Callable[..., Path]) -> None:
    """Two steps of 2 × 4 positions; one channel is the detector's logit."""
    x = np.full((3, 16, 1), -1.0, np.float32)
    x[0, 8 + 3] = 2.0  # second step, first row, last column
    x[1, 4] = 1.0  # first step, second row, first column
    spec = LayerSpec("conv", (2, 4), 1, time=2)
    reader = LayerReader(tiny_store({"conv": x}, specs={"conv": spec}), "conv")
    bank = Bank(torch.ones(1, 1), torch.zeros(1), {"own": slice(0, 1)})
    crops = crops_of(reader, bank, np.array([[1], [0], [2], [1]]))
    assert crops.places.tolist() == [[0, 1, 0, 2, 2, 4], [1, 0, 0, 0, 2, 2], [2, 0, 0, 0, 2, 4]]
    assert crops.number[:, 0].tolist() == [1, 0, 2, 1]


PLACES = np.array([[k, 0, 0, 0, 1, 4] for k in range(9)])


@pytest.fixture
def reader(tiny_store: Callable[..., Path]) -> LayerReader:
    return LayerReader(tiny_store({"conv": noise(9, 4)}), "conv")


def picture(row: int) -> list[Image.Image]:
    if row < 0:
        raise ImageError("no picture")
    return [Image.new("RGB", (8, 8), (20 * row, 100, 7))]


def embed(
    reader: LayerReader, inner: Spoken, places: np.ndarray, *, weights: str = "1", images: str = "here"
) -> np.ndarray:
    found = embed_crops(reader, places, picture, ImageTextEncoder("spoken", weights, inner), images)
    return found[np.arange(len(places))]


def test_embeddings_are_stored_and_never_stale(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_embeddings, "SPARE", 3)
    inner = Spoken()
    first = embed(reader, inner, PLACES[:5])
    assert inner.seen == 5
    again = embed(reader, inner, PLACES)
    assert inner.seen == 9  # the other four
    expected = np.array([[20 * k, 100, 7] for k in range(9)])
    assert again == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=1e-6)
    assert np.array_equal(again[:5], first)
    assert np.array_equal(embed(reader, inner, PLACES[[2, 7]]), again[[2, 7]])
    assert inner.seen == 9
    assert reader.store.verify() == []
    embed(reader, inner, PLACES, weights="2")
    embed(reader, inner, PLACES, images="elsewhere")
    assert inner.seen == 27
    files = crop_files(reader)
    assert len(files) == 4
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    assert len(reader.store.verify()) == 4
    assert np.array_equal(embed(reader, inner, PLACES), again)
    assert inner.seen == 36  # damaged ones are made again
    assert len(reader.store.verify()) == 2  # those of another encoder and of other images
    monkeypatch.setattr(crop_embeddings, "SPARE", 0)
    embed(reader, inner, PLACES)
    assert reader.store.verify() == []
    assert len(crop_files(reader)) == 1


def crop_files(reader: LayerReader) -> list[Path]:
    return [file for file in reader.store.attachments() if file.parent.name == "crops"]


def test_files_of_many_runs_are_joined(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_embeddings, "SPARE", 1)
    inner = Spoken()
    for k in range(8):
        embed(reader, inner, PLACES[[k, 8]])
        assert len(crop_files(reader)) <= 4
    embed(reader, inner, PLACES[[7, 8]])
    assert inner.seen <= 8 + 3  # what the last run before joining asked for is there


def test_a_file_that_cannot_be_deleted_stops_no_run(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_embeddings, "SPARE", 0)
    inner = Spoken()
    for weights in "12":
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", raising(PermissionError()))
            assert len(embed(reader, inner, PLACES, weights=weights)) == 9
    assert inner.seen == 18


def raising(error: Exception) -> Callable[..., None]:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_an_encoder_must_always_give_as_many_numbers(reader: LayerReader) -> None:
    embed(reader, Spoken(), PLACES[:4])
    wider = Spoken()
    wider.preprocess = lambda image: torch.ones(5)  # type: ignore[method-assign]
    for places in (PLACES, PLACES[3:]):
        with pytest.raises(UsageError, match="5 numbers for an image, and 3 before"):
            embed(reader, wider, places)
    assert reader.store.verify() == []


def test_a_stopped_run_has_what_it_embedded(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_embeddings, "PART", 4)
    monkeypatch.setattr(crop_embeddings, "BATCH", 2)
    inner = Spoken()

    def stopping(batch: torch.Tensor) -> torch.Tensor:
        if inner.seen == 6:
            raise StoreError("stopped")
        return Spoken.encode_image(inner, batch)

    with monkeypatch.context() as patch:
        patch.setattr(inner, "encode_image", stopping)
        with pytest.raises(StoreError, match="stopped"):
            embed(reader, inner, PLACES)
    embed(reader, inner, PLACES)
    assert inner.seen == 6 + 3


def test_a_store_that_cannot_be_written_to(reader: LayerReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are found all the same."""
    inner = Spoken()
    (reader.store.path / "layers" / "conv" / "crops").write_text("in the way")
    assert embed(reader, inner, PLACES).shape == (9, 3)
    assert inner.seen == 9


def test_images_that_cannot_be_read_have_no_embedding(reader: LayerReader, caplog: pytest.LogCaptureFixture) -> None:
    places = np.concatenate([[[-1, 0, 0, 0, 1, 4]], PLACES])
    encoder = ImageTextEncoder("spoken", "1", Spoken())
    found = embed_crops(reader, places, picture, encoder, "here")
    assert found.known.tolist() == [False] + 9 * [True]
    assert found[np.array([3, 0, 2])].shape == (2, 3)
    assert "1 of 10 images cannot be read" in caplog.text
    with pytest.raises(ImageError, match="None of the images"):
        embed_crops(reader, places[:1], picture, encoder, "here")


@pytest.mark.parametrize("kind", ["tensor", "bfloat16", "array"])
def test_other_weights_are_another_encoder(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Also where they are no module: embeddings of the weights before would be read."""

    def opened(value: float) -> str:
        inner = Spoken()
        weight = torch.full((2, 3), value)
        inner.weight = {"tensor": weight, "bfloat16": weight.bfloat16(), "array": weight.numpy()}[kind]  # type: ignore[attr-defined]
        monkeypatch.setattr("tests.helpers.tiny.spoken", lambda: inner, raising=False)
        return open_encoder("tests.helpers.tiny:spoken").digest

    assert opened(1.0) == opened(1.0)
    assert opened(1.0) != opened(2.0)
