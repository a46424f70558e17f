"""What an explanation is made from, found from the command line: store, directions, labels, classes, and the images or clips."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.direction_names import names_of, read_names, with_number
from evaluate.evidence_facts import fidelity_problem
from evaluate.explain.phrases import Concept
from extract.folder_listing import list_files
from extract.image_io import ENDINGS, read_image, shown
from extract.image_source import PathSource
from extract.store_images import open_images
from extract.video import VIDEO_ENDINGS, Clip, is_video
from extract.video_rows import frame_rows
from pipeline.evaluation_result import EvaluationResult
from stores.directions import Directions
from stores.errors import (
    EDDPError,
    MismatchError,
    MissingPathError,
    NoImagesError,
    UnknownNameError,
    UsageError,
)
from stores.store import ActivationStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """``name``: of the set of directions; ``concepts``: what they stand for, as far as an evaluation says; ``fidelity``: what it says against the
    logits that they rebuild, empty for nothing."""

    store: ActivationStore
    layer: str
    directions: Directions
    name: str
    concepts: list[Concept]
    fidelity: str = ""


def open_inputs(
    store: Path | None,
    directions: Path | None,
    evaluation: Path | None,
    layer: str | None,
    *,
    model: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Inputs:
    """Open what was named; what was not comes from the evaluation, by default the one next to the directions.

    Raises UsageError where neither says enough, MismatchError for directions of another layer or others than the evaluation's, and the errors of
    what is opened.
    """
    if evaluation is None and (store is None or directions is None):
        raise UsageError("Say what to explain with: --store and --directions, or --evaluation DIR, which knows both.")
    known = EvaluationResult(evaluation) if evaluation is not None else _beside(directions)
    name = directions.stem if directions is not None else None
    if known is not None and (evaluation is not None or name in known.names):
        name = known.one(name)
    found = known.directions(str(name)) if directions is None and known else Directions.load(directions or "")
    if directions is not None and evaluation is not None and known is not None:
        _check_same(found, directions, known, str(name))
    if store is None and known:
        opened = known.store(model=model, class_names=class_names)
    else:
        opened = ActivationStore.open(store or "", model=model, class_names=class_names)
    spec = opened.layer(layer or found.layer)
    found.check_store(spec.name, spec.channels, opened.provenance.get("weights_digest"))
    concepts = _concepts(known, str(name), found, directions, evaluation is not None)
    entry = {} if known is None else known.summary["directions"].get(name, {})
    return Inputs(opened, spec.name, found, str(name), concepts, fidelity_problem(entry))


def _check_same(found: Directions, path: Path, known: EvaluationResult, name: str) -> None:
    """Raise MismatchError where a directions file is not the one that was evaluated, as far as that is still there."""
    try:
        evaluated = known.directions(name)
    except MissingPathError:
        return  # it was moved: that is why the file is named
    if not (np.array_equal(found.filters, evaluated.filters) and np.array_equal(found.signals, evaluated.signals)):
        raise MismatchError(
            f"'{path}' holds other directions than those called '{name}' that '{known.folder}' is about. Leave --directions out, or run "
            "evaluate on it."
        )


def _beside(directions: Path | None) -> EvaluationResult | None:
    """The evaluation next to a directions file, if it is about that very file, as it was then."""
    if directions is None:
        return None
    folder = directions.absolute().parent / "evaluation"
    if not (folder / "summary.json").is_file():
        return None
    try:
        known = EvaluationResult(folder)
        same = directions.stem in known.names and known.directions_path(directions.stem).samefile(directions)
        if same:
            known.directions(directions.stem)  # an error if it was fitted again since
    except (EDDPError, OSError) as error:
        log.warning("concepts go without names: %s", error)
        return None
    return known if same else None


def _concepts(
    known: EvaluationResult | None, name: str, directions: Directions, path: Path | None, asked: bool
) -> list[Concept]:
    """Names of the directions; their numbers, and what ``names.csv`` says, where no evaluation has labels for them."""
    labels = [("", "")] * directions.count
    if known is None or name not in known.names:
        names = names_of(
            [""] * directions.count, [False] * directions.count, read_names(path, directions.count) if path else None
        )
    elif known.count(name) != directions.count:
        text = (
            f"'{known.folder}' is about {known.count(name)} directions '{name}', and the file holds {directions.count}: it was fitted again since. "
            "Run evaluate again."
        )
        if asked:
            raise MismatchError(text)
        log.warning("concepts go without names: %s", text)
        names = names_of([""] * directions.count, [False] * directions.count)
    else:
        labels, names = known.labels(name), known.direction_names(name, path)
    again = [None] * directions.count if directions.found_again is None else directions.found_again.tolist()
    return [
        Concept(i, label, category, with_number(names, i), names[i].short, again[i])
        for i, (label, category) in enumerate(labels)
    ]


def class_number(given: str | None, classes: Sequence[str], option: str) -> int | None:
    """The class that a name or number means. Raises UnknownNameError listing the nearest names."""
    if given is None:
        return None
    if given in classes:
        return list(classes).index(given)
    plain = [name.casefold() for name in classes]
    if given.casefold() in plain:
        return plain.index(given.casefold())
    if given.isdecimal() and int(given) < len(classes):
        return int(given)
    near = difflib.get_close_matches(given.casefold(), plain, n=3, cutoff=0.5)
    names = [classes[plain.index(name)] for name in near]
    raise UnknownNameError(
        f"{option}: the model has no class '{shown(given)}'. "
        + (f"Nearest: {', '.join(names)}. " if names else "")
        + f"Give a name or a number from 0 to {len(classes) - 1}."
    )


@dataclass(frozen=True)
class ImageInput:
    """An image to explain: how it is called, its row of the store if it is one, and what reads it; or a ``Clip``."""

    name: str
    row: int | None
    read: Callable[[], Any]
    named: bool  # by itself, not as one of a folder


def find_images(
    paths: Sequence[Path], rows: Sequence[int], store: ActivationStore, out: Path | None = None
) -> list[ImageInput]:
    """The images that were named: files, all images of folders but those below ``out``, rows of the store.

    Videos are read from folders without images. For a network that takes images a video is as many frames as in the store.

    Raises MissingPathError, NoImagesError, and UsageError or MismatchError for rows that the store or its images do not have.
    """
    items = []
    for path in paths:
        if path.is_dir():
            there = list_files(path).files or list_files(path, VIDEO_ENDINGS).files
            names = there if out is None else _not_below(out, path, there)
            if not names:
                what = (
                    f"no file ending in {', '.join((*ENDINGS, *VIDEO_ENDINGS))}"
                    if not there
                    else "all are in --out, explained before"
                )
                raise NoImagesError(f"There is no image or video in '{shown(path)}': {what}.")
            items += [item for name in names for item in _file(path / name, store, named=False)]
        elif path.exists():
            items += _file(path, store, named=True)
        else:
            raise MissingPathError(f"There is no image, video or folder '{shown(path)}'.")
    return items + (_rows(rows, store) if rows else [])


def _not_below(out: Path, root: Path, names: Sequence[str]) -> list[str]:
    """Files below a folder without those below ``out``, whatever links lead there: an explanation is no photograph."""
    real = os.path.realpath(out)
    below: dict[Path, bool] = {}
    for folder in {(root / name).parent for name in names}:
        where = os.path.realpath(folder)
        below[folder] = where == real or where.startswith(real.rstrip(os.sep) + os.sep)
    kept = [name for name in names if not below[(root / name).parent]]
    if len(kept) < len(names):
        log.info("left out: %d images in '%s', where explanations go", len(names) - len(kept), out)
    return kept


def _file(path: Path, store: ActivationStore, *, named: bool) -> list[ImageInput]:
    """An image, a clip, or the frames of a video that the store would have."""
    if not is_video(path.name):
        return [ImageInput(shown(path), None, lambda: read_image(path), named)]
    if "clip" in store.provenance:
        return [ImageInput(shown(path), None, lambda: Clip(path, str(path)), named)]
    rows = store.provenance.get("dataset", {}).get("rows") or {}
    frames = frame_rows(PathSource(Path(), [(str(path), -1)], kind="video"), int(rows.get("frames", 1)))
    return [ImageInput(shown(frames.name(k)), None, partial(frames.image, k), named) for k in range(len(frames))]


def _rows(rows: Sequence[int], store: ActivationStore) -> list[ImageInput]:
    made = store.provenance
    if "dataset" not in made or "synthetic" in made:
        raise MismatchError(f"The store '{store.path}' was not made from images: --row has nothing to show.")
    for row in rows:
        if not 0 <= row < store.n_images:
            raise UsageError(f"--row {row}: the store '{store.path}' has images 0 to {store.n_images - 1}.")
    source = open_images(store)
    names = store.names
    wanted = {names[row] for row in rows}
    places = {name: i for i in range(len(source)) if (name := source.name(i)) in wanted}
    gone = [row for row in rows if names[row] not in places]
    if gone:
        raise MismatchError(f"The image '{shown(names[gone[0]])}' (row {gone[0]}) is not in '{source.root}' any more.")

    def item(row: int) -> ImageInput:
        place = places[names[row]]
        return ImageInput(shown(names[row]), row, lambda: source.image(place), True)

    return [item(row) for row in rows]
