"""``evaluate``: direction pairs → tables and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click

from pipeline.logging import echo, say
from pipeline.options import class_names_option, common, given, model_option, names_in, typed
from pipeline.progress_display import format_seconds, showing
from pipeline.records import within
from pipeline.result_paths import LOCAL, STORE, cache_option
from pipeline.run import Run, pick_device
from stores.errors import UsageError
from stores.paths import as_path

PASSES = (
    "extraction",
    "quantiles",
    "dissection",
    "average precision",
    "logits",
    "sampling",
    "class means",
    "strongest images",
    "embeddings",
)
FROM_ENVIRONMENT = "$EDDP_BRODEN"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", type=STORE, required=True, help="The store that the directions were fitted on.")
@click.option("--directions", type=LOCAL, multiple=True, required=True,
              help="A directions file; give several to compare them.")  # fmt: skip
@click.option("--broden", is_flag=False, flag_value=FROM_ENVIRONMENT, default=None, metavar="[DIR]",
              help="Label with a concept dataset (Broden, Pascal VOC, ADE20K, COCO-Stuff, or images/ with masks/ and labels.csv); without "
                   "DIR the one in $EDDP_BRODEN.")  # fmt: skip
@click.option("--influence", is_flag=True,
              help="Push the images along every direction and run the head: what does each do to each class, beyond chance?")  # fmt: skip
@click.option("--classes", is_flag=True,
              help="Label by the images' classes, without masks; with --influence also compare with the classes that signal vectors raise.")  # fmt: skip
@click.option("--alphas", default="0.5,2,5", show_default=True, metavar="A,A,…",
              help="Lengths of the step for --influence; the summary is about the middle one.")  # fmt: skip
@click.option("--influence-images", type=int, default=None,
              help="Images that are pushed.  [default: 1000; where each push is a pass through the model's own head, 100 or as many as ten "
                   "minutes allow]")  # fmt: skip
@click.option("--null-directions", type=int, default=None,
              help="Null directions a detector; 0 tests against random directions only.  [default: 100; through the model's own head as "
                   "many as ten minutes allow]")  # fmt: skip
@click.option("--null-positions", type=int, default=5000, show_default=True,
              help="Positions that each null direction is trained on, half of them the detector's positives.")  # fmt: skip
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the images, halves, permutations and positions drawn."
)
@click.option("--monosemanticity", is_flag=False, flag_value="own", default=None, metavar="[STORE]",
              help="Score how alike the images of each direction are, in the features of a store of the same images made with another "
                   "model; without STORE in the model's own.")  # fmt: skip
@click.option("--vocabulary", default=None, metavar="FILE|default",
              help="Name directions by the words of a list (a text file, a word a line, or the one that is shipped), with --encoder.")  # fmt: skip
@click.option("--encoder", default=None, callback=typed, metavar="ENCODER",
              help="Measure in the embeddings of an image encoder whether what a direction fires on is one thing: open_clip:NAME:CHECKPOINT (a file "
                   "or a tag), or module:callable (code that is run).")  # fmt: skip
@click.option("--pairs", type=LOCAL, default=None, metavar="DIR",
              help="Do directions move with what they are named after? Pairs of images, DIR/ATTRIBUTE/NAME_a.png without and NAME_b.png with it.")  # fmt: skip
@click.option("--ground-truth", is_flag=True, help="Compare with the truth of a store made by eddp synthetic.")
@click.option("--control", type=click.Choice(["untrained"]), default=None,
              help="With --broden: also evaluate an untrained network of the same architecture, with the same method and number of directions.")  # fmt: skip
@click.option("--resolution", type=click.Choice(["mask", "feature"]), default="mask", show_default=True,
              help="Compare at the masks' resolution (logits upsampled) or at the layer's.")  # fmt: skip
@click.option(
    "--out",
    type=LOCAL,
    default=None,
    help="Folder to write to; an evaluation there is replaced.  [default: evaluation/ next to the directions]",
)
@click.option("--dask", default=None, metavar="ADDRESS|local",
              help="Label on the workers of a dask scheduler (they see the same files), or of one started here.")  # fmt: skip
@cache_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@model_option
@class_names_option
@common
def evaluate(
    store: Path,
    directions: tuple[Path, ...],
    broden: str | None,
    influence: bool,
    classes: bool,
    alphas: str,
    influence_images: int | None,
    null_directions: int | None,
    null_positions: int,
    seed: int,
    monosemanticity: str | None,
    vocabulary: str | None,
    encoder: str | None,
    pairs: Path | None,
    ground_truth: bool,
    control: str | None,
    resolution: str,
    out: Path | None,
    dask: str | None,
    device: str,
    model: str | None,
    class_names: Path | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Score directions and write summary.json, tables (CSV, Parquet) and report.html.

    \b
    Example:
      evaluate --store acts.zarr --directions eddp.safetensors --directions pca.safetensors --broden broden1_224
    """
    from evaluate.dissect import Resolution
    from evaluate.influence.influence_study import InfluenceConfig
    from extract.dask import workers_of
    from pipeline.evaluation import EvaluationConfig, evaluate_directions, load_sets, summary_lines
    from stores.store import ActivationStore

    run = Run("evaluate", given())
    names = names_in(class_names)
    folder = _broden_folder(broden)
    if vocabulary is not None and encoder is None:
        raise UsageError("--vocabulary needs --encoder, which compares words with images: give an image-text encoder.")
    if folder is None and not (ground_truth or influence or classes or monosemanticity or encoder or pairs):
        raise UsageError(
            "Say what to evaluate. Needs no labels: --influence (on the network's classes), --classes (names by the images' classes, else by "
            "predicted ones), --encoder (is what directions fire on one thing?), with --vocabulary also names by words, --monosemanticity. Needs masks: --broden DIR (a concept dataset). "
            "Needs pairs of pictures: --pairs DIR. For a synthetic store: --ground-truth."
        )
    if control and folder is None:
        raise UsageError("--control compares scores with a concept dataset: give --broden DIR as well.")
    steps = _steps(alphas)
    how = InfluenceConfig(
        alphas=steps,
        alpha=steps[len(steps) // 2],
        images=influence_images,
        nulls=null_directions,
        null_positions=null_positions,
        seed=seed,
    )
    chosen = pick_device(device)
    sets = load_sets(directions)
    target = out or directions[0].resolve().parent / "evaluation"
    with (
        showing(quiet) as shown,
        run.watching(shown, within(target, "summary.json"), device=chosen) as progress,
        _workers(dask) as scheduler,
    ):
        if run.earlier_stopped_at is not None:
            say(
                f"An earlier run did not end (last recorded: {run.earlier_stopped_at}). Its results were not stored: all is computed again, except for activations that "
                "it wrote next to the store."
            )
        if scheduler is not None:
            run.about["workers"] = workers_of(scheduler)
        summary = evaluate_directions(
            ActivationStore.open(store, model=model, class_names=names),
            sets,
            target,
            EvaluationConfig(
                broden=folder,
                resolution=cast(Resolution, resolution),
                influence=how if influence else None,
                classes=classes,
                monosemanticity=as_path(monosemanticity) if monosemanticity else None,
                ground_truth=ground_truth,
                encoder=encoder,
                vocabulary=vocabulary,
                pairs=pairs,
                untrained=control == "untrained",
                seed=seed,
                device=chosen,
            ),
            progress=progress,
            scheduler=scheduler,
        )
    record = run.write(rates=_rates(run))
    if as_json:
        echo(json.dumps({**summary, "out": str(target)}))
        return
    for line in summary_lines(summary):
        echo(line)
    echo(f"{format_seconds(run.seconds)}, peak memory {record['peak_memory_mib']} MiB")
    echo(str(target / "report.html"))


def _rates(run: Run) -> dict[str, float]:
    """Images a second of each pass over images that the evaluation took."""
    found = {stage.name: stage.per_second for stage in run.stages.found.values() if stage.name in PASSES}
    return {f"{name}, images_per_second": round(rate, 2) for name, rate in found.items() if rate}


def _broden_folder(broden: str | None) -> Path | None:
    if broden != FROM_ENVIRONMENT:
        return Path(broden) if broden else None
    folder = os.environ.get("EDDP_BRODEN")
    if not folder:
        raise UsageError("--broden was given without a folder and $EDDP_BRODEN is not set. Give one of the two.")
    return Path(folder)


def _steps(text: str) -> tuple[float, ...]:
    """``--alphas`` as rising numbers."""
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(f"--alphas takes numbers with commas between, as 0.5,2,5; got '{text}'.") from None


@contextmanager
def _workers(address: str | None) -> Iterator[Any]:
    """What ``--dask`` names, for as long as it is needed; nothing, and nothing of dask imported, without it."""
    if address is None:
        yield None
        return
    from extract.dask import cluster

    with cluster(address) as client:
        yield client
