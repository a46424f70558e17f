"""The pages of ``eddp report`` in a real browser, opened from the disk: nothing comes from elsewhere, and all they offer works.

The report is made here by the commands; with EDDP_DEMO_REPORT naming the folder of another one, that is looked at as well.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from small_report import small_report

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
DEMO = os.environ.get("EDDP_DEMO_REPORT")
expect = playwright_api.expect
Visit = Callable[..., Any]


@pytest.fixture(scope="module", params=["small", *(["demo"] if DEMO else [])])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report."""
    if request.param == "demo":
        return Path(str(DEMO)).resolve()
    return small_report(tmp_path_factory.mktemp("site"), directions=8)


@pytest.fixture
def visit(watched: Visit, site: Path) -> Visit:
    """Opens a page of the report, the overview by default."""
    return lambda path="index.html", **settings: watched(f"{site.as_uri()}/{path}", **settings)


def cards(page: Any, *, shown: bool = True) -> list[dict[str, str]]:
    """What the directions of the overview say of themselves, in their order."""
    script = "all => all.filter(n => !n.hidden || {}).map(n => ({{...n.dataset}}))".format("false" if shown else "true")
    found: list[dict[str, str]] = page.locator(".dir").evaluate_all(script)
    return found


def some_pages() -> list[str]:
    """One page of each kind."""
    return ["index.html", "classes.html", "fit.html", "definitions.html", "d/00001.html", "c/0002.html"]


def load_all(page: Any) -> list[int]:
    """Scroll down to the end; the widths of all pictures once they are loaded."""
    page.evaluate(
        "async () => { for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {"
        " scrollTo(0, y); await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); } }"
    )
    page.wait_for_function("[...document.images].every(image => image.complete)")
    widths: list[int] = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    return widths


def test_every_link_of_every_page_resolves_and_is_in_the_folder(visit: Visit, site: Path) -> None:
    page = visit()
    numbers = {int(card["index"]) for card in cards(page)}
    assert {int(p.stem) for p in (site / "d").iterdir()} == numbers
    page.goto((site / "classes.html").as_uri())
    classes = {
        int(i) for i in page.locator(".classes tbody tr:has(th a)").evaluate_all("all => all.map(n => n.dataset.index)")
    }
    assert {int(p.stem) for p in (site / "c").iterdir()} == classes
    seen, ids = set(), {}
    for file in site.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        ids[file] = set(re.findall(r'\sid="([^"]*)"', text))
        for link in re.findall(r'(?:href|src)="([^"]*)"', text):
            if link != "data:,":
                seen.add((file, link))
    for file, link in seen:
        target = urlparse(link)
        assert not target.scheme, link
        assert not target.netloc, link
        there = (file.parent / unquote(target.path)).resolve() if target.path else file
        assert there.is_relative_to(site.resolve()), link
        assert there.is_file(), (file, link)
        assert not target.fragment or target.fragment.startswith("q=") or target.fragment in ids[there], (file, link)


def test_every_picture_loads(visit: Visit, site: Path) -> None:
    page = visit()
    shown = 0
    for path in some_pages():
        page.goto((site / path).as_uri())
        widths = load_all(page)
        assert all(widths), path
        shown += len(widths)
    assert shown > 20


def test_the_search_finds_labels_categories_and_numbers(visit: Visit) -> None:
    page = visit()
    every = cards(page)
    search, count = page.get_by_label("Search"), page.locator("#count")
    expect(count).to_have_text(f"{len(every)} of {len(every)} directions")
    assert count.get_attribute("aria-live") == "polite"
    label = next(card["label"] for card in every if card["label"])
    for words, wanted in (
        (label.upper()[:3], lambda c: label.lower()[:3] in f"{c['label']} {c['category']}".lower()),
        (f"{label} {every[0]['category']}", lambda c: c["label"] == label and c["category"] == every[0]["category"]),
        ("#1", lambda c: c["index"] == "1"),
        ("no such thing", lambda c: False),
    ):
        expected = [c["index"] for c in every if wanted(c)]
        search.fill(words)
        expect(count).to_have_text(f"{len(expected)} of {len(every)} directions")
        assert [c["index"] for c in cards(page)] == expected
    page.get_by_role("button", name="Clear the search").click()
    expect(count).to_have_text(f"{len(every)} of {len(every)} directions")


