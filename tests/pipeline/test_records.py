"""Records of several runs of one result, and record files that are none."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.record_display import number_of, run_lines, runs_at, shard_lines, shards_at, text_of
from pipeline.records import (
    MOST_ATTEMPTS,
    Place,
    UnreadableRecord,
    attempts_of,
    beside,
    is_alive,
    merged,
    outcome_of,
    read_record,
    shards_of,
    within,
)


def record(begun: str, outcome: str = "done", **more: Any) -> dict[str, Any]:
    return {"command": "extract", "begun": begun, "host": "a", "pid": 1, "outcome": outcome, **more}


def dead_pid() -> int:
    """The number of a process that was, on this machine."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_that_did_something_comes_first_and_keeps_the_others_in_brief() -> None:
    first = merged(None, record("1", "failed", error="No room.", options={"much": "more"}), stands=False)
    assert "attempts" not in first
    second = merged(first, record("2", "interrupted", done_now=7), stands=False)
    third = merged(second, record("3", result={"done_now": 5}), stands=False)
    assert (third["begun"], third["outcome"]) == ("3", "done")
    assert [(one["begun"], one["outcome"]) for one in third["attempts"]] == [("1", "failed"), ("2", "interrupted")]
    assert third["attempts"][0]["error"] == "No room."
    assert third["attempts"][1]["done_now"] == 7
    assert "options" not in third["attempts"][0]
    fourth = merged(third, record("4"), stands=False)
    assert [one["begun"] for one in fourth["attempts"]] == ["1", "2", "3"]
    assert fourth["attempts"][2]["done_now"] == 5


def test_an_attempt_that_changed_nothing_does_not_replace_the_record_of_a_run_that_was_done() -> None:
    done = record("1", options={"a": 1})
    after = merged(done, record("2", "failed", error="Locked."), stands=True)
    assert (after["begun"], after["options"]) == ("1", {"a": 1})
    assert [(one["begun"], one["error"]) for one in after["attempts"]] == [("2", "Locked.")]
    nothing_left = merged(after, record("3"), stands=True)
    assert nothing_left["begun"] == "1"
    assert [one["begun"] for one in nothing_left["attempts"]] == ["2", "3"]
    # of two that failed the later one tells
    assert merged(record("1", "failed"), record("2", "failed"), stands=True)["begun"] == "2"


def test_a_run_that_is_under_way_is_known_by_its_process() -> None:
    here = {"host": platform.node(), "outcome": "running"}
    assert outcome_of({**here, "pid": os.getpid()}) == "running"
    gone = {**here, "pid": dead_pid(), "begun": "1"}
    assert outcome_of(gone) == "lost"
    assert outcome_of({**gone, "host": platform.node() + "-other"}) == "running"  # nobody here can tell
    assert is_alive({**here, "pid": None})
    assert outcome_of({**here, "pid": 10**30}) == "lost"
    assert not is_alive({"outcome": "done"})
    # the record of a run that was killed gives way to that of one that failed before it did anything
    kept = merged(gone, record("2", "failed"), stands=True)
    assert (kept["begun"], kept["attempts"][0]["outcome"]) == ("2", "lost")
    # that of one which is under way does not, and its own end replaces what it told before
    alive = {**here, "pid": os.getpid(), "begun": "1"}
    kept = merged(alive, record("2", "failed"), stands=True)
    assert (kept["begun"], kept["attempts"][0]["begun"]) == ("1", "2")
    ended = merged(kept, {**alive, "outcome": "done"}, stands=False)
    assert (ended["outcome"], [one["begun"] for one in ended["attempts"]]) == ("done", ["2"])


def test_only_so_many_attempts_are_recorded() -> None:
    kept: dict[str, Any] = {}
    for k in range(MOST_ATTEMPTS + 20):
        kept = merged(kept or None, record(f"{k:03d}", "failed"), stands=False)
    assert kept["begun"] == f"{MOST_ATTEMPTS + 19:03d}"
    assert [one["begun"] for one in kept["attempts"]] == [f"{k:03d}" for k in range(19, MOST_ATTEMPTS + 19)]


