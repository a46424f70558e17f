"""The page of explanations: pictures and facts of each image, and one ``index.html`` that shows them. It runs no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluate.explain.explainer import Explained
from evaluate.explain.explanation_document import UNREAD, Terms, describe, sentence, steps_of, turning_words
from evaluate.explain.heat_maps import Step, bars, heat, sheet
from evaluate.explain.values import Usual
from evaluate.image_tiles import FRAME, at_steps, contact_sheet, jpeg, outline, shown_steps, square
from evaluate.number_format import percent, probability, signed
from evaluate.report.svg_shapes import bar
from evaluate.web_page import render_page
from stores.io import json_bytes

Grid = tuple[int, int, int]  # steps in time, 1 for images; rows; columns
TILE = 240  # pixels of a picture's side
PALE = 0.25  # maps that reach less than this share of the strongest are paler


@dataclass(frozen=True)
class Map:
    """One concept's heat map: its name, what it adds, the share of the image or clip where its detector fires, a file, and the share of refits
    that contain its direction."""

    name: str
    value: float
    fires: float
    file: str
    found_again: float | None = None


@dataclass(frozen=True)
class ExplainedImage:
    """One image of the page: no more than is shown, for pages of many are held in memory.

    ``predicted``, ``explained``, ``classes``, ``counterfactual``: parts of ``describe``'s document; ``sums``: titles and their steps; the rest are file names.
    ``care``: why it is to be read with care. ``small``: of a clip whose pictures are sheets of several frames, the middle one.
    Without a ``cam`` the head does not read this layer's positions, and there are neither sums nor maps.
    """

    name: str
    sentence: str
    predicted: dict[str, Any]
    explained: dict[str, Any]
    classes: Sequence[dict[str, Any]]
    counterfactual: dict[str, Any] | None
    sums: Sequence[tuple[str, Sequence[Step]]]
    maps: Sequence[Map]
    seen: str
    cam: str | None
    sheet: str
    json: str
    small: str = ""
    care: Sequence[str] = ()


@dataclass(frozen=True)
class PageData:
    """All of the page. ``facts`` are shown as a list, ``notes`` at the end, term by term; ``rows``: what the store's are; ``refits``: how many
    ``found_again`` is a share of; ``care``: why all of it is to be read with care."""

    title: str
    facts: dict[str, str]
    shown: Sequence[ExplainedImage]
    notes: dict[str, str] = field(default_factory=dict)
    rows: str = "images"
    refits: int = 0
    care: str = ""


@dataclass(frozen=True)
class ImagePage:
    """What an explanation of one image consists of: what the page shows, its document, and files by name."""

    shown: ExplainedImage
    document: dict[str, Any]
    files: dict[str, bytes]


def draw_image(
    number: int,
    name: str,
    row: int | None,
    pictures: Sequence[Image.Image],
    found: Explained,
    usual: Usual,
    terms: Terms,
    *,
    grid: Grid,
    most: int,
) -> ImagePage:
    """Draw one image's explanation: its pictures, its sheet (PNG) and its document.

    Parameters
    ----------
    number : of the image on the page. name, row : what it is called, and its row of the store.
    pictures : what the network saw, several frames of a clip. grid : of the layer's positions. most : concepts with a picture of their own.
    """
    stem = f"{number:04d}-{file_stem(name)}"
    line = sentence(found, usual, terms)
    document = {
        "image": name,
        "row": row,
        "sentence": line,
        **describe(found, usual, terms),
        "files": {"sheet": f"{stem}.png", "document": f"{stem}.json"},
    }
    several = grid[0] > 1
    frames = at_steps([square(picture, FRAME if several else TILE) for picture in pictures], grid[0])
    cam = None if found.unread else _cam(found, frames, grid)
    seen = contact_sheet([frames[t] for t in shown_steps(grid[0], 0)])
    tiles = [] if found.unread else _tiles(found, frames, grid, most)
    maps = [_map(found, terms, i, f"pictures/{stem}.{i:04d}.jpg") for i, _ in tiles]
    files = {one.file: jpeg(tile) for one, (_, tile) in zip(maps, tiles, strict=True)}
    files |= {f"pictures/{stem}.seen.jpg": jpeg(seen), f"{stem}.json": json_bytes(document)}
    files[f"{stem}.png"] = _sheet(
        found, usual, terms, seen, cam, [(m, t) for m, (_, t) in zip(maps, tiles, strict=True)], most
    )
    if cam is not None:
        files[f"pictures/{stem}.cam.jpg"] = jpeg(cam)
    if several:
        files[f"pictures/{stem}.small.jpg"] = jpeg(at_steps(frames, 1)[0])
    shown = ExplainedImage(
        name,
        _capital(line),
        document["predicted"],
        document["explained"],
        document["classes"],
        document["counterfactual"],
        [] if found.unread else _sums(found, terms, most),
        maps,
        f"pictures/{stem}.seen.jpg",
        None if cam is None else f"pictures/{stem}.cam.jpg",
        f"{stem}.png",
        f"{stem}.json",
        f"pictures/{stem}.small.jpg" if several else "",
        document["read_with_care"],
    )
    return ImagePage(shown, document, files)


def _map(found: Explained, terms: Terms, i: int, file: str) -> Map:
    concept = terms.concepts[i]
    name = ("little " if found.pooled[i] < 0 else "") + concept.name
    fires = float((found.fires[:, i] > 0).mean())
    return Map(name, float(found.contributions.parts[i, found.explained]), fires, file, concept.found_again)


def _cam(found: Explained, frames: Sequence[Image.Image], grid: Grid) -> Image.Image:
    """Grad-CAM over the image, or over the clip's steps; of them always that of the largest value."""
    values, largest = found.cam.reshape(grid), float(found.cam.max())
    steps = shown_steps(grid[0], int(values.max((1, 2)).argmax()))
    return contact_sheet([heat(frames[t], values[t], both=False, largest=largest) for t in steps])


