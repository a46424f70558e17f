"""From plain data to pages: each a path in the site and its bytes, which depend only on the data.

Files are named by numbers, and the content policy allows no script and no style but the site's own two files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from evaluate.direction_names import numbered
from evaluate.image_tiles import FRAME, STEPS, sheet_size
from evaluate.image_tiles import GAP as FRAME_GAP
from evaluate.number_format import DASH, known, minus, number, url
from evaluate.report import svg_charts as charts
from evaluate.report import svg_shapes as figures
from evaluate.report.page_layout import COLOURS, category_colours, complaints, iou_scale, ordered, scalars
from evaluate.report.report_data import MOVED, ClassPage, Direction, Site
from evaluate.report.report_images import EXAMPLE, GAP, SMALL, STRIP, TILE
from evaluate.web_page import environment, render_page, resource
from stores.directions import FOUND

P = TypeVar("P", Direction, ClassPage)
CONCEPTS = 60  # with a bar; more are counted
STRONGEST = 5  # directions of the largest effects
SUSPECTS = 12  # shown with pictures; more are named


def pages(site: Site) -> Iterator[tuple[str, bytes]]:
    """All files of the site but its pictures, one at a time: (path relative to the site, bytes)."""
    yield "style.css", (resource("style.css") + resource("site.css")).encode()
    yield "script.js", resource("site.js").encode()
    book = _Book(site)
    yield "index.html", book.overview()
    diagnosis: dict[str, Any] = {"scalars": scalars(site.diagnosis), "found": complaints(site.diagnosis)}
    yield "fit.html", book.page("fit.html", here="fit", again=_found_again(site), **diagnosis)
    better = {1: "More is better.", -1: "Less is better."}
    columns = {measure.title: f"{measure.text} {better[measure.better]}" for measure in site.comparison.measures}
    yield "definitions.html", book.page("definitions.html", here="definitions", columns=columns)
    for i in range(len(site.directions)):
        yield direction_page(i), book.direction(i)
    if site.classes:
        yield "classes.html", book.classes()
    for k, c in enumerate(book.classes_shown):
        yield class_page(c.number), book.of_class(k)


def start_page(title: str, facts: Mapping[str, str], sites: Sequence[Site]) -> bytes:
    """``report.html`` of an evaluation: what was evaluated, all sets side by side, and the way to the pages of each in ``report/SET/``."""
    counted = [one for site in sites for one in site.per_category]
    roots = {site.name: f"report/{url(site.name)}/" for site in sites}
    data = {
        "title": title,
        "about": facts,
        "notes": dict.fromkeys(note for site in sites for note in site.notes),
        "sites": sites,
        "roots": roots,
        "links": {name: f"{root}index.html" for name, root in roots.items()},
        "comparison": sites[0].comparison,
        "tallest": max((detectors for _, _, detectors in counted), default=1) or 1,
        "colours": category_colours({name for name, _, _ in counted}),
        "listed": SUSPECTS,
        "stack": figures.stack,
    }
    return render_page("report.html", data, styles="site.css", **FORMATS).encode("utf-8", "replace")


def direction_page(index: int) -> str:
    return f"d/{index:05d}.html"


def class_page(number: int) -> str:
    return f"c/{number:04d}.html"


class _Book:
    """The templates, and what all pages of a site share."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.templates = environment(**FORMATS)
        carried = {d.category for d in site.directions}
        categories = carried | {c["category"] for d in site.directions for c in d.candidates}
        categories |= {name for name, _, _ in site.per_category}
        self.colours = category_colours(categories, COLOURS - 1)  # the last: no category
        scores = [
            iou
            for d in site.directions
            for iou in (d.iou, *(c[key] for c in d.candidates for key in ("iou_train", "iou_val")))
        ]
        self.shared: dict[str, Any] = {
            "site": site,
            "colours": self.colours,
            "carried": {name: colour for name, colour in self.colours.items() if name in carried},
            "iou_scale": iou_scale(scores),
            "pictures": any(tile.file for d in site.directions for tile in d.tiles),
            "tile_size": TILE,
            "example_size": EXAMPLE,
            "sheet_frames": STEPS,
            "sheet_size": [n * (FRAME + FRAME_GAP) + FRAME_GAP for n in sheet_size(min(site.steps, STEPS))],
            "film_step": SMALL + GAP,
            "film_gap": GAP,
            **{f.__name__: f for f in (figures.bar, figures.stack, figures.diverging, figures.interval, figures.shape)},
            **{f.__name__: f for f in (charts.histogram, charts.steering, charts.curve)},
        }
        self.templates.globals.update(self.shared)
        self.suspects_of = _grouped([{**row, "index": i} for row in site.suspects for i in row["indices"]], "index")
        self.suspects_for = _grouped(site.suspects, "class")
        self.classes_shown = [c for c in site.classes if c.shown]

    def page(self, file: str, *, here: str = "", root: str = "", **more: Any) -> bytes:
        return self.templates.get_template(file).render(here=here, root=root, **more).encode("utf-8", "replace")

    def overview(self) -> bytes:
        site = self.site
        shown = ordered(site.directions)
        places = [site.places[d.index] for d in shown] if site.places else []
        what = "Map of the directions by the cosine of their signal vectors; every point is a link"
        return self.page(
            "overview.html",
            here="index",
            ordered=shown,
            map=figures.scatter(places, [self._point(d) for d in shown], what) if places else "",
            unlabelled=any(not d.category for d in shown),
            found=complaints(site.diagnosis),
            tallest=max((n for _, _, n in site.per_category), default=1) or 1,
            concepts=_concepts(shown),
            concepts_shown=CONCEPTS,
            strongest=[_effect(d) for d in sorted(shown, key=_repeatable_first) if d.strongest][:STRONGEST],
            listed=SUSPECTS,
            moved=_moved(site),
            steering_text=charts.steering_text(site.steering) if site.steering else "",
        )

    def direction(self, i: int) -> bytes:
        d = self.site.directions[i]
        return self.page(
            "direction.html",
            root="../",
            d=d,
            **_neighbours(self.site.directions, i, lambda d: (direction_page(d.index), str(d.index))),
            suspects=self.suspects_of.get(i, []),
            truth=[concept for concept in self.site.truth if concept["direction"] == i],
            push_scale=max((abs(p.change) for pushes in d.pushes.values() for p in pushes), default=0.0),
            histogram_text=charts.histogram_text(d.histogram, d.share),
            steering_text=charts.steering_text(d.steer) if d.steer else "",
        )

    def of_class(self, k: int) -> bytes:
        c = self.classes_shown[k]
        return self.page(
            "class.html",
            root="../",
            c=c,
            **_neighbours(self.classes_shown, k, lambda c: (class_page(c.number), c.name)),
            suspects=self.suspects_for.get(c.number, []),
            push_scale=max((abs(p.change) for p in c.pushes), default=0.0),
        )

    def classes(self) -> bytes:
        known = [c for c in self.site.classes if c.labelled >= 0]
        labelled = sum(c.labelled for c in known)
        accuracy = sum(c.right for c in known) / labelled if labelled else None
        classes = sorted(self.site.classes, key=lambda c: -c.influence)
        return self.page(
            "classes.html", here="classes", classes=classes, accuracy=accuracy, labelled=labelled, least=MOVED
        )

    def _point(self, d: Direction) -> dict[str, str | int]:
        colour: int | str = self.colours.get(d.category, "none")
        iou = f", IoU {number(d.iou)}" if self.site.labelled else ""
        title = f"{numbered(d.name.full, d.index)}{iou}" + (f" ({d.category})" if d.category else "")
        shape = colour if isinstance(colour, int) else COLOURS - 1
        return {
            "href": direction_page(d.index),
            "name": d.name.full if d.name.full != f"direction {d.index}" else str(d.index),
            "title": title,
            "colour": colour,
            "shape": shape,
        }