def test_a_folder_without_its_document_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    place = within(folder, "summary.json")
    assert place is not None
    assert place.read() is None
    assert place.write(json.dumps(record("1", "failed")).encode(), done=False) == tmp_path / "evaluation.run.json"
    assert not folder.exists()
    folder.mkdir()
    place.write(json.dumps(merged(place.read(), record("2"), stands=False)).encode(), done=True)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]  # the one beside it has gone into it
    found = place.read()
    assert found is not None
    assert (found["begun"], found["attempts"][0]["begun"]) == ("2", "1")
    (folder / "summary.json").write_text("{}")
    assert place.target(done=False) == folder / "run.json"
    # both there, as after a crash between two steps: nothing of them is lost
    (tmp_path / "evaluation.run.json").write_text(json.dumps(record("0", "failed")))
    both = place.read()
    assert both is not None
    assert sorted(one["begun"] for one in both["attempts"]) == ["0", "1"]


def test_the_root_of_a_disk_has_nothing_next_to_it() -> None:
    assert beside(Path("/")) is None


HOSTILE = {
    "nothing": b"",
    "text": b"no json",
    "list": b"[1, 2]",
    "number": b"3",
    "null": b"null",
    "half": b'{"command": "ext',
    "deep": b"[" * 100_000,
    "not utf-8": b'{"command": "\xff\xfe"}',
    "digits": b'{"seconds": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_record_is_unreadable(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.zarr.run.json"
    file.write_bytes(HOSTILE[kind])
    with pytest.raises(UnreadableRecord):
        read_record(file)
    place = Place(file)
    assert place.read() is None
    shown = runs_at(place)["run"]
    assert shown["file"] == str(file)
    assert any("cannot be read" in line for line in run_lines(shown))
    # and the next run replaces it
    place.write(json.dumps(merged(place.read(), record("1"), stands=True)).encode(), done=True)
    assert read_record(file)["begun"] == "1"


def test_other_things_than_files_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    for name in ("folder", "pipe", "huge"):
        with pytest.raises(UnreadableRecord):
            read_record(tmp_path / name)
    with pytest.raises((UnreadableRecord, FileNotFoundError)):
        read_record(tmp_path / "loop")


INF, NAN = float("inf"), float("nan")
ODD = [None, True, -1, 10**400, INF, NAN, 1e300, "text", "\x1b[2J\r\n", [], [[1]], {}, {"a": []}, "x" * 10**5]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_whatever_is_in_a_record_is_shown_as_text(tmp_path: Path, odd: Any) -> None:
    keys = (
        "command", "outcome", "options", "begun", "ended", "seconds", "peak_memory_mib", "peak_gpu_memory_mib", "gpu_busy", "host", "pid",
        "job", "device", "python", "code_version", "libraries", "stages", "warnings", "attempts", "rates", "result", "error", "reached",
        "shard", "ranks", "workers", "done_now",
    )  # fmt: skip
    nested = {
        "device": {"kind": odd, "name": odd, "cores": odd},
        "rates": {"images_per_second": odd},
        "result": {"images": odd, "done_now": odd},
        "stages": [odd, {"stage": odd, "seconds": odd, "done": odd, "total": odd, "per_second": odd}],
        "warnings": [odd, {"message": odd, "count": odd}],
        "libraries": {"torch": odd},
        "attempts": [odd, dict.fromkeys(keys, odd)],
    }
    for k, document in enumerate((dict.fromkeys(keys, odd), {**dict.fromkeys(keys, odd), **nested}, nested)):
        (tmp_path / f"a.shard-{k}-of-3.run.json").write_text(json.dumps(document))
        lines = list(run_lines(runs_at(Place(tmp_path / f"a.shard-{k}-of-3.run.json"))["run"]))
        assert all(line.isprintable() and len(line) < 4000 for line in lines)
        merged(document, record("1"), stands=True)
    shards = shards_at(tmp_path / "a")
    json.dumps(shards, allow_nan=False)
    assert all(line.isprintable() for line in shard_lines(shards["shards"], sealed=False))


def test_numbers_and_texts_that_are_shown() -> None:
    assert [number_of(value) for value in (0, 1.5, 10**14)] == [0, 1.5, 10**14]
    assert text_of("a\nb\x1b[31m") == "a b�[31m"
    assert text_of("x" * 400) == "x" * 299 + "…"
    assert text_of(None) == "unknown"


def test_the_shards_of_a_store_as_one_table(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"

    def write(name: str, **content: Any) -> None:
        (tmp_path / name).write_text(json.dumps(content))

    base = {"command": "extract", "host": "node1"}
    write("a.zarr.shard-0-of-4.run.json", **base, outcome="done", begun="2026-01-01T10:00:00+00:00", ended="2026-01-01T10:01:40+00:00",
          seconds=100.0, result={"images": 1000}, rates={"images_per_second": 10.5})  # fmt: skip
    write("a.zarr.shard-10-of-4.run.json", **base)  # no shard, but there: it is shown
    write("a.zarr.shard-1-of-4.run.json", **base, outcome="done", begun="2026-01-01T10:00:30+00:00", ended="2026-01-01T10:05:00+00:00",
          seconds=270.0, result={"images": 900}, rates={"images_per_second": 4.5}, attempts=[{"outcome": "failed"}])  # fmt: skip
    write("a.zarr.shard-3-of-4.run.json", **base, outcome="failed", begun="2026-01-01T10:00:10+00:00", ended="2026-01-01T10:00:20+00:00",
          seconds=10.0, done_now=12, error="Image 7 is damaged.", stages=[{"stage": "extraction", "per_second": 2.0}])  # fmt: skip
    write("a.zarr.shard-0-of-2.run.json", **base, outcome="interrupted", begun="2025-12-31T10:00:00+00:00")
    write("b.zarr.shard-2-of-4.run.json", **base)
    write("a.zarr.run.json", **base)
    (tmp_path / "a.zarr.shard-2-of-4.run.json.partial").write_text("")
    assert list(shards_of(store)) == [(0, 2), (0, 4), (1, 4), (3, 4), (10, 4)]
    (tmp_path / "a.zarr.shard-10-of-4.run.json").unlink()
    found = shards_at(store)["shards"]
    assert found["of"] == 4
    assert [(r["shard"], r["outcome"], r["images"], r["images_per_second"], r["attempts"]) for r in found["rows"]] == [
        (0, "done", 1000, 10.5, 1),
        (1, "done", 900, 4.5, 2),
        (3, "failed", 12, 2.0, 1),
    ]
    assert found["without_record"] == [2]
    assert found["slowest"] == 1
    assert found["totals"] == {"images": 1912, "seconds": 380.0, "wall_seconds": 300.0}
    assert found["outcomes"] == {"done": 2, "failed": 1}
    assert found["other_cuts"] == {2: 1}
    text = "\n".join(shard_lines(found, sealed=False))
    for part in ("shards: 4, of which 2 done, 1 failed, 1 without a record", "node1  slowest", "shard 3: Image 7 is damaged.",
                 "no record of shard 2:", "1912 images", "1 more records are of 2 shards"):  # fmt: skip
        assert part in text, text
    assert "no record of" not in "\n".join(shard_lines(found, sealed=True))
    assert shards_at(tmp_path / "c.zarr") == {}


def test_attempts_that_are_none() -> None:
    assert attempts_of(None) == attempts_of({"attempts": {"a": 1}}) == []
    assert attempts_of({"attempts": [1, {"begun": "1"}, None]}) == [{"begun": "1"}]
