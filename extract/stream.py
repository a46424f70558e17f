"""Images → store: one pass of the network over all images, every layer's activations committed range by range."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.chunk import Chunk, Committer
from extract.config import ExtractConfig
from extract.forward import Outcome
from extract.image_io import shown
from extract.image_source import ImageSource
from extract.loader import Batch, Decode, decoded
from extract.overview import as_record
from extract.plan import TRIED, Forecast, Plan, forecast, plan_extraction, require_room
from stores.errors import ImageError
from stores.paths import as_path
from stores.progress import Progress, silent
from stores.writer import StoreWriter

log = logging.getLogger(__name__)

__all__ = ["ExtractConfig", "ExtractSummary", "extract"]


@dataclass
class ExtractSummary:
    """What a run of ``extract`` did: images in its part of the store, those skipped, those done by this run.

    ``layers`` maps each layer to (N, P, C) of the whole store; ``missing`` of its ``chunks`` have still to be committed by
    other shards: 0 once the store is sealed. ``about`` is the overview of the run.
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
    """Extract activations of one or more layers into a store, or go on with an unfinished one.

    ``announce`` is told what lies ahead before anything is written, and again, with the rate and the time that is left,
    once a few batches have been measured.

    Raises the errors of ``plan_extraction`` and ``StoreWriter``; StoreError when the disk cannot hold what is to be written;
    ImageError for an image that is damaged unless ``on_bad_image`` is "skip", EDDPError where the disk does not answer; NonFiniteError naming the first image
    whose activations are NaN or do not fit float16. Everything committed before stays; the same call goes on from there.
    """
    out = as_path(out)
    progress("loading the model", 0)
    plan = plan_extraction(source, config, code_version=code_version)
    ahead = forecast(plan, out, overwrite=overwrite)
    require_room(ahead, out)
    if announce is not None:
        announce(ahead)
    for doubt in plan.overview.warnings:
        log.warning("%s", doubt)

    def measured(rate: float) -> None:
        if announce is not None:
            announce(ahead.at(rate))

    with closing(StoreWriter.create_or_resume(out, plan.store, shard=config.shard, overwrite=overwrite)) as writer:
        return fill(plan, writer, progress=progress, measured=measured)


def fill(
    plan: Plan,
    writer: StoreWriter,
    *,
    progress: Progress = silent,
    measured: Callable[[float], None] = lambda rate: None,
) -> ExtractSummary:
    """Fill the chunks of a writer that are missing, and seal the store if no other is.

    ``measured`` is told images a second, once a few batches have been run. Raises what ``extract`` raises once it has begun.
    """
    batch_size = batch_size_of(writer, plan.config)
    done = 0 if writer.sealed else _run(plan, writer, batch_size, progress, measured)
    missing = 0 if writer.seal_if_complete() else len(writer.missing(anywhere=True))
    return summary_of(plan, writer, writer.span, done, batch_size, missing)


def summary_of(
    plan: Plan, writer: StoreWriter, chunks: range, done: int, batch_size: int, missing: int
) -> ExtractSummary:
    """What is in some chunks of a store; ``done`` images by this run, ``missing`` chunks in all."""
    records = [record for k, record in writer.ledger.records().items() if k in chunks]
    skipped = [entry for record in records for entry in record.skipped]
    size = sum(entry["bytes"] for record in records for entry in record.arrays.values())
    images = sum(record.rows for record in records) - len(skipped)
    shapes = {spec.name: (plan.n_images, spec.positions, spec.channels) for spec in plan.specs}
    return ExtractSummary(
        images, skipped, done, shapes, size, batch_size, missing, writer.n_chunks, as_record(plan.overview)
    )


