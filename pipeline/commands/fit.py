"""``fit``: activation store → direction pairs."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fit import METHODS, make_fitter
from fit.config import SUPERVISED
from pipeline.logging import echo, say
from pipeline.options import common, given, model_option, share_of
from pipeline.progress_display import format_seconds, showing
from pipeline.records import Place
from pipeline.result_paths import LOCAL, STORE, cache_option
from pipeline.run import Run, code_version
from stores.errors import UsageError
from stores.io import check_writable

if TYPE_CHECKING:
    from stores.directions import Directions
    from stores.readers import LayerReader


class NumberOrAuto(click.ParamType):
    """An integer, or the word auto."""

    name = "number"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        return "auto" if value == "auto" else int(click.INT.convert(value, parameter, context))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", type=STORE, required=True, help="The store that extract wrote.")
@click.option("--layer", default=None, help="Which layer of the store; may be left out when it holds one.")
@click.option(
    "--directions",
    type=NumberOrAuto(),
    default=None,
    metavar="I|auto",
    help="How many directions to find, or auto: of several tried, at which two halves of the images are alike, the one of largest number × κ; not for "
    f"{' and '.join(SUPERVISED)}, which find one a label.",
)
@click.option("--method", type=click.Choice(sorted(METHODS)), default="eddp", show_default=True)
@click.option(
    "--steps",
    type=click.Choice(["fast", "paper"]),
    default="fast",
    show_default=True,
    help="For eddp: our own learning steps, or those that the paper published.",
)
@click.option(
    "--concepts",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help=f"For {' and '.join(SUPERVISED)}: the concept dataset that the store was made from (Broden, Pascal VOC, "
    "ADE20K, COCO-Stuff, or images/ with masks/ and labels.csv).",
)
@click.option("--part", default=None, metavar="I/N",
              help="Fit on the I-th (from 0) of N parts of the images only, with as many of each class: two halves tell how stable the directions are.")  # fmt: skip
@click.option(
    "--part-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Draws which images are in which part.",
)
@click.option("--out", type=LOCAL, default=Path("directions.safetensors"), show_default=True)
@cache_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--refits", type=click.IntRange(min=0), default=None, metavar="M",
              help="Short fits of random halves of the images, which tell for each direction how often it is found again (found_again); "
              "0: none.  [default: 8 for eddp, else 0]")  # fmt: skip
@click.option(
    "--checkpoint-every",
    "minutes",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="MIN",
    help="Checkpoint interval in minutes; the same command resumes from the last checkpoint.",
)
@click.option("--overwrite", is_flag=True, help="Replace directions that are already there.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set one of the method's hyper-parameters."
)
@model_option
@common
def fit(
    store: Path,
    layer: str | None,
    directions: int | Literal["auto"] | None,
    method: str,
    steps: Literal["fast", "paper"],
    concepts: Path | None,
    part: str | None,
    part_seed: int,
    out: Path,
    device: str,
    seed: int,
    refits: int | None,
    minutes: float,
    overwrite: bool,
    settings: tuple[str, ...],
    model: str | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Find directions in a layer's activations and write them as pairs: decoding and encoding.

    Next to the directions (safetensors) it writes their header as JSON, a table of every loss over the steps (CSV and
    Parquet), and a picture of it.

    \b
    Example:
      fit --store acts.zarr --directions 64 --out d.safetensors
      fit --store acts.zarr --directions auto --out d.safetensors
      fit --store acts.zarr --directions 64 --steps paper --set d.epochs=500 --out published.safetensors
      fit --store broden.zarr --method probe --concepts broden1_224 --out probe.safetensors
      torchrun --nproc-per-node 4 --no-python fit --store acts.zarr --directions 500 --out large.safetensors
    """
    import torch

    from extract.network import check_trusted
    from fit.refits import NUMBERS, select_number
    from fit.supervised.position_labels import ConceptLabels
    from pipeline.distributed import joined
    from pipeline.fitting import already_fitted, fit_to_file, numbers_checkpoint
    from stores.readers import LayerReader, Part
    from stores.store import ActivationStore

    run = Run("fit", given())
    with joined(device) as (ranks, chosen):
        labels = None if concepts is None else ConceptLabels(concepts)
        make = partial(make_fitter, method, seed=seed, device=chosen, settings=_pairs(settings), refits=refits, labels=labels, steps=steps)  # fmt: skip
        fitter = make(n_directions=NUMBERS[0] if directions == "auto" else directions)
        if out.suffix != ".safetensors":
            raise UsageError(f"--out must end in .safetensors, got '{out}'.")
        if out.is_dir():
            raise UsageError(
                f"--out '{out}' is a folder: name a file in it, such as '{out / 'directions.safetensors'}'."
            )
        if minutes != minutes:
            raise UsageError("--checkpoint-every must be a number of minutes, got nan.")
        share = share_of("--part", part)
        reader = LayerReader(
            ActivationStore.open(store, model=model),
            layer,
            part=None if share is None else Part(*share, part_seed),
        )
        if labels is not None:
            check_trusted(reader.store)
        if share is not None:
            run.about["part"] = {"images": reader.n_images, "classes": images_of_classes(reader)}
        there = None
        if ranks.rank == 0:
            there = already_fitted(out, fitter, reader, auto=directions == "auto", overwrite=overwrite)
            if labels is not None:  # masks may have changed
                there = None
            check_writable(out)
        done = torch.tensor(float(there is not None))
        ranks.broadcast(done)
        if not done:
            where = None if ranks.rank else Place(out.with_suffix(".run.json"))
            with showing(quiet or ranks.rank > 0) as shown, run.watching(shown, where, device=chosen) as progress:
                selection = None
                if directions == "auto":
                    selection = select_number(
                        make, reader, ranks=ranks, progress=progress, checkpoint=numbers_checkpoint(out)
                    )
                fitter = make(n_directions=selection.number) if selection else fitter
                fitted, _ = fit_to_file(
                    fitter, reader, out, run, minutes=minutes, progress=progress, ranks=ranks, selection=selection
                )
        if ranks.rank:
            return
    if there is not None:
        say(f"'{out}' is already there, made by the same fit: nothing to do (--overwrite fits again).")
    _report(there or fitted.directions_, out, as_json)


