"""Videos through the command line, for a network that takes images: damaged files, interrupted runs, shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from PIL import Image
from tiny import contents
from video_clips import MOVES, put_clips

from extract.datasets import open_source
from extract.models import load_model
from extract.video import Clip
from extract.video_rows import frame_rows
from stores import layout
from stores.store import ActivationStore

NET = ("--model", "tiny_net:build", "--layer", "second", "--frames", 4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_clips(tmp_path_factory.mktemp("videos"), 2)


def test_frames_of_videos_are_rows(run: Run, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    ended = ok(run("extract", *NET, "--data", videos, "--out", out, "--dtype float32"))
    store = ActivationStore.open(out)
    names = [f"{name}/{name}_{k}.mp4#{frame}" for name in sorted(MOVES) for k in range(2) for frame in range(4)]
    assert list(store.names) == names
    assert store.labels.tolist() == [label for label in range(4) for _ in range(8)]
    # each row against a forward pass of its frame
    loaded, rows = load_model("tiny_net:build"), frame_rows(open_source(videos), 4)
    for row in (0, 7, 31):
        logits = loaded.module(loaded.transform(rows.image(row))[None]).detach().numpy()[0]
        np.testing.assert_allclose(store.logits[row], logits, rtol=1e-4, atol=1e-5)
    assert "4 frames of each video" in ended.err
    assert ok(run("extract", *NET, "--data", videos, "--out", out, "--dtype float32")).code == 0  # done: nothing to do
    fails(run("extract", *NET[:-1], 5, "--data", videos, "--out", out, "--dtype float32"), 2)  # another store


def test_damaged_videos_are_skipped_with_all_their_frames(run: Run, videos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(videos, tmp_path / "videos")
    clip = root / "left" / "left_1.mp4"
    clip.write_bytes(clip.read_bytes()[:-100])
    options = (*NET, "--data", root, "--out", tmp_path / "s.zarr")
    fails(run("extract", *options), 1, "'left/left_1.mp4' is cut short")
    ok(run("extract", *options, "--on-bad-image skip --overwrite"))
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert [store.names[row] for row in np.flatnonzero(~store.valid)] == [f"left/left_1.mp4#{k}" for k in range(4)]


def test_shards_and_an_interrupted_run_give_the_same_store(
    run: Run, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "TARGET_CHUNK_BYTES", 1024)  # chunks of 4 rows: they begin in the middle of a video
    options = (*NET[:-1], 3, "--data", videos, "--batch-size", 2, "--quiet")
    one, two, resumed = (tmp_path / name for name in ("one.zarr", "two.zarr", "resumed.zarr"))
    ok(run("extract", *options, "--out", one))
    assert ActivationStore.open(one).n_chunks == 6
    for shard in ("1/2", "0/2"):
        ok(run("extract", *options, "--out", two, "--shard", shard))
    assert contents(two) == contents(one)

    frames = Clip.frames

    def interrupted(clip: Clip, count: int, rate: float | None = None) -> list[Image.Image]:
        if clip.name.startswith("up/") and resumed.exists():  # it is looked at before the run begins, too
            raise KeyboardInterrupt
        return frames(clip, count, rate)

    monkeypatch.setattr(Clip, "frames", interrupted)
    assert run("extract", *options, "--out", resumed).code == 130
    assert 0 < len(list((resumed / "commits").glob("*.json"))) < 6
    monkeypatch.setattr(Clip, "frames", frames)
    ok(run("extract", *options, "--out", resumed))
    assert contents(resumed) == contents(one)
