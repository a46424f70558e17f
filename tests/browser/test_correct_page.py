"""The page of a correction in a real browser, made from a study of the network with a known shortcut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shortcut_net import CLASSES, directions_arrays, write_scenes
from tiny import trusted

from evaluate.correct import CorrectConfig, study_correction
from evaluate.correct.correction_page import write_page
from evaluate.correct.correction_tables import correction_summary
from evaluate.correct.gates import measure_gates
from evaluate.correct.heldout_evaluation import judged
from extract.datasets import open_source
from extract.network import open_head
from extract.stream import ExtractConfig, extract
from stores.directions import Directions
from stores.readers import LayerReader

HOSTILE = "<img src=x onerror=alert(1)> & a class whose name is long_and_without_any_place_to_break_it"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("correction")
    stores = {}
    for name in ("clean", "poisoned"):
        write_scenes(folder / name, 12, marked=name == "poisoned")
        config = ExtractConfig(model="shortcut_net:with_transform", weights="none", layers=("act",), workers=0)
        extract(open_source(folder / name), folder / f"{name}.zarr", config)
        stores[name] = trusted(folder / f"{name}.zarr")
    clean, poisoned = judged(stores, "act").values()
    d = Directions(**directions_arrays(), method="eddp", layer="act")  # type: ignore[arg-type]
    assert d.thresholds is not None
    head = open_head(stores["clean"], "act")
    found = measure_gates(d, [0], d.thresholds, LayerReader(stores["poisoned"], "act"))
    study = study_correction(found, head, clean, poisoned, rectify=True, config=CorrectConfig(randoms=2))
    summary = {
        "title": HOSTILE,
        "because": HOSTILE,
        "directions": "found",
        "layer": "act",
        "held_out": 12,
        "images": 24,
        **correction_summary(study),
    }
    return write_page(folder / "out", study, summary, [HOSTILE, CLASSES[1]], stores["clean"]).as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everything_is_shown_and_fits(watched: Callable[..., Any], page: str, scheme: str, width: int) -> None:
    opened = watched(page, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert opened.locator("h1").inner_text() == f"Without {HOSTILE}"
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    pictures = opened.locator("img")
    assert pictures.count() >= 3
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
        assert picture.get_attribute("alt")
    assert opened.locator(".figure polyline.clean, .figure polyline.poisoned").count() == 4
    assert opened.locator("circle.chosen").count() == 2
    assert opened.locator(".matrix").count() == 4
    bars = opened.locator(".compare").nth(1).locator(".bar rect")
    assert bars.nth(1).bounding_box()["width"] > bars.nth(0).bounding_box()["width"]


def test_a_page_without_any_change_says_so(watched: Callable[..., Any], page: str, tmp_path: Path) -> None:
    source = Path(page.removeprefix("file://")).parent.parent
    store = trusted(source / "poisoned.zarr")
    d = Directions(**directions_arrays(), method="eddp", layer="act")  # type: ignore[arg-type]
    assert d.thresholds is not None
    config = CorrectConfig(randoms=0, strength=0.0, shift=0.0)
    found = measure_gates(d, [0], d.thresholds, LayerReader(store, "act"))
    study = study_correction(
        found, open_head(store, "act"), judged({"clean": store}, "act")["clean"], None, rectify=True, config=config
    )
    summary = {
        "title": "mark",
        "because": "asked for",
        "directions": "found",
        "layer": "act",
        "held_out": 6,
        "images": 24,
        **correction_summary(study),
    }
    opened = watched(write_page(tmp_path, study, summary, CLASSES, store).as_uri())
    assert opened.get_by_text("No prediction changes.").is_visible()
    assert opened.locator("img").count() == 0
