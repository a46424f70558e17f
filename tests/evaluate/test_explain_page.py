"""Words, pictures, documents and the page of explanations."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluate.explain.contributions import pooled_contributions
from evaluate.explain.counterfactual import ConceptChange
from evaluate.explain.counterfactual_search import Turned
from evaluate.explain.explainer import Explained
from evaluate.explain.explanation_document import (
    UNREAD,
    Terms,
    brief,
    describe,
    listed_classes,
    sentence,
    steps_of,
    turning_words,
)
from evaluate.explain.explanation_page import ExplainedImage, Map, PageData, render, waterfall
from evaluate.explain.heat_maps import AGAINST, FOR, Step, bars, heat, sheet
from evaluate.explain.phrases import Concept, cautions, change_words, contribution_words
from evaluate.explain.values import Usual
from evaluate.glossary import definitions
from evaluate.image_tiles import LINE, jpeg, outline, square

CONCEPTS = [
    Concept(0, "barn", "object", "barn 1 (0)", "barn"), Concept(1, "sea", "object", "direction 1", "direction 1"),
    Concept(2, "", "", "direction 2", "direction 2"), Concept(3, "barn", "object", "barn 2 (3)", "barn"),
]  # fmt: skip


def test_names() -> None:
    assert [c.name for c in CONCEPTS] == ["barn 1 (0)", "direction 1", "direction 2", "barn 2 (3)"]


def test_contributions_in_words() -> None:
    parts, pooled = np.array([2.1, -0.4, 0.1, 1.0]), np.array([1.0, 0.5, 1.0, -0.2])
    words = contribution_words(CONCEPTS, parts, pooled, shown=3)
    assert words == "barn 1 (0) +2.10, little barn 2 (3) +1.00, direction 1 −0.40"
    assert contribution_words(CONCEPTS, parts, pooled, -3.0, shown=1) == "no concept −3.00, barn 1 (0) +2.10"


def test_what_is_to_be_read_with_care() -> None:
    parts = np.array([2.1, -0.4, 0.1, 1.0])
    sums = {"the logit": (parts, 2.0), "the difference": (parts - 1, -1.2)}
    assert cautions(CONCEPTS, sums) == []
    again = [replace(one, found_again=share) for one, share in zip(CONCEPTS, (0.5, 0.0, 0.0, 0.25), strict=True)]
    (rare,) = cautions(again, {"the logit": (parts, 2.0)}, shown=3)
    assert rare.endswith(": barn 2 (3), direction 1")
    (rare,) = cautions(again, {"the logit": (parts, 2.0)}, [0, 2], shown=1)
    assert rare.endswith(": direction 2")  # a change by a direction that was rarely found again
    (left,) = cautions(CONCEPTS, sums | {"the difference": (parts - 1, -1.5)})
    assert "the difference (−1.50)" in left
    assert len(cautions(again, sums | {"the logit": (parts, -2.2)})) == 2


def test_changes_in_words_join_a_label() -> None:
    spread = np.array([1.0, 1.0, 2.0, 1.0])
    assert change_words(CONCEPTS, np.array([1.0, -1.5, 0, 1.0]), spread) == "more barn (0, 3), less direction 1"
    assert change_words(CONCEPTS, np.array([0, 0, -2.0, 0]), spread) == "less direction 2"
    assert (
        change_words(CONCEPTS, np.array([3, -2, 3, -1.0]), spread, 2)
        == "more barn 1 (0), less direction 1 and 2 smaller changes"
    )


@pytest.fixture
def found() -> Explained:
    g = np.random.default_rng(0)
    alpha, x = g.normal(size=(4, 4)), g.normal(size=(4, 5))
    parts = pooled_contributions(x, np.zeros(5), alpha, g.normal(size=(5, 4)), g.normal(size=(3, 5)), g.normal(size=3))
    order = np.argsort(-parts.logits)
    change = ConceptChange(np.array([0.5, 0, 0, -1.0]), 1.5, False)
    after = np.where(np.arange(3) == order[1], 5.0, 0.0)
    return Explained(
        parts, int(order[0]), int(order[1]), alpha, alpha - 0.5, alpha, np.abs(x).sum(1), alpha.mean(0), int(order[1]),
        Turned(int(order[1]), change, after, True, after - 1, True),
    )  # fmt: skip


USUAL = Usual(np.ones(4), -np.ones(4), np.ones(4), True, 9)
FREE = replace(USUAL, nonnegative=False)


def terms(top: int = 2) -> Terms:
    return Terms(["farm", "beach", "<i>road</i>"], CONCEPTS, top)


def with_(found: Explained, **changes: Any) -> Explained:
    return Explained(**{**vars(found), **changes})


def bent(found: Explained) -> Explained:
    return with_(found, contributions=replace(found.contributions, exact=False))


def test_the_document_sums_up(found: Explained) -> None:
    document = describe(found, USUAL, terms(1))
    assert [k["number"] for k in document["classes"]] == [found.explained, found.against]
    for j, k in enumerate(document["classes"]):
        total = document["base"][j] + document["residual"][j] + sum(c["to"][j] for c in document["contributions"])
        assert total == pytest.approx(k["logit"], abs=1e-6)
    assert [c["direction"] for c in document["contributions"]] == np.argsort(
        -np.abs(found.contributions.parts[:, found.explained])
    ).tolist()
    one = next(c for c in document["contributions"] if c["direction"] == 2)
    assert one["fires_at"] == np.flatnonzero(found.fires[:, 2] > 0).tolist()
    turned = document["counterfactual"]
    assert [c["direction"] for c in turned["changes"]] == [3, 0]
    assert turned["changes"][0]["to"] == pytest.approx(found.pooled[3] - 1)
    assert turned["words"] == "less barn 2 (3), more barn 1 (0)"
    assert turned["probability"] == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    assert turned["flips"]
    assert turned["flips_kept"]
    assert listed_classes(found, 3) == np.argsort(-found.contributions.logits).tolist()


def test_sentences(found: Explained) -> None:
    name = terms().classes[int(found.target or 0)]
    assert sentence(found, USUAL, terms()).startswith(f"predicted as {terms().classes[found.predicted]} (")
    assert turning_words(found, USUAL, terms()) == f"would be {name} with less barn 2 (3), more barn 1 (0)"
    assert turning_words(with_(found, turned=None), FREE, terms()) == f"no change of these concepts makes it {name}"
    for unsure in (with_(found, turned=None), bent(with_(found, turned=None))):
        usual = USUAL if unsure.contributions.exact else FREE
        assert turning_words(unsure, usual, terms()) == f"no change of these concepts was found that makes it {name}"
    turned = found.turned
    assert turned is not None
    lost = Turned(turned.target, turned.change, turned.after, True, turned.after, False)
    assert turning_words(with_(found, turned=lost), USUAL, terms()).endswith(
        "(not with activations limited to 0 and more)"
    )
    far = Turned(turned.target, ConceptChange(turned.change.delta, 1.5, True), turned.after, True, None, None)
    assert turning_words(with_(found, turned=far), USUAL, terms()).endswith("(beyond what images have)")
    never = Turned(turned.target, turned.change, turned.after, False, turned.after, False)
    assert turning_words(with_(found, turned=never), USUAL, terms()).startswith("not even")
    already = with_(found, target=found.predicted, turned=None)
    assert turning_words(already, USUAL, terms()) == f"is {terms().classes[found.predicted]} already"
    assert describe(already, USUAL, terms())["counterfactual"] is None
    for usual, certain in ((USUAL, False), (FREE, True)):
        nothing = describe(with_(found, turned=None), usual, terms())["counterfactual"]
        assert (nothing["found"], nothing["none_exists"]) == (False, certain)


def test_a_prediction_that_is_not_read_here_is_said_to_be_so(found: Explained) -> None:
    unread = with_(found, unread=True, turned=None)
    assert sentence(unread, USUAL, terms()).endswith(f"): {UNREAD}")
    document = describe(unread, USUAL, terms())
    assert document["reads_positions"] is False
    assert document["counterfactual"]["none_exists"]
    text = page(unread)
    assert "does not depend on the positions of this layer" in text
    for left_out in ("Grad-CAM for", "Where these concepts are", "What would make it", 'class="bars fall"'):
        assert left_out in page(found)
        assert left_out not in text
    tile = square(Image.new("L", (30, 50), 99), 24)
    with Image.open(
        io.BytesIO(sheet(tile, None, [], [], title="farm", subtitle=UNREAD, what="logit", cam_title=""))
    ) as image:
        assert image.width == 1440


def test_the_document_in_brief(found: Explained) -> None:
    document = {"image": "a", "row": None, "sentence": "s", **describe(found, USUAL, terms()), "files": {"sheet": "x"}}
    short = brief(document)
    assert set(short) == {
        "image",
        "row",
        "predicted",
        "explained",
        "sentence",
        "read_with_care",
        "files",
        "counterfactual",
    }
    assert short["counterfactual"]["words"] == "less barn 2 (3), more barn 1 (0)"
    assert short["counterfactual"]["changed"] == 2
    assert "changes" not in short["counterfactual"]
    nothing = describe(with_(found, turned=None), USUAL, terms())
    assert brief({**document, **nothing})["counterfactual"] == {**nothing["counterfactual"], "changed": 0}
    assert brief({**document, "counterfactual": None})["counterfactual"] is None


@pytest.mark.parametrize("other", [None, 1])
def test_steps_end_at_the_total(found: Explained, other: int | None) -> None:
    other = None if other is None else found.against
    steps = steps_of(found, terms(), 2, other)
    assert (steps[0].kind, steps[-1].kind) == ("base", "total")
    assert sum(s.value for s in steps[:-1]) == pytest.approx(steps[-1].value)
    named = [s for s in steps[1:-1] if s.name != "2 others"]
    assert [s.kind for s in steps[1:-1] if s.name == "2 others"] == ["rest"]
    assert len(named) == 3
    assert "no concept" in [s.name for s in named]
    sizes = [abs(s.value) for s in named]
    assert sizes == sorted(sizes, reverse=True)  # what no concept explains stands where its size puts it
    spans = bars(steps)
    assert spans[0][0] == spans[-1][0] == 0
    assert spans[-2][1] == pytest.approx(spans[-1][1])
    rows = waterfall(steps)["rows"]
    for row, span in zip(rows, spans, strict=True):
        assert 0 <= float(row["left"]) <= 100.001
        assert float(row["left"]) + float(row["width"]) <= 100.02
        assert (float(row["width"]) > 0) == (abs(span[1] - span[0]) > 0)


def test_heat_has_its_signs_colours() -> None:
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    pixels = np.asarray(heat(grey, np.array([[4.0, 0.0], [0.0, -4.0]]))).astype(int)
    for place, colour in (((2, 2), FOR), ((37, 37), AGAINST)):
        np.testing.assert_allclose(pixels[place], np.rint(0.15 * 128 + 0.85 * np.array(colour)), atol=2)
    np.testing.assert_array_equal(np.asarray(heat(grey, np.zeros((2, 2)))), np.asarray(grey))
    paler = np.asarray(heat(grey, np.array([[4.0]]), largest=8.0)).astype(int)
    np.testing.assert_allclose(paler[5, 5], 0.575 * 128 + 0.425 * np.array(FOR), atol=2)


def test_an_outline_is_around_what_fires() -> None:
    black = Image.new("RGB", (40, 40))
    drawn = np.asarray(outline(black, np.array([[1.0, -1.0], [1.0, -1.0]])))
    assert (drawn[:, 20:22] == LINE).all()
    assert not drawn[:, :20].any()
    for everywhere in (1.0, -1.0):
        assert not np.asarray(outline(black, np.full((2, 2), everywhere))).any()


def test_a_sheet_is_a_png_that_depends_on_its_content_only() -> None:
    tile = square(Image.new("L", (30, 50), 99), 24)
    steps = [Step("average image", 1.0, "base"), Step("b$arn_$" * 20, -2.0), Step("farm", -1.0, "total")]
    names = [(f"concept {i} 雪", tile) for i in range(5)]
    made = [
        sheet(tile, tile, names, steps, title="farm", subtitle="would be " * 40, what="logit", cam_title="Grad-CAM")
        for _ in range(2)
    ]
    assert made[0] == made[1]
    with Image.open(io.BytesIO(made[0])) as image:
        assert image.format == "PNG"
        assert image.width == 1440
    with Image.open(io.BytesIO(jpeg(tile))) as image:
        assert image.size == (24, 24)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def page(found: Explained, count: int = 1, usual: Usual = USUAL) -> str:
    document = describe(found, usual, terms())
    maps = [] if found.unread else [Map("barn (0)", -0.5, 0.25, "pictures/a#1?.jpg")]
    sums = [] if found.unread else [("The logit", steps_of(found, terms(), 2))]
    line = "Predicted as <i>road</i>" if not found.unread else sentence(found, usual, terms())
    parts = (document[key] for key in ("predicted", "explained", "classes", "counterfactual"))
    one = ExplainedImage("<b>x</b>.jpg", line, *parts, sums, maps,
                "pictures/s.jpg", None if found.unread else "pictures/c.jpg", "s.png", "s.json")  # fmt: skip
    return render(PageData("<u>t</u>", {"Model": "m & n"}, [one] * count, definitions("explanation")))


def test_the_page_escapes_and_asks_nothing(found: Explained) -> None:
    text = page(found)
    tags = Tags()
    tags.feed(text)
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "i>", "u", "iframe", "object"}
    assert "&lt;b&gt;x&lt;/b&gt;.jpg" in text
    assert "&lt;u&gt;t&lt;/u&gt;" in text
    policy = next(a["content"] for tag, a in tags.seen if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for tag, attributes in tags.seen:
        for key in ("src", "href"):
            value = attributes.get(key) or ""
            assert "//" not in value, (tag, value)
    assert "pictures/a%231%3F.jpg" in text
    assert page(found) == text
    assert text.count("<article") == 1
    assert "<nav" not in text
    assert page(found, 3).count('<li><a href="#i') == 3


def test_the_page_says_what_was_not_found(found: Explained) -> None:
    nothing = with_(found, turned=None)
    for usual, certain in ((USUAL, False), (FREE, True)):
        text = page(nothing, usual=usual)
        assert ("of whatever size" in text) == certain
        assert ("No change of these concepts was found" in text) != certain
    assert "of whatever size" not in page(bent(nothing), usual=FREE)
    assert "What would make it" not in page(with_(found, target=None, turned=None))
    turned = found.turned
    assert turned is not None
    far = Turned(turned.target, ConceptChange(turned.change.delta, 1.5, True), turned.after, True, turned.after, False)
    text = page(with_(found, turned=far))
    assert "beyond what images have" in text
    assert "within it, none was found" in text
    assert "as the layer has them, it is not" in text
