"""What an extraction will do, known before it starts: networks, shapes, names, bytes, and how long it may take."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from extract.checkpoints import find_file
from extract.classes import ClassMapping, map_classes, require_decided
from extract.config import ExtractConfig
from extract.forward import Forward, computing_in, fitting_batch_size
from extract.image_io import reason
from extract.image_source import ImageSource
from extract.inference import InferenceModule, prepare_inference
from extract.loader import Decode, decoded
from extract.models import LoadedModel, load_model
from extract.network import Network, cut
from extract.overview import overview
from extract.preprocess import Preprocess
from extract.probe import prepare_model
from extract.tensor_layout import LayerLayout
from extract.video_rows import expanded, has_videos
from stores.errors import StoreError, UsageError
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.paths import is_remote
from stores.progress import readable
from stores.writer import StoreWriter

log = logging.getLogger(__name__)
FRAMES = (
    8  # of a video, for a network that takes images, where none are asked for: as in Moments in Time's own evaluation
)
TRIED = 4  # batches measured for an estimate, after one to warm up


@dataclass
class Plan:
    """An extraction that can start; made by ``plan_extraction``."""

    source: ImageSource
    config: ExtractConfig
    loaded: LoadedModel
    networks: dict[str, Network]
    classes: ClassMapping
    code_version: str = ""
    rows: dict[str, int] = field(default_factory=dict)  # see ``rows_of``

    @property
    def first(self) -> Network:
        return next(iter(self.networks.values()))

    @property
    def n_images(self) -> int:
        n = len(self.source)
        return n if self.config.limit is None else min(self.config.limit, n)

    @cached_property
    def batch_size(self) -> int:
        if self.config.batch_size is not None:
            return self.config.batch_size
        return fitting_batch_size(self.inference.module, self.first.probe, self.config.device)

    @cached_property
    def workers(self) -> int:
        """Decoding processes: threads suffice for few images or a slow device, and start at once."""
        cores, workers = os.cpu_count() or 1, self.config.workers
        if workers is None:
            many = self.config.device.startswith("cuda") and self.n_images >= 4096 and cores >= 4
            workers = min(16, cores - 1) if many else 0
        if workers:
            try:
                pickle.dumps(self.first.transform)
            except Exception as error:  # noqa: BLE001  (a transform's own code may raise anything)
                log.warning(
                    "the model's transform cannot be sent to decoding processes (%s); images are decoded in threads. Make it of "
                    "classes and functions at the top of a module", reason(error),
                )  # fmt: skip
                return 0
        return workers

    @cached_property
    def inference(self) -> InferenceModule:
        """What is run: the network itself, or what gives the same faster."""
        if self.config.exact:
            return InferenceModule(self.first.module)
        # float32 convolutions of a GPU are fastest as they are
        on_gpu = self.config.device.startswith("cuda") and self.config.precision == "float32"
        with computing_in("float32", self.first.device):
            return prepare_inference(self.networks, channels_last=not on_gpu)

    def forward(self) -> Forward:
        """The forward pass that gives what is stored."""
        return Forward(self.inference.module, self.networks, self.config)

    @cached_property
    def specs(self) -> list[LayerSpec]:
        """What the store keeps of each layer."""
        return [layer_spec(name, network.layout, self.config.positions) for name, network in self.networks.items()]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the extraction is about; see ``extract.overview``."""
        found = overview(self.source, self.classes, list(self.networks.values()), self.config.limit, self.rows)
        weights, form = self.loaded.provenance["weights_source"], str(self.inference)
        return {**found, "rows": [*found["rows"], ["weights", weights], ["forward pass", form]]}

    @cached_property
    def store(self) -> StorePlan:
        """The store that it makes."""
        config, made, source = self.config, self.loaded.provenance, self.source
        affine = {name: network.pooled_affine for name, network in self.networks.items() if not network.layout.prefix}
        provenance = {
            **{k: v for k, v in made.items() if k != "class_names"},
            # a file is recorded by its full path: fit and evaluate may be run from another folder
            "weights": made["weights_source"] if find_file(made["weights_source"]) else config.weights,
            "transform": re.sub(r" at 0x[0-9A-Fa-f]+", "", made["transform"]),  # another in each process
            "seed": config.seed,
            "input_size": list(self.first.input_size),
            "split": {name: network.split_kind for name, network in self.networks.items()},
            "precision": config.precision,
            "forward": self.inference.provenance,
            "batch_size": self.batch_size,
            "dataset": {
                "path": str(source.root.resolve()),
                "kind": source.kind,
                "images": len(source),
                "digest": source.digest,
                "limit": config.limit,
                "class_names": source.class_names,
                **({"rows": self.rows} if self.rows else {}),
            },
            "layouts": {name: network.found.how for name, network in self.networks.items()},
            "about": self.about,
            "positions": config.positions,
            "code_version": self.code_version,
        }
        return StorePlan(
            layers=self.specs,
            names=[source.name(i) for i in range(self.n_images)],
            n_classes=self.first.n_classes,
            class_names=self.loaded.class_names,
            provenance=provenance,
            dtype=config.dtype,
            compress=config.compress,
            chunk_images=config.chunk_images,
            heads={name: (head.A.cpu().numpy(), head.c.cpu().numpy()) for name, head in affine.items() if head},
        )


