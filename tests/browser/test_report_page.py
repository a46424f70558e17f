"""The page in a real browser, opened as a file: nothing is loaded from elsewhere, and all it offers works."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from evaluate.image_tiles import region_tile, save_strip
from evaluate.report.evaluation_cards import Candidate, Card, ReportData, Section, Tile
from evaluate.report.evaluation_page import write_report
from evaluate.report.loss_curves import loss_picture

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
TILE = 48
TILES = 5
LABELS = [
    ("sky", "object"),
    ("red", "color"),
    ("wheel", "part"),
    ("striped", "texture"),
    ("Ärmel <b>", "part"),
    ("sea", "object"),
]


def tiles(seed: int) -> list[Image.Image]:
    """Discs on plain grounds, with the disc as the region."""
    generator = np.random.default_rng(seed)
    out = []
    for _ in range(TILES):
        ground, colour = (tuple(int(c) for c in generator.integers(0, 256, 3)) for _ in range(2))
        x, y = (int(v) for v in generator.integers(8, 32, 2))
        image = Image.new("RGB", (TILE, TILE), ground)
        ImageDraw.Draw(image).ellipse((x - 8, y - 8, x + 16, y + 16), fill=colour)
        v, u = np.mgrid[:12, :12] * 4 + 2
        out.append(region_tile(image, 12.0 - np.hypot(u - x - 4, v - y - 4), TILE))
    return out


def make_section(folder: Path, name: str, count: int) -> Section:
    """Directions with IoUs 0.50, 0.46, …, the last ones not interpretable; the second has no strip."""
    cards = []
    for i in range(count):
        label, category = LABELS[i % len(LABELS)]
        iou = round(0.5 - 0.04 * i, 3)
        strip = f"pictures/{name} #{i}?.jpg" if i != 1 else ""  # a name that must be quoted
        if strip:
            save_strip(folder / strip, tiles(i))
        candidates = [Candidate(label, category, iou, iou), Candidate("other", "scene", 0.1, 0.1)]
        shown = [Tile(f"{i}-{k}.jpg", 5.0 - k, "a class with a long name") for k in range(TILES)]
        measures = {"precision": 0.5, "average_precision": 0.3}
        cards.append(
            Card(count - i, label, category, iou, iou > 0.1, measures, candidates, strip, shown, found_again=i % 3 / 2)
        )
    return Section(name, "eddp", {"s1": count / 10}, cards, diagnosis={"dead": [1], "coverage": 0.5})


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A report of three sets (12, 7 and 0 directions) on disk."""
    folder = tmp_path_factory.mktemp("report")
    sections = [make_section(folder, "first", 12), make_section(folder, "a set with quite a long name", 7)]
    sections.append(Section("nothing", "pca", {}, []))
    loss_picture([{"step": i, "total": 1 / (i + 1)} for i in range(9)], folder / "pictures" / "log.png")
    sections[0] = Section(**{**vars(sections[0]), "log_picture": "pictures/log.png"})
    facts = {"Model": "m", "Store": "/a/rather/long/path/" + "x" * 90}
    truth = {"iou": [0.9, 0.8], "cos": [0.9, 0.8], "rmse": 0.1}
    data = ReportData("<i>Shapes</i>", facts, sections, TILE, truth, {"S1": "Sum of the IoUs."})
    return write_report(folder, data).as_uri()


@pytest.fixture
def visit(watched, address):
    """Opens the page at an anchor."""
    return lambda anchor="", **settings: watched(address + anchor, **settings)


def labels(page) -> list[str]:
    return page.locator(".card:visible h3 bdi").all_text_contents()


def indices(page) -> list[int]:
    return [int(text) for text in page.locator(".card:visible .index").all_text_contents()]


def load_all(page) -> list[dict]:
    """Scroll every visible picture into view; the pictures' sizes once they are loaded."""
    page.locator("details:visible").evaluate_all("all => all.forEach(d => d.open = true)")
    for image in page.locator("img:visible").all():
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
    return page.locator("img:visible").evaluate_all("all => all.map(i => ({width: i.naturalWidth, alt: i.alt}))")


def test_every_picture_loads(visit):
    page = visit()
    first = load_all(page)
    page.get_by_role("navigation").get_by_role("link", name="a set with").click()
    second = load_all(page)
    assert (len(first), len(second)) == (11 + 1, 6)  # one card of each is without a strip; the first has curves
    assert all(image["width"] > 0 and image["alt"] for image in first + second)
    assert {image["width"] for image in second} == {TILE * TILES}


