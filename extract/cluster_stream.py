"""An extraction on the workers of a dask cluster: the store is laid out here, filled there, and sealed by whoever is last.

A task is a range of chunks. What a lost worker has committed stays; dask gives its task to another one, which goes on there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from extract.checkpoints import find_file, spelled
from extract.cluster import settled, workers_of
from extract.cluster_worker import Order, batch_size, fill_part, look_ahead
from extract.config import ExtractConfig
from extract.image_source import ImageSource, scheme_of
from extract.plan import TRIED, Forecast, forecast, plan_extraction, require_room
from extract.stream import ExtractSummary, batch_size_of, summary_of
from stores.errors import EDDPError, UsageError
from stores.paths import as_path
from stores.plan import shard_chunks
from stores.progress import Progress, silent
from stores.writer import StoreWriter

log = logging.getLogger(__name__)
PARTS = 4  # a worker, at least: enough to even out, and little is to be gone on with when one is lost
LEAST = 32  # parts where there are that many chunks: workers may join while it lasts
NOTHING = (0, 2**62)  # a shard without a chunk: lays out and seals, and holds nothing against the workers


def extract_on(
    client: Any,
    source: ImageSource,
    data: str,
    out: str | Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    code_version: str = "",
    progress: Progress = silent,
    announce: Callable[[Forecast], None] | None = None,
) -> ExtractSummary:
    """``extract.stream.extract`` on a cluster: the same store to the byte, however many workers are lost.

    Parameters
    ----------
    client : a ``distributed.Client``; its workers see the same files.
    source, data : the images, and what ``open_source`` was given for them: workers open them by themselves.
    config : ``device`` may be ``auto``, what each worker has.

    Raises what ``extract`` raises, here or on a worker, EDDPError when the cluster is gone or sees other files. What is
    committed stays; the same call, or ``extract``, goes on from there.
    """
    if config.shard is not None:
        raise UsageError("'shard' cannot go with a cluster: its workers share out the whole store.")
    out = as_path(out)
    progress("loading the model", 0)
    order = _order(data, out, config, code_version)
    if config.batch_size is None and config.device != "cpu":  # what suits the workers, whatever is here
        config = replace(config, batch_size=_first_result(client, batch_size, order))
    here = replace(config, device="cpu" if config.device == "cpu" else "auto")  # nothing is run here
    plan = plan_extraction(source, here, code_version=code_version)
    ahead = forecast(plan, out, overwrite=overwrite)
    require_room(ahead, out)
    if announce is not None:
        announce(ahead)
    for doubt in plan.overview.warnings:
        log.warning("%s", doubt)
    with closing(
        StoreWriter.create_or_resume(out, plan.store, shard=None if overwrite else NOTHING, overwrite=overwrite)
    ) as writer:
        size = batch_size_of(writer, plan.config)
        missing = set(writer.missing(anywhere=True))
    order = replace(order, config=replace(order.config, batch_size=size, chunk_images=writer.chunk_images))
    images = ranges_of_images(plan.n_images, writer.chunk_images)
    parts = {f"{order.run}-{part[0]}": part for part in parts_of(missing, writer.n_chunks, workers_of(client))}
    gathered = Gathered(progress, announce, ahead, size * workers_of(client))
    for i, n in parts.values():
        chunks = shard_chunks((i, n), writer.n_chunks)
        gathered.begin(i, sum(images(k) for k in chunks), sum(images(k) for k in chunks if k in missing))
    with gathered.listening(client, order.run):
        for future in settled(client, _submitted(client, order, parts), gathered.tick):
            gathered.end(parts[future.key][0])
    with closing(StoreWriter.create_or_resume(out, plan.store, shard=NOTHING)) as writer:
        if not writer.seal_if_complete():
            raise EDDPError(
                f"The workers have filled all chunks, but {len(writer.missing(anywhere=True))} of {writer.n_chunks} are missing "
                f"at '{out}' (--dask): they see another file system there. Give them the same, then run the same again."
            )
        return summary_of(plan, writer, range(writer.n_chunks), ahead.images, size, 0)


def forecast_on(
    client: Any, data: str, out: str | Path, config: ExtractConfig, *, overwrite: bool = False, code_version: str = ""
) -> Forecast:
    """``extract.plan.forecast`` as one worker measures it, times the workers there are."""
    found: Forecast = _first_result(client, look_ahead, _order(data, as_path(out), config, code_version), overwrite)
    return found.at(found.rate and found.rate * workers_of(client))


def parts_of(missing: set[int], n_chunks: int, workers: int) -> list[tuple[int, int]]:
    """Parts (i, n) of the chunks, even, of which something is missing: a few a worker, none without a chunk."""
    if not missing:
        return []
    wanted = max(PARTS * workers, LEAST)
    n = min(n_chunks, -(-wanted * n_chunks // len(missing)))  # more, and smaller ones, where little is missing
    return [(i, n) for i in range(n) if any(k in missing for k in shard_chunks((i, n), n_chunks))]


def _submitted(client: Any, order: Order, parts: dict[str, tuple[int, int]]) -> set[Any]:
    return {client.submit(fill_part, order, part, key=key, pure=False) for key, part in parts.items()}


class Gathered:
    """How far all parts are together, from what each tells.

    Parameters
    ----------
    announce : told once of the rate. ahead : what lies ahead. warm : images of one round of batches on all workers.
    """

    def __init__(
        self, progress: Progress, announce: Callable[[Forecast], None] | None, ahead: Forecast, warm: int
    ) -> None:
        self.progress, self.announce, self.ahead, self.warm = progress, announce, ahead, warm
        self.left: dict[int, int] = {}  # images of each part that are still to do
        self.images: dict[int, int] = {}
        self.begun: tuple[float, int] | None = None
        self.shown = -1

    def begin(self, part: int, images: int, missing: int) -> None:
        """A part of so many images, of which some are missing, lies ahead."""
        self.images[part], self.left[part] = images, missing

    def hear(self, event: tuple[float, dict[str, int]]) -> None:
        """What a worker tells: ``part``, and of its images how many are ``done``."""
        part, done = event[1]["part"], event[1]["done"]
        if part in self.images:
            self.left[part] = self.images[part] - done

    def end(self, part: int) -> None:
        """A part is done, whatever is heard of it yet."""
        self.left[part] = 0
        del self.images[part]
        self.tick()

    def tick(self) -> None:
        """Show where it stands, and tell the rate once it is known."""
        done = self.ahead.total_images - sum(self.left.values())
        if done != self.shown:
            self.shown = done
            self.progress("extraction", done, self.ahead.total_images)
        if self.announce is None or done <= self.ahead.total_images - self.ahead.images:
            return
        now = time.monotonic()
        if self.begun is None:
            self.begun = now, done
        elif (more := done - self.begun[1]) >= TRIED * self.warm:
            self.announce(self.ahead.at(more / (now - self.begun[0])))
            self.announce = None

    @contextmanager
    def listening(self, client: Any, topic: str) -> Iterator[None]:
        """Hear what workers tell on a topic, while the block lasts."""
        client.subscribe_topic(topic, self.hear)
        try:
            yield
        finally:
            if client.status == "running":
                client.unsubscribe_topic(topic)


def ranges_of_images(n_images: int, rows: int) -> Callable[[int], int]:
    """From a chunk's number to how many images it holds."""
    return lambda chunk: min(rows, n_images - chunk * rows)


def _order(data: str, out: Path, config: ExtractConfig, code_version: str) -> Order:
    """Everything by its full path: workers are started in folders of their own."""
    scheme, root = scheme_of(data)
    data = str(root.absolute())
    if (weights := find_file(config.weights)) is not None:
        config = replace(config, weights=spelled(*weights))
    return Order(
        run=f"eddp-extract-{uuid4().hex}",
        data=data if scheme is None else f"{scheme}:{data}",
        out=str(out.absolute()),
        config=config,
        code_version=code_version,
        folder=str(Path.cwd()),
    )


def _first_result(client: Any, work: Callable[..., Any], *arguments: Any) -> Any:
    return next(settled(client, {client.submit(work, *arguments, pure=False)})).result()
