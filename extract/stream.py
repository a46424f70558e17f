"""Images → store: one pass of the network over all images, every layer's activations committed chunk by chunk."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from extract.config import ExtractConfig
from extract.forward import Forward, Outcome
from extract.image_io import KEPT, shown
from extract.image_source import ImageSource
from extract.loader import Batch, Decode, decoded
from extract.plan import TRIED, Forecast, Plan, announce_and_check, forecast, plan_extraction
from stores.errors import ImageError, NonFiniteError
from stores.format import LayerSpec
from stores.paths import as_path
from stores.progress import Progress, silent
from stores.writer import StoreWriter

log = logging.getLogger(__name__)
LOOK = "Look at that image and at the model's weights"
COMMITTERS = 2  # threads: while one waits for the disk, the other computes checksums or compresses

__all__ = ["ExtractConfig", "ExtractSummary", "extract"]


@dataclass
class ExtractSummary:
    """What a run of ``extract`` did: images in its part of the store, those skipped, those done by this run.

    ``layers`` maps each layer to (N, P, C) of the complete store; ``missing`` of its ``chunks`` are still to be committed by
    other shards: 0 once the store is sealed. ``about`` is what the run is about. ``waited`` is for how many seconds the network
    had no images, because decoding is slower than it (None on a cluster).
    """

    images: int
    skipped: list[dict[str, Any]]
    done_now: int
    layers: dict[str, tuple[int, int, int]]
    bytes: int
    batch_size: int
    missing: int
    chunks: int
    about: dict[str, Any]
    waited: float | None = field(default=None, compare=False)


def extract(
    source: ImageSource,
    out: str | Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    code_version: str = "",
    progress: Progress = silent,
    announce: Callable[[Forecast], None] | None = None,
) -> ExtractSummary:
    """Extract activations of one or more layers into a store, or resume an unfinished one.

    ``announce`` is called with a forecast before anything is written, and again, with the rate and the time that is left,
    once a few batches have been measured.

    Raises the errors of ``plan_extraction`` and ``StoreWriter``; StoreError when the disk cannot hold what is to be written;
    ImageError for an image that is damaged unless ``on_bad_image`` is "skip", EDDPError where the disk does not answer;
    NonFiniteError naming the first image whose activations are NaN or do not fit float16. Committed chunks stay; the same
    call resumes from there.
    """
    out = as_path(out)
    progress("loading the model", 0)
    plan = plan_extraction(source, config, code_version=code_version)
    ahead = forecast(plan, out, overwrite=overwrite)
    announce_and_check(ahead, out, announce)

    def measured(rate: float) -> None:
        if announce is not None:
            announce(ahead.at(rate))

    with closing(StoreWriter.open(out, plan.store, shard=config.shard, overwrite=overwrite)) as writer:
        return fill(plan, writer, progress=progress, measured=measured)


def fill(
    plan: Plan,
    writer: StoreWriter,
    *,
    progress: Progress = silent,
    measured: Callable[[float], None] = lambda rate: None,
) -> ExtractSummary:
    """Fill the missing chunks of a writer, and seal the store if no other is missing.

    ``measured`` is called with images a second, once a few batches have been run. Raises as ``extract`` once it has started.
    """
    batch_size = batch_size_of(writer, plan.config)
    done, waited = (0, 0.0) if writer.sealed else _run(plan, writer, batch_size, progress, measured)
    missing = 0 if writer.seal_if_complete() else len(writer.missing(anywhere=True))
    return replace(summary_of(plan, writer, writer.span, done, batch_size, missing), waited=waited)


def summary_of(
    plan: Plan, writer: StoreWriter, chunks: range, done: int, batch_size: int, missing: int
) -> ExtractSummary:
    """What is in some chunks of a store; ``done`` images by this run, ``missing`` chunks in all."""
    records = [record for k, record in writer.committed().items() if k in chunks]
    skipped: list[Any] = [entry for record in records for entry in record.skipped]
    size = sum(entry["bytes"] for record in records for entry in record.arrays.values())
    images = sum(record.rows for record in records) - len(skipped)
    shapes = {spec.name: (plan.n_images, spec.positions, spec.channels) for spec in plan.specs}
    return ExtractSummary(images, skipped, done, shapes, size, batch_size, missing, writer.n_chunks, plan.about)


def batch_size_of(writer: StoreWriter, config: ExtractConfig) -> int:
    """The batch size that a store was started with, unless another was asked for: the same gives the same bits."""
    stored = int(writer.provenance.get("batch_size", config.batch_size or 16))
    if config.batch_size is None or config.batch_size == stored:
        return stored
    log.warning(
        "'%s' was started with batches of %d images; with %d the last bits of its activations may differ from there on",
        writer.path, stored, config.batch_size,
    )  # fmt: skip
    return config.batch_size


def images_of(chunk: int, writer: StoreWriter) -> range:
    """The images of a chunk."""
    return range(chunk * writer.chunk_images, min((chunk + 1) * writer.chunk_images, writer.n_images))


def batches_of(images: range, size: int) -> list[range]:
    """The images of a chunk in batches. No batch crosses a chunk, so that a restart changes none."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def _run(
    plan: Plan, writer: StoreWriter, size: int, progress: Progress, measured: Callable[[float], None]
) -> tuple[int, float]:
    """Fill every missing chunk of this writer; returns the number of images done, and the seconds without images to run."""
    missing = {k: images_of(k, writer) for k in writer.missing()}
    before = sum(len(images_of(k, writer)) for k in writer.span if k not in missing)
    total = before + sum(map(len, missing.values()))
    on_gpu = plan.config.device.startswith("cuda")
    batches = [batch for images in missing.values() for batch in batches_of(images, size)]
    done, warm, start, waited = 0, 0, 0.0, 0.0
    progress("extraction", before, total)  # from here on: what is reported later was done by this run
    with (
        closing(
            decoded(Decode(plan.source, plan.first.transform, batches), workers=plan.workers, pin=on_gpu)
        ) as stream,
        _committer() as commit,
        plan.forward() as forward,
    ):

        def store(chunk: Chunk, batch: Batch, outcomes: list[Outcome]) -> None:
            nonlocal done, warm, start
            chunk.skip(batch.reasons)
            for outcome in outcomes:
                chunk.add(batch.good, outcome, forward)
            if chunk.full:
                commit(chunk)
            done += len(batch.rows)
            progress("extraction", before + done, total, "")
            if done == len(batch.rows):
                warm, start = done, time.perf_counter()
            elif start and done - warm >= TRIED * size:
                measured((done - warm) / (time.perf_counter() - start))
                start = 0.0

        chunk: Chunk | None = None
        behind: deque[tuple[Chunk, Batch, list[Outcome]]] = deque()
        asked = time.perf_counter()
        for batch in stream:
            waited += time.perf_counter() - asked
            if batch.reasons and plan.config.on_bad_image == "fail":
                row, reason = next(iter(batch.reasons.items()))
                raise ImageError(
                    f"{reason} It is image {row} of '{shown(plan.source.root)}'. {KEPT} with --on-bad-image skip, or fix or remove "
                    "it and start again with --overwrite."
                )
            number = batch.rows[0] // writer.chunk_images
            if chunk is None or chunk.number != number:
                chunk = Chunk(number, missing[number], plan.source, writer)
            outcomes = [] if batch.images is None else list(forward(batch.images, chunk.picked(batch.good)))
            behind.append((chunk, batch, outcomes))
            if len(behind) > int(on_gpu):  # a GPU works on this batch while the previous one is stored
                store(*behind.popleft())
            asked = time.perf_counter()
        while behind:
            store(*behind.popleft())
    return done, waited