def ends(interval: tuple[float, float]) -> str:
    """An interval for a table; those of counts come as integers."""
    low, high = (number(int(end) if float(end).is_integer() else end) for end in interval)
    return low if low == high else f"{low} to {high}"


def floor(share: float) -> str:
    """A share in integer per cent, never more than it is: 100 is all."""
    return str(math.floor(100 * share + 1e-9))


def shown(d: Direction) -> int:
    """How many images a direction's strip shows."""
    return min(STRIP, sum(bool(tile.file) for tile in d.tiles))


def cosine(value: float | None) -> str:
    return minus(f"{value:.2f}") if known(value) else DASH


def attribute(value: float) -> str:
    """A number for the script; empty where there is none."""
    return f"{value:.6g}" if math.isfinite(value) else ""


FORMATS: dict[str, Any] = {
    "cosine": cosine, "ends": ends, "attribute": attribute, "floor": floor, "shown": shown, "page": direction_page,
    "class_page": class_page,
}  # fmt: skip


def _concepts(directions: Sequence[Direction]) -> list[tuple[str, str, int]]:
    """Label, category and number of interpretable directions of each concept, most directions first."""
    counted = Counter((d.label, d.category) for d in directions if d.interpretable)
    return [(*concept, count) for concept, count in sorted(counted.items(), key=lambda one: (-one[1], one[0]))]


def _repeatable_first(d: Direction) -> tuple[bool, float]:
    """Directions that few refits contain come last: what they do may be chance."""
    return d.found_again < FOUND, -d.influence


def _effect(d: Direction) -> dict[str, Any]:
    """A direction, the class that it moves most, the largest gain of longer steps, and the share of its images predicted as the class."""
    push = d.strongest[0]
    further = None
    if push.change > 0 and d.steer and d.steer.target == push.other and "signal" in d.steer.curves:
        gain, alpha = max(zip(d.steer.curves["signal"], d.steer.alphas, strict=True))
        further = (gain, alpha) if gain > push.change else None
    known = [tile.prediction for tile in d.tiles if tile.prediction >= 0]
    return {
        "d": d,
        "push": push,
        "further": further,
        "predicted": known.count(push.other),
        "images": len(known),
    }


def _neighbours(every: Sequence[P], i: int, named: Callable[[P], tuple[str, str]]) -> dict[str, Any]:
    """File and name of the page before and of the one after."""
    return {
        "before": named(every[i - 1]) if i else None,
        "after": named(every[i + 1]) if i + 1 < len(every) else None,
    }


def _moved(site: Site) -> dict[str, list[Any]]:
    """For the script: the classes' names, and which of them each direction moves up and down; read when somebody asks for a class."""
    ups, downs = [d.up for d in site.directions], [d.down for d in site.directions]
    return {"classes": [c.name for c in site.classes], "up": ups, "down": downs}


def _found_again(site: Site) -> list[tuple[str, int]]:
    """How often directions are found again, with how many of them, most often first; many refits in tenths."""
    steps = site.refits if 0 < site.refits <= 10 else 10
    found = [math.floor(d.found_again * steps + 1e-4) for d in site.directions if d.found_again == d.found_again]
    of = f" of {steps}" if steps == site.refits else "0 %"
    return [(f"{k}{of}", found.count(k)) for k in range(steps, -1, -1)] if found else []


def _grouped(rows: Sequence[dict[str, Any]], key: str) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(int(row[key]), []).append(row)
    return found
