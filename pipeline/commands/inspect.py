"""``eddp inspect`` and ``eddp verify``: what a result holds and how it was made, and is every byte of it sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from evaluate.glossary import PARTS
from fit.verdict import verdict
from pipeline.logging import echo, say
from pipeline.options import common
from pipeline.progress_display import showing
from pipeline.record_display import run_lines, runs_at, shard_lines, shards_at, text_of
from pipeline.records import Place, beside
from pipeline.result_folders import result_folder
from pipeline.result_paths import STORE
from stores.directions import Directions
from stores.errors import CorruptStoreError, MissingPathError, UnsealedStoreError
from stores.folders import MANIFEST, folder_problems
from stores.format import read_attributes
from stores.paths import is_remote
from stores.progress import Progress
from stores.store import ActivationStore, StoreBase
from stores.tensors import key_of, read_tensors, reading

BAR = 40  # characters of a histogram's longest bar
DOCUMENTS = (MANIFEST, "summary.json", "report.json", "explanation.json")  # of folders that have a manifest
QUICK_IMAGES = 256  # whose values are looked at
SHOWN = 10  # of a list of channels or ranges; --json has all


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=STORE)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help=f"Look at the values of all images, not of {QUICK_IMAGES} spread over the store, and keep what is found "
    "with the store.",
)
@common
def inspect(path: Path, everything: bool, quiet: bool, as_json: bool, debug: bool) -> None:
    """Show what is in an activation store, finished or not, in a directions file, or in a folder that evaluate, report, correct or
    explain wrote; and how its runs went, of all shards of a store.

    \b
    Example:
      eddp inspect acts.zarr
    """
    lines: list[str] = []
    facts: dict[str, Any]
    if path.name.endswith(".run.json") or path.name == "run.json":
        facts, runs = {"record": str(path)}, _record(path)
    elif path.suffix == ".safetensors" and not is_remote(path):
        facts, header = _directions_facts(path)
        runs = runs_at(Place(path.with_suffix(".run.json"))) or header
    elif not is_remote(path) and (folder := result_folder(path)) is not None:
        facts, runs = {"folder": str(path), "what": folder.what, "document": folder.document}, runs_at(folder.place)
        lines = folder.lines
    elif (runs := {**runs_at(beside(path)), **shards_at(path)}) and not path.exists():
        facts = {
            "store": str(path),
            "sealed": False,
            "images": 0,
            "next": "Nothing is committed yet: see what the runs say.",
        }
    else:
        from pipeline.inspection import Inspection  # loads torch, which takes a second

        found = Inspection(path)
        facts = found.facts()
        with showing(quiet) as progress:
            images = None if everything else QUICK_IMAGES
            facts["values"] = {
                name: found.values(name, images=images, progress=progress) for name in found.store.layers
            }
    if as_json:
        echo(json.dumps({**facts, **runs}))
        return
    facts.pop("document", None)
    judged = facts.pop("verdict", {})
    lines += [*judged.get("lines", []), *judged.get("problems", [])]
    values = facts.pop("values", {})
    there = "in the complete store" if facts.get("sealed") else "in all that is committed"
    shown = [_table(facts), (text_of(line, 2000) for line in lines)]
    if "run" in runs:
        shown.append(run_lines(runs["run"]))
    if "shards" in runs:
        shown.append(shard_lines(runs["shards"], sealed=bool(facts.get("sealed"))))
    shown += [_distribution(name, found, there) for name, found in values.items() if found]
    for part in shown:
        for line in part:
            echo(line)


def _record(path: Path) -> dict[str, Any]:
    """A record by its own file. Raises MissingPathError where there is none."""
    if not path.exists():
        raise MissingPathError(f"There is no record of a run at '{path}'. Give what it is about, such as acts.zarr.")
    return runs_at(Place(path))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=STORE)
@common
def verify(path: Path, quiet: bool, as_json: bool, debug: bool) -> None:
    """Check every byte of an activation store, of directions, a correction or a checkpoint, or of a folder that evaluate, report,
    correct or explain wrote.

    \b
    Example:
      eddp verify acts.zarr
    """
    problems: list[str] = []
    left, fix = 0, "make it again"
    if path.suffix in (".safetensors", ".checkpoint") and not is_remote(path):
        _check_tensors(path)
    elif not is_remote(path) and any((path / name).is_file() for name in DOCUMENTS):
        problems = folder_problems(path)
    else:
        fix = "run the same extract command again, which redoes chunks that are missing or cut short (with --overwrite everything)"
        with showing(quiet) as progress:
            problems, left = _check(path, progress)
    if as_json:
        echo(json.dumps({"path": str(path), "problems": problems, "missing_chunks": left}))
    for problem in problems:
        say(problem, "error")
    if problems:
        places = "one place" if len(problems) == 1 else f"{len(problems)} places"
        raise CorruptStoreError(f"'{path}' is damaged in {places}, listed above. Restore it from a copy, or {fix}.")
    if left:
        raise UnsealedStoreError(
            f"What is committed of '{path}' is sound, but it is unfinished: {left} chunks are missing. Run the same extract "
            "command again: it resumes where it stopped."
        )
    if not as_json:
        echo(f"{path}: sound")


def _check_tensors(path: Path) -> None:
    """Read a directions file, a correction or a checkpoint. Raises StoreError where it is damaged."""
    if not path.is_file():
        raise MissingPathError(f"There is no file at '{path}'. Give one that fit or correct wrote.")
    with reading(
        path, "directions, correction or checkpoint", "Restore it from a copy, or make it again.", CorruptStoreError
    ):
        key = key_of(path)
        if key not in ("eddp", "eddp_correction"):  # these two are read as what they are
            read_tensors(path, key)
    if key == "eddp":
        Directions.load(path)
    elif key == "eddp_correction":
        from evaluate.correct import Correction

        Correction.load(path)


def _check(path: Path, progress: Progress) -> tuple[list[str], int]:
    """What is wrong with a store, everything of it, and how many of its chunks are not committed yet."""
    try:
        attributes = read_attributes(path)
    except CorruptStoreError as error:  # nothing else can be said of it
        return [str(error).rstrip(".")], 0
    store = StoreBase(path, attributes)
    try:
        sealed = store.sealed
    except CorruptStoreError:
        sealed = True
    if sealed:
        return ActivationStore.examine(path).verify(progress), 0
    records, bad = store.read_records()
    problems = [f"commits/{name}: {reason}" for name, reason in bad.items()]
    problems += store.check_chunks(records, every_byte=True, progress=progress)
    return problems, max(1, store.n_chunks - len(records))  # all in, but not sealed: the same command does that


def _directions_facts(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is in a directions file, and what its header says of the run."""
    found = Directions.load(path)
    run = found.info.get("run")
    facts = {
        "method": found.method,
        "layer": found.layer,
        "directions": found.count,
        "channels": found.channels,
        "thresholds": "own" if found.thresholds is not None else f"top {100 * found.quantile:g} % of positions",
        "agreement": f"cosine of filter and signal {found.agreement.mean():.3f} on average, {found.agreement.min():.3f} at least",
        **({"number": found.info["selection"].get("why")} if isinstance(found.info.get("selection"), dict) else {}),
        "model": found.info.get("model"),
        "fitted on": found.fitted_on,
        "configuration": found.settings,
        "diagnosis": found.info.get("diagnosis", {}),
        "verdict": asdict(verdict(found)),
    }
    return facts, {"run": {"command": "fit", **run}} if isinstance(run, dict) else {}


