"""``extract``: images → activation store."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from extract.config import ExtractConfig
from pipeline.layer_display import show_layers
from pipeline.logging import echo, say
from pipeline.options import common, given, names_in
from pipeline.progress_display import format_seconds, showing
from pipeline.records import beside
from pipeline.result_paths import STORE
from pipeline.run import Run, code_version, pick_device
from pipeline.slurm import device_of, shard_of
from stores.errors import UsageError
from stores.progress import readable

if TYPE_CHECKING:
    from extract.plan import Forecast
    from extract.stream import ExtractSummary

HELP = {  # in the order of --help; type, choices and default are those of ExtractConfig, or in OTHERWISE
    "model": "A torchvision name, timm:NAME, or module:callable for your own.",
    "layer": "Dotted module name; may be given several times. '?' shows which to choose from, 'NAME?' all that begin with NAME.",
    "data": "The images or videos: a folder (ImageNet, Places365, CIFAR-10, Moments in Time, class subfolders, flat, Broden), WebDataset "
    "tar shards, or KIND:DIR such as cifar10:DIR.",
    "out": "The store to write, such as acts.zarr or s3://bucket/acts.zarr.",
    "weights": "DEFAULT, a torchvision weights name, a FILE, FILE#KEY where it holds several sets of weights, or none.",
    "class_names": "Names of the network's classes, a name a line in its order, or JSON.",
    "frames": "Of videos, for a network that takes images: N frames of each, spread evenly, are a row each. Default: 8.",
    "clip_frames": "For a network that takes clips: frames a clip. Default: what its weights say.",
    "clip_rate": "For a network that takes clips: frames a second. Default: what its weights say.",
    "clips": "For a network that takes clips: N clips of each video, spread evenly, are a row each.",
    "resize": "squash: resize to the network's input without regard to the aspect, where its transform would crop.",
    "output": "Which of several tensors that the model returns are its logits.",
    "layout": "What a layer's dimensions are: nchw, nhwc, vector, tokens or ncp, the last two with +PREFIX:ROWSxCOLUMNS. Default: found.",
    "grey_range": "The values that are black and white in grey images of more than 8 bits. Default: by the depth of their file.",
    "device": "auto, cpu, cuda or cuda:N.",
    "dtype": "",
    "positions": "all, or how many positions to draw per image.",
    "precision": "What the network computes in; recorded with the store.",
    "exact": "Run the network as it is: do not fold BatchNorm into convolutions, do not use channels-last memory.",
    "compress": "none can be memory-mapped.",
    "batch_size": "Images per forward pass.",
    "workers": "Decoding processes; 0 decodes in threads. Default: by machine and data.",
    "limit": "Take only the first N images.",
    "shard": "Fill the I-th (from 0) of N parts of the store; the last one to end seals it. auto: by SLURM's job array, by "
    "torchrun's rank, or by both.",
    "dask": "Extract on the workers of a dask scheduler (they see the same files), or of one started here.",
    "seed": "Seed of sampled positions and of --weights none.",
    "on_bad_image": "",
    "overwrite": "Replace a store that is already there.",
    "dry_run": "Show what would be done, how long it may take, and whether the disk suffices.",
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "model": {"required": True},
    "layer": {"required": True, "multiple": True},
    "data": {"metavar": "DIR"},
    "out": {"type": STORE},
    "class_names": {"type": click.Path(path_type=Path), "metavar": "FILE"},
    "output": {"metavar": "KEY|N"},
    "layout": {"multiple": True, "metavar": "[LAYER=]LAYOUT"},
    "grey_range": {"metavar": "LOW,HIGH"},
    "frames": {"type": int, "metavar": "N"},
    "clip_frames": {"type": int, "metavar": "N"},
    "clip_rate": {"type": float, "metavar": "FPS"},
    "clips": {"type": int, "metavar": "N", "default": 1},
    "resize": {"type": click.Choice(["squash"])},
    "device": {"default": "auto"},
    "positions": {"default": "all"},
    "batch_size": {"default": "auto"},
    "exact": {"is_flag": True},
    "shard": {"metavar": "I/N|auto"},
    "dask": {"metavar": "ADDRESS|local"},
    "overwrite": {"is_flag": True},
    "dry_run": {"is_flag": True},
}


def _options(command: Any) -> Any:
    kinds = get_type_hints(ExtractConfig)
    defaults = {field.name: field.default for field in fields(ExtractConfig)}
    for name in reversed(HELP):
        if name in OTHERWISE:
            how = OTHERWISE[name]
        else:
            plain = next((kind for kind in (int, str) if kind in (kinds[name], *get_args(kinds[name]))), None)
            how = {"type": plain or click.Choice(get_args(kinds[name])), "default": defaults[name]}
        how = how | {"show_default": how.get("default") is not None, "help": HELP[name] or None}
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, **how)(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_options
@common
def extract(
    model: str,
    layer: tuple[str, ...],
    data: str | None,
    out: Path | None,
    dask: str | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Stream images through a network and store the activations of one or more layers.

    Run again with the same options, an unfinished store is resumed.

    \b
    Example:
      extract --model resnet18 --layer layer4 --data imagenet/val --out acts.zarr
    """
    from extract.dask import cluster, extract_on, forecast_on, workers_of
    from extract.datasets import open_source
    from extract.plan import forecast, plan_extraction
    from extract.stream import extract as run_extraction

    if wanted := [name.removesuffix("?") for name in layer if name.endswith("?")]:
        config = _config(
            model, layer, None, dask, **{k: options[k] for k in options if k not in ("shard", "overwrite", "dry_run")}
        )
        show_layers(config, wanted, data)
        return
    if data is None or out is None:
        raise UsageError("Give --data FOLDER (the images) and --out STORE (where the activations go).")
    asked = options.pop("shard")
    if dask is not None and asked is not None:
        raise UsageError("--dask shares the store out among its workers: give it, or --shard, but not both.")
    shard = shard_of(asked, os.environ)
    part = None if shard is None else f"{shard[0]}/{shard[1]}"
    run = Run("extract", {**given(), "shard": part}, work="extraction", in_place=True, shard=part)
    overwrite, dry_run = options.pop("overwrite"), options.pop("dry_run")
    config = _config(model, layer, shard, dask, **options)
    source = open_source(data)
    ending = (f".shard-{part.replace('/', '-of-')}" if part else "") + ".run.json"
    place = None if dry_run else beside(out, ending)
    how: dict[str, Any] = {"overwrite": overwrite, "code_version": code_version()}

    def announce(found: Forecast) -> None:
        lines = _lines(found, out)  # later, when the rate is known, only what that adds
        say("\n".join(lines if found.rate is None else lines[-1:]))

    with showing(quiet) as shown_to, run.watching(shown_to, place, device=config.device) as progress:
        if dry_run and dask is not None:
            with cluster(dask) as client:
                found = forecast_on(client, data, out, config, **how)
        elif dry_run:
            progress("measuring", 0)
            plan = plan_extraction(source, config, code_version=code_version())
            found = forecast(plan, out, overwrite=overwrite, measure=True)
        else:
            how.update(progress=progress, announce=None if quiet else announce)
            if dask is None:
                summary = run_extraction(source, out, config, **how)
            else:
                with cluster(dask) as client:
                    run.about["workers"] = workers_of(client)
                    summary = extract_on(client, source, data, out, config, **how)
    if dry_run:
        echo(json.dumps(asdict(found)) if as_json else "\n".join(_lines(found, out)))
    else:
        _report(run, summary, out, as_json)