def test_the_search_finds_labels_categories_and_indices(visit):
    page = visit()
    search = page.get_by_label("Search")
    count = page.locator("#count")
    playwright_api.expect(count).to_have_text("12 of 12 directions")
    search.fill("ärm")
    playwright_api.expect(count).to_have_text("2 of 12 directions")
    assert labels(page) == ["Ärmel <b>"] * 2
    search.fill("part wheel")
    playwright_api.expect(count).to_have_text("2 of 12 directions")
    search.fill("#12")
    playwright_api.expect(count).to_have_text("1 of 12 directions")
    assert indices(page) == [12]
    search.fill("nowhere")
    playwright_api.expect(count).to_have_text("0 of 12 directions")
    page.get_by_role("button", name="Clear the search").click()
    playwright_api.expect(count).to_have_text("12 of 12 directions")


def test_chips_filter_by_category_and_by_being_interpretable(visit):
    page = visit()
    color, part = (page.get_by_role("button", name=name) for name in ("color", "part"))
    playwright_api.expect(part).to_have_text("part 4")
    color.click()
    assert set(labels(page)) == {"red"}
    playwright_api.expect(color).to_have_attribute("aria-pressed", "true")
    part.focus()
    page.keyboard.press("Space")  # any of the pressed ones
    assert set(labels(page)) == {"red", "wheel", "Ärmel <b>"}
    color.click()
    part.click()
    assert len(labels(page)) == 12
    page.get_by_role("button", name="interpretable only").click()
    playwright_api.expect(page.locator("#count")).to_have_text("10 of 12 directions")
    assert page.locator(".card.muted:visible").count() == 0
    page.get_by_role("button", name="interpretable only").click()
    page.get_by_role("button", name="found again only").click()
    assert indices(page) == [12 - i for i in range(12) if i % 3]


def test_directions_can_be_sorted(visit):
    page = visit()
    assert indices(page) == list(range(12, 0, -1))  # by IoU, as written
    page.get_by_label("Sort by").select_option("index")
    assert indices(page) == list(range(1, 13))
    page.get_by_label("Sort by").select_option("label")
    assert labels(page) == sorted(labels(page), key=lambda label: label.replace("Ä", "a").lower())
    page.get_by_label("Sort by").select_option("again")
    assert indices(page) == [12 - i for i in sorted(range(12), key=lambda i: (-(i % 3), i))]
    page.get_by_label("Sort by").select_option("iou")
    assert indices(page) == list(range(12, 0, -1))


def test_tabs_show_one_set_at_a_time(visit):
    page = visit()
    tabs = page.get_by_role("navigation").get_by_role("link")
    assert page.locator(".set:visible").count() == 1
    page.get_by_label("Sort by").select_option("index")
    tabs.nth(1).click()
    playwright_api.expect(page.locator("#s2")).to_be_visible()
    assert page.locator(".set:visible").count() == 1
    assert tabs.nth(1).get_attribute("aria-current") == "true"
    assert tabs.nth(0).get_attribute("aria-current") is None
    assert indices(page) == list(range(1, 8))  # the order is kept
    tabs.nth(2).click()
    playwright_api.expect(page.get_by_text("This file holds no directions.")).to_be_visible()
    page.go_back()
    playwright_api.expect(page.locator("#s2")).to_be_visible()


def test_a_link_to_a_direction_shows_it_whatever_is_filtered(visit):
    page = visit("#s2-d3")
    target = page.locator("#s2-d3")
    playwright_api.expect(target).to_be_in_viewport()
    page.get_by_label("Search").fill("nowhere")
    playwright_api.expect(target).to_be_hidden()
    page.get_by_role("link", name="1", exact=True).first.click()  # from the diagnosis
    playwright_api.expect(page.locator("#s2-d1")).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(visit, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme, device_scale_factor=2)
    for tab in range(3):
        page.evaluate("tab => { location.hash = `#s${tab + 1}` }", tab)
        playwright_api.expect(page.locator(f"#s{tab + 1}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390  # cards still at their estimated size
        load_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.body.scrollWidth") <= 390
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in colour.strip("rgb()").split(",")) < 100) == (scheme == "dark")


def test_it_reads_without_javascript(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".set:visible").count() == 3
    assert page.locator(".tools:visible").count() == 0
    assert len(labels(page)) == 12 + 7
    page.get_by_role("navigation").get_by_role("link").nth(1).click()
    playwright_api.expect(page.locator("#s2-name")).to_be_in_viewport()


def test_printing_leaves_the_tools_out(visit):
    page = visit()
    page.emulate_media(media="print")
    assert page.locator(".tools:visible, .tabs:visible").count() == 0
    assert page.locator(".set:visible").count() == 3


def test_a_picture_tells_its_name_where_one_points(visit):
    page = visit()
    strip = page.locator("#s1-d12 .strip img")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    x, y = box["x"] + box["width"] * 1.5 / TILES, box["y"] + box["height"] / 2  # the middle of the second tile
    title = page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('[title]')?.title", [x, y])
    assert title == "0-1.jpg\nlogit 4.00\npredicted as a class with a long name"
