"""The page as a text: what is escaped, what is bold, what order, and that the same data give the same bytes."""

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from evaluate.number_format import url
from evaluate.report.evaluation_cards import Candidate, Card, ReportData, Section, Tile
from evaluate.report.evaluation_page import per_category, render, truth_table, write_report

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(1)> {{ 7 * 7 }} </style></title>"


def card(index: int = 0, iou: float = 0.2, **changes) -> Card:
    plain = Card(
        index=index,
        label="sky",
        category="object",
        iou=iou,
        interpretable=iou > 0.04,
        measures={"IoU": iou, "precision": 0.5, "average_precision": 0.25},
        candidates=[Candidate("sky", "object", 0.3, iou), Candidate("sea", "object", 0.2, 0.1)],
        strip=f"pictures/{index}.jpg",
        tiles=[Tile("a.jpg", 4.5, "boat"), Tile("b.jpg", 3.25)],
    )
    return dataclasses.replace(plain, **changes)


def section(title: str = "eddp", cards=None, **summary) -> Section:
    return Section(title, "eddp", {"method": "eddp", **summary}, [card()] if cards is None else cards)


def report(*sections: Section, **changes) -> ReportData:
    return dataclasses.replace(ReportData("A layer", {"Model": "m"}, list(sections), 32), **changes)


