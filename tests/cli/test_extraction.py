"""Long extractions as they happen: looked at beforehand, split among processes, killed, gone on with, verified."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Run, fails, ok
from own_process import HELPERS, SLOW, end, start, wait_for
from tiny import contents

from extract import plan
from stores.store import ActivationStore

NET = ("--model", "tiny_net:build", "--layer", "second")


def test_a_dry_run_says_all_and_writes_nothing(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    root, out = tiny_images(40), tmp_path / "s.zarr"
    (root / "cat" / "003.png").write_text("no picture")
    options = (*NET, "--layer", "first", "--data", root, "--out", out, "--batch-size", 4)
    ended = ok(run("extract", *options, "--dry-run"))
    for part in ("40 images, 4 at a time", "second: 10.2 kB", "first: 30.7 kB", "(enough)", "images/s: about"):
        assert part in ended.out, part
    assert "after first run by the model, 40% of a forward pass" in " ".join(ended.out.split())  # as --layer ? says
    assert "after second pooling and an affine map" in " ".join(ended.out.split())
    assert "1 of 20 images tried cannot be read: see --on-bad-image" in ended.out
    assert not out.exists()
    assert list(tmp_path.iterdir()) == [root]
    found = json.loads(run("extract", *options, "--dry-run --json --quiet").out)
    assert found["layers"] == {"second": 40 * 16 * 8 * 2, "first": 40 * 64 * 6 * 2}
    assert (found["images"], found["fits"], found["tried"], found["unreadable"]) == (40, True, 20, 1)
    assert found["rate"] > 0
    ended = run("extract", *options, "--on-bad-image skip")
    assert "40 images, 4 at a time" in ended.err  # the start of a run says so, too
    stored = json.loads((tmp_path / "s.zarr.run.json").read_bytes())["result"]["bytes"]
    assert found["bytes"] == pytest.approx(stored, rel=0.01)
    assert "0 of 40 images" in run("extract", *options, "--on-bad-image skip --dry-run").out


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage._replace(free=5000))
    options = (*NET, "--data", tiny_images(40), "--out", tmp_path / "s.zarr")
    assert "(NOT enough)" in run("extract", *options, "--dry-run").out
    fails(run("extract", *options), 1, "has 5.0 kB free, but", "--compress zstd, --positions N")
    assert not (tmp_path / "s.zarr").exists()
    assert "(enough only if it compresses well)" in run("extract", *options, "--compress zstd --dry-run").out
    assert run("extract", *options, "--compress zstd").code == 0


def test_two_processes_at_once_give_the_store_of_one(
    tiny_images: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    root = tiny_images(60)
    options = (*NET, "--data", root, "--compress", "zstd", "--positions", 3, "--quiet")
    both = [start(*options, "--out", tmp_path / "s.zarr", "--shard", f"{i}/2", chunk_bytes=200) for i in range(2)]
    assert [end(process) for process in both] == [(0, "")] * 2
    assert end(start(*options, "--out", tmp_path / "one.zarr", chunk_bytes=200)) == (0, "")
    assert ActivationStore.open(tmp_path / "one.zarr").n_chunks == 15
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "one.zarr")
    records = [json.loads((tmp_path / f"s.zarr.shard-{i}-of-2.run.json").read_bytes())["result"] for i in range(2)]
    assert sum(record["done_now"] for record in records) == 60
    assert min(record["missing_chunks"] for record in records) == 0
    assert run("eddp verify", tmp_path / "s.zarr").code == 0


def test_one_shard_only_says_what_is_missing(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    options = (*NET, "--data", tiny_images(10), "--out", tmp_path / "s.zarr")
    ended = ok(run("extract", *options, "--shard 0/3"))
    assert "this shard is done; 1 of 1 chunks are missing yet" in ended.out
    ended = run("eddp verify", tmp_path / "s.zarr")
    fails(ended, 1, "is sound, but it is unfinished: 1 chunks are missing. Run the same extract command")
    assert "unfinished" in run("eddp inspect", tmp_path / "s.zarr").out
    assert "unfinished: 0 of 1 chunks" in run("fit --store", tmp_path / "s.zarr", "--directions 2").err
    ended = run("extract", *options, "--shard 2/3")
    assert "chunks are missing" not in ended.out
    assert run("eddp verify", tmp_path / "s.zarr").code == 0


@pytest.mark.parametrize("shard", ["2/2", "a/b", "1/2/3"])
def test_a_shard_that_is_none(run: Run, tiny_images: Callable[..., Path], tmp_path: Path, shard: str) -> None:
    ended = run("extract", *NET, "--data", tiny_images(2), "--out", tmp_path / "s", f"--shard={shard}")
    fails(ended, 2, f"--shard must be I/N with I from 0 to N-1, such as 0/8, got '{shard}'")


def test_the_same_store_twice_at_once_is_refused(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    options = (*SLOW, "--data", tiny_images(400), "--out", tmp_path / "s.zarr")
    first = start(*options)
    wait_for(tmp_path / "s.zarr" / "commits" / "00000000.json")
    first.send_signal(signal.SIGSTOP)  # or on a busy machine it may end before the other one begins
    try:
        code, err = end(start(*options))
    finally:
        first.send_signal(signal.SIGCONT)
    assert code == 1
    assert "Another process is writing to the store" in err
    code, err = end(first)
    assert code == 0, err
    assert ActivationStore.open(tmp_path / "s.zarr").verify() == []


def test_killed_at_random_times_it_resumes(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    """The real command, ended from outside in each of the ways that a cluster has, wherever it happens to be."""
    options, g = (*SLOW, "--data", tiny_images(100)), random.Random(7)
    assert end(start(*options, "--out", tmp_path / "whole"))[0] == 0
    done = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = start(*options, "--out", tmp_path / "s")
        wait_for(tmp_path / "s" / "zarr.json")
        wait_for(tmp_path / "s" / "commits" / f"{len(done) * 4:08d}.json")
        time.sleep(g.uniform(0, 0.1))
        process.send_signal(number)
        code, err = end(process)
        assert code == (-number if number == signal.SIGKILL else 130), err
        if number != signal.SIGKILL:
            assert "Interrupted. What was committed is stored" in err
            assert "Traceback" not in err
        done.append(len(list((tmp_path / "s" / "commits").glob("*.json"))))
    assert done == sorted(done)
    assert done[-1] < 25
    code, err = end(start(*options, "--out", tmp_path / "s"))
    assert code == 0, err
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 1.0)])
def test_interrupted_while_libraries_are_still_loading(tmp_path: Path, number: int, after: float) -> None:
    code = "from pipeline.entry import extract; print('begun', flush=True); extract()"
    arguments = (*NET, "--data", tmp_path / "none", "--out", tmp_path / "s")
    process = start(*arguments, code=code)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(number)
    code, err = end(process)
    if "There is no folder" not in err:  # a machine so quick that the command had ended
        assert code == 130
        # once the libraries are loaded, click ends the line of a terminal's ^C first
        assert (
            err.removeprefix("\n")
            == "Interrupted. What was committed is stored: run the same command again to resume.\n"
        )


def test_results_that_cannot_be_printed(tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    options = (*NET, "--data", tiny_images(4), "--out", tmp_path / "s.zarr", "--quiet")
    command = [sys.executable, "-m", "pipeline.main", "extract", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("No space left on device.\n")
    assert ended.stderr.count("\n") == 1
    closed = subprocess.run(
        ["bash", "-c", '"$@" >&- 2>&-', "bash", *command], env=environment, check=False, capture_output=True
    )
    assert closed.returncode == 0
    assert ActivationStore.open(tmp_path / "s.zarr").verify() == []


def test_places_that_cannot_be_written_to_end_in_one_message(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_images(4)
    fails(run("extract", *NET, "--data", root, "--out", tmp_path / ("x" * 300)), 2, "File name too long")
    assert run("extract", *NET, "--data", root, "--out", tmp_path / "s").code == 0
    ended = run("extract", *NET, "--data", root, "--out", tmp_path / "s" / "images" / "inner.zarr")
    fails(ended, 2, f"is within the store '{tmp_path / 's'}'")
    ended = run("extract", *NET, "--data", root, "--out", tmp_path / "t", "--seed", 2**63)
    fails(ended, 2, "'seed' must not be negative, nor 2^63 or more")
    monkeypatch.chdir(tmp_path / "s")
    assert run("extract", *NET, "--data", root, "--out . --overwrite").code == 0
    assert (tmp_path / "s.run.json").is_file()
    run("extract", *NET, "--data", root, "--out", tmp_path / "u")
    (tmp_path / "u/images/names/c.0.0").unlink()
    (tmp_path / "u.run.json").unlink()
    (tmp_path / "u.run.json").mkdir()  # the record cannot be written, but the store can
    ok(run("extract", *NET, "--data", root, "--out", tmp_path / "u"))
    assert ActivationStore.open(tmp_path / "u").verify() == []


def test_a_folder_of_bad_images_only(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    root = tiny_images(4)
    for file in root.rglob("*.png"):
        file.write_text("no picture")
    ended = ok(run("extract", *NET, "--data", root, "--out", tmp_path / "s", "--on-bad-image skip"))
    assert "Warning: not one of the images could be read." in ended.err


def test_overwriting_counts_what_it_frees(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*NET, "--data", tiny_images(40), "--out", tmp_path / "s.zarr")
    assert run("extract", *options).code == 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage._replace(free=5000))
    assert run("extract", *options, "--overwrite").code == 0
