"""``eddp report``: an evaluation → a folder of pages that opens from the disk."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.logging import echo, say
from pipeline.options import class_names_option, common, given, model_option, names_in
from pipeline.progress_display import format_seconds, showing
from pipeline.records import beside
from pipeline.result_paths import LOCAL, STORE
from pipeline.run import Run, pick_device
from stores.errors import UsageError
from stores.progress import readable

MOST_TILES = 50


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("evaluation", type=click.Path(path_type=Path))
@click.option(
    "--directions",
    "name",
    default=None,
    metavar="NAME",
    help="Which of the evaluation's directions files to show in full, by its name without ending.  [default: the first]",
)
@click.option("--out", type=LOCAL, default=None,
              help="Folder to write to; a report there is replaced.  [default: report/ next to the evaluation]")  # fmt: skip
@click.option("--store", type=STORE, default=None, help="The store, if it was moved.")
@click.option("--data", default=None, metavar="IMAGES", help="The store's images, if they were moved.")
@click.option("--tiles", type=int, default=9, show_default=True, help="Images a direction.")
@click.option("--visualize", default=None, metavar="N|all|none",
              help="Directions to synthesise pictures of, those of highest IoU first.  [default: the suspects, then as many as five minutes allow]")  # fmt: skip
@click.option("--title", default=None, help="Title of the report.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@model_option
@class_names_option
@common
def report(
    evaluation: Path,
    name: str | None,
    out: Path | None,
    store: Path | None,
    data: str | None,
    tiles: int,
    visualize: str | None,
    title: str | None,
    device: str,
    model: str | None,
    class_names: Path | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Make one folder of static pages from the folder that evaluate wrote: open its index.html in a browser.

    An overview with a map and a search, and a page for each direction and each class of the network.

    \b
    Example:
      eddp report evaluation --visualize none
    """
    from pipeline.report import ReportConfig, write_site

    run = Run("report", given())
    names = names_in(class_names)
    if not 1 <= tiles <= MOST_TILES:
        raise UsageError(f"--tiles must be a number from 1 to {MOST_TILES}, got {tiles}.")
    how = ReportConfig(tiles=tiles, visualize=_how_many(visualize), title=title, device=pick_device(device))
    target = out or evaluation.absolute().parent / "report"
    with showing(quiet) as shown, run.watching(shown, beside(target), device=how.device) as progress:
        made = write_site(
            evaluation,
            target,
            how,
            name=name,
            store=store,
            data=data,
            model=model,
            class_names=names,
            progress=progress,
        )
    record = run.write(notes=made["notes"])
    if as_json:
        echo(json.dumps({**made, "out": str(target)}))
        return
    for note in made["notes"]:
        say(f"Note: {note}", "warning")
    echo(
        f"{made['directions']} directions of '{made['set']}', {made['classes']} classes; {made['files']} files, {readable(made['bytes'])}; "
        f"{format_seconds(run.seconds)}, peak memory {record['peak_memory_mib']} MiB"
    )
    echo(str(target / "index.html"))


def _how_many(text: str | None) -> int | None:
    """``--visualize``: None is the default, −1 all, 0 none."""
    if text is None or text in ("all", "none"):
        return {None: None, "all": -1, "none": 0}[text]
    if text.isdecimal():
        return int(text)
    raise UsageError(f"--visualize takes a number, all or none, got '{text}'.")
