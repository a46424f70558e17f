"""``eddp inspect`` and ``eddp verify``: what is in a store or a directions file, and is every byte of it sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.options import common
from pipeline.progress import showing
from stores.activations import ActivationStore
from stores.directions import Directions
from stores.errors import CorruptStoreError


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]}, short_help="Show what is in a store or directions file."
)
@click.argument("path", type=click.Path(path_type=Path))
@common
def inspect(path: Path, quiet: bool, as_json: bool, debug: bool) -> None:
    """Show what is in an activation store or a directions file.

    \b
    Example:
      eddp inspect acts.zarr
    """
    facts = _directions_facts(path) if path.suffix == ".safetensors" else _store_facts(path)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{key}:")
            for name, inner in value.items():
                click.echo(f"  {name:<22}{inner}")
        else:
            click.echo(f"{key:<24}{value}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, short_help="Check every byte of one.")
@click.argument("path", type=click.Path(path_type=Path))
@common
def verify(path: Path, quiet: bool, as_json: bool, debug: bool) -> None:
    """Check every byte of an activation store, or read a directions file whole.

    \b
    Example:
      eddp verify acts.zarr
    """
    if path.suffix == ".safetensors":
        Directions.load(path)
        problems: list[str] = []
    else:
        store = ActivationStore.open(path)
        with showing(quiet) as progress:
            progress("verifying", 0, None, str(path))
            problems = store.verify()
    if as_json:
        click.echo(json.dumps({"path": str(path), "problems": problems}))
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise CorruptStoreError(
            f"'{path}' is damaged in {len(problems)} places, listed above. Restore it from a copy, or extract it again."
        )
    if not as_json:
        click.echo(f"{path}: sound")


def _store_facts(path: Path) -> dict[str, Any]:
    store = ActivationStore.open(path)
    made = store.provenance
    size = sum(entry["bytes"] for record in store.records.values() for entry in record.arrays.values())
    layers = {
        name: f"{store.n_images} × {spec.positions} × {spec.channels}, grid {spec.grid[0]} × {spec.grid[1]}"
        + (f", prefix {spec.prefix}" if spec.prefix else "")
        + f", largest |x| {max(record.max_abs[name] for record in store.records.values()):.4g}"
        + (", pooled-affine head" if store.affine_head(name) else "")
        for name, spec in store.layers.items()
    }
    return {
        "model": made.get("model"),
        "weights": made.get("weights_source", made.get("weights")),
        "weights digest": made.get("weights_digest"),
        "dataset": made.get("dataset", {}).get("path", "synthetic"),
        "images": int(store.valid.sum()),
        "skipped": int((~store.valid).sum()),
        "labelled": int((store.labels >= 0).sum()),
        "classes": store.attributes["n_classes"],
        "dtype": store.attributes["dtype"],
        "compression": store.attributes["compress"],
        "chunks": f"{store.n_chunks} of {store.chunk_images} images",
        "bytes": size,
        "sealed": store.attributes["sealed"]["at"],
        "code version": made.get("code_version"),
        "layers": layers,
    }


def _directions_facts(path: Path) -> dict[str, Any]:
    found = Directions.load(path)
    cosine = (found.filters * found.signals).sum(0) / np.maximum(np.linalg.norm(found.filters, axis=0), 1e-12)
    return {
        "method": found.method,
        "layer": found.layer,
        "directions": found.count,
        "channels": found.channels,
        "thresholds": "own" if found.thresholds is not None else f"top {100 * found.quantile:g} % of positions",
        "pair agreement": f"cosine of filter and signal {cosine.mean():.3f} on average, {cosine.min():.3f} at least",
        "model": found.info.get("model"),
        "store": found.info.get("store", {}).get("path"),
        "configuration": found.info.get("config", {}),
        "diagnosis": found.info.get("diagnosis", {}),
    }
