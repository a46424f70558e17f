"""Pages as texts: what is escaped, what they link to, what they say when something was not measured, and the same bytes again."""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
import re
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from html_page import HOSTILE, Page

from evaluate.compare import compare
from evaluate.direction_names import DirectionName
from evaluate.glossary import definitions
from evaluate.number_format import anchor, url
from evaluate.report import svg_charts as charts
from evaluate.report import svg_shapes as figures
from evaluate.report.logit_histograms import Histogram
from evaluate.report.report_data import (
    ClassPage,
    Direction,
    Features,
    Mark,
    Push,
    Site,
    Steer,
    Tile,
)
from evaluate.report.report_pages import class_page, direction_page, ends, floor, pages, start_page

NAN = float("nan")
SHOWN = ("labels", "pairs", "site", "diagnosis", "influence", "influence pages", "visualization")
EVERYTHING = (*SHOWN, "refits", "stability", "truth")
STEER = Steer(1, [0.0, 2.0, 40.0], {"signal": [0, 0.1, 0.3], "filter": [0, -0.1, 0.1]}, {"signal": 40.0, "filter": 0.0})
RANDOM = Steer(-1, [0.0, 2.0, 40.0], {"low": [0, 0, 0], "middle": [0, 0, 0.1], "high": [0, 0.1, 0.2]}, {"random": 2.0})


def bins(low: float, counts: tuple[int, ...]) -> Histogram:
    return Histogram(low, 1.0, counts, low, low + len(counts))


def candidate(label: str, category: str, iou_train: float, iou_val: float) -> dict[str, Any]:
    return {
        "label": label,
        "category": category,
        "rank": 1,
        "as_good": True,
        "iou_train": iou_train,
        "iou_val": iou_val,
    }


