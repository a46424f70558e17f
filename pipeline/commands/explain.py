"""``eddp explain``: why one image was predicted as it was, and what would change that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from pipeline.logging import echo
from pipeline.options import class_names_option, common, given, model_option, names_in
from pipeline.progress_display import format_seconds, showing
from pipeline.records import within
from pipeline.result_paths import LOCAL, STORE
from pipeline.run import Run, pick_device


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("images", metavar="IMAGE...", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--row", "rows", type=int, multiple=True, metavar="N", help="An image of the store by its number; may be repeated."
)
@click.option("--store", type=STORE, default=None, help="The store that the directions were fitted on.")
@click.option("--directions", type=LOCAL, default=None, help="A directions file.")
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path),
    default=None,
    help="The folder that evaluate wrote: it names the concepts, and knows store and directions.  [default: evaluation/ "
    "next to the directions, if it is there]",
)
@click.option("--layer", default=None, help="The store's layer.  [default: the directions']")
@click.option(
    "--class", "explained", default=None, metavar="NAME|NUMBER", help="Explain this class, not the predicted one."
)
@click.option(
    "--to",
    default=None,
    metavar="NAME|NUMBER",
    help="Turn the prediction into this class.  [default: --class, else the second most probable]",
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes that are listed.")
@click.option(
    "--concepts-shown",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Concepts that are shown one by one.",
)
@click.option(
    "--values",
    type=click.Choice(["joint", "paper"]),
    default="joint",
    show_default=True,
    help="Read how much of a concept there is by all filters jointly, or by each individually, as published.",
)
@click.option("--out", type=LOCAL, default=Path("explanation"), show_default=True, help="Folder to write to.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@model_option
@class_names_option
@common
def explain(
    images: tuple[Path, ...],
    rows: tuple[int, ...],
    store: Path | None,
    directions: Path | None,
    evaluation: Path | None,
    layer: str | None,
    explained: str | None,
    to: str | None,
    top: int,
    concepts_shown: int,
    values: str,
    out: Path,
    device: str,
    model: str | None,
    class_names: Path | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Explain what images are predicted as: which concepts did it, where they are, and the least change that would make it another class.

    IMAGE is an image or video file or a folder of them, 500 images at most. Of a video it explains the clip that a network which takes clips
    sees of its middle, or, for other networks, as many frames as the store has of each video: the middle one, if it has none. Writes index.html, a picture (PNG) and a JSON document an image, and
    explanation.json, a summary of all. A folder --out that holds other things is not changed.

    \b
    Example:
      eddp explain cat.jpg --store acts.zarr --directions eddp.safetensors
    """  # fmt: skip
    from evaluate.explain.values import Values
    from pipeline.explain_inputs import open_inputs
    from pipeline.explanation import ExplainConfig, explain_images

    run = Run("explain", given())
    chosen = pick_device(device)
    inputs = open_inputs(store, directions, evaluation, layer, model=model, class_names=names_in(class_names))
    config = ExplainConfig(explained, to, top, concepts_shown, cast(Values, values))
    with showing(quiet) as shown, run.watching(shown, within(out, "explanation.json"), device=chosen) as progress:
        result = explain_images(inputs, images, rows, out, config, device=chosen, progress=progress)
    record = run.write()
    if as_json:
        echo(json.dumps(result))
        return
    for document in result["images"]:
        echo(f"{document['image']}: {document['sentence']}")
        if document["read_with_care"]:
            echo(f"  read with care: {'; '.join(document['read_with_care'])}")
    for care in result["read_with_care"]:
        echo(f"Read all with care: {care}.")
    echo(f"{format_seconds(run.seconds)}, peak memory {record['peak_memory_mib']} MiB")
    echo(str(out / "index.html"))