def batch_size_of(writer: StoreWriter, config: ExtractConfig) -> int:
    """The batch size a store was begun with, unless another was asked for: the same gives the same bits."""
    begun = int(writer.provenance.get("batch_size", config.batch_size or 16))
    if config.batch_size is None or config.batch_size == begun:
        return begun
    log.warning(
        "'%s' was begun with batches of %d images; with %d the last bits of its activations may differ from there on",
        writer.path, begun, config.batch_size,
    )  # fmt: skip
    return config.batch_size


class _Batches(Sequence[list[int]]):
    """Lists of rows, made when asked for: a million images need no million numbers.

    Batches never cross a chunk, so that a restart changes no batch.
    """

    def __init__(self, chunks: list[int], rows: int, n_images: int, size: int) -> None:
        self.chunks, self.rows, self.n_images, self.size = chunks, rows, n_images, size
        self.per_chunk = -(-rows // size)
        whole = len(chunks) - 1
        self.length = whole * self.per_chunk + -(-len(self.span(chunks[-1])) // size) if chunks else 0

    def span(self, chunk: int) -> range:
        """Images of a chunk."""
        return range(chunk * self.rows, min((chunk + 1) * self.rows, self.n_images))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: Any) -> Any:
        if not 0 <= k < self.length:
            raise IndexError(k)
        chunk, batch = divmod(k, self.per_chunk)
        span = self.span(self.chunks[chunk])
        return list(span[batch * self.size : (batch + 1) * self.size])


def _run(plan: Plan, writer: StoreWriter, size: int, progress: Progress, measured: Callable[[float], None]) -> int:
    """Fill every missing chunk of this writer; returns the number of images done."""
    missing = writer.missing()
    batches = _Batches(missing, writer.chunk_images, writer.n_images, size)
    before = sum(len(batches.span(k)) for k in set(writer.span) - set(missing))
    total = before + sum(len(batches.span(k)) for k in missing)
    cuda = plan.config.device.startswith("cuda")
    decode = Decode(plan.source, plan.first.transform, batches)
    done, warm, begun = 0, 0, 0.0
    progress("extraction", before, total)  # from here on: what is told later was done by this run
    with (
        closing(decoded(decode, workers=plan.workers, pin=cuda)) as stream,
        Committer() as committer,
        plan.forward() as forward,
    ):

        def settle(chunk: Chunk, batch: Batch, outcomes: list[Outcome]) -> None:
            nonlocal done, warm, begun
            chunk.skip(batch.reasons)
            for outcome in outcomes:
                chunk.add(batch.good, outcome, forward)
            if chunk.full:
                committer.put(chunk)
            done += len(batch.rows)
            progress("extraction", before + done, total, "")
            if done == len(batch.rows):
                warm, begun = done, time.perf_counter()
            elif begun and done - warm >= TRIED * size:
                measured((done - warm) / (time.perf_counter() - begun))
                begun = 0.0

        chunk: Chunk | None = None
        behind: deque[tuple[Chunk, Batch, list[Outcome]]] = deque()
        for batch in _checked(stream, plan):
            number = batch.rows[0] // writer.chunk_images
            if chunk is None or chunk.number != number:
                chunk = Chunk(number, batches.span(number), plan.source, writer)
            outcomes = [] if batch.images is None else list(forward(batch.images, chunk.picked(batch.good)))
            behind.append((chunk, batch, outcomes))
            if len(behind) > int(cuda):  # a GPU works on this batch while the one before it is stored
                settle(*behind.popleft())
        while behind:
            settle(*behind.popleft())
    return done


def _checked(stream: Iterator[Batch], plan: Plan) -> Iterator[Batch]:
    """The batches, unless an image could not be read and that is to stop the run."""
    for batch in stream:
        if batch.reasons and plan.config.on_bad_image == "fail":
            row, reason = next(iter(batch.reasons.items()))
            raise ImageError(
                f"{reason} It is image {row} of '{shown(plan.source.root)}'. What is done so far is kept: run the same command with "
                "--on-bad-image skip to leave such images out. After fixing or removing it, start again with --overwrite."
            )
        yield batch