def direction(index: int = 0, **changes: Any) -> Direction:
    plain = Direction(
        index=index, name=DirectionName("sky", "sky"), label="sky", category="object", interpretable=True, problem="", iou=0.25, iou_low=0.2, iou_high=0.3, share=0.05,
        agreement=0.5, histogram=bins(-2.0, (5, 3, 1)),
        tiles=[Tile(f"t/{index}.webp", "a.jpg", 4.5, 1), Tile("", "gone.jpg", 3.25, -1)],
        strip=f"s/{index}.webp", measures={"precision": 0.5}, candidates=[candidate("sky", "object", 0.3, 0.25), candidate("sea", "scene", 0.2, 0.1)],
        pushes={"signal": [Push(1, 0.2, True), Push(0, -0.1, False)], "filter": [Push(0, 0.01, True)]},
        up=[1], down=[], strongest=[Push(1, 0.2, True)], steer=STEER, near={"signal": [(1 - index, 0.9)], "filter": [(1 - index, -0.2)]},
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def site(**changes: Any) -> Site:
    classes = [
        ClassPage(k, name, 3, 2, 1, [Tile(f"e/{k}.webp", "a.jpg", 0.9, k)], [Push(0, 0.2, True), Push(1, -0.1, False)], Push(0, 0.2, True))
        for k, name in enumerate(("boat", "house"))
    ]  # fmt: skip
    summary = {"directions": {"eddp": {"method": "eddp", "directions": 2, "s1": 2.0, "sdc": 0, "intervals": {"s1": [1.5, 2.5]}},
                              "pca": {"method": "pca", "directions": 2, "s1": 1.0, "sdc": 0}}}  # fmt: skip
    plain = Site(
        title="A layer", name="eddp", method="eddp", facts={"Model": "m"}, settings={"seed": "0"}, notes=["Something is missing."],
        comparison=compare(summary), per_category=[("object", 1, 2)],
        directions=[direction(0, marks=[Mark("dead"), Mark("duplicate of", 1)]), direction(1, name=DirectionName("direction 1", "direction 1"), label="", category="", interpretable=False, problem="no label fits", iou=0.0)],
        classes=classes, places=[(0.0, 0.5), (1.0, 0.5)], definitions=definitions(*SHOWN),
        influence={"alpha": 2.0, "images": 100, "alpha_relative": 0.25}, random=RANDOM,
        suspects=[{"indices": [0], "class": 1, "probability_change": 0.2, "images": 9, "share_of_class": 1.0, "area": 0.05, "kind": "small, of one class"}],
        diagnosis={"dead": [0], "duplicates": [[0, 1]], "overfull": [], "coverage": 0.9}, log={"total": [(0, 2.0), (1, 1.0), (2, 1.5)]},
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def bare() -> Site:
    """Neither labels nor influence nor images."""
    nothing = {"name": DirectionName("direction 0", "direction 0"), "label": "", "category": "", "interpretable": False, "iou": NAN, "iou_low": NAN, "iou_high": NAN, "measures": {},
               "candidates": [], "pushes": {}, "up": [], "strongest": [], "steer": None}  # fmt: skip
    one = direction(0, **nothing, tiles=[Tile("", "a.jpg", 1.0)], near={"signal": [], "filter": []})
    return site(
        directions=[one], classes=[ClassPage(0, "class 0", 1)], places=[(0.5, 0.5)], per_category=[], suspects=[], diagnosis={}, log={},
        influence=None, random=None, comparison=compare({"directions": {"eddp": {"method": "eddp", "directions": 1}}}),
        definitions=definitions("pairs", "site", "diagnosis"),
    )  # fmt: skip


def refitted(refits: int = 8) -> Site:
    """With refits, and another fit of the method."""
    measures = ("detector_iou", "logit_correlation", "signal_cos")
    values = {f"{measure}{part}": 0.5 for measure in measures for part in ("", "_chance", "_kappa")}
    row = {"first": "half", "second": "eddp", **values, "mutual": 0.75, "nearest_first": 0.1, "nearest_second": 0.625}
    return site(
        directions=[direction(0, found_again=0.875), direction(1, found_again=0.25)], refits=refits, stability=[row],
        definitions=definitions(*EVERYTHING),
    )  # fmt: skip


def test_the_numbers_of_directions_that_were_tried_are_a_table() -> None:
    rows = [{"directions": 2, "kappa": 0.625}, {"directions": 4, "kappa": 0.375}]
    chosen = site(selection={"why": "the <largest>", "rows": rows}, definitions=definitions(*EVERYTHING, "selection"))
    page = rendered(chosen)["fit.html"]
    assert "2, taken" in page
    assert "<td>0.375</td>" in page
    assert "the &lt;largest&gt;" in page
    assert "How many directions" not in rendered(site())["fit.html"]


def rendered(what: Site) -> dict[str, str]:
    return {path: content.decode() for path, content in pages(what)}


def test_hostile_names_stay_text() -> None:
    evil = direction(
        0, name=DirectionName(HOSTILE, HOSTILE, HOSTILE, True), label=HOSTILE, category=HOSTILE, tiles=[Tile("t/0.webp", HOSTILE, 1.0, 0), Tile("", HOSTILE, 1.0, 0)],
        measures={HOSTILE: 0.1}, candidates=[candidate(HOSTILE, HOSTILE, 0.1, 0.1)], marks=[Mark(HOSTILE, 0)],
        features=Features("a.jpg", "b.jpg", 1, 1, 0.5, 0.5, 0.5, 0.1, 1.0),
        near={"signal": [(0, 1.0)]}, pushes={"signal": [Push(0, 0.1, True)]}, strongest=[Push(0, 0.1, True)], steer=dataclasses.replace(STEER, target=0),
    )  # fmt: skip
    summary = {"directions": {HOSTILE: {"method": HOSTILE, "s1": 1.0}, "x": {"method": "x", "s1": 2.0}}}
    what = site(
        title=HOSTILE, name=HOSTILE, method=HOSTILE, facts={HOSTILE: HOSTILE}, settings={HOSTILE: HOSTILE}, notes=[HOSTILE],
        comparison=compare(summary), per_category=[(HOSTILE, 1, 1)], directions=[evil, evil], log={HOSTILE: [(0, 1.0)]},
        classes=[ClassPage(0, HOSTILE, 1, 1, 1, [Tile("e/0.webp", HOSTILE, 0.9, 0)], [Push(0, 0.1, True)])],
        suspects=[{"indices": [0], "class": 0, "probability_change": 0.2, "images": 9, "share_of_class": 1.0, "area": 0.05, "kind": "small, of one class"}],
    )  # fmt: skip
    for path, text in rendered(what).items():
        if not path.endswith(".html"):
            continue
        page = Page(text)
        scripts = [a for a in page.all("script") if a.get("type") != "application/json"]  # data are no script
        assert len(scripts) == len(page.all("style")) + 1 == 1
        assert scripts[0]["src"].endswith("script.js")  # type: ignore[union-attr]
        assert not any(key.startswith("on") or key == "style" for _, attributes in page.elements for key in attributes)
        assert all(not str(attributes["src"]).startswith("x") for attributes in page.all("img"))
        assert "49" not in "".join(t for t in page.texts if "alert" in t)
        assert HOSTILE in "".join(page.texts)


def test_the_start_page_leads_to_every_set_whatever_it_is_called() -> None:
    facts = {"Directions": "2 by eddp"}
    sets = [site(name=name, title=HOSTILE, notes=[HOSTILE], facts=facts) for name in (HOSTILE, "a b#?")]
    row = {**site().suspects[0], "label": HOSTILE, "class_name": HOSTILE}
    page = Page(
        start_page(HOSTILE, {HOSTILE: HOSTILE}, [dataclasses.replace(one, suspects=[row]) for one in sets]).decode()
    )
    assert len(page.all("style")) == len(page.all("title")) == 1
    assert not page.all("script")
    links = {str(a["href"]) for a in page.all("a")}
    for one in sets:
        assert {f"report/{url(one.name)}/{file}" for file in ("index.html", "d/00000.html")} <= links
    assert "+20.0 pp" in "".join(page.texts)


@pytest.mark.parametrize("make", [site, bare, refitted])
def test_every_link_leads_somewhere(make: Any) -> None:
    texts = rendered(make())
    parsed = {path: Page(text) for path, text in texts.items() if path.endswith(".html")}
    ids = {path: {a["id"] for _, a in page.elements if "id" in a} for path, page in parsed.items()}
    for path, page in parsed.items():
        assert len(ids[path]) == sum("id" in a for _, a in page.elements)  # no id twice
        links = [a["href"] for name, a in page.elements if name in ("a", "link") and "href" in a]
        links += [a["src"] for a in page.all("script") if "src" in a]
        for link in links:
            assert link is not None
            if link == "data:,":
                continue
            target, _, part = link.partition("#")
            there = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(target))) if target else path
            assert there in texts, (path, link)
            assert not part or part.startswith("q=") or part in ids[there], (path, link)  # q=: a search


