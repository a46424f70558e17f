"""``eddp demo``: the complete job, on scenes drawn on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.logging import echo, say
from pipeline.options import common, given
from pipeline.progress_display import format_seconds, showing
from pipeline.records import Place
from pipeline.result_paths import LOCAL
from pipeline.run import Run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=LOCAL, default=Path("demo"), show_default=True, help="Folder to write to.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--images", type=click.IntRange(min=64), default=2400, show_default=True, help="Pictures to draw.")
@click.option("--directions", type=click.IntRange(min=1), default=48, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=12, show_default=True, help="Epochs of the network's training."
)
@common
def demo(
    out: Path, seed: int, images: int, directions: int, epochs: int, quiet: bool, as_json: bool, debug: bool
) -> None:
    """Draw a world of scenes, train a small network on it, find out what it has learned, and correct what it should not have.

    \b
    Example:
      eddp demo --out demo
    """
    from pipeline.demo import run_demo
    from pipeline.evaluation import summary_lines

    run = Run("demo", given(), in_place=True)
    with showing(quiet) as shown, run.watching(shown, Place(out / "demo.run.json")) as progress:
        result = run_demo(
            out,
            seed=seed,
            images=images,
            directions=directions,
            epochs=epochs,
            say=(lambda text: None) if quiet or as_json else say,
            progress=progress,
        )
    record = run.write()
    if as_json:
        echo(json.dumps(result))
        return
    for line in summary_lines(result):
        echo(line)
    for key in ("explanation", "correction"):
        if key in result:
            echo(result[key])
    echo(f"{format_seconds(run.seconds)}, peak memory {record['peak_memory_mib']} MiB")
    echo(result["report"])
