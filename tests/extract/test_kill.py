"""Killed at any step of its writing, an extraction that is run again leaves the store of one that was never stopped."""

import collections
import errno
import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killed import extract_in_a_process
from tiny import contents

from extract.datasets import open_source
from extract.stream import ExtractConfig, extract
from stores import io
from stores.errors import MissingPathError, StoreError, UnsealedStoreError
from stores.store import ActivationStore

OPTIONS = {
    "none": {"layers": ("act", "second"), "dtype": "float16"},
    "zstd": {"layers": ("second",), "dtype": "float32", "compress": "zstd", "positions": 5},
}
COMMON = {"model": "tiny_net:build", "chunk_images": 4, "batch_size": 3, "workers": 0, "on_bad_image": "skip"}
PHASES = {
    *(f"{kind}: {what}" for kind in ("chunk", "commit", "root") for what in
      ("before a byte", "half written", "written", "synced", "before the rename", "renamed", "sync folder")),
    "layout: before a byte", "layout: half written", "layout: written", "layout: synced",
    "layout: before the rename", "layout: renamed",
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_killed_at_every_phase_of_a_commit_it_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_images: Callable[..., Path], codec: str
) -> None:
    root = tiny_images(10)
    (root / "cat" / "002.png").write_text("no picture")
    options = {**COMMON, **OPTIONS[codec]}
    whole, steps = tmp_path / "whole", tmp_path / "steps.json"
    assert extract_in_a_process(root, whole, options, steps=steps) == 0
    wanted = contents(whole)
    taken = collections.Counter(json.loads(steps.read_text()))
    assert set(taken) == PHASES  # each step of writing is among those that are interrupted
    g = np.random.default_rng(5)
    points = [(phase, int(g.integers(taken[phase]))) for phase in sorted(PHASES)][:: 1 if codec == "none" else 3]
    for number, point in enumerate(points):
        out = tmp_path / f"{number}"
        assert extract_in_a_process(root, out, options, stop_at=point) == -signal.SIGKILL, point
        try:
            done = ActivationStore.open(out)
        except (UnsealedStoreError, MissingPathError):  # refused, and nothing else, until it is whole
            pass
        else:
            assert point[0].startswith("root"), point
            assert done.verify() == []
        if number % 5 == 0:  # and killed again while it goes on, unless that has nothing left to do
            again = points[int(g.integers(len(points)))]
            assert extract_in_a_process(root, out, options, stop_at=again) in (0, -signal.SIGKILL)
        assert extract_in_a_process(root, out, options) == 0, point
        assert contents(out) == wanted, point


def full(number: int) -> Callable[[int, io.Data], None]:
    """A disk that is full from the n-th write on, in the midst of it."""
    write, calls = io.write_bytes, itertools.count()

    def fails(handle: int, data: io.Data) -> None:
        if next(calls) < number:
            return write(handle, data)
        write(handle, memoryview(data).cast("B")[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    return fails


def short(number: int) -> Callable[[int, io.Data], None]:
    """A disk that says it took the n-th write, but kept only half of it."""
    write, calls = io.write_bytes, itertools.count()

    def lies(handle: int, data: io.Data) -> None:
        write(handle, memoryview(data).cast("B")[: len(data) // 2] if next(calls) == number and len(data) > 1 else data)

    return lies


@pytest.mark.parametrize(
    ("codec", "fault", "told", "first"),
    [
        ("none", full, "No space left on device", 0),
        ("zstd", full, "No space left on device", 1),
        ("none", short, "bytes arrived on the disk", 2),
        ("zstd", short, "bytes arrived on the disk", 3),
    ],
)
def test_a_disk_that_fails_at_any_write_loses_nothing(
    tmp_path: Path, tiny_images: Callable[..., Path], codec: str, fault: Callable, told: str, first: int
) -> None:
    """Every fourth write of each of four kinds: together all of them."""
    root, config = tiny_images(10), ExtractConfig(**{**COMMON, **OPTIONS[codec]})
    source = open_source(root)
    extract(source, tmp_path / "whole", config)
    wanted = contents(tmp_path / "whole")
    for number in itertools.count(first, 4):
        out = tmp_path / f"{number}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "write_bytes", fault(number))
            try:
                extract(source, out, config)
                break  # it has fewer writes than that
            except StoreError as error:
                message = str(error)
        assert told in message
        assert "Nothing committed before is lost" in message
        with pytest.raises((UnsealedStoreError, MissingPathError)):
            ActivationStore.open(out)
        assert not list(out.rglob("*.partial"))
        extract(source, out, config)
        assert contents(out) == wanted, number
    assert number > 20


@pytest.mark.parametrize("step", ["sync", "rename"])
def test_a_filesystem_that_disappears_is_reported(
    tmp_path: Path, tiny_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    root, config = tiny_images(10), ExtractConfig(**{**COMMON, **OPTIONS["none"]})
    calls, real = itertools.count(), getattr(io, step)

    def gone(*arguments: object) -> None:
        if next(calls) >= 25:
            raise OSError(errno.ESTALE, "Stale file handle")
        real(*arguments)

    monkeypatch.setattr(io, step, gone)
    with pytest.raises(StoreError, match="Stale file handle. Nothing committed before is lost"):
        extract(open_source(root), tmp_path / "s", config)
    monkeypatch.undo()
    extract(open_source(root), tmp_path / "s", config)
    extract(open_source(root), tmp_path / "whole", config)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