def test_a_share_is_never_said_to_be_more_than_it_is() -> None:
    assert [floor(v) for v in (0.996, 1.0, 0.29, 0.9)] == ["99", "100", "29", "90"]
    one = {**site().suspects[0], "share_of_class": 0.9967}
    assert (
        "99 % of the 9 images that show it are predicted as the class" in rendered(site(suspects=[one]))["index.html"]
    )


def test_a_detector_that_fires_nowhere_is_not_said_to_fire() -> None:
    tiles = [Tile("t/0.webp", "a.jpg", 0.2, 1), Tile("t/1.webp", "b.jpg", -0.5, 1)]
    page = rendered(site(directions=[direction(0, tiles=tiles), direction(1)]))[direction_page(0)]
    assert 'alt="a.jpg, with the region where direction 0 fires"' in page
    assert 'alt="b.jpg, direction 0 does not fire"' in page
    assert page.count("does not fire here") == 1


def test_a_direction_without_label_neighbours_or_influence() -> None:
    texts = rendered(dataclasses.replace(bare(), diagnosis={"dead": [0], "duplicates": [], "overfull": []}))
    assert "<title>0 direction · A layer</title>" in texts[direction_page(0)]
    assert "Neighbours" not in texts[direction_page(0)]
    assert "1 direction hardly ever fires" in texts["index.html"]


