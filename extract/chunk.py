"""One range of images on its way into the store: filled batch by batch, committed by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from extract.forward import Forward, Outcome
from extract.image_source import ImageSource
from stores.errors import NonFiniteError
from stores.layers import LayerSpec
from stores.writer import StoreWriter

THREADS = 2  # that commit: while one waits for the disk, the other computes checksums or compresses


def sampled_positions(spec: LayerSpec, image: int, seed: int) -> np.ndarray:
    """Positions kept of one image, ascending: drawn by a seed of its own, so batches and restarts do not matter."""
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
        """Take in what a pass gave of images that could be read. Raises NonFiniteError naming the first unfit one."""
        outcome.wait()
        rows = good[outcome.start : outcome.start + len(outcome.images)]
        local: Any = np.asarray(rows) - self.span.start
        if len(local) == local[-1] - local[0] + 1:
            local = slice(int(local[0]), int(local[-1]) + 1)  # copied in one go
        self.logits[local] = outcome.logits.numpy()
        unfit = np.flatnonzero(~np.isfinite(self.logits[local]).all(1))
        if len(unfit):
            raise NonFiniteError(
                f"The model gives NaN or infinite logits on image '{self.source.name(rows[unfit[0]])}'. Look at that image "
                "and at the model's weights."
            )
        for name, fit in outcome.fit.items():
            if not bool(fit.all()):
                bad = int((~fit).nonzero()[0, 0])
                self._refuse(name, rows[bad], forward.peak(outcome.images[bad], name))
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

    def _refuse(self, layer: str, row: int, peak: float) -> None:
        image = self.source.name(row)
        if np.isfinite(peak) and peak > float(np.finfo(self.activations[layer].dtype).max):
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
            positions=self.positions,
            skipped=sorted(self.skipped, key=lambda entry: entry["row"]),
        )


class Committer:
    """Writes full chunks in threads of its own, so that the network rarely waits for the disk.

    At most one chunk waits beside those being written: memory stays bounded.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[Chunk | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name=f"commit-{k}", daemon=True) for k in range(THREADS)]

    def __enter__(self) -> Committer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, chunk: Chunk) -> None:
        """Hand a full chunk over. Raises what went wrong with an earlier one."""
        if self._error is not None:
            raise self._error
        self._waiting.put(chunk)

    def _work(self) -> None:
        while (chunk := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # keep taking, so that put never blocks; nothing more is written after a failure
            try:
                chunk.commit()
            except BaseException as error:  # noqa: BLE001  (raised by put or at the end, never swallowed)
                self._error = error
