"""Images → store: one pass of the network over all images, every layer's activations committed range by range."""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from extract.decode import Decode, decoded
from extract.images import ImageSource
from extract.network import Network, capture, logits_of
from extract.zoo import load_model
from stores.activations import ActivationStore
from stores.errors import ImageError, NonFiniteError, UsageError
from stores.layers import LayerSpec
from stores.progress import Progress, silent
from stores.writer import StoreWriter

log = logging.getLogger(__name__)
FLOAT16_MAX = 65504.0
DTYPES, CODECS = ("float16", "float32"), ("none", "zstd")


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract and how. ``batch_size`` and ``workers`` None: chosen for the machine; they change no value.

    ``positions`` None keeps all positions, a number keeps that many per image, drawn by a seed of the image's own.
    """

    model: str
    layers: tuple[str, ...]
    weights: str = "DEFAULT"
    device: str = "cpu"
    dtype: Literal["float16", "float32"] = "float16"
    positions: int | None = None
    compress: Literal["none", "zstd"] = "none"
    batch_size: int | None = None
    workers: int | None = None
    limit: int | None = None
    seed: int = 0
    on_bad_image: Literal["skip", "fail"] = "fail"
    chunk_images: int | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise UsageError("No layer was named: give --layer NAME (--layer ? lists a model's layers).")
        if len(set(self.layers)) != len(self.layers):
            raise UsageError(f"A layer is named twice: {', '.join(self.layers)}.")
        for name in ("positions", "batch_size", "limit", "chunk_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"'{name}' must be at least 1, got {value}.")
        for name, allowed in (("dtype", DTYPES), ("compress", CODECS), ("on_bad_image", ("skip", "fail"))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"'{name}' must be one of {', '.join(allowed)}, got '{getattr(self, name)}'.")
        if self.seed < 0:
            raise UsageError(f"'seed' must not be negative, got {self.seed}.")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"'workers' must not be negative, got {self.workers}.")


@dataclass
class ExtractSummary:
    """What a run of ``extract`` did: images in the store, those skipped, those done by this run."""

    images: int
    skipped: list[dict[str, Any]]
    done_now: int
    layers: dict[str, tuple[int, int, int]]
    bytes: int


def extract(
    source: ImageSource,
    out: str | Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    code_version: str = "",
    progress: Progress = silent,
) -> ExtractSummary:
    """Extract activations of one or more layers into a store, or go on with an unfinished one.

    Raises the errors of ``load_model``, ``Network`` (layer is no cut, ...), ``StoreWriter``; ImageError for an image that
    cannot be read unless ``on_bad_image`` is "skip"; NonFiniteError naming the first image whose activations are NaN or
    do not fit float16. Everything committed before stays; the same call goes on from there.
    """
    out = Path(out)
    progress("loading the model", 0)
    loaded = load_model(config.model, config.weights, seed=config.seed)
    networks = {name: Network.from_loaded(loaded, name, config.device) for name in config.layers}
    specs = [layer_spec(network, config.positions) for network in networks.values()]
    first = next(iter(networks.values()))
    heads = {}
    for name, network in networks.items():
        affine = network.pooled_affine
        if affine is not None and not network.layout.prefix:
            heads[name] = (affine.A.cpu().numpy(), affine.c.cpu().numpy())
    count = len(source) if config.limit is None else min(config.limit, len(source))
    names = [source.name(i) for i in range(count)]
    provenance = {
        **{k: v for k, v in loaded.provenance.items() if k != "class_names"},
        # a file is recorded by its full path: fit and evaluate may be run from another folder
        "weights": str(Path(config.weights).resolve()) if Path(config.weights).is_file() else config.weights,
        "transform": re.sub(r" at 0x[0-9A-Fa-f]+", "", loaded.provenance["transform"]),  # another in each process
        "seed": config.seed,
        "input_size": first.provenance["input_size"],
        "split": {name: network.split_kind for name, network in networks.items()},
        "dataset": {
            "path": str(source.root.resolve()),
            "kind": source.kind,
            "images": len(source),
            "digest": source.digest,
            "limit": config.limit,
        },
        "positions": config.positions,
        "code_version": code_version,
    }
    writer = StoreWriter.create_or_resume(
        out,
        layers=specs,
        names=names,
        n_classes=first.n_classes,
        class_names=loaded.class_names,
        provenance=provenance,
        dtype=config.dtype,
        compress=config.compress,
        chunk_images=config.chunk_images,
        heads=heads,
        overwrite=overwrite,
    )
    try:
        done = 0 if writer.sealed else _run(source, writer, networks, config, progress)
        if not writer.sealed:
            writer.seal()
    finally:
        writer.close()
    store = ActivationStore.open(out)
    skipped = [entry for record in store.records.values() for entry in record.skipped]
    size = sum(entry["bytes"] for record in store.records.values() for entry in record.arrays.values())
    shapes = {spec.name: (count, spec.positions, spec.channels) for spec in specs}
    return ExtractSummary(count - len(skipped), skipped, done, shapes, size)


def layer_spec(network: Network, positions: int | None = None) -> LayerSpec:
    """What the store keeps of a network's layer; ``positions`` samples that many per image."""
    layout = network.layout
    spec = LayerSpec(network.layer, layout.grid, layout.channels, layout.prefix, None, layout.kind)
    if positions is None or positions >= spec.grid_positions:
        return spec
    return LayerSpec(network.layer, layout.grid, layout.channels, layout.prefix, positions, layout.kind)