def test_the_truth_is_shown_where_it_is_known() -> None:
    found = [
        {"concept": 0, "direction": 1, "iou": 0.875, "cos": -0.25, "filter_cos": 0.625},
        {"concept": 1, "direction": -1, "iou": None, "cos": None, "filter_cos": None},
    ]
    what = site(truth=found, facts={"Against the truth": "1 of 2 concepts found"},
                definitions=definitions(*EVERYTHING))  # fmt: skip
    texts = rendered(what)
    assert "0.875" in texts["fit.html"]
    assert "<td>−0.25</td><td>0.62</td>" in texts["fit.html"]
    assert "<td>none</td>" in texts["fit.html"]
    assert "1 of 2 concepts found" in texts["index.html"]
    assert "IoU 0.875, cosine of the signal vectors −0.25" in texts[direction_page(1)]
    assert "Matched with" not in texts[direction_page(0)]
    assert "Against the truth" not in rendered(site())["fit.html"]


def test_what_other_fits_find_is_shown_where_there_are_some() -> None:
    found = rendered(refitted())
    assert "7 of 8" in found["d/00000.html"]
    assert re.findall(r'data-again="(\d+)"', found["index.html"]) == ["7", "2"]
    assert all(word in found["fit.html"] for word in ("half", "0.750", "0.625"))
    assert "0.100" not in found["fit.html"]  # of the other set
    bars = re.findall(r'"who">([^<]*)</span>.*"sum">([^<]*)<', found["fit.html"])
    assert len(bars) == 9
    assert [text for text, count in bars if count == "1"] == ["7 of 8", "2 of 8"]
    many = rendered(refitted(refits=0))["fit.html"]
    assert re.findall(r'"who">([^<]*)</span>.*"sum">1<', many) == ["80 %", "20 %"]
    without = "".join(rendered(site()).values()).lower()
    assert "found again" not in without
    assert "mutual" not in without


def test_a_strip_is_as_long_as_there_are_images() -> None:
    one = direction(0, tiles=[Tile(f"t/{k}.webp" if k != 1 else "", "a.jpg", 1.0) for k in range(9)], strongest=[])
    two = direction(1, tiles=[Tile("", "a.jpg", 1.0)], strip="", strongest=[])
    images = Page(rendered(site(directions=[one, two], suspects=[]))["index.html"]).all("img")
    assert [(a["src"], a["class"], a["width"], a["height"]) for a in images] == [("s/0.webp", "film n5", "652", "128")]


def test_what_the_script_reads_is_what_directions_move() -> None:
    page = Page(
        rendered(site(directions=[direction(0, up=[1], down=[0]), direction(1, up=[], down=[1])]))["index.html"]
    )
    found = json.loads(next(text for text in page.texts if text.startswith('{"classes"')))
    assert found == {"classes": ["boat", "house"], "up": [[1], []], "down": [[0], [1]]}


def test_measures_of_which_less_is_better_say_so() -> None:
    summary = {"directions": {"eddp": {"method": "eddp", "directions": 2, "s1": 1.0, "redundancy": 2.0}}}
    page = rendered(site(comparison=compare(summary)))["index.html"]
    assert page.count("less is better</small>") == 1


def test_there_is_a_page_for_each_direction_and_class() -> None:
    texts = rendered(site())
    expected = {"index.html", "fit.html", "definitions.html", "classes.html", "style.css", "script.js"}
    assert set(texts) == expected | {direction_page(i) for i in (0, 1)} | {class_page(k) for k in (0, 1)}


def test_a_class_without_images_that_hardly_anything_moves_has_no_page_and_no_link() -> None:
    moved, still = (
        ClassPage(k, name, 0, pushes=[Push(0, change, True)])
        for k, name, change in ((2, "moved", -0.001), (3, "still", 0.0009))
    )
    pushed = direction(0, pushes={"signal": [Push(k, 0.1, True) for k in (2, 3)]})
    texts = rendered(site(classes=[*site().classes, moved, still], directions=[pushed, direction(1)]))
    assert [class_page(k) in texts for k in range(4)] == [True, True, True, False]
    for path in ("classes.html", direction_page(0)):
        assert class_page(2) in texts[path]
        assert class_page(3) not in texts[path]
        assert "still" in texts[path]
    assert 'rel="next"' not in texts[class_page(2)]