def sampled_positions(spec: LayerSpec, image: int, seed: int) -> np.ndarray:
    """Positions stored of one image, ascending: drawn by a seed of its own, so batches and restarts do not matter."""
    generator = np.random.default_rng([seed, image])
    return np.sort(generator.choice(spec.grid_positions, spec.positions, replace=False)).astype(np.int32)


class Chunk:
    """One range of images being filled; rows of images that could not be read stay NaN."""

    def __init__(self, number: int, span: range, source: ImageSource, writer: StoreWriter) -> None:
        self.number, self.span, self.source, self.writer = number, span, source, writer
        n = len(span)
        dtype, seed = writer.attributes["dtype"], int(writer.provenance.get("seed", 0))
        self.activations = {
            name: np.empty((n, spec.positions, spec.channels), dtype) for name, spec in writer.layers.items()
        }
        self.positions = {
            name: np.stack([sampled_positions(spec, i, seed) for i in span])
            for name, spec in writer.layers.items()
            if spec.sampled
        }
        self.logits = np.empty((n, writer.attributes["n_classes"]), np.float32)
        self.valid = np.zeros(n, bool)
        self.skipped: list[dict[str, Any]] = []
        self.seen = 0

    @property
    def full(self) -> bool:
        return self.seen == len(self.span)

    def picked(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Positions to keep of some images, counted from the layer's first, (n, P), of layers that are sampled."""
        local = np.asarray(rows) - self.span.start
        return {name: index[local] + self.writer.layers[name].prefix for name, index in self.positions.items()}

    def add(self, good: Sequence[int], outcome: Outcome, forward: Forward) -> None:
        """Add what a pass gave of images that could be read. Raises NonFiniteError naming the first unfit one."""
        outcome.wait()
        rows = good[outcome.start : outcome.start + len(outcome.images)]
        local: Any = np.asarray(rows) - self.span.start
        if len(local) == local[-1] - local[0] + 1:
            local = slice(int(local[0]), int(local[-1]) + 1)  # copied in one go
        self.logits[local] = outcome.logits.numpy()
        unfit = np.flatnonzero(~np.isfinite(self.logits[local]).all(1))
        if len(unfit):
            image = self.source.name(rows[unfit[0]])
            raise NonFiniteError(f"The model gives NaN or infinite logits on image '{image}'. {LOOK}.")
        for name, fit in outcome.fit.items():
            if not bool(fit.all()):
                bad = int((~fit).nonzero()[0, 0])
                raise self._unfit(name, rows[bad], forward.peak(outcome.images[bad], name))
            self.activations[name][local] = outcome.activations[name].numpy()
        self.valid[local] = True
        self.seen += len(rows)

    def skip(self, reasons: dict[int, str]) -> None:
        """Leave out images that could not be read, row -> reason."""
        for row, reason in reasons.items():
            self.skipped.append({"row": row, "name": self.source.name(row), "reason": reason})
            for x in (*self.activations.values(), self.logits):
                x[row - self.span.start] = np.nan
        self.seen += len(reasons)

    def _unfit(self, layer: str, row: int, peak: float) -> NonFiniteError:
        image = self.source.name(row)
        if np.isfinite(peak) and peak > float(np.finfo(self.activations[layer].dtype).max):
            return NonFiniteError(
                f"Layer '{layer}' reaches {peak:.4g} on image '{image}', more than float16 holds (65504). "
                "Extract with --dtype float32 into another --out."
            )
        return NonFiniteError(f"Layer '{layer}' gives NaN or infinite activations on image '{image}'. {LOOK}.")

    def commit(self) -> None:
        """Write the chunk into the store."""
        self.writer.commit(
            self.number,
            names=[self.source.name(i) for i in self.span],
            labels=np.array([self.source.label(i) for i in self.span]),
            valid=self.valid,
            logits=self.logits,
            activations=self.activations,
            positions=self.positions,
            skipped=sorted(self.skipped, key=lambda entry: entry["row"]),
        )


@contextmanager
def _committer() -> Iterator[Callable[[Chunk], None]]:
    """Commit chunks in threads, so that the network rarely waits for the disk; raises what went wrong with an earlier one.

    At most one chunk waits in addition to those being written: memory stays bounded.
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(COMMITTERS, thread_name_prefix="commit") as pool:

        def commit(chunk: Chunk) -> None:
            while len(pending) > COMMITTERS or (pending and pending[0].done()):
                pending.popleft().result()
            pending.append(pool.submit(chunk.commit))

        yield commit
        while pending:
            pending.popleft().result()
