"""The page of explanations in a real browser, opened as a file: nothing is loaded from elsewhere, and it fits every screen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluate.explain.explanation_page import ExplainedImage, Map, PageData, render
from evaluate.explain.heat_maps import Step, heat
from evaluate.glossary import definitions
from evaluate.image_tiles import jpeg, outline

LONG = "a class whose name is long, <b>bold</b> and_without_any_place_to_break_it_anywhere_at_all"


def of_class(number: int, name: str, p: float) -> dict[str, object]:
    return {"number": number, "name": name, "probability": p, "logit": 3.0}


def shown(folder: Path, number: int) -> ExplainedImage:
    g = np.random.default_rng(number)
    picture = Image.fromarray(g.integers(0, 256, (60, 60, 3), np.uint8))
    values = g.normal(size=(5, 5))
    files = {
        "seen": picture,
        "cam": heat(picture, np.abs(values), both=False),
        "c": outline(heat(picture, values), values),
    }
    for name, image in files.items():
        (folder / f"{number} {name}#?.jpg").write_bytes(jpeg(image))
    counterfactual = {
        "target": {"number": 1, "name": LONG},
        "found": True,
        "words": "more barn, less sea",
        "changes": [{"direction": 3, "name": "barn (3)", "from": 0.1, "to": 1.2, "spreads": 1.5, "usual": [-0.5, 2.0]}],
        "flips": True,
        "probability": 0.6,
        "flips_kept": number == 1,
        "probability_kept": 0.4,
        "beyond_usual": False,
    }
    farm = of_class(0, "farm", 0.9)
    document = {
        "predicted": farm,
        "explained": farm,
        "classes": [farm, of_class(1, LONG, 0.1)],
        "counterfactual": counterfactual,
    }
    steps = [
        Step("average image", 1.0, "base"),
        Step("barn (3)", 2.5),
        Step(LONG, -1.0),
        Step("40 others", 0.5, "rest"),
        Step("farm", 3.0, "total"),
    ]
    maps = [Map(LONG, v, 0.2, f"{number} c#?.jpg") for v in (1.0, -1.0, 0.4)]
    return ExplainedImage(
        f"/some/where/{'x' * 120}.jpg",
        f"Predicted as farm (0.90): {LONG} +2.50",
        *(document[key] for key in ("predicted", "explained", "classes", "counterfactual")),
        [("The logit of farm", steps), (f"farm against {LONG}", steps)],
        maps,
        f"{number} seen#?.jpg",
        f"{number} cam#?.jpg",
        "s.png",
        "d.json",
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("explanation")
    data = PageData(
        "<i>Two</i> predictions",
        {"Model": "m" * 90},
        [shown(folder, k) for k in (1, 2)],
        definitions("explanation"),
    )
    path = folder / "index.html"
    path.write_text(render(data), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(watched: Callable[..., Any], address: str) -> Callable[..., Any]:
    """Opens the page."""
    return partial(watched, address)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_the_screen(visit, width: int) -> None:  # type: ignore[no-untyped-def]
    page = visit(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(i => i.complete)")
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")


def test_names_are_text(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    assert page.title() == "<i>Two</i> predictions"
    assert page.locator("h1").inner_text() == "<i>Two</i> predictions"
    assert "<b>bold</b>" in page.locator(".maps b").first.inner_text()
    assert page.locator("main b b").count() == 0
    assert page.locator("article").count() == 2


def test_bars_are_where_the_sum_is(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    boxes = [bar.bounding_box() for bar in page.locator(".fall").first.locator(".track i").all()]
    track = page.locator(".fall .track").first.bounding_box()
    unit = track["width"] / 3.5  # from 0 to 1 + 2.5
    assert [round((b["x"] - track["x"]) / unit, 1) for b in boxes] == [0, 1.0, 2.5, 2.5, 0]
    assert [round(b["width"] / unit, 1) for b in boxes] == [1.0, 2.5, 1.0, 0.5, 3.0]
    colours = [
        bar.evaluate("e => getComputedStyle(e).backgroundColor")
        for bar in page.locator(".fall").first.locator("i").all()
    ]
    assert colours[1] != colours[2]  # for the class, against it


def test_links_and_checks(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    page.locator(".contents a").nth(1).click()
    assert page.url.endswith("#i2")
    assert page.locator("#i2 h2").is_visible()
    checks = page.locator(".check").all_inner_texts()
    assert "as the layer has them, too (0.40)" in checks[0]
    assert "as the layer has them, it is not" in checks[1]


def test_dark_and_on_paper(visit) -> None:  # type: ignore[no-untyped-def]
    def brightness(page) -> int:  # type: ignore[no-untyped-def]
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert brightness(visit()) > 700
    dark = visit(color_scheme="dark")
    assert brightness(dark) < 120
    dark.emulate_media(media="print")
    assert brightness(dark) == 765
    assert not dark.locator("nav").is_visible()
