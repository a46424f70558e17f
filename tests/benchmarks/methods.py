"""Methods by every measure that needs no labels, and by labels: ``python -m tests.benchmarks.methods demo|concepts --out DIR [--seeds 0,1,2]``.

``demo``: the demo's world and network of each seed, without its masks but for the columns that say so. ``concepts``: stores (``--store``, once
a seed) of a concept dataset each (``--data``). The commands are run as users run them; what is there is not computed again. Words are
of an encoder that has seen examples of another world, or of the next dataset (``tests/helpers/example_sight.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from evaluate.vocabulary import read_words
from extract.datasets import open_concepts
from pipeline.demo import LAYER, MODEL
from pipeline.scene_net import train_scene_net
from pipeline.world import SCENES, World, build_world
from pipeline.world.pairs import write_pairs

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from agreement import agreement

METHODS: dict[str, tuple[str, ...]] = {
    "eddp": (),
    "kmeans": ("--set", "space=whitened"),
    "pca": (),
    "neurons": (),
    "nmf": ("--set", "negative=clip"),
    "sae": (),
}
TITLES = {
    "eddp": "EDDP", "kmeans": "k-means, whitened", "pca": "PCA", "neurons": "neurons",
    "untrained": "untrained network, EDDP", "nmf": "NMF", "sae": "sparse autoencoder",
}  # fmt: skip
FREE = {
    "class names": ("class_labels", "significant"),
    "their AUROC": ("class_labels", "auroc"),
    "random directions'": ("class_labels", "auroc_random"),
    "words": ("words",),
    "logits' error": ("error",),
    "direction and class beyond random": ("acting",),
    "found again": ("found_again",),
    "monosemanticity": ("monosemanticity",),
    "where it fires": ("firing_monosemanticity",),
    "clarity": ("clarity",),
    "polysemanticity": ("polysemanticity",),
    "redundancy": ("semantic_redundancy",),
}
LABELLED = {
    "S2": ("s2",),
    "AP": ("average_precision",),
    "half removed: IoU falls": ("label_tests", "missing", "iou"),
    "AP falls": ("label_tests", "missing", "average_precision"),
    "as much added: IoU falls": ("label_tests", "extra", "iou"),
    "AP falls there": ("label_tests", "extra", "average_precision"),
    "pairs: precision": ("pairs", "precision"),
    "recall": ("pairs", "recall"),
    "IoU above 0.2": ("agreement", "count"),
    "class label agrees": ("agreement", "classes"),
    "of labels that a class can say": ("agreement", "classes_sayable"),
    "how many": ("agreement", "sayable"),
    "of another direction": ("agreement", "classes_others"),
    "word agrees": ("agreement", "words"),
    "another one's": ("agreement", "words_others"),
    "significant and agrees": ("agreement", "named"),
}
"""Columns of the tables, and where they are in an entry of summary.json."""


@dataclass(frozen=True)
class Case:
    """One network and its images: what fits and evaluations are given."""

    folder: Path
    store: Path
    settings: tuple[str, ...]  # of EDDP
    layer: str
    directions: int
    concepts: Path
    encoder: str
    seen: Path | None  # where the encoder's examples are
    pairs: Path | None


def run(*arguments: object, **environment: str) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    here = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'tests/helpers'}", **environment}
    command = [sys.executable, "-m", "pipeline.main", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def demo_case(out: Path, seed: int) -> Case:
    folder = out / f"{seed}"
    world, weights = World(folder / "world", {}), folder / "scene_net.safetensors"
    if not weights.is_file():
        build_world(world.root, seed=seed, workers=1)
        train_scene_net(world.folders, folder, seed=seed, threads=1)
    write_pairs(folder / "pairs", seed=seed)
    for name, given in (("acts", weights), ("untrained", "none")):
        if not (folder / f"{name}.zarr" / "zarr.json").is_file():
            run("extract", "--model", MODEL, "--weights", given, "--layer", LAYER, "--data", world.folders, "--dtype", "float32",
                "--out", folder / f"{name}.zarr")  # fmt: skip
    words = "example_sight:scene_words"
    return Case(
        folder, folder / "acts.zarr", ("--set", "max_rows=120000"), LAYER, 48, world.root, words, None, folder / "pairs"
    )


def concept_case(out: Path, seed: int, stores: Sequence[Path], data: Sequence[Path], layer: str) -> Case:
    folder = out / f"{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    k = seed % len(stores)
    if not (folder / "untrained.zarr" / "zarr.json").is_file():
        model = json.loads((stores[k] / "zarr.json").read_bytes())["attributes"]["eddp"]["provenance"]["model"]
        run("extract", "--model", model, "--weights", "none", "--seed", seed, "--layer", layer, "--data", data[k], "--dtype", "float32",
            "--out", folder / "untrained.zarr")  # fmt: skip
    seen = data[(k + 1) % len(data)]
    return Case(folder, stores[k], (), layer, 64, data[k], "example_sight:concept_words", seen, None)


def fit(case: Case, name: str, seed: int) -> None:
    method = "eddp" if name == "untrained" else name
    file = case.folder / f"{name}.safetensors"
    if file.is_file():
        return
    store = case.folder / "untrained.zarr" if name == "untrained" else case.store
    spent = run("fit", "--store", store, "--layer", case.layer, "--directions", case.directions, "--method", method, "--seed", seed,
                "--refits", 2, "--out", file, *METHODS[method], *(case.settings if method == "eddp" else ()))  # fmt: skip
    sys.stderr.write(f"{case.folder} {name}: fitted in {spent:.0f} s\n")


def evaluate(case: Case, seed: int, names: Sequence[str], out: Path, store: Path) -> None:
    """All measures of some files, influence in a folder of its own; what is there for these files is kept."""
    words = case.folder / "words.txt"
    words.write_text("\n".join(_words(case)) + "\n", encoding="utf-8")
    pairs = () if case.pairs is None else ("--pairs", case.pairs)
    measures: dict[Path, tuple[object, ...]] = {
        out: ("--broden", case.concepts, "--classes", "--vocabulary", words, "--encoder", case.encoder, "--monosemanticity", *pairs),
        _influence(out): ("--influence", "--null-directions", 0),
    }  # fmt: skip
    for folder, measured in measures.items():
        if (folder / "summary.json").is_file() and set(names) <= set(_read(folder)):
            continue
        files = [part for name in names for part in ("--directions", case.folder / f"{name}.safetensors")]
        spent = run("evaluate", "--store", store, *files, *measured, "--seed", seed, "--out", folder, EXAMPLES=str(case.seen))  # fmt: skip
        sys.stderr.write(f"{folder}: evaluated in {spent:.0f} s\n")


def _words(case: Case) -> list[str]:
    """The labels of the concept dataset, and as many other words."""
    labels = [label.name for label in open_concepts(case.concepts).labels]
    others = [word for word in read_words("default") if word not in labels]
    return labels + others[:: len(others) // len(labels)]


def _influence(out: Path) -> Path:
    """Not the same folder: what it finds would be columns of the class labels, too."""
    return out.with_name(f"{out.name}-influence")


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "summary.json").read_bytes())["directions"]
    return found


def _entries(out: Path) -> dict[str, dict[str, Any]]:
    found, influence = _read(out), _read(_influence(out))
    for name, entry in found.items():
        study = influence[name]["influence"]
        acting = study["signal"][f"{study['alpha']:g}"]["significant_random"]
        entry["acting"] = acting / (entry["directions"] * study["classes"])
        entry["words"] = entry["vocabulary"]["significant"] / entry["directions"]
        if "fidelity" in entry:
            entry["error"] = entry["fidelity"]["mae"]["value"] / entry["fidelity"]["mae"]["constant"]
    return found


def table(columns: Mapping[str, tuple[str, ...]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Mean ± standard deviation over the seeds that are there."""
    yield f"| method | seeds | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for name, entries in found.items():
        cells = [_cell([_at(entry, path) for entry in entries]) for path in columns.values()]
        yield f"| {TITLES[name]} | {len(entries)} | {' | '.join(cells)} |"