def layer_spec(name: str, layout: LayerLayout, positions: int | None) -> LayerSpec:
    """What a store keeps of a layer; ``positions``: how many of an image's are drawn, None: all."""
    sampled = None if positions is None or positions >= layout.positions - layout.prefix else positions
    return LayerSpec(name, layout.grid, layout.channels, layout.prefix, sampled, layout.kind, layout.time)


def bytes_of(spec: LayerSpec, images: int, chunk_images: int, itemsize: int) -> int:
    """Bytes of a layer's activations in a store: every chunk has its full size, also the last."""
    return -(-images // chunk_images) * chunk_images * spec.positions * spec.channels * itemsize


def plan_extraction(source: ImageSource, config: ExtractConfig, *, code_version: str = "") -> Plan:
    """Load the model, find what it is fed and returns, and cut it at every layer.

    Raises the errors of ``load_model``, ``prepare_model`` and ``cut``; UsageError where the user has to say which of the network's
    classes the images have.
    """
    names = source.class_names
    loaded = prepare_model(
        load_model(
            config.model, config.weights, seed=config.seed, clip_frames=config.clip_frames, clip_rate=config.clip_rate,
            resize=config.resize,
        ),
        output=config.output,
        grey_range=config.grey_range,
        class_names=config.class_names,
        folders=len(names) if names else None,
    )  # fmt: skip
    rows = rows_of(source, config, loaded.transform)
    if rows:
        source = expanded(source, rows)
        config = replace(config, limit=config.limit and config.limit * next(iter(rows.values())))
    device = "cpu" if config.device == "auto" else config.device  # where workers run it, each on what it has
    every = dict(config.layouts)
    layouts = {layer: every.get(layer, every.get("", "")) for layer in config.layers}
    networks = cut(loaded, config.layers, device, layouts={k: v for k, v in layouts.items() if v})
    largest = max((source.label(i) for i in range(len(source))), default=-1)
    classes = map_classes(
        names, loaded.class_names, next(iter(networks.values())).n_classes,
        largest=largest, kind=source.kind, model=config.model,
    )  # fmt: skip
    require_decided(classes, source.root)
    return Plan(source, config, loaded, networks, classes, code_version, rows)


def rows_of(source: ImageSource, config: ExtractConfig, transform: Preprocess) -> dict[str, int]:
    """How many rows a video becomes: ``frames`` for a network that takes images, ``clips`` for one that takes clips; {} for images.

    Raises UsageError for options that are for the other kind of network, or for videos where there are none.
    """
    if transform.frames is not None and config.frames is not None:
        raise UsageError(
            f"{config.model} takes clips of {transform.frames} frames: --clip-frames sets their length, --clips how many are taken "
            "of each video. --frames is for networks that take images."
        )
    if transform.frames is None and config.clips > 1:
        raise UsageError(f"{config.model} takes images, not clips: --frames N takes N frames of each video.")
    if not has_videos(source):
        if config.frames is not None or config.clips > 1:
            option = "--frames" if config.frames is not None else "--clips"
            raise UsageError(f"{option} is for videos, and '{source.root}' holds images. Leave it out.")
        return {}
    if transform.frames is None:
        return {"frames": config.frames or FRAMES}
    return {"clips": config.clips}


@dataclass
class Forecast:
    """What is still to do: ``images`` and ``bytes``, of those of this shard; sizes before compression.

    ``layers`` maps each layer to its bytes in the finished store. ``free`` is the disk's free bytes (None: an object store,
    which has no such number), ``fits`` whether they suffice (None: compressed, so only an upper bound is known and it exceeds
    them, or nothing is known of them). ``rate`` is images a second and ``seconds`` what is left at that rate, where it was
    measured; ``unreadable`` counts images that failed then. ``about`` is what the run is about.
    """

    images: int
    total_images: int
    layers: dict[str, int]
    bytes: int
    total_bytes: int
    free: int | None
    fits: bool | None
    batch_size: int
    tried: int = 0
    unreadable: int = 0
    rate: float | None = None
    seconds: float | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def at(self, rate: float | None) -> Forecast:
        """The same, with the time that it takes at a rate of images a second."""
        return replace(self, rate=rate, seconds=self.images / rate if rate else None)


def forecast(plan: Plan, out: Path, *, overwrite: bool = False, measure: bool = False) -> Forecast:
    """Forecast an extraction without writing; with ``measure`` some images are decoded and run for an estimate of time.

    Raises StoreExistsError when something else is at ``out``.
    """
    attributes, missing = StoreWriter.preview(out, plan.store, shard=plan.config.shard, overwrite=overwrite)
    n, rows = attributes["n_images"], attributes["chunk_images"]
    n_chunks = -(-n // rows)
    itemsize = np.dtype(attributes["dtype"]).itemsize
    layers = {spec.name: bytes_of(spec, n, rows, itemsize) for spec in plan.specs}
    longest = max((len(os.fsencode(name)) for name in plan.store.names), default=1)
    per_image = longest + 9 + 4 * attributes["n_classes"] + sum(4 * s.positions for s in plan.specs if s.sampled)
    per_chunk = rows * per_image + sum(layers.values()) // n_chunks
    free, needed = None if is_remote(out) else _free(out), per_chunk * len(missing)
    if free is not None and overwrite:
        free += sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    fits = None if free is None else needed <= free
    found = Forecast(
        sum(min(rows, n - k * rows) for k in missing),
        n,
        layers,
        needed,
        per_chunk * n_chunks,
        free,
        None if not fits and plan.config.compress != "none" else fits,
        int(attributes["provenance"]["batch_size"]),
        about=plan.about,
    )
    if not measure or not missing:
        return found
    size = found.batch_size
    tried = [i for k in missing[: -(-(TRIED + 1) * size // rows)] for i in range(k * rows, min(n, (k + 1) * rows))]
    return _measured(found, plan, tried[: (TRIED + 1) * size])


def announce_and_check(found: Forecast, out: Path, announce: Callable[[Forecast], None] | None) -> None:
    """Announce a forecast before anything is written. Raises StoreError when the disk certainly does not suffice."""
    if found.fits is False and found.free is not None:
        lack = (
            f"The disk of '{out}' has {readable(found.free)} free, but {readable(found.bytes)} are still to be written"
        )
        then = "Free some space, give an --out elsewhere, or store less: --compress zstd, --positions N, --limit N"
        raise StoreError(f"{lack}. {then}.")
    if announce is not None:
        announce(found)
    for doubt in found.about["warnings"]:
        log.warning("%s", doubt)


def _measured(found: Forecast, plan: Plan, rows: Sequence[int]) -> Forecast:
    """Decode and run some images: how many could not be read, and images a second once things are warm."""
    size = found.batch_size
    decode = Decode(plan.source, plan.first.transform, [rows[i : i + size] for i in range(0, len(rows), size)])
    unreadable, warm, start = 0, 0, 0.0
    with closing(decoded(decode, workers=plan.workers)) as stream, plan.forward() as forward:
        for k, batch in enumerate(stream):
            if batch.images is not None:
                nothing = {s.name: np.zeros((len(batch.images), s.positions), int) for s in plan.specs if s.sampled}
                for outcome in forward(batch.images, nothing):
                    outcome.wait()
            unreadable += len(batch.reasons)
            warm += len(batch.rows) if k else 0
            start = start or time.perf_counter()
    rate = warm / (time.perf_counter() - start) if warm else None
    return replace(found, tried=len(rows), unreadable=unreadable).at(rate)


def _free(path: Path) -> int:
    """Free bytes of the disk that a path is or would be on."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