def test_every_order_sorts(visit: Visit) -> None:
    page = visit()
    every = cards(page)
    good = [c for c in every if "good" in c]
    assert every == [*good, *[c for c in every if "good" not in c]]  # as written
    orders = {
        "index": lambda c: int(c["index"]),
        "influence": lambda c: (-float(c["influence"]), int(c["index"])),
        "share": lambda c: (-float(c["share"]), int(c["index"])),
        "again": lambda c: (-int(c["again"]), every.index(c)),
    }
    for name, key in orders.items():
        page.get_by_label("Sort by").select_option(name)
        assert [c["index"] for c in cards(page)] == [c["index"] for c in sorted(every, key=key)], name
    page.get_by_label("Sort by").select_option("label")
    labels = [c["label"].lower() for c in cards(page)]
    assert labels == sorted(labels)
    page.get_by_label("Sort by").select_option("iou")
    assert cards(page) == every


def test_every_filter_filters_and_they_add_up(visit: Visit) -> None:
    page = visit()
    every = cards(page)
    category = every[0]["category"]
    chip = page.locator(f'button[name="cat"][value="{category}"]')
    mine = [c["index"] for c in every if c["category"] == category]
    expect(chip).to_have_text(f"{category} {len(mine)}")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    assert [c["index"] for c in cards(page)] == mine
    page.get_by_label("IoU at least").fill("0.1")
    expected = [c["index"] for c in every if c["category"] == category and float(c["iou"]) >= 0.1]
    expect(page.locator("#count")).to_have_text(f"{len(expected)} of {len(every)} directions")
    assert [c["index"] for c in cards(page)] == expected
    page.get_by_role("button", name="Clear all").click()
    assert cards(page) == every
    page.get_by_label("Found again at least").fill("7")
    expected = [c["index"] for c in every if int(c["again"]) >= 7]
    expect(page.locator("#count")).to_have_text(f"{len(expected)} of {len(every)} directions")
    assert [c["index"] for c in cards(page)] == expected
    page.get_by_role("button", name="Clear all").click()
    assert cards(page) == every
    page.get_by_role("button", name="a label fits").click()
    assert [c["index"] for c in cards(page)] == [c["index"] for c in every if "good" in c]
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#way")).to_be_disabled()  # which way says nothing without a class
    assert page.locator("#class option").count() == 1  # names come when they are asked for
    page.locator("#class").focus()
    moved = json.loads(page.locator("#moved").text_content())
    classes = page.locator("#class option").evaluate_all("all => all.map(o => o.value)")[1:]
    for number in classes[:8]:
        page.locator("#class").select_option(number)
        for way, keys in (("both", ("up", "down")), ("up", ("up",)), ("down", ("down",))):
            page.locator("#way").select_option(way)
            expected = [c["index"] for c in every if any(int(number) in moved[key][int(c["index"])] for key in keys)]
            assert [c["index"] for c in cards(page)] == expected, (number, way)