def default_batch_size(device: str) -> int:
    """Images per forward pass: what keeps a processor's caches, or a GPU, busy."""
    return 128 if device.startswith("cuda") else 16


def default_workers(device: str, images: int) -> int:
    """Decoding processes: threads suffice for few images or a slow device, and start at once."""
    cores = os.cpu_count() or 1
    if not device.startswith("cuda") or images < 4096 or cores < 4:
        return 0
    return min(16, cores - 1)


def _run(
    source: ImageSource, writer: StoreWriter, networks: dict[str, Network], config: ExtractConfig, progress: Progress
) -> int:
    """Fill every missing chunk; returns the number of images done."""
    missing = writer.missing()
    rows = writer.chunk_images
    ranges = {k: range(k * rows, min((k + 1) * rows, writer.n_images)) for k in missing}
    size = config.batch_size or default_batch_size(config.device)
    batches, chunk_of = [], []
    for k, span in ranges.items():  # batches never cross a chunk, so that a restart changes no batch
        for start in range(span.start, span.stop, size):
            batches.append(list(range(start, min(start + size, span.stop))))
            chunk_of.append(k)
    first = next(iter(networks.values()))
    decode = Decode(source, first.transform, batches)
    workers = config.workers if config.workers is not None else default_workers(config.device, len(source))
    total = sum(len(span) for span in ranges.values())
    before = writer.n_images - total
    layouts = {name: network.layout for name, network in networks.items()}
    device = torch.device(config.device)
    done = 0
    pin = device.type == "cuda"
    with (
        closing(decoded(decode, workers=workers, pin=pin)) as stream,
        _Committer(writer) as committer,
        capture(first.module, layouts) as taken,
        torch.inference_mode(),
    ):
        chunk: _Chunk | None = None
        for k, batch in zip(chunk_of, stream, strict=True):
            if chunk is None:
                chunk = _Chunk(k, ranges[k], source, writer)
            if batch.reasons and config.on_bad_image == "fail":
                row, reason = next(iter(batch.reasons.items()))
                raise ImageError(
                    f"{reason} It is image {row} of '{source.root}'. Mend or remove it, or go on without such images by "
                    "--on-bad-image skip; what is done so far is kept."
                )
            logits = None
            if batch.images is not None:
                logits = logits_of(first.module, batch.images.to(device, non_blocking=True))
            chunk.add(batch.rows, batch.good, batch.reasons, logits, taken if batch.images is not None else {})
            done += len(batch.rows)
            if chunk.full:
                committer.put(chunk)
                chunk = None
            progress("extraction", before + done, writer.n_images, "")
    return done