def _tiles(found: Explained, frames: Sequence[Image.Image], grid: Grid, most: int) -> list[tuple[int, Image.Image]]:
    """The directions that add most, and their maps over the image, or over the clip's steps: that of the largest logit marked."""
    parts = found.contributions.parts[:, found.explained]
    chosen = np.argsort(-np.abs(parts), kind="stable")[:most].tolist()
    largest = np.abs(found.maps[:, chosen]).max(0)  # (most,)
    scale = np.maximum(largest, PALE * largest.max(initial=0))
    tiles = []
    for i, top in zip(chosen, scale, strict=True):
        maps, fires = found.maps[:, i].reshape(grid), found.fires[:, i].reshape(grid)
        peak = int(fires.max((1, 2)).argmax())
        steps = shown_steps(grid[0], peak)
        heats = [outline(heat(frames[t], maps[t], largest=float(top)), fires[t]) for t in steps]
        tiles.append((i, contact_sheet(heats, steps.index(peak))))
    return tiles


def _sums(found: Explained, terms: Terms, most: int) -> list[tuple[str, list[Step]]]:
    name = terms.classes[found.explained]
    sums = [(f"The logit of {name}", steps_of(found, terms, most))]
    if found.against is not None:
        sums.append((f"{name} against {terms.classes[found.against]}", steps_of(found, terms, most, found.against)))
    return sums


def _sheet(
    found: Explained,
    usual: Usual,
    terms: Terms,
    seen: Image.Image,
    cam: Image.Image | None,
    maps: list[tuple[Map, Image.Image]],
    most: int,
) -> bytes:
    name = terms.classes[found.explained]
    return sheet(
        seen,
        cam,
        [(f"{m.name} {signed(m.value)}" + (f", on {percent(m.fires)}" if m.fires else ""), tile) for m, tile in maps],
        [] if found.unread else steps_of(found, terms, most),
        title=f"{name} ({probability(float(found.probabilities[found.explained]))})",
        subtitle=_capital(UNREAD if found.unread else turning_words(found, usual, terms)),
        what=f"what makes the logit of {name}",
        cam_title=f"Grad-CAM for {name}",
    )


def file_stem(name: str) -> str:
    """A file name's stem in letters that every disk and address takes, at most 60 of them."""
    stem = Path(name).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "image"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def render(data: PageData) -> str:
    """The page; its bytes depend only on the data."""
    return render_page("explain.html", {"data": data, "bar": bar}, styles="explain.css", waterfall=waterfall)


def waterfall(steps: Sequence[Step]) -> dict[str, Any]:
    """Rows of a sum as the page draws them: left end and width in % of the track, and where 0 is."""
    spans = bars(steps)
    low, high = min(0.0, *(min(s) for s in spans)), max(0.0, *(max(s) for s in spans))
    width = (high - low) or 1.0
    return {
        "zero": f"{100 * -low / width:.2f}",
        "rows": [
            {
                "name": step.name,
                "value": step.value,
                "kind": step.kind,
                "left": f"{100 * (min(span) - low) / width:.2f}",
                "width": f"{100 * abs(span[1] - span[0]) / width:.2f}",
            }
            for step, span in zip(steps, spans, strict=True)
        ],
    }