def test_significant_pushes_are_on_cards_and_classes_of_the_largest_come_first() -> None:
    pushes = [Push(0, 0.3, False), Push(1, -0.1, True)]
    one = direction(0, pushes={"signal": pushes}, strongest=pushes[1:])
    few = [
        ClassPage(k, f"class {k}", 1, 1, 1, [], [], up, down)
        for k, (up, down) in enumerate([(None, None), (Push(0, 0.1, True), None), (None, Push(0, -0.2, True))])
    ]
    texts = rendered(site(directions=[one, direction(1, strongest=[])], classes=few, suspects=[]))
    assert "+30.0 pp" not in texts["index.html"]
    assert "−10.0 pp" in texts["index.html"]
    assert re.findall(r'<tr data-index="(\d)"', texts["classes.html"]) == ["2", "1", "0"]


def test_strongest_effects_are_named_with_what_supports_them() -> None:
    tiles = [Tile(f"t/{k}.webp", f"{k}.jpg", 1.0, k % 3 % 2) for k in range(9)]
    weak = direction(0, strongest=[Push(0, -0.05, True)], found_again=0.0)
    strong = direction(1, strongest=[Push(1, 0.2, True)], tiles=tiles, found_again=0.5)
    what = dataclasses.replace(refitted(2), directions=[weak, strong], suspects=[])
    page = rendered(what)["index.html"].split('id="strongest"')[1].split("</section>")[0]
    assert re.findall(r'class="number">(\d)<', page) == ["1", "0"]
    assert (
        "+20.0 pp for the class at α = 2, +30.0 pp at α = 40; 3 of its 9 strongest images are predicted as it." in page
    )
    assert re.findall(r"found again (\d of \d)", page) == ["1 of 2", "0 of 2"]
    still = [dataclasses.replace(d, strongest=[]) for d in what.directions]
    assert (
        "No direction moves a class significantly."
        in rendered(dataclasses.replace(what, directions=still))["index.html"]
    )


def test_directions_are_counted_by_concept() -> None:
    named = [("sky", "object"), ("sea & land", "scene"), ("sky", "object"), ("rock", "object")]
    many = [
        direction(i, label=label, category=category, interpretable=i < 3) for i, (label, category) in enumerate(named)
    ]
    text = rendered(site(directions=many, places=[(0.1 * i, 0.5) for i in range(4)]))["index.html"]
    found = re.findall(r'<a class="who" href="(.+?)"><bdi>(.+?)</bdi>.*?width="(\d+)".*?class="sum">(\d+)<', text)
    assert found == [("#q=sky", "sky", "100", "2"), ("#q=sea+%26+land", "sea &amp; land", "50", "1")]


def test_nothing_is_asked_of_the_network_and_no_page_brings_code() -> None:
    for path, text in rendered(site()).items():
        assert "http:" not in text
        assert "https:" not in text
        assert "@import" not in text
        if path.endswith(".html"):
            policy = next(a["content"] for a in Page(text).all("meta") if "http-equiv" in a)
            assert "default-src 'none'" in str(policy)
            assert "unsafe" not in str(policy)


def test_the_same_data_give_the_same_bytes() -> None:
    assert dict(pages(site())) == dict(pages(site()))


def test_claims_are_said_in_words() -> None:
    texts = rendered(site())
    page = texts[direction_page(0)]
    assert page.count('"claims">significant<') == 2
    assert page.count(">not significant<") == 1
    assert "0.250 of the" in page  # the step's length
    assert "is used for this class (+20.0 pp). It is small, of one class: 100 % of" in texts[class_page(1)]
    assert "is small" not in texts[class_page(0)]
    assert "1 of these" not in texts[class_page(0)]
    assert "1 (50 %)" in texts[class_page(0)]
    assert "Of 4 labelled images 50 %" in texts["classes.html"]