class _Chunk:
    """One range of images being filled; rows of images that could not be read stay NaN."""

    def __init__(self, number: int, span: range, source: ImageSource, writer: StoreWriter) -> None:
        self.number, self.span, self.source, self.writer = number, span, source, writer
        n = len(span)
        dtype = writer.attributes["dtype"]
        self.activations = {
            name: np.full((n, spec.positions, spec.channels), np.nan, dtype) for name, spec in writer.layers.items()
        }
        self.positions = {
            name: np.stack([_sampled(spec, i, int(writer.provenance.get("seed", 0))) for i in span])
            for name, spec in writer.layers.items()
            if spec.sampled
        }
        self.logits = np.full((n, writer.attributes["n_classes"]), np.nan, np.float32)
        self.valid = np.zeros(n, bool)
        self.max_abs = dict.fromkeys(writer.layers, 0.0)
        self.skipped: list[dict[str, Any]] = []
        self.seen = 0

    @property
    def full(self) -> bool:
        return self.seen == len(self.span)

    def add(
        self,
        rows: Sequence[int],
        good: Sequence[int],
        reasons: dict[int, str],
        logits: torch.Tensor | None,
        taken: dict[str, torch.Tensor],
    ) -> None:
        self.seen += len(rows)
        for row, reason in reasons.items():
            self.skipped.append({"row": row, "name": self.source.name(row), "reason": reason})
        if logits is None:
            return
        local = np.asarray(good) - self.span.start
        self.logits[local] = logits.float().cpu().numpy()
        unfit = np.flatnonzero(~np.isfinite(self.logits[local]).all(1))
        if len(unfit):
            raise NonFiniteError(
                f"The model gives NaN or infinite logits on image '{self.source.name(good[unfit[0]])}'. Look at that image "
                "and at the model's weights."
            )
        self.valid[local] = True
        for name, x in taken.items():
            peaks = x.abs().amax(dim=(1, 2))
            limit = FLOAT16_MAX if self.activations[name].dtype == np.float16 else float("inf")
            bad = torch.flatten(torch.nonzero(~(peaks <= limit) | ~torch.isfinite(peaks)))
            if len(bad):
                self._refuse(name, good[int(bad[0])], float(peaks[bad[0]]))
            self.max_abs[name] = max(self.max_abs[name], float(peaks.max()))
            spec = self.writer.layers[name]
            if spec.sampled:
                index = torch.from_numpy(self.positions[name][local]).to(x.device).long() + spec.prefix
                x = torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))
            kept = x.half() if self.activations[name].dtype == np.float16 else x
            self.activations[name][local] = kept.cpu().numpy()

    def _refuse(self, layer: str, row: int, peak: float) -> None:
        image = self.source.name(row)
        if np.isfinite(peak):
            raise NonFiniteError(
                f"Layer '{layer}' reaches {peak:.4g} on image '{image}', more than float16 holds (65504). "
                "Extract with --dtype float32 into another --out."
            )
        raise NonFiniteError(
            f"Layer '{layer}' gives NaN or infinite activations on image '{image}'. Look at that image and at the "
            "model's weights."
        )

    def commit(self) -> None:
        self.writer.commit(
            self.number,
            names=[self.source.name(i) for i in self.span],
            labels=np.array([self.source.label(i) for i in self.span]),
            valid=self.valid,
            logits=self.logits,
            activations=self.activations,
            max_abs=self.max_abs,
            positions=self.positions,
            skipped=self.skipped,
        )


class _Committer:
    """Writes full chunks in a thread of its own, at most two waiting, so that the network never waits for the disk long."""

    def __init__(self, writer: StoreWriter) -> None:
        self.writer = writer
        self.waiting: queue.Queue[_Chunk | None] = queue.Queue(maxsize=2)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name="commit", daemon=True)

    def __enter__(self) -> _Committer:
        self.thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.waiting.put(None)
        self.thread.join()
        if kind is None and self.error is not None:
            raise self.error

    def put(self, chunk: _Chunk) -> None:
        if self.error is not None:
            raise self.error
        self.waiting.put(chunk)

    def _work(self) -> None:
        while (chunk := self.waiting.get()) is not None:
            if self.error is not None:
                continue  # keep taking, so that put never blocks; nothing more is written after a failure
            try:
                chunk.commit()
            except BaseException as error:  # noqa: BLE001  (raised by put or at the end, never swallowed)
                self.error = error


def _sampled(spec: LayerSpec, image: int, seed: int) -> np.ndarray:
    """Positions kept of one image, ascending: drawn by a seed of its own, so batches and restarts do not matter."""
    generator = np.random.default_rng([seed, image])
    return np.sort(generator.choice(spec.grid_positions, spec.positions, replace=False)).astype(np.int32)
