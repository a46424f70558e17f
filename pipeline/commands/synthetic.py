"""``eddp synthetic``: a store whose directions are known."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from fit.synthetic import SyntheticConfig
from pipeline.logging import echo
from pipeline.options import common, given
from pipeline.progress_display import showing
from pipeline.records import beside
from pipeline.result_paths import STORE
from pipeline.run import Run

HELP = {
    "channels": "C.",
    "concepts": "Concepts I; every pair of them is a class (in realistic data: every concept).",
    "distractors": "Distractor directions F.",
    "images": "Images N.",
    "positions": "Positions per image.",
    "per_position": "Concepts at one position; in realistic data their mean number.",
    "noise": "Standard deviation of noise on every channel.",
    "imbalance": "How many times rarer the last class is than the first.",
    "max_cosine": "Largest |cos| between two directions.",
    "offset": "Constant added to every channel.",
    "seed": "Seed.",
    "zipf": "Realistic: concept k (from 0) is as frequent as (k+1)^-ZIPF.",
    "hierarchy": "Realistic: children of each parent concept, present only with it and never two of them together.",
    "correlation": "Realistic: how strongly concepts co-occur or avoid each other in an image, from 0 to below 1.",
}


def _options(command: Any) -> Any:
    for field in reversed(fields(SyntheticConfig)):
        name = "--" + field.name.replace("_", "-")
        command = click.option(
            name, type=type(field.default), default=field.default, show_default=True, help=HELP[field.name]
        )(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=STORE, required=True, help="The store to write.")
@_options
@click.option("--overwrite", is_flag=True, help="Replace a store that is already there.")
@common
def synthetic(out: Path, overwrite: bool, quiet: bool, as_json: bool, debug: bool, **values: Any) -> None:
    """Make a store of synthetic activations with known directions (the paper's recipe by default).

    With --zipf, --hierarchy or --correlation the data are realistic: sparse sums of concepts of unequal frequency.

    \b
    Example:
      eddp synthetic --out truth.zarr --concepts 3
      fit --store truth.zarr --directions 3 --out d.safetensors
      evaluate --store truth.zarr --directions d.safetensors --ground-truth
      eddp synthetic --out realistic.zarr --channels 256 --concepts 64 --images 12000 --per-position 3 \\
          --zipf 1 --hierarchy 3 --correlation 0.3 --noise 0.1
    """
    from fit.synthetic import make_synthetic

    config = SyntheticConfig(**values)
    run = Run("synthetic", given(), work="writing", in_place=True)
    with showing(quiet) as shown, run.watching(shown, beside(out)) as progress:
        info = make_synthetic(out, config, overwrite=overwrite, progress=progress)
    run.write(result=info)
    if as_json:
        echo(json.dumps({"store": str(out), **info}))
        return
    echo(
        f"{config.images} images × {config.positions} positions × {config.channels} channels, {config.concepts} concepts, "
        f"{config.distractors} distractors; the network's accuracy is {100 * info['accuracy']:.1f} %"
    )
    echo(str(out))
