"""A fit that is killed: progress that raises when a stage has come to a step, and the fit that resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fit.base import Fitter
from fit.checkpoint import Checkpoint
from stores.progress import Progress
from stores.readers import LayerReader


class Killed(Exception):
    """As if the process had gone."""


def killed_at(stage: str, step: int) -> Progress:
    """Progress that raises Killed at a stage's step."""

    def progress(name: str, done: int, total: int | None = None, note: str = "") -> None:
        if name == stage and done >= step:
            raise Killed

    return progress


def resumed(make: Callable[[], Fitter], reader: LayerReader, path: Path, kills: Iterable[tuple[str, int]]) -> Fitter:
    """What a fit gives that is killed at each of these stages and steps, each time from where the last one was killed."""
    keep = Checkpoint(path, minutes=0)
    for stage, step in kills:
        with pytest.raises(Killed):
            make().fit(reader, progress=killed_at(stage, step), checkpoint=keep)
    return make().fit(reader, checkpoint=keep)


def same(a: Fitter, b: Fitter) -> bool:
    """Whether two fits have the same bits, and the same log."""
    pairs = ((a.filters_, b.filters_), (a.signals_, b.signals_), (a.thresholds_, b.thresholds_))
    return all(x.tobytes() == y.tobytes() for x, y in pairs) and a.log_ == b.log_