def test_a_direction_without_a_label_that_fits_is_not_called_uninterpretable() -> None:
    """A striped fish on all of its images, and no label for it in the dataset."""
    fish = direction(
        1, name=DirectionName("direction 1", "direction 1"), interpretable=False, problem="no label fits", iou=0.01, iou_low=0.0, iou_high=0.02,
        tiles=[Tile(f"t/{k}.webp", f"{k}.jpg", 12.5, 1) for k in range(9)],
    )  # fmt: skip
    texts = rendered(site(directions=[direction(0), fish]))
    page = texts[direction_page(1)]
    assert ">no label fits</bdi></h1>" in page
    assert page.count("12.5") == 9
    assert "not interpretable" not in "".join(texts.values())
    assert 'class="dir"' in texts["index.html"]
    named = site(
        directions=[
            direction(0),
            dataclasses.replace(fish, name=DirectionName("striped fish", "striped fish", "8 of 9", True)),
        ]
    )
    texts = rendered(named)
    assert ">striped fish</bdi></h1>" in texts[direction_page(1)]
    assert "no label fits" in texts[direction_page(1)]
    assert "8 of 9" in texts[direction_page(1)]
    assert ">striped fish</bdi>" in texts["index.html"]


def test_a_label_comes_with_what_it_rests_on() -> None:
    few = direction(
        0, problem="too few validation images", images=2, positions=70, as_good=[candidate("sea", "scene", 0.2, 0.24)]
    )
    page = rendered(site(directions=[few, direction(1)]))[direction_page(0)]
    for text in ("too few validation images", ">2 <small>images, 70 points<", "as good", "0.200 to 0.300"):
        assert text in page


def test_many_suspects_are_named() -> None:
    one = site().suspects[0]
    page = rendered(site(suspects=[one] * 15))["index.html"].split('id="suspects"')[1]
    assert page.count("+20.0 pp for the class") == 12
    assert "And 3 more: " in page
    assert "more: " not in rendered(site())["index.html"]


def test_what_was_not_measured_is_said() -> None:
    texts = rendered(bare())
    everything = "".join(text for path, text in texts.items() if path.endswith(".html"))
    assert "Influence was not measured" in texts[class_page(0)]
    assert "This method leaves no diagnosis" in texts["fit.html"]
    assert "There is no log" in texts["fit.html"]
    assert "Something is missing." in texts["index.html"]
    assert "nan" not in everything
    assert ">None<" not in everything
    assert 'value="iou"' not in texts["index.html"]  # nothing to sort by


def test_the_best_is_bold_unless_all_are_alike() -> None:
    page = rendered(site())["index.html"]
    assert "<b>2.000</b>" in page
    assert "<b>0</b>" not in page
    assert "1.500 to 2.500" in page


def test_intervals_and_anchors() -> None:
    assert ends((48.0, 48.0)) == "48"
    assert ends((28.0, 36.0)) == "28 to 36"
    assert ends((0.572, 0.5821)) == "0.572 to 0.582"
    assert anchor("Paper's rule (S1)") == "paper-s-rule-s1"


# figures


def test_bars_are_as_long_as_they_say() -> None:
    assert 'width="25"' in figures.bar(0.25)
    assert 'width="100"' in figures.bar(7)
    assert 'width="0"' in figures.bar(NAN)
    assert 'x="25" width="25"' in figures.diverging(-1, 2)
    assert 'x="50" width="50"' in figures.diverging(2, 2)
    assert 'width="0"' in figures.diverging(0, 0)
    assert figures.stack([(0.5, "a"), (0.25, "b")]).count("rect") == 2


def test_a_histogram_is_split_at_the_threshold() -> None:
    text = charts.histogram(bins(-2.0, (9, 0, 99, 1)), "c1", "words")
    below, above = (part.split('"')[0] for part in text.split(' d="')[1:])
    assert below.count("M") == 1  # empty bins are not drawn
    assert above.count("M") == 2
    assert 'aria-label="words"' in text
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    heights = [bottom - float(step.split("V")[1].split("H")[0]) for step in (below, *above.split("z")[:2])]
    scale = (bottom - top) / math.log10(100)
    assert heights == pytest.approx([scale * math.log10(1 + c) for c in (9, 99, 1)], abs=0.06)