def _report(found: Directions, out: Path, as_json: bool) -> None:
    """Print what was fitted."""
    from fit.verdict import verdict

    judged, made, selection = verdict(found), found.info["run"], found.info.get("selection")
    summary = {
        "out": str(out),
        "method": found.method,
        "layer": found.layer,
        "directions": found.count,
        "seconds": made["seconds"],
        "peak_memory_mib": made["peak_memory_mib"],
        "selection": selection,
        "found_again": found.share_found_again,
        "diagnosis": found.info.get("diagnosis", {}),
        "verdict": asdict(judged),
    }
    if as_json:
        echo(json.dumps(summary))
        return
    echo(
        f"{found.count} directions of {found.layer} by {found.method}, {format_seconds(made['seconds'])}, "
        f"peak memory {made['peak_memory_mib']} MiB (eddp {code_version()})"
    )
    if selection is not None:
        echo(f"{selection['number']} directions: {selection['why']}")
    for line in judged.lines:
        echo(line)
    for problem in judged.problems:
        say(f"Note: {problem}", "warning")
    echo(str(out))


def images_of_classes(reader: LayerReader) -> dict[str, int]:
    """How many of a reader's images each class of the dataset has."""
    import numpy as np

    names = reader.store.provenance.get("dataset", {}).get("class_names") or []
    labels, counts = np.unique(reader.store.labels[reader.image_indices], return_counts=True)
    named = [names[k] if 0 <= k < len(names) else "no class" if k < 0 else f"class {k}" for k in labels.tolist()]
    return dict(zip(named, counts.tolist(), strict=True))


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, got '{text}'.")
        if name.strip() in ("n_directions", "seed", "refits"):
            raise UsageError(f"--set {text}: this has an option of its own, --{name.strip().removeprefix('n_')}.")
        pairs[name.strip()] = value.strip()
    return pairs
