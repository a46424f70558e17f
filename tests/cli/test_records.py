"""Records of runs as the commands leave them, and what ``eddp inspect`` shows of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, ok
from own_process import SLOW, end, start, wait_for

from pipeline import run as run_module

NET = ("--model", "tiny_net:build", "--layer", "second", "--workers", 0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.layout.TARGET_CHUNK_BYTES", 1024)


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_what_a_record_says(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    root, out = tiny_images(40), tmp_path / "s.zarr"
    (root / "cat" / "003.png").write_text("no picture")
    ok(run("extract", *NET, "--data", root, "--out", out, "--on-bad-image skip --batch-size 4 --device cpu"))
    found = record(tmp_path / "s.zarr.run.json")
    assert (found["command"], found["outcome"]) == ("extract", "done")
    assert found["options"]["batch_size"] == "4"
    assert found["options"]["out"] == str(out)
    assert found["begun"] <= found["ended"]
    assert found["begun"].endswith("+00:00")
    assert found["device"]["kind"] == "cpu"
    assert found["device"]["name"]
    assert 1 <= found["device"]["cores"] <= (os.cpu_count() or 1)
    assert found["host"] == os.uname().nodename
    assert found["pid"] == os.getpid()
    assert found["peak_memory_mib"] > 50
    assert found["python"] == sys.version.split()[0]
    assert found["code_version"].startswith("0.")
    assert found["libraries"]["numpy"] == np.__version__
    assert "peak_gpu_memory_mib" not in found
    assert "gpu_busy" not in found
    assert (found["result"]["images"], found["result"]["done_now"]) == (39, 40)
    assert found["result"]["skipped"][0]["row"] == 3
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert (stages["extraction"]["done"], stages["extraction"]["total"]) == (40, 40)
    assert found["rates"]["images_per_second"] == pytest.approx(stages["extraction"]["per_second"], rel=1e-2)
    written = found["rates"]["images_per_second"] * found["result"]["bytes"] / 40 / 1e6
    assert found["rates"]["mb_written_per_second"] == pytest.approx(written, abs=1e-3)
    assert sum(stage["seconds"] for stage in found["stages"]) <= found["seconds"] + 0.05


def test_an_extraction_that_failed_and_resumed(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    root, out, file = tiny_images(40), tmp_path / "s.zarr", tmp_path / "s.zarr.run.json"
    (root / "dog" / "030.png").write_text("no picture")
    options = (*NET, "--data", root, "--out", out, "--batch-size", 4)
    ended = run("extract", *options)
    assert ended.code == 1
    failed = record(file)
    assert failed["outcome"] == "failed"
    assert f"Error: {failed['error']}\n" in ended.err
    assert "It is image 30 of" in failed["error"]
    assert failed["done_now"] == 28  # batches of 4 before the one with image 30
    assert failed["reached"] == "extraction, 28 of 40"
    assert "attempts" not in failed
    shown = ok(run("eddp inspect", out)).out
    assert "run: extract, failed after" in shown
    assert "It is image 30 of" in shown
    options = (*options, "--on-bad-image", "skip")
    ok(run("extract", *options))
    done = record(file)
    assert done["outcome"] == "done"
    assert [one["error"] for one in done["attempts"]] == [failed["error"]]
    assert done["attempts"][0]["done_now"] == 28
    assert 0 < 40 - done["result"]["done_now"] <= 28  # what was committed by the first
    # once more: nothing is left to do, and the record of what was done stays
    ok(run("extract", *options))
    again = record(file)
    assert again["result"]["done_now"] == done["result"]["done_now"]
    assert [one["done_now"] for one in again["attempts"]] == [28, 0]
    # nor does a failure that changed nothing replace it
    assert run("extract", *options, "--seed 1").code == 2  # wrong use: another seed would give another store
    assert record(file) == again
    shown = ok(run("eddp inspect", out)).out
    assert "run: extract, done in" in shown
    assert shown.count("; started") == 3


def test_activations_that_are_nan(run: Run, network: str, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    sys_module = __import__("importlib").import_module("toy_network")
    sys_module.SCALE = float("nan")
    ended = run(
        "extract --model", network, "--layer conv --data", tiny_images(8), "--out", tmp_path / "s.zarr", "--workers 0"
    )
    assert ended.code == 1, ended.err
    found = record(tmp_path / "s.zarr.run.json")
    assert found["outcome"] == "failed"
    assert f"Error: {found['error']}\n" in ended.err


def test_wrong_use_leaves_no_record(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    for options in (("--layer", "nowhere"), ("--device", "cuda:99"), ("--dtype", "float64")):
        ended = run("extract", *NET, "--data", tiny_images(4), "--out", tmp_path / "out" / "s.zarr", *options)
        assert ended.code == 2
    assert run("fit --store", tmp_path / "none", "--directions 3 --out", tmp_path / "out" / "d.safetensors").code == 2
    given = ("--store", tmp_path / "none", "--directions", tmp_path / "d", "--ground-truth")
    assert run("evaluate", *given, "--out", tmp_path / "out" / "e").code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped(run: Run, tiny_images: Callable[..., Path], tmp_path: Path, number: int) -> None:
    """Asked to end it says so in its record; killed, what it told on its way is there, and inspect sees that it is dead."""
    root, out, file = tiny_images(400), tmp_path / "s.zarr", tmp_path / "s.zarr.shard-0-of-2.run.json"
    process = start(*SLOW, "--workers", 0, "--data", root, "--out", out, "--shard", "0/2")
    wait_for(file, process)
    process.send_signal(signal.SIGSTOP)  # it shall not end before it has been looked at
    assert record(file)["outcome"] == "running"
    assert record(file)["pid"] == process.pid
    shown = json.loads(ok(run("eddp inspect", out, "--json --quiet")).out)
    assert shown["shards"]["rows"][0]["outcome"] == "running"
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    code, err = end(process)
    assert code == (-number if number == signal.SIGKILL else 130), err
    found = record(file)
    assert found["outcome"] == ("running" if number == signal.SIGKILL else "interrupted")
    assert found["reached"].startswith("extraction, ")
    assert found["done_now"] >= 4
    assert found["shard"] == "0/2"
    shown = ok(run("eddp inspect", out, "--quiet")).out
    state = "lost" if number == signal.SIGKILL else "interrupted"
    assert f"shards: 2, of which 1 {state}, 1 without a record" in shown
    assert "no record of shard 1" in shown


def test_a_job_all_of_whose_processes_are_asked_to_end_was_interrupted(
    tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    """As SLURM does it: the decoding processes get the signal as well, and leave it to the one that started them."""
    options = (*SLOW, "--workers", 2, "--data", tiny_images(400), "--out", tmp_path / "s.zarr")
    process = start(*options, own_session=True)
    wait_for(tmp_path / "s.zarr.run.json", process)
    os.killpg(process.pid, signal.SIGTERM)
    code, err = end(process)
    assert code == 130, err
    assert record(tmp_path / "s.zarr.run.json")["outcome"] == "interrupted"


def test_every_stage_leaves_its_record(run: Run, tiny_broden: Callable[..., Any], tmp_path: Path) -> None:
    broden, store, d = tiny_broden().root, tmp_path / "s.zarr", tmp_path / "d.safetensors"
    for k in range(2):
        ok(run("extract", *NET, "--data", broden, "--out", store, "--shard", f"{k}/2"))
    shards = json.loads(ok(run("eddp inspect", store, "--json")).out)["shards"]
    assert [(row["shard"], row["outcome"]) for row in shards["rows"]] == [(0, "done"), (1, "done")]
    assert shards["without_record"] == []
    assert shards["totals"]["images"] == sum(row["images"] for row in shards["rows"]) > 0
    ok(run("fit --store", store, "--directions 3 --out", d, "--set refine_steps=5 --refits 0 --set restarts=1"))
    fitted = record(tmp_path / "d.run.json")
    assert (fitted["command"], fitted["outcome"]) == ("fit", "done")
    rates = fitted["rates"]
    assert rates["steps"] == 4  # the time of the first is told by nobody
    assert rates["positions_per_second"] == pytest.approx(rates["positions"] * rates["steps_per_second"], rel=1e-2)
    text = ok(run("eddp inspect", d)).out
    assert "run: fit, done in" in text
    assert "refinement" in text
    (tmp_path / "d.run.json").unlink()
    assert "run: fit, done in" in ok(run("eddp inspect", d)).out  # the header knows it in short
    out = tmp_path / "evaluation"
    given = ("--store", store, "--directions", d, "--broden", broden, "--influence --null-directions 20")
    ok(run("evaluate", *given, "--out", out))
    evaluated = record(out / "run.json")
    assert evaluated["rates"]["dissection, images_per_second"] > 0
    text = ok(run("eddp inspect", out)).out
    for part in ("evaluation", "d: 3 directions by eddp", "S1", "run: evaluate, done in"):
        assert part in text, text
    ok(run("eddp report", out, "--visualize none"))
    assert record(tmp_path / "report.run.json")["outcome"] == "done"
    text = ok(run("eddp inspect", tmp_path / "report")).out
    assert "run: report, done in" in text
    explained = tmp_path / "explanation"
    ok(run("eddp explain --row 0 --evaluation", out, "--out", explained))
    assert record(explained / "run.json")["command"] == "explain"
    shown = json.loads(ok(run("eddp inspect", explained, "--json")).out)
    assert (shown["what"], shown["run"]["outcome"], len(shown["document"]["images"])) == ("explanation", "done", 1)
    # an evaluation that fails leaves the whole one's record where it changed nothing, and none where nothing is
    shutil.move(store, tmp_path / "away")
    before = (out / "run.json").read_bytes()
    assert run("evaluate --store", store, "--directions", d, "--broden", broden, "--out", out).code == 2
    assert (out / "run.json").read_bytes() == before


def test_a_fit_that_fails_does_not_replace_the_record_of_the_one_before(
    run: Run, tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    g = np.random.default_rng(0)
    store = tiny_store({"a": g.normal(size=(30, 4, 6)).astype(np.float32)})
    flat = tiny_store({"a": np.zeros((30, 4, 6), np.float32)}, name="flat.zarr")
    d, file = tmp_path / "d.safetensors", tmp_path / "d.run.json"
    assert run("fit --store", flat, "--directions 2 --out", d).code == 1
    failed = record(file)
    assert failed["outcome"] == "failed"
    assert not d.exists()
    ok(run("fit --store", store, "--directions 2 --out", d, "--method kmeans"))
    done = record(file)
    assert [one["error"] for one in done["attempts"]] == [failed["error"]]
    assert run("fit --overwrite --store", flat, "--directions 2 --out", d).code == 1
    after = record(file)
    assert (after["outcome"], after["begun"], after["options"]["method"]) == ("done", done["begun"], "kmeans")
    assert [one["outcome"] for one in after["attempts"]] == ["failed", "failed"]


def test_warnings_are_counted(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.zarr"
    assert run("extract", *NET, "--data", tiny_images(40), "--out", out, "--batch-size 4 --shard 0/2").code == 0
    ok(run("extract", *NET, "--data", tmp_path / "data", "--out", out, "--batch-size 5 --shard 1/2"))
    told = record(tmp_path / "s.zarr.shard-1-of-2.run.json")["warnings"]
    assert [(one["level"], one["logger"], one["count"]) for one in told] == [("warning", "extract.stream", 1)]
    assert "was started with batches of 4 images" in told[0]["message"]
    found = run_module.Warnings()
    with found:
        for k in range(run_module.MOST_WARNINGS + 5):
            run_module.log.warning("number %d", k)
        for _ in range(3):
            run_module.log.error("number %d of many", 0)
            run_module.log.warning("number 0")
    assert len(found.record()) == run_module.MOST_WARNINGS
    assert found.record()[0]["count"] == 4
    assert found.left_out == 8


def test_a_place_that_takes_no_record(run: Run, tiny_store: Callable[..., Path], tmp_path: Path) -> None:
    store = tiny_store({"a": np.random.default_rng(0).normal(size=(30, 4, 6)).astype(np.float32)})
    (tmp_path / "d.run.json").mkdir()
    (tmp_path / "d.run.json" / "mine").write_text("")
    ended = ok(run("fit --store", store, "--directions 2 --out", tmp_path / "d.safetensors", "--method kmeans"))
    assert (tmp_path / "d.safetensors").is_file()
    assert ended.out.endswith("d.safetensors\n")
    assert "cannot be read: it is no file" in ok(run("eddp inspect", tmp_path / "d.safetensors")).out


def test_records_only_and_of_a_store_that_was_never_started(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "s.zarr.shard-1-of-3.run.json"
    file.write_text(
        json.dumps({"command": "extract", "outcome": "failed", "error": "No GPU.", "host": "n7", "seconds": 3.0})
    )
    shown = ok(run("eddp inspect", file)).out
    assert "run: extract, failed after 3 s" in shown
    shown = ok(run("eddp inspect", tmp_path / "s.zarr")).out
    assert "Nothing is committed yet" in shown
    assert "shard 1: No GPU." in shown
    assert "no record of shard 0, 2" in shown
    assert run("eddp inspect", tmp_path / "other.run.json").code == 2
    file.write_text("[]")
    shown = ok(run("eddp inspect", tmp_path / "s.zarr")).out
    assert "1 unreadable" in shown
    assert "it is no JSON object" in ok(run("eddp inspect", file)).out


def test_documents_that_are_damaged(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "summary.json").write_text('{"made_by": "eddp correct"}')
    assert "damaged, or were written by an older eddp" in ok(run("eddp inspect", folder)).out
    evaluation = '{"made_by": "eddp evaluate", "directions": {"a": 3}}'
    for text in (evaluation, "[]", "no json", '{"directions": 3}'):
        (folder / "summary.json").write_text(text)
        ended = run("eddp inspect", folder)
        assert (ended.code, "older eddp" in ended.err) == (1, True)


def test_a_store_on_object_storage_has_its_records_next_to_it(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    root, out = tiny_images(16), "memory://bucket-of-records/s.zarr"
    try:
        for k in (1, 0):
            ok(run("extract", *NET, "--data", root, "--out", out, "--shard", f"{k}/2", "--batch-size 4"))
        assert "/bucket-of-records/s.zarr.shard-1-of-2.run.json" in MemoryFileSystem.store
        # nothing is left to do, and that is recorded as well
        ok(run("extract", *NET, "--data", root, "--out", out, "--batch-size 4"))
        found = json.loads(ok(run("eddp inspect", out, "--json")).out)
        assert [(row["shard"], row["outcome"]) for row in found["shards"]["rows"]] == [(0, "done"), (1, "done")]
        assert found["shards"]["totals"]["images"] == 16
        assert found["run"]["result"]["done_now"] == 0
        text = ok(run("eddp inspect", out)).out
        assert "shards: 2, of which 2 done" in text
        assert run("eddp inspect memory://bucket-of-records/none.zarr").code == 2
    finally:
        for path in [path for path in MemoryFileSystem.store if path.startswith("/bucket-of-records/")]:
            del MemoryFileSystem.store[path]