def _at(entry: Any, path: Sequence[str]) -> float | None:
    for key in path:
        entry = None if entry is None else entry.get(key)
    return entry


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.2f}" + (f" ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else "")


@click.command()
@click.argument("kind", type=click.Choice(["demo", "concepts"]))
@click.option("--out", type=Path, required=True, help="Folder to keep everything in.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--store", "stores", type=Path, multiple=True, help="For concepts: a store a seed.")
@click.option("--data", type=Path, multiple=True, help="For concepts: the concept dataset of each store.")
@click.option("--layer", default=None, help="For concepts: the layer.")
@click.option("--methods", default=",".join(TITLES), show_default=True)
def main(
    kind: str,
    out: Path,
    seeds: str,
    stores: tuple[Path, ...],
    data: tuple[Path, ...],
    layer: str | None,
    methods: str,
) -> None:
    """Fit, evaluate and print both tables."""
    numbers, names = [int(seed) for seed in seeds.split(",")], methods.split(",")
    cases = [
        demo_case(out, seed) if kind == "demo" else concept_case(out, seed, stores, data, layer or "")
        for seed in numbers
    ]
    for name in names:
        for case, seed in zip(cases, numbers, strict=True):
            fit(case, name, seed)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for case, seed in zip(cases, numbers, strict=True):
        trained = [name for name in names if name != "untrained"]
        evaluate(case, seed, trained, case.folder / "evaluation", case.store)
        entries = _entries(case.folder / "evaluation")
        for name in trained:
            known = SCENES if kind == "demo" else ()
            entries[name]["agreement"] = asdict(agreement(case.folder / "evaluation", name, case.concepts, known))
        if "untrained" in names:
            evaluate(case, seed, ["untrained"], case.folder / "untrained", case.folder / "untrained.zarr")
            entries |= _entries(case.folder / "untrained")
        for name in names:
            found[name].append(entries[name])
    for columns in (FREE, LABELLED):
        sys.stdout.write("\n".join(table(columns, found)) + "\n\n")


if __name__ == "__main__":
    main()
