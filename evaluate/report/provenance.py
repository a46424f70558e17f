"""What a report says of where directions come from: the network, the store, the method and its settings, and the fit's log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from evaluate.evidence_facts import evidence_facts
from evaluate.number_format import number
from extract.store_images import rows_called
from stores.directions import HEADER, Directions
from stores.store import ActivationStore
from stores.tables import TableError, read_table

DIGEST = 19  # characters shown of one
# entries of a file's header that are shown elsewhere, or in parts
APART = (*HEADER, "config", "diagnosis", "run", "selection", "store")


def store_facts(store: ActivationStore, layer: str) -> dict[str, str]:
    """Which layer of which network on which images, for people: no path of a machine but the last part of it."""
    made, spec = store.provenance, store.layer(layer)
    dataset = made.get("dataset", {})
    facts = {"Model": str(made.get("model"))}
    if "synthetic" in made:
        facts["Weights"] = "a pooled affine head, trained on the data"
        facts["Synthetic"] = ", ".join(f"{key} {value}" for key, value in made["synthetic"].items())
    else:
        source = str(made.get("weights_source", made.get("weights")))
        facts["Weights"] = f"{Path(source).name} ({str(made.get('weights_digest', ''))[:DIGEST]}…)"
    facts["Layer"] = f"{spec.name}: {spec.shown_grid} positions, {spec.channels} channels"
    rows = rows_called(store)
    facts["Store"] = f"{store.path.name}, {int(store.valid.sum())} {rows}, {store.fingerprint[:DIGEST]}…"
    if dataset:
        stored, there = int(store.valid.sum()), dataset["images"]
        some = f"{stored} of its {there}" if stored < there else f"{stored}"
        facts[rows.capitalize()] = f"{Path(dataset['path']).name} ({dataset['kind']}, {some} {rows})"
    return facts


def set_facts(directions: Directions, entry: Mapping[str, Any], rows: str = "images") -> dict[str, str]:
    """What was fitted, and what was measured; ``entry`` is the set's in ``summary.json``, ``rows`` what the store's are called."""
    config = directions.info.get("config", {})
    seed = f", seed {config['seed']}" if "seed" in config else ""
    facts = {"Directions": f"{directions.count} by {directions.method}{seed}"}
    if directions.thresholds is None:
        facts["Thresholds"] = f"of the top {100 * directions.quantile:g} % of the store's positions"
    if measured := entry.get("influence"):
        facts["Influence"] = (
            f"{measured['images']} {rows}, {measured['classes']} classes, through {measured['through']}; {measured['nulls']} null and "
            f"{measured['randoms']} random directions"
        )
    if entry.get("monosemanticity_baseline") is not None:
        facts["Monosemanticity"] = (
            f"{number(entry['monosemanticity'])}; over all pairs of {rows} {number(entry['monosemanticity_baseline'])}"
        )
    if truth := entry.get("ground_truth"):
        facts["Against the truth"] = _truth_text(truth)
    facts |= evidence_facts(entry)
    if run := directions.info.get("run"):
        facts["Made by"] = f"eddp {run.get('code_version', '')}".strip()
    return facts


def _truth_text(found: Mapping[str, Any]) -> str:
    """How much of a synthetic store's truth was found, in the words of ``evaluate --ground-truth``."""
    iou, cos, filter_cos = found["iou"], found["cos"], found["filter_cos"]
    return (
        f"{found['matched']} of {len(iou)} concepts found; IoU {min(iou):.3f} at worst, mean {sum(iou) / len(iou):.3f}; "
        f"cos {min(cos):.3f} at worst, mean {sum(cos) / len(cos):.3f}; of filters {min(filter_cos):.3f} at worst, "
        f"mean {sum(filter_cos) / len(cos):.3f}; distinct matches {found['distinct_matches']:.3f}; RMSE {found['rmse']:.3f}"
    )


def settings_of(directions: Directions) -> dict[str, str]:
    """The method's configuration, and what else the file's header says of the fit."""
    info = directions.info
    more = {key: value for key, value in info.items() if key not in APART}
    run = {f"run: {k}": v for k, v in info.get("run", {}).items() if k in ("begun", "seconds", "peak_memory_mib")}
    return {key.replace("_", " "): _text(value) for key, value in {**more, **directions.settings, **run}.items()}


def fit_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Every term of the log next to a directions file, over its steps; empty where there is none that can be read."""
    log = path.with_suffix(".log.parquet")
    try:
        table = read_table(log)
    except TableError:
        return {}
    steps = table["step"].to_pylist() if "step" in table.column_names else list(range(table.num_rows))
    found = {}
    for name in table.column_names:
        if name == "step" or not (pa.types.is_floating(table[name].type) or pa.types.is_integer(table[name].type)):
            continue
        pairs = zip(steps, table[name].to_pylist(), strict=True)
        points = [(float(step), float(value)) for step, value in pairs if step is not None and value is not None]
        found[name] = [point for point in points if math.isfinite(point[1])]
    return {name: points for name, points in found.items() if points}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " × ".join(_text(one) for one in value) if len(value) == 2 else ", ".join(_text(one) for one in value)
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return f"{text[:DIGEST]}…" if text.startswith("sha256:") else text