def _table(facts: dict[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, dict):
            width = max([22, *(len(name) + 2 for name in value)])
            yield f"{key}:"
            yield from (
                f"  {name:<{width}}{'none' if inner in (None, []) else _readable(inner)}" + _meaning(key, name)
                for name, inner in value.items()
            )
        elif key == "bytes":
            yield f"{key:<24}{_whole(value)} ({_binary(value)})"
        else:
            yield f"{key:<24}{_readable(value)}"


def _meaning(part: str, name: str) -> str:
    """What a number of a diagnosis is, in brackets."""
    meaning = PARTS["diagnosis numbers"].get(name.replace("_", " ")) if part == "diagnosis" else None
    return f"  ({meaning.rstrip('.')})" if meaning else ""


def _distribution(name: str, found: dict[str, Any], there: str) -> Iterator[str]:
    """What was found of a layer's values, as lines for people; ``there``: how to call all chunks that there are."""
    some = f"{_whole(found['images'])} of " if found["images"] < found["of images"] else "all "
    several = "s" if found["of images"] > 1 else ""
    prefix = ", without its prefix" if found["prefix"] else ""
    yield ""
    yield f"values of {name}{prefix}, from {some}{_whole(found['of images'])} image{several}:"

    def line(label: str, text: str) -> str:
        return f"  {label:<22}{text}"

    finite = found["values"] - found["nan"] - found["infinite"]
    yield line("values", f"{_whole(found['values'])} ({_binary(found['bytes'])} {there})")
    if finite:
        yield line("exactly zero", _share(found["zeros"], finite))
        yield line("range", f"{found['minimum']:.4g} to {found['maximum']:.4g}")
    yield line("largest |x|", f"{_readable(found['largest |x| in ledger'])} {there}")
    yield line("dead channels", _channels(found["dead channels"], found["channels"], "always 0"))
    yield line("constant channels", _channels(found["constant channels"], found["channels"], "one value, not 0"))
    if found["nan"] or found["infinite"] or found["not finite in ledger"]:
        bad = f"{_whole(found['nan'])} NaN and {_whole(found['infinite'])} infinite among these"
        yield line("not finite", f"{bad}, {_whole(found['not finite in ledger'])} {there}")
        yield line("", "in channels " + _channels(found["channels not finite"], found["channels"]))
    else:
        yield line("not finite", f"none {there}")
    if finite:
        yield line("quantiles", "".join(f"{q + ' %':>9}" for q in found["quantiles"]))
        yield line("", "".join(f"{value:>9.3g}" for value in found["quantiles"].values()))
    if found["histogram"]:
        yield from _bars(found["histogram"], finite)


def _bars(histogram: dict[str, Any], total: int) -> Iterator[str]:
    """A histogram lying on its side; shares are of all values, zeros included."""
    edges, most = histogram["edges"], max(histogram["counts"])
    yield f"  values but 0, {histogram['scale']}, with their share of all:"
    for low, high, count in zip(edges, edges[1:], histogram["counts"], strict=False):
        yield f"  {low:>10.4g} to {high:<10.4g}{_share(count, total):>8}  {_bar(count / most)}".rstrip()


def _bar(share: float) -> str:
    """A bar of at most BAR characters, to an eighth of one; a thin one for the smallest share above 0."""
    eighths = max(round(8 * BAR * share), share > 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _channels(numbers: list[int], channels: int, meaning: str = "") -> str:
    if not numbers:
        return "none"
    listed = ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
    return f"{len(numbers)} of {channels}" + (f" ({meaning} in what was looked at)" if meaning else "") + f": {listed}"


def _share(count: int, total: int) -> str:
    if not count:
        return "0 %"
    return f"{100 * count / total:.2f} %" if count / total >= 0.0001 else "< 0.01 %"


def _whole(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _binary(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _readable(value: Any) -> str:
    """A fact for people: ranges of numbers from first to last, unknown things as such."""
    if value in (None, ""):
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        listed = [str(first) if first == last else f"{first} to {last}" for first, last in value]
        return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more ranges" if len(listed) > SHOWN else "")
    return text_of(value, 2000)