def test_a_histogram_says_the_range_of_its_logits_not_of_its_bins() -> None:
    text = charts.histogram_text(Histogram(-4.0, 4.0, (2, 3), -1.25, 2.5), 0.6)
    assert text.startswith("5 positions, logits from −1.25 to 2.5; 60 % are above")
    assert charts.histogram_text(Histogram(0.0, 1.0, (0,), NAN, NAN), 0.0) == "No position was counted."


@pytest.mark.parametrize("found", [bins(0.0, (0,)), bins(3.0, (4,)), bins(-9.0, (4,))])
def test_a_histogram_of_any_place_can_be_drawn(found: Histogram) -> None:
    assert "nan" not in charts.histogram(found, "cnone", "")


def test_steering_that_gains_nothing_can_be_drawn() -> None:
    flat = Steer(0, [0.0, 1.0], {"signal": [0.0, 0.0]}, {"signal": 1.0})
    assert charts.steering(flat, None, "").count("<path") == 1
    assert charts.steering_text(flat).startswith("The signal vector never raises it. ")
    text = charts.steering_text(dataclasses.replace(STEER, curves={"signal": [0, 0.1, 0.3], "filter": [0, -0.1, -0.2]}))
    assert text.startswith(
        "The signal vector gains at most +30.0 pp, at α = 40 without a fall before; the filter never raises it."
    )
    fallen = dataclasses.replace(STEER, monotone={"signal": 2.0, "filter": 2.0})
    assert "first fall after α = 2" in charts.steering_text(fallen)
    assert "half of them" in charts.steering_text(dataclasses.replace(fallen, target=-1))


def test_a_long_curve_keeps_its_last_point() -> None:
    text = charts.curve("total", [(k, float(k)) for k in range(1001)])
    path = text.split(' d="')[1].split('"')[0]
    assert path.count("L") <= charts.POINTS + 1
    assert path.endswith(f"{charts.WIDTH - charts.RIGHT} {charts.TOP}")
    assert "no value" in charts.curve("x", [(0, NAN)])


def test_a_map_has_one_scale() -> None:
    places = [(0.0, 0.5), (1.0, 0.5), (0.5, 0.6), (0.5, 0.4)]
    points = [{"href": f"{k}", "name": "n", "title": "t", "colour": 1, "shape": 0} for k in range(4)]
    for given in (places, [(y, x) for x, y in places], [(0.3 * x, 0.3 * y) for x, y in places]):
        marks = re.findall(r'<path d="M(\S+) (\S+?)a', figures.scatter(given, points, "map"))
        left, right, up, down = (np.array(mark, float) for mark in marks)
        assert np.linalg.norm(right - left) == pytest.approx(900 - 2 * 46, abs=0.2)  # as large as there is room
        assert np.linalg.norm(up - down) / np.linalg.norm(right - left) == pytest.approx(0.2, abs=1e-3)
    assert "nan" not in figures.scatter([(0.5, 0.5)] * 4, points, "map")
    high = figures.scatter([(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)], points, "map")
    assert {y for _, y in re.findall(r'<path d="M(\S+) (\S+?)a', high)} == {"46", "494"}


def test_names_on_a_map_do_not_cover_each_other() -> None:
    points = [
        {"href": f"{k}", "name": "a long name" * 3, "title": "t", "colour": 0, "shape": k % 10} for k in range(42)
    ]
    places = [*[(0.5, 0.5 + k / 400) for k in range(40)], (0.0, 0.0), (1.0, 1.0)]
    crowded = figures.scatter(places, points, "map")
    assert 1 <= crowded.count(" shown") < 10
    assert crowded.count("<a ") == 42
    assert figures.scatter([(0.1, 0.1), (0.9, 0.9)], points[:2], "map").count(" shown") == 2
