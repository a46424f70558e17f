"""``extract``: images → activation store."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from torch.cuda import device_count

from pipeline.messages import echo, say
from pipeline.options import common
from pipeline.paths import STORE
from pipeline.progress import format_seconds, showing
from pipeline.records import beside
from pipeline.run import Run, code_version, pick_device
from pipeline.shards import device_of, shard_of
from stores.errors import UsageError
from stores.progress import readable

if TYPE_CHECKING:
    from extract.plan import Forecast
    from extract.stream import ExtractSummary


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", required=True, help="A torchvision name, timm:NAME, or module:callable for your own.")
@click.option(
    "--layer",
    multiple=True,
    required=True,
    help="Dotted module name; may be given several times. '?' lists them.",
)
@click.option(
    "--data",
    metavar="DIR",
    help="The images: a folder (ImageNet, Places365, CIFAR-10, class subfolders, flat, Broden), WebDataset tar shards, or "
    "KIND:DIR such as cifar10:DIR.",
)
@click.option("--out", type=STORE, help="The store to write, such as acts.zarr or s3://bucket/acts.zarr.")
@click.option(
    "--weights",
    default="DEFAULT",
    show_default=True,
    help="DEFAULT, a torchvision weights name, a FILE, FILE#KEY where it holds several sets of weights, or none.",
)
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Names of the network's classes, a name a line in its order, or JSON.",
)
@click.option("--output", metavar="KEY|N", help="Which of several tensors that the model returns are its logits.")
@click.option(
    "--layout",
    multiple=True,
    metavar="[LAYER=]LAYOUT",
    help="What a layer's dimensions are: nchw, nhwc, vector, tokens or ncp, the last two with +PREFIX:ROWSxCOLUMNS. Default: found.",
)
@click.option(
    "--grey-range",
    metavar="LOW,HIGH",
    help="The values that are black and white in grey images of more than 8 bits. Default: by the depth of their file.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--positions", default="all", show_default=True, help="all, or how many positions to draw per image.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What the network computes in; recorded with the store.",
)
@click.option(
    "--compress",
    type=click.Choice(["none", "zstd"]),
    default="none",
    show_default=True,
    help="none can be memory-mapped.",
)
@click.option("--batch-size", default="auto", show_default=True, help="Images per forward pass.")
@click.option(
    "--workers", type=int, default=None, help="Decoding processes; 0 decodes in threads. Default: by machine and data."
)
@click.option("--limit", type=int, default=None, help="Take only the first N images.")
@click.option(
    "--shard",
    metavar="I/N|auto",
    help="Fill the I-th (from 0) of N parts of the store; the last one to end seals it. auto: by SLURM's job array, by "
    "torchrun's rank, or by both.",
)
@click.option(
    "--dask",
    metavar="ADDRESS|local",
    help="Extract on the workers of a dask scheduler (they see the same files), or of one started here.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of sampled positions and of --weights none.")
@click.option("--on-bad-image", type=click.Choice(["skip", "fail"]), default="fail", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a store that is already there.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, how long it may take, and whether the disk suffices."
)
@common
def extract(
    model: str,
    layer: tuple[str, ...],
    data: str | None,
    out: Path | None,
    weights: str,
    class_names: Path | None,
    layout: tuple[str, ...],
    grey_range: str | None,
    device: str,
    dask: str | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Stream images through a network and store the activations of one or more layers.

    Run again with the same options, an unfinished store goes on where it stopped.

    \b
    Example:
      extract --model resnet18 --layer layer4 --data imagenet/val --out acts.zarr
    """
    from extract.classes import read_class_names
    from extract.cluster import cluster, workers_of
    from extract.cluster_stream import extract_on, forecast_on
    from extract.config import ExtractConfig
    from extract.datasets import open_source
    from extract.image_io import shown
    from extract.plan import forecast, plan_extraction
    from extract.stream import extract as run_extraction

    if "?" in layer:
        _show_layers(model, weights, options["seed"])
        return
    if data is None or out is None:
        raise UsageError("Give --data FOLDER (the images) and --out STORE (where the activations go).")
    asked = options.pop("shard")
    if dask is not None and asked is not None:
        raise UsageError("--dask shares the store out among its workers: give it, or --shard, but not both.")
    shard = shard_of(asked, os.environ)
    part = "" if shard is None else f"{shard[0]}/{shard[1]}"
    run = Run(
        "extract",
        {"model": model, "layer": layer, "data": data, "out": out, "weights": weights, "device": device, "dask": dask,
         "class_names": class_names, "layout": layout, "grey_range": grey_range,
         "shard": part or None, **options},
        work="extraction", in_place=True, shard=part or None,
    )  # fmt: skip
    overwrite, dry_run = options.pop("overwrite"), options.pop("dry_run")
    config = ExtractConfig(
        model=model,
        layers=tuple(layer),
        weights=weights,
        device=pick_device(device_of(device, os.environ, device_count())) if dask is None else device,
        positions=_number("--positions", options.pop("positions"), "all"),
        batch_size=_number("--batch-size", options.pop("batch_size"), "auto"),
        shard=shard,
        layouts=tuple(_layout(text) for text in layout),
        grey_range=_grey_range(grey_range),
        class_names=None if class_names is None else tuple(read_class_names(class_names)),
        **options,
    )
    source = open_source(data)
    ending = (f".shard-{part.replace('/', '-of-')}" if part else "") + ".run.json"
    where = None if dry_run else beside(out, ending)
    with showing(quiet) as shown_to, run.watching(shown_to, where, device=config.device) as progress:
        if dry_run and dask is not None:
            with cluster(dask) as client:
                found = forecast_on(client, data, out, config, overwrite=overwrite, code_version=code_version())
        elif dry_run:
            progress("measuring", 0)
            plan = plan_extraction(source, config, code_version=code_version())
            found = forecast(plan, out, overwrite=overwrite, measure=True)
        else:

            def announce(found: Forecast) -> None:
                lines = _lines(found, out)  # later, when the rate is known, only what that adds
                say("\n".join(lines if found.rate is None else lines[-1:]))

            how: Any = {
                "overwrite": overwrite,
                "code_version": code_version(),
                "progress": progress,
                "announce": None if quiet else announce,
            }
            if dask is None:
                summary = run_extraction(source, out, config, **how)
            else:
                with cluster(dask) as client:
                    run.about["workers"] = workers_of(client)
                    summary = extract_on(client, source, data, out, config, **how)
    if dry_run:
        echo(json.dumps(asdict(found)) if as_json else "\n".join(_lines(found, out)))
        return
    result = {
        "store": str(out),
        "images": summary.images,
        "skipped": summary.skipped,
        "layers": {name: list(shape) for name, shape in summary.layers.items()},
        "bytes": summary.bytes,
        "done_now": summary.done_now,
        "batch_size": summary.batch_size,
        "missing_chunks": summary.missing,
        "about": summary.about,
    }
    record = run.write(result=result, rates=_rates(run, summary))
    if as_json:
        echo(json.dumps({**result, "seconds": record["seconds"]}))
        return
    for entry in summary.skipped[:10]:
        say(f"skipped {shown(entry['name'])}: {entry['reason']}", "warning")
    if len(summary.skipped) > 10:
        say(f"and {len(summary.skipped) - 10} more, listed in the store's ledger and the run record", "warning")
    if summary.skipped and not summary.images:
        say("Warning: not one of the images could be read.", "warning")
    for name, shape in summary.layers.items():
        echo(f"{name}: {shape[0]} images × {shape[1]} positions × {shape[2]} channels")
    echo(
        f"{summary.images} images ({len(summary.skipped)} skipped), {readable(summary.bytes)}, "
        f"{format_seconds(run.seconds)}, peak memory {record['peak_memory_mib']} MiB"
    )
    if summary.missing:
        echo(
            f"this shard is done; {summary.missing} of {summary.chunks} chunks are missing yet: the shard that ends last "
            "seals the store"
        )
    echo(str(out))