def _config(
    model: str,
    layer: tuple[str, ...],
    shard: tuple[int, int] | None,
    dask: str | None,
    *,
    device: str,
    positions: str,
    batch_size: str,
    layout: tuple[str, ...],
    grey_range: str | None,
    class_names: Path | None,
    **options: Any,
) -> ExtractConfig:
    """The options as the configuration of an extraction."""
    from torch.cuda import device_count

    layouts = [text.rpartition("=") for text in layout]
    return ExtractConfig(
        model=model,
        layers=tuple(layer),
        device=pick_device(device_of(device, os.environ, device_count())) if dask is None else device,
        positions=_number("--positions", positions, "all"),
        batch_size=_number("--batch-size", batch_size, "auto"),
        shard=shard,
        layouts=tuple((name if equals else "", text) for name, equals, text in layouts),
        grey_range=_grey_range(grey_range),
        class_names=None if class_names is None else tuple(names_in(class_names) or ()),
        **options,
    )


def _grey_range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"--grey-range must be LOW,HIGH, such as 0,4095, got '{text}'.") from error
    return low, high


def _number(option: str, text: str, word: str) -> int | None:
    try:
        return None if text == word else int(text)
    except ValueError as error:
        raise UsageError(f"{option} must be '{word}' or an integer, got '{text}'.") from error


def _report(run: Run, summary: ExtractSummary, out: Path, as_json: bool) -> None:
    """Write the record of a run, and print what it did."""
    from extract.image_io import shown

    result = {
        "store": str(out),
        "images": summary.images,
        "skipped": summary.skipped,
        "layers": {name: list(shape) for name, shape in summary.layers.items()},
        "bytes": summary.bytes,
        "done_now": summary.done_now,
        "batch_size": summary.batch_size,
        "missing_chunks": summary.missing,
        "seconds_waiting_for_images": None if summary.waited is None else round(summary.waited, 2),
        "about": summary.about,
    }
    record = run.write(result=result, rates=_rates(run, summary))
    if as_json:
        echo(json.dumps({**result, "seconds": record["seconds"]}))
        return
    for entry in summary.skipped[:10]:
        say(f"skipped {shown(entry['name'])}: {entry['reason']}", "warning")
    if len(summary.skipped) > 10:
        say(f"and {len(summary.skipped) - 10} more, listed in the store's manifest and the run record", "warning")
    if summary.skipped and not summary.images:
        say("Warning: not one of the images could be read.", "warning")
    for name, shape in summary.layers.items():
        echo(f"{name}: {shape[0]} images × {shape[1]} positions × {shape[2]} channels")
    echo(
        f"{summary.images} images ({len(summary.skipped)} skipped), {readable(summary.bytes)}, "
        f"{format_seconds(run.seconds)}"
        + (
            f" ({format_seconds(summary.waited)} of it waiting for images)"
            if summary.waited and summary.waited >= 1
            else ""
        )
        + f", peak memory {record['peak_memory_mib']} MiB"
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
    needed = f"to be written: {readable(found.bytes)}; "
    if found.free is None:
        lines.append(f"{needed}how much is free at '{out}' an object store does not say")
    else:
        room = {True: "enough", False: "NOT enough", None: "enough only if it compresses well"}[found.fits]
        lines.append(f"{needed}free at '{out}': {readable(found.free)} ({room})")
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
