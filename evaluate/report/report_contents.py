"""The parts of a report that are many: its directions and its classes, from tables and from one pass over the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.direction_names import DirectionName
from evaluate.metrics import INTERPRETABLE, problem_of
from evaluate.report.class_predictions import ClassPredictions, class_titles
from evaluate.report.influence_reader import Pushes
from evaluate.report.logit_histograms import FEW, Survey
from evaluate.report.page_layout import marks
from evaluate.report.report_data import ClassPage, Direction, Steer, Tile
from evaluate.report.report_images import example_file, frames_file, strip_file, tile_file
from evaluate.report.similarity_map import nearest
from evaluate.top_images import Top
from stores.directions import Directions
from stores.store import ActivationStore

NEIGHBOURS = 6
STRONGEST = 3  # classes on a direction's card
PUSHED = {"signal": 8, "filter": 3}  # classes each way on a direction's page
DIAGRAM = 10  # directions each way in a class's concept influence diagram (paper)
MEASURES = {"precision": "precision", "recall": "recall", "f1": "F1", "average_precision": "average precision"}
NAN = float("nan")


def direction_pages(
    directions: Directions,
    found: Survey,
    predicted: ClassPredictions,
    names: Sequence[str],
    missing: set[int],
    *,
    labels: Sequence[tuple[str, str]],
    called: Sequence[DirectionName],
    rows: Mapping[int, Mapping[str, Any]],
    candidates: Sequence[dict[str, Any]],
    pushes: Mapping[str, Pushes],
    curves: Sequence[Steer | None],
    classes: Mapping[int, dict[str, Any]],
    words: Mapping[int, dict[str, Any]],
    meaning: Mapping[int, dict[str, Any]],
    twins: Sequence[Sequence[int]] = (),
    steps: int = 1,
) -> list[Direction]:
    """All directions of a set as their pages show them.

    Parameters
    ----------
    names : of the store's images. missing : rows of which there is no picture.
    labels : (label, category) of each. called : what each is called. rows : index -> row of the table ``directions``, empty without labels. candidates : rows of ``labels``.
    classes, words, meaning : index -> row of ``class_labels``, of ``vocabulary_labels``, of ``meaning``. pushes : by role. curves : of steering, where it was measured. twins : pairs of nearly parallel signal vectors. steps : in time, of the layer.
    """
    others: dict[int, list[dict[str, Any]]] = {}
    for one in candidates:
        others.setdefault(int(one["index"]), []).append(one)
    marked = marks(directions.info.get("diagnosis", {}), twins)
    near = {
        role: nearest(vectors, NEIGHBOURS)
        for role, vectors in (("signal", directions.signals), ("filter", directions.filters))
    }
    cosine = directions.agreement
    out = []
    for i in range(directions.count):
        row = rows.get(i, {})
        label, category = labels[i]
        fits = bool(label) and _number(row.get("iou_val")) > INTERPRETABLE
        first = len(found.top.rows)
        tiles = _tiles(i, found.top, 0, predicted, names, missing, framed=steps > 1)
        middle, weakest = (
            _tiles(
                i,
                Top(found.across.rows[part], found.across.values[part]),
                first + part.start,
                predicted,
                names,
                missing,
            )
            for part in (slice(0, FEW), slice(FEW, 2 * FEW))
        )
        out.append(
            Direction(
                index=i,
                name=called[i],
                problem=problem_of(label, _number(row.get("iou_val")), int(row.get("images_val") or 0)) if rows else "",
                images=int(row.get("images_val") or 0),
                positions=int(row.get("positions_val") or 0),
                as_good=[one for one in others.get(i, []) if one["rank"] > 1 and one["as_good"]],
                label=label,
                category=category if fits else "",
                interpretable=fits,
                iou=_number(row.get("iou_val")),
                iou_low=_number(row.get("iou_low")),
                iou_high=_number(row.get("iou_high")),
                share=float(found.positives[i]) / max(found.positions, 1),
                agreement=round(float(cosine[i]), 4),
                histogram=found.histograms[i],
                tiles=tiles,
                middle=middle,
                weakest=weakest,
                strip=strip_file(i) if any(tile.file for tile in tiles) else "",
                measures={title: _number(row[key]) for key, title in MEASURES.items() if row.get(key) is not None},
                candidates=others.get(i, []),
                pushes={role: one.of_direction(i, PUSHED[role]) for role, one in pushes.items()},
                **_moved(i, pushes.get("signal")),
                classes=classes.get(i),
                words=words.get(i),
                meaning=meaning.get(i),
                steer=curves[i] if curves else None,
                near={
                    role: list(zip(order[i].tolist(), value[i].tolist(), strict=True))
                    for role, (order, value) in near.items()
                },
                marks=marked.get(i, []),
                found_again=NAN if directions.found_again is None else float(directions.found_again[i]),
            )
        )
    return out


def class_pages(
    store: ActivationStore, predicted: ClassPredictions, missing: set[int], pushes: Pushes | None, root: str = ""
) -> list[ClassPage]:
    """All classes of the network as their pages show them. ``root`` : where the pictures of classes are, from the report's folder."""
    names, titles = store.names, class_titles(store.class_names, len(predicted.count))
    out = []
    for k, title in enumerate(titles):
        raised, lowered = pushes.extremes(k) if pushes else (None, None)
        tiles = [
            Tile("" if row in missing else root + example_file(k, rank), names[row], round(p, 4), k)
            for rank, (row, p) in enumerate(zip(predicted.rows[k], predicted.probability[k], strict=True))
        ]
        out.append(
            ClassPage(
                number=k,
                name=title,
                predicted=int(predicted.count[k]),
                labelled=-1 if predicted.labelled is None else int(predicted.labelled[k]),
                right=-1 if predicted.right is None else int(predicted.right[k]),
                tiles=tiles,
                pushes=pushes.of_class(k, DIAGRAM) if pushes else [],
                raised=raised,
                lowered=lowered,
            )
        )
    return out


def _tiles(
    i: int,
    top: Top,
    first: int,
    predicted: ClassPredictions,
    names: Sequence[str],
    missing: set[int],
    *,
    framed: bool = False,
) -> list[Tile]:
    """Direction ``i``'s images, whose files are numbered from ``first``; ``framed``: clips of which all steps are shown."""
    rows, values = top.rows[:, i].tolist(), top.values[:, i].tolist()
    found = []
    for rank, (row, value) in enumerate(zip(rows, values, strict=True), first):
        if row >= 0:
            there = row not in missing
            picture, frames = tile_file(i, rank) if there else "", frames_file(i, rank) if there and framed else ""
            found.append(Tile(picture, names[row], value, int(predicted.prediction[row]), frames))
    return found


def _moved(i: int, pushes: Pushes | None) -> dict[str, Any]:
    if pushes is None:
        return {}
    up, down = pushes.moved(i)
    return {"up": up, "down": down, "strongest": pushes.strongest(i, STRONGEST)}


def _number(value: Any) -> float:
    return NAN if value is None else float(value)