def _lines(found: Forecast, out: Path) -> list[str]:
    """A forecast for people."""
    some = "" if found.images == found.total_images else f"{found.images} of "
    rows = found.about.get("rows", [])
    width = max((len(name) for name, _ in rows), default=0) + 2
    lines = [f"{name:<{width}}{text}" for name, text in rows]
    lines.append(f"{some}{found.total_images} images, {found.batch_size} at a time")
    lines += [f"{name}: {readable(size)}" for name, size in found.layers.items()]
    room = {True: "enough", False: "NOT enough", None: "enough only if it compresses well"}[found.fits]
    if found.free is None:
        lines.append(
            f"to be written: {readable(found.bytes)}; how much is free at '{out}' an object store does not say"
        )
    else:
        lines.append(f"to be written: {readable(found.bytes)}; free at '{out}': {readable(found.free)} ({room})")
    if found.unreadable:
        lines.append(f"{found.unreadable} of {found.tried} images tried cannot be read: see --on-bad-image")
    if found.rate and found.seconds is not None:
        lines.append(f"{found.rate:.1f} images/s: about {format_seconds(found.seconds)}")
    return lines


def _rates(run: Run, summary: ExtractSummary) -> dict[str, float]:
    """Images and megabytes (of 10^6 bytes) a second while images went through the network; nothing where none did."""
    rate, every = run.stages.rate("extraction"), summary.images + len(summary.skipped)
    if not rate or not summary.done_now or not every:
        return {}
    return {"images_per_second": round(rate, 2), "mb_written_per_second": round(rate * summary.bytes / every / 1e6, 3)}


def _layout(text: str) -> tuple[str, str]:
    """``LAYER=LAYOUT`` or ``LAYOUT`` -> (layer or "", layout)."""
    layer, equals, layout = text.rpartition("=")
    return layer if equals else "", layout


def _grey_range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"--grey-range must be LOW,HIGH, such as 0,4095, got '{text}'.") from error
    return low, high


def _number(option: str, text: str | int, word: str) -> int | None:
    if str(text) == word:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{option} must be '{word}' or a whole number, got '{text}'.") from error


def _show_layers(model: str, weights: str, seed: int) -> None:
    from extract.models import load_model
    from extract.network import list_layers

    loaded = load_model(model, weights, seed=seed)
    echo(f"{'layer':<44}{'type':<28}{'output':<20}{'cut':<5}layout")
    for info in list_layers(loaded):
        shape = " × ".join(map(str, info.shape))
        layout = f"{info.layout} ({info.how})" if info.layout else "not known: see --layout"
        echo(f"{info.name:<44}{info.type:<28}{shape:<20}{'yes' if info.cut else '-':<5}{layout}")
    say("Layers marked 'yes' cut the network in two, so a head can be made after them; choose one of these.")
