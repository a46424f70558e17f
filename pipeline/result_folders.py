"""What a folder of results is: an evaluation, a report, a correction, an explanation, a demo, by the document in it; or fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.records import Place, beside, within
from stores.directions import Directions
from stores.documents import UNREADABLE, parse_json
from stores.errors import EDDPError, StoreError
from stores.tensors import key_of, reading

MOST_BYTES = 64 * 2**20  # of a document that is read


@dataclass(frozen=True)
class ResultFolder:
    """A folder of results: ``what`` it is, its document, where its run's record is, and its contents as lines for people."""

    path: Path
    what: str
    document: dict[str, Any]
    place: Place | None
    lines: list[str]


def result_folder(path: Path) -> ResultFolder | None:
    """What is at a path, if it is a folder of results; None for anything else, stores included. Raises EvaluationError."""
    if not path.is_dir() or (path / "zarr.json").is_file():
        return None
    for file, made_by, what, shown in (
        ("report.json", "eddp report", "report", _report),
        ("explanation.json", "eddp explain", "explanation", _explanation),
        ("summary.json", "eddp correct", "correction", _correction),
        ("summary.json", "eddp evaluate", "evaluation", _evaluation),
        ("demo.run.json", None, "demo", _demo),
    ):
        document = _evaluation_at(path) if what == "evaluation" else _document(path / file)
        if document is None or document.get("made_by") != made_by:
            continue
        place = {"report": beside(path), "demo": Place(path / file)}.get(what) or within(path, file)
        return ResultFolder(path, what, document, place, _safely(shown, document))
    sets = {file.stem: _fit(file) for file in sorted([*path.glob("*.safetensors"), *path.glob("*.checkpoint")])}
    return (
        ResultFolder(path, "directions", {"directions": sets}, None, [f"{n}: {f}" for n, f in sets.items()])
        if sets
        else None
    )


def _fit(path: Path) -> str:
    """What one of several files of fits is."""
    if path.suffix == ".checkpoint":
        return "an unfinished fit; the same command resumes it"
    try:
        with reading(path, "safetensors file", "Remove it.", StoreError):
            kind = key_of(path)
        if kind != "eddp":
            return f"no directions ({kind or 'no key'})"
        found = Directions.load(path)
    except EDDPError as error:
        return f"damaged: {error}"
    share = found.share_found_again
    again = "" if share is None else f", {round(share * found.count)} found again"
    return f"{found.count} directions of {found.layer} by {found.method}, fitted on {found.fitted_on}{again}"


def _document(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        found = parse_json(path.read_bytes())
    except (OSError, *UNREADABLE):
        return None
    return found if isinstance(found, dict) else None


def _evaluation_at(path: Path) -> dict[str, Any] | None:
    """The summary of an evaluation, directions called as they are by now. Raises EvaluationError where it is damaged."""
    from pipeline.evaluation_result import EvaluationResult

    if not (path / "summary.json").exists():
        return None
    found = EvaluationResult(path)
    for name, entry in found.summary["directions"].items():
        with suppress(
            EDDPError, KeyError, IndexError, TypeError
        ):  # files that were moved, and what another version wrote
            called = found.direction_names(name)
            for row in entry["influence"]["strongest"]:
                row["name"] = called[row["index"]].full
    return found.summary


def _safely(shown: Callable[[dict[str, Any]], list[str]], document: dict[str, Any]) -> list[str]:
    """Lines of a document, or one that says that it is not what this version writes."""
    try:
        return shown(document)
    except (*UNREADABLE, ArithmeticError) as error:
        kind = type(error).__name__
        return [f"its contents are damaged, or were written by an older eddp ({kind}: {str(error)[:100]})"]


def _evaluation(document: dict[str, Any]) -> list[str]:
    from pipeline.evaluation import summary_lines

    made = document.get("made_from") or {}
    sets = [
        f"{name}: {entry['directions']} directions by {entry['method']}"
        for name, entry in document["directions"].items()
    ]
    about = [f"{key}: {made[key]}" for key in ("store", "layer", "concepts") if made.get(key)]
    return [*about, *sets, *summary_lines(document)]


def _correction(document: dict[str, Any]) -> list[str]:
    from pipeline.model_correction import correction_lines

    return correction_lines(document)


def _report(document: dict[str, Any]) -> list[str]:
    return [f"title: {document['title']}", f"directions: {document['set']}"]


def _explanation(document: dict[str, Any]) -> list[str]:
    about = [f"directions: {document['directions']}, of the store {document['store']}"]
    return about + [f"{image['image']}: {image['sentence']}" for image in document["images"][:20]]


def _demo(document: dict[str, Any]) -> list[str]:
    return ["its parts can be inspected, too: acts.zarr, eddp.safetensors, evaluation, report, explanation, correction"]