class Page(HTMLParser):
    """Counts elements, checks that they nest, and gathers links and texts."""

    VOID = frozenset({"meta", "link", "img", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_hostile_names_stay_text(tmp_path):
    evil = card(
        label=HOSTILE,
        category=HOSTILE,
        strip=HOSTILE,
        measures={HOSTILE: 0.5},
        candidates=[Candidate(HOSTILE, HOSTILE, 0.1, 0.1)] * 2,
        tiles=[Tile(HOSTILE, 1.0, HOSTILE)],
    )
    data = ReportData(
        HOSTILE,
        {HOSTILE: HOSTILE},
        [Section(HOSTILE, HOSTILE, {"per_category": {HOSTILE: 1}}, [evil], HOSTILE, {HOSTILE: 1.0})] * 2,
        32,
        {HOSTILE: [1.0]},
        {HOSTILE: HOSTILE},
    )
    page = Page(write_report(tmp_path, data).read_text(encoding="utf-8"))
    assert len(page.all("script")) == len(page.all("style")) == len(page.all("title")) == 1
    assert {attrs["src"].partition("/")[0] for attrs in page.all("img")} == {url(HOSTILE).partition("/")[0]}
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert not any("49" in text for text in page.texts if "script" in text and "alert" in text)
    assert page.texts.count(HOSTILE) >= 10


def test_only_the_packages_own_script_may_run():
    text = render(report(section()))
    script = re.search(r"<script>(.*)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs["content"] for attrs in Page(text).all("meta") if "http-equiv" in attrs)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_nothing_is_asked_of_the_network():
    text = render(report(section()))
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text


def test_the_same_data_give_the_same_bytes(tmp_path):
    data = report(section("a", s1=1.0), section("b", s1=2.0), definitions={"S1": "x"}, ground_truth={"iou": [0.5]})
    first = write_report(tmp_path / "one", data).read_bytes()
    assert first == write_report(tmp_path / "two", data).read_bytes()
    assert first.decode().startswith('<!doctype html>\n<html lang="en">')
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["report.html"]


def test_the_best_of_a_column_is_bold() -> None:
    data = report(section("a", s1=1.0, redundancy=3.0, recall=0.5), section("b", s1=2.5, redundancy=1.5, recall=0.5))
    text = render(data)
    assert "<td><b>2.500</b></td>" in text
    assert "<td><b>1.500</b></td>" in text  # less redundancy is better
    assert "<td>0.500</td>" in text  # all alike
    assert "<td>–</td>" in render(report(section("a", s1=1.0), section("b")))
    assert "<td><b>" not in render(report(section(s1=1.0)))
    assert ">SDC<" not in text
    assert ">SDC<" in render(report(section(), section("b", sdc=3)))


def test_interpretable_directions_come_first_then_the_larger_iou():
    cards = [
        card(0, 0.02),
        card(1, 0.3),
        card(2, float("nan")),
        card(3, 0.5),
        card(4, 0.3),
        card(5, 0.9, interpretable=False),
    ]
    found = re.findall(r'<article id="s1-d(\d+)" class="card( muted)?"', render(report(section(cards=cards))))
    assert [int(i) for i, _ in found] == [3, 1, 4, 5, 0, 2]
    assert [bool(muted) for _, muted in found] == [False, False, False, True, True, True]


def test_a_card_shows_its_strip_with_its_size_and_each_tiles_name():
    page = Page(render(report(section(cards=[card(7)]))))
    (image,) = page.all("img")
    assert (image["src"], image["width"], image["height"], image["loading"]) == ("pictures/7.jpg", "64", "32", "lazy")
    assert "sky" in image["alt"]
    assert [li["title"] for li in page.all("li") if "title" in li] == [
        "a.jpg\nlogit 4.50\npredicted as boat",
        "b.jpg\nlogit 3.25",
    ]


@pytest.mark.parametrize(
    "bare", [card(strip=""), card(tiles=[]), card(measures={}, candidates=[], label="", category="")]
)
def test_a_card_may_lack_nearly_everything(bare):
    assert "<article" in render(report(section(cards=[bare])))


def test_a_report_may_be_empty():
    assert "No directions were evaluated" in render(report())
    assert "holds no directions" in render(report(section(cards=[])))


def test_undecodable_names_do_not_stop_a_report(tmp_path):
    strange = card(tiles=[Tile("\udcff.jpg", 1.0)])
    assert write_report(tmp_path, report(section(cards=[strange]))).stat().st_size


def test_categories_are_counted_from_the_summary_or_else_from_the_cards():
    cards = [card(0), card(1), card(2, label="red", category="color"), card(3, 0.01, label="tree")]
    assert per_category(section(cards=cards)) == [("object", 1, 2), ("color", 1, 1)]
    assert per_category(section(per_category={"scene": 4, "part": {"distinct": 2, "detectors": 5}})) == [
        ("scene", 4, 4),
        ("part", 2, 5),
    ]


def test_the_diagnosis_has_links_to_its_directions():
    diagnosed = dataclasses.replace(section(), diagnosis={"dead": [0], "duplicates": [[3, 0]], "coverage": 0.5})
    text = render(report(diagnosed))
    assert '1 direction hardly ever fires: <a href="#s1-d0">0</a>.' in text
    assert '<span class="flag">dead</span> <span class="flag">duplicate of 3</span>' in text
    assert "No dead, duplicate" in render(report(dataclasses.replace(section(), diagnosis={"dead": []})))


def test_the_truth_is_a_table_once_or_by_section():
    truth = {"iou": [0.9, 0.7], "cos": [1.0, 0.5], "rmse": 0.25, "matched": 2}
    table = truth_table(truth)
    assert table["rows"] == [["0.900", "1.000"], ["0.700", "0.500"]]
    assert table["facts"] == {
        "RMSE": "0.250",
        "matched": "2",
        "mean IoU": "0.800",
        "lowest IoU": "0.700",
        "mean cos": "0.750",
        "lowest cos": "0.500",
    }
    heading = "Against the true concepts"
    assert render(report(section(), section(), ground_truth=truth)).count(heading) == 1
    assert render(report(section("a"), section("b"), ground_truth={"a": truth, "b": truth})).count(heading) == 2
    assert render(report(section(ground_truth=truth))).count(heading) == 1
    assert heading not in render(report(section()))


def test_suspects_are_named_with_what_they_do() -> None:
    rows = [{"indices": [3, 5], "label": "<mark>", "class_name": "farm & co", "probability_change": 0.14}]
    page = render(ReportData("t", {}, [section("a", influence={"suspects": rows})], 64))
    assert "Small, of one class, and used for it" in page
    assert "&lt;mark&gt;" in page
    assert "farm &amp; co" in page
    assert "+14.0 pp" in page
    assert '-d3">3</a>' in page
    assert '-d5">5</a>' in page
    assert "Small, of one class" not in render(ReportData("t", {}, [section("a")], 64))