def test_a_view_can_be_sent_as_an_address(visit: Visit) -> None:
    page = visit()
    every = cards(page)
    page.get_by_label("Search").fill(every[0]["label"])
    page.get_by_label("Sort by").select_option("share")
    page.get_by_role("button", name="a label fits").click()
    page.locator("#class").focus()
    page.locator("#class").select_option("1")
    page.locator("#way").select_option("down")
    page.wait_for_function("location.hash.includes('q=')")
    shown, address = cards(page), page.evaluate("location.hash")
    again = visit("index.html" + address)
    assert cards(again) == shown
    assert again.get_by_label("Search").input_value() == every[0]["label"]
    assert again.locator("#way").input_value() == "down"
    assert again.locator("#class").input_value() == "1"
    again.evaluate("location.hash = '#q=%23' + " + every[1]["index"])
    expect(again.locator("#count")).to_have_text(f"1 of {len(every)} directions")
    assert len(cards(visit("index.html#sort=nonsense&iou=x&class=99999&cat=none"))) in (0, len(every))


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the search")).to_be_focused()
    page.keyboard.press("Enter")
    search = page.get_by_label("Search")
    expect(search).to_be_focused()
    page.locator("h1").click()
    page.keyboard.press("/")
    expect(search).to_be_focused()
    page.keyboard.type("#1/")
    assert search.input_value() == "#1/"  # in the field it is a character
    page.keyboard.press("Escape")
    assert search.input_value() == ""
    point = page.locator(".map a").first
    point.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    expect(point).to_be_focused()
    expect(point.locator("text")).to_have_css("opacity", "1")  # its name
    assert page.locator('.map a[tabindex="0"]').count() == 1  # one stop of the Tab key
    places = page.locator(".map a path").evaluate_all("all => all.map(n => n.getBoundingClientRect().x)")
    page.locator(".map a").nth(places.index(min(places))).focus()
    visited = [page.evaluate("document.activeElement.getAttribute('href')")]
    for _ in places:
        page.keyboard.press("ArrowRight")
        visited.append(page.evaluate("document.activeElement.getAttribute('href')"))
    assert visited[1] != visited[0]
    assert page.url.endswith("index.html")
    assert page.evaluate("document.activeElement.querySelector('path').getBoundingClientRect().x") == max(places)
    page.locator(".dir .go").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/d/*.html")
    page.goto(page.url.rsplit("/", 1)[0] + "/00001.html")
    for key in ("Shift", "Control", "Alt", "Meta"):
        page.evaluate(
            "key => dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', [key]: true}))",
            {"Control": "ctrlKey"}.get(key, f"{key.lower()}Key"),
        )
        page.evaluate("() => new Promise(done => setTimeout(done, 30))")
        assert page.url.endswith("/00001.html"), key
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/d/00002.html")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/d/00001.html")


def test_what_has_the_focus_can_be_seen(visit: Visit) -> None:
    page = visit()
    for _ in range(12):
        page.keyboard.press("Tab")
        width = page.evaluate(
            "() => { const n = document.activeElement; return [n, ...[...n.querySelectorAll('path')]].some(e => "
            "getComputedStyle(e).outlineStyle !== 'none' || getComputedStyle(e, '::after').outlineStyle !== 'none' || e.tagName === 'path') }"
        )
        assert width, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_a_definition_shows_where_one_points_or_steps(visit: Visit) -> None:
    page = visit()
    term = page.locator(".measures .term").first
    tip = term.locator(".tip")
    expect(tip).to_be_hidden()
    for _ in range(2):
        term.hover()
        expect(tip).to_be_visible()
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()
        page.mouse.move(0, 0)
    term.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    expect(tip).to_be_visible()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    page.keyboard.press("Enter")
    page.wait_for_url("**/definitions.html#c-*")
    expect(page.locator(":target")).to_be_in_viewport()


def test_every_text_has_enough_contrast(visit: Visit, site: Path) -> None:
    """At least 4.5 to 1 (WCAG 1.4.3), light and dark; nothing that is read is faded."""
    page = visit()
    script = """() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
      const bad = [];
      for (const node of document.querySelectorAll("body *")) {
        if (node.closest("svg, option, :disabled, [hidden], script, .skip, .visually-hidden, .tip")) continue;
        if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
        let ground = null;
        for (let up = node; up; up = up.parentElement) {
          const style = getComputedStyle(up), colour = parse(style.backgroundColor);
          if (style.opacity !== "1") bad.push(["faded", node.outerHTML.slice(0, 120)]);
          if (!ground && colour[3] !== 0) ground = colour;
        }
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground)].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) bad.push([(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 120)]);
      }
      return bad;
    }"""
    for path in some_pages():
        page.goto((site / path).as_uri())
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(script) == [], (path, scheme)


@pytest.mark.parametrize("width", [360, 1400])
def test_a_long_name_without_a_blank_is_broken(visit: Visit, site: Path, tmp_path: Path, width: int) -> None:
    page = visit(viewport={"width": width, "height": 800})
    for path in some_pages():
        page.goto((site / path).as_uri())
        page.evaluate(
            "() => document.querySelectorAll('bdi, .chip, .flag, .key').forEach(n => {"
            " if (!n.closest('nav, svg, .claims')) (n.querySelector('bdi') ?? n).firstChild.data = 'unbroken'.repeat(10) })"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        out = page.evaluate(
            "() => [...document.querySelectorAll('.candidates th, .candidates td, .dir > *, .flag, .chip, .near li > *, .pushes li > *')]"
            ".filter(n => !n.closest('svg, .chips') && n.scrollWidth > n.clientWidth + 1 && n.clientWidth).map(n => n.outerHTML.slice(0, 150))"
        )
        assert out == [], path


def test_classes_can_be_searched(visit: Visit) -> None:
    page = visit("classes.html")
    rows = page.locator(".classes tbody tr")
    names = rows.evaluate_all("all => all.map(n => n.dataset.label)")
    count = page.locator("#count")
    expect(count).to_have_text(f"{len(names)} of {len(names)} classes")
    page.keyboard.press("/")
    page.keyboard.type(names[1])
    expected = sum(all(w in name.lower() for w in names[1].lower().split()) for name in names)
    expect(count).to_have_text(f"{expected} of {len(names)} classes")
    page.get_by_label("Search").fill("no such class")
    expect(count).to_have_text(f"0 of {len(names)} classes")
    page.get_by_role("button", name="Clear the search").click()
    expect(count).to_have_text(f"{len(names)} of {len(names)} classes")


def test_nothing_is_wider_than_a_phone(visit: Visit, site: Path) -> None:
    page = visit(viewport={"width": 360, "height": 740}, device_scale_factor=2)
    for path in some_pages():
        page.goto((site / path).as_uri())
        load_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert page.evaluate("document.body.scrollWidth") <= 360, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_start_page_of_the_evaluation(watched: Visit, site: Path, scheme: str) -> None:
    page = watched(
        (site.parent / "evaluation" / "report.html").as_uri(),
        viewport={"width": 390, "height": 800},
        color_scheme=scheme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    brightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + Number(b), 0)"
    )
    assert (brightness < 100) == (scheme == "dark")
    page.get_by_role("link", name="kmeans").first.click()
    page.wait_for_url("**/report/kmeans/index.html")
    page.get_by_role("link", name="All files").click()
    page.wait_for_url("**/report.html")
    page.locator(".measures .term").first.click()
    page.wait_for_url("**/definitions.html#c-*")


def test_the_dark_pages_are_dark(visit: Visit, site: Path) -> None:
    page = visit()

    def brightness(scheme: str, what: str = "backgroundColor") -> int:
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(int(part) for part in colour.strip("rgb()").split(","))

    for path in some_pages():
        page.goto((site / path).as_uri())
        assert brightness("dark") < 100 < 700 < brightness("light"), path
        assert brightness("light", "color") < 150 < 650 < brightness("dark", "color"), path


def test_it_reads_without_javascript(visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator(".tools:visible").count() == 0
    assert page.locator(".dir:visible").count() == page.locator(".dir").count() > 0


def test_printing_leaves_the_tools_out_and_is_light(visit: Visit) -> None:
    page = visit()
    colours = "['paper', 'ink', 'link', 'bar', 'wash'].map(k => getComputedStyle(document.documentElement).getPropertyValue('--' + k))"
    page.emulate_media(media="print", color_scheme="light")
    assert page.locator(".tools:visible, nav.site:visible").count() == 0
    assert page.locator(".dir").count() == page.locator(".dir:visible").count()
    light = page.evaluate(colours)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(colours) == light


def test_a_name_typed_on_a_page_is_stored_shown_and_saved_as_a_file(visit: Visit) -> None:
    page = visit("d/00001.html")
    page.get_by_label("Your name for it").fill('a "striped", fish')
    page.get_by_label("Comment").fill("8 of 9")
    expect(page.locator("h1 bdi")).to_have_text('a "striped", fish')
    page.goto(page.url.replace("d/00001.html", "index.html"))
    expect(page.locator('.dir[data-index="1"] h3 bdi')).to_have_text('a "striped", fish')
    with page.expect_download() as started:
        page.get_by_role("button", name="Save names.csv").click()
    assert started.value.suggested_filename == "names.csv"
    with Path(started.value.path()).open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["direction"], row["name"], row["comment"]) == ("1", 'a "striped", fish', "8 of 9")
    assert row["directions"]
