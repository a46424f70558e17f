"""``--log-json``: whatever happens, stderr is one JSON object a line, and stdout is as it was."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import Run
from own_process import SLOW, end, start, wait_for

from pipeline import progress_display
from pipeline.logging import emit, json_line, ranks, say
from pipeline.options import common, run_command, wants_json
from stores.errors import StoreError

NET = ("--model", "tiny_net:build", "--layer", "second", "--workers", 0)
ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error"}
EVENTS = {"begun", "progress", "log", "announce", "error", "result", "ended"}


def lines_of(err: str, command: str, code: int) -> list[dict[str, Any]]:
    """The lines of a log, after what holds for every log was seen to hold."""
    assert err.endswith("\n")
    found = [json.loads(line) for line in err[:-1].split("\n")]
    for line in found:
        assert list(line)[:5] == ["time", "level", "event", "command", "message"]
        assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0  # type: ignore[union-attr]
        assert line["level"] in LEVELS
        assert line["event"] in EVENTS
        assert line["command"] == command
        assert line["message"]
    assert [line["event"] for line in found].count("begun") == 1
    assert found[0]["event"] == "begun"
    assert found[-1]["event"] == "ended"
    assert found[-1]["exit_code"] == code
    assert [line["event"] for line in found].count("ended") == 1
    assert [line["event"] for line in found].count("error") == (code != 0)
    assert [line["exit_code"] for line in found if line["event"] == "error"] == [code] * (code != 0)
    return found


def test_a_run_that_is_done(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    root, out = tiny_images(20), tmp_path / "s.zarr"
    (root / "cat" / "003.png").write_text("no picture")
    options = (*NET, "--data", root, "--out", out, "--on-bad-image", "skip", "--batch-size", 2, "--shard", "0/1")
    ended = run("extract", *options, "--log-json")
    found = lines_of(ended.err, "extract", 0)
    assert ended.out.endswith(f"{out}\n")
    steps = [line for line in found if line["event"] == "progress" and line["stage"] == "extraction"]
    assert [(line["done"], line["total"]) for line in steps] == [(0, 20), (20, 20)]  # it took no five seconds
    assert steps[-1]["per_second"] > 0
    assert steps[-1]["seconds_left"] == 0
    assert all(line["shard"] == "0/1" for line in found if line["event"] == "progress")
    said = [line for line in found if line["event"] == "announce"]
    assert "to be written" in said[0]["message"]
    assert [line["level"] for line in said][-1] == "warning"
    assert "003.png" in said[-1]["message"]
    (result,) = (line for line in found if line["event"] == "result")
    assert result["record"] == str(tmp_path / "s.zarr.shard-0-of-1.run.json")
    assert result["result"]["images"] == 19
    # --json stays on stdout, alone
    again = run("extract", *options, "--log-json --json")
    assert json.loads(again.out)["images"] == 19
    lines_of(again.err, "extract", 0)
    # nothing but the events of a run is left by --quiet
    quiet = lines_of(run("extract", *options, "--log-json --quiet --json").err, "extract", 0)
    assert [line["event"] for line in quiet] == ["begun", "result", "ended"]


def test_every_way_to_ask_for_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ("--store", tmp_path / "none", "--directions", 3)
    config = tmp_path / "eddp.toml"
    config.write_text("[fit]\nlog_json = true\n[evaluate]\nlog-json = false\n")
    lines_of(run("fit", *missing, "--log-json").err, "fit", 2)
    lines_of(run("eddp fit", *missing, "--log-json").err, "fit", 2)
    lines_of(run("fit", *missing, "--config", config).err, "fit", 2)
    lines_of(run("fit", *missing, f"--config={config}").err, "fit", 2)
    lines_of(run("fit --nonsense --config", config).err, "fit", 2)
    assert run("fit", *missing).err.startswith("Error: There is no store")
    monkeypatch.setenv("EDDP_FIT_LOG_JSON", "1")
    lines_of(run("fit", *missing).err, "fit", 2)
    lines_of(run("eddp fit", *missing).err, "fit", 2)
    monkeypatch.setenv("EDDP_FIT_LOG_JSON", "0")
    assert run("fit", *missing, "--config", config).err.startswith("Error: ")
    monkeypatch.delenv("EDDP_FIT_LOG_JSON")
    assert not wants_json("evaluate", ["--config", str(config)], {})
    assert not wants_json("fit", ["--", "--log-json"], {})
    assert wants_json("fit", [], {"EDDP_FIT_CONFIG": str(config)})
    for text in ("fit = 3", "[fit", '[fit]\nlog_json = "yes"', "[other]\n"):
        config.write_text(text)
        assert not wants_json("fit", ["--config", str(config)], {})
    assert not wants_json("fit", ["--config", str(tmp_path / "none")], {})
    assert not wants_json("fit", ["--config"], {})


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", "--nonsense"),
        ("extract",),
        ("extract", "--model", "tiny_net:build", "--layer", "second"),
        ("extract", "--model", "resnet99", "--layer", "a", "--data", ".", "--out", "o"),
        ("fit", "--store", "none", "--directions", "x"),
        ("fit", "--config", "none.toml"),
        ("evaluate", "--store", "none", "--directions", "none"),
        ("inspect", "none\nwith a line's end\x1b[31m"),
        ("verify", "none"),
        ("report", "none"),
        ("explain",),
        ("correct", "none", "--data", "none"),
        ("synthetic", "--out", "o", "--images", "x"),
    ],
)
def test_wrong_use(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("eddp", *arguments, "--log-json")
    assert ended.code == 2
    assert ended.out == ""
    assert [line["event"] for line in lines_of(ended.err, arguments[0], 2)] == ["begun", "error", "ended"]
    assert list(tmp_path.iterdir()) == []


def test_no_command_at_all(run: Run) -> None:
    found = lines_of(run("eddp nonsense --log-json").err, "eddp", 2)
    assert "nonsense" in found[1]["message"]


def commanded(work: Callable[[], None]) -> click.Command:
    """A command that does some work."""

    @click.command()
    @common
    def told(quiet: bool, as_json: bool, debug: bool) -> None:
        work()

    return told


def ended_by(work: Callable[[], None], capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        run_command(commanded(work), "told", ["--log-json", *arguments])
    return lines_of(capsys.readouterr().err, "told", int(ended.value.code or 0))


def test_what_others_write_is_caught(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    before = (sys.stderr, logging.getLogger().handlers[:], threading.excepthook, warnings.showwarning)

    def work() -> None:
        logging.getLogger("some.library").warning("two\nlines of %s", "it")
        logging.getLogger("some.library").info("not told: warnings and above")
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("other").exception("it failed")
        logging.getLogger("wrong").error("%d", "no number")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("beware", UserWarning, stacklevel=1)
        sys.stderr.write("by hand, in ")
        sys.stderr.write("two parts\nand another\n\n10 %\r20 %\r30 %\nnot ended")
        click.echo("by click", err=True)
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
        say("of ours\u2028\udc80", "warning")
        emit("log", "debug", "numbers", nan=float("nan"), path=Path("a"), nested={1: (float("inf"), None)})

    found = ended_by(work, capsys)[1:-1]
    shown = [(line["event"], line["level"], line.get("logger"), line["message"]) for line in found]
    assert shown[0] == ("log", "warning", "some.library", "two\nlines of it")
    assert shown[1][:3] == ("log", "error", "other")
    assert "ValueError: inner" in found[1]["traceback"]
    assert shown[2][:3] == ("log", "error", "wrong")
    assert shown[3][:3] == ("log", "warning", "py.warnings")
    assert "beware" in shown[3][3]
    texts = [message for _, _, logger, message in shown if logger == "stderr"]
    assert texts == ["by hand, in two parts", "and another", "30 %", "not endedby click"]
    died = next(line for line in found if line.get("logger") == "worker")
    assert died["message"].startswith("ZeroDivisionError")
    assert "Traceback" in died["traceback"]
    assert ("announce", "warning", None, "of ours\u2028\udc80") in shown
    assert found[-1]["nan"] is None
    assert found[-1]["path"] == "a"
    assert found[-1]["nested"] == {"1": [None, None]}
    assert (sys.stderr, logging.getLogger().handlers[:], threading.excepthook, warnings.showwarning) == before


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (StoreError("The disk is full."), 1, "The disk is full."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (MemoryError(), 1, "not enough memory (allocation failed). Use smaller inputs, or give"),
        (RuntimeError("CPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."), 1, "(4096 bytes more"),
        (OSError(28, "No space left", "file"), 1, "'file': No space left."),
        (RuntimeError("odd\nand long"), 1, "unexpected RuntimeError: odd (run again"),
        (BrokenPipeError(32, "Broken pipe"), 1, "could not be written: Broken pipe"),
        (click.Abort(), 130, "Interrupted."),
        (SystemExit(0), 0, ""),
    ],
)
def test_every_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, word: str
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # click leaves it wrapped when its reader is gone

    def work() -> None:
        raise error

    found = ended_by(work, capsys, "--debug")
    assert found[-1]["exit_code"] == code
    told = [line for line in found if line["event"] == "error"]
    assert all(word in line["message"] for line in told)
    if code == 1 and not isinstance(error, BrokenPipeError):
        assert "Traceback" in told[0]["traceback"]


@pytest.mark.parametrize(("debug", "heard"), [(("--debug",), ["ours"]), ((), [])])
def test_debug_hears_more_of_eddp_and_not_of_its_libraries(
    capsys: pytest.CaptureFixture[str], debug: tuple[str, ...], heard: list[str]
) -> None:
    def work() -> None:
        logging.getLogger("extract.models").debug("ours")
        logging.getLogger("PIL.PngImagePlugin").debug("STREAM b'IHDR' 16 13")

    before = logging.getLogger("extract").level
    told = [line["message"] for line in ended_by(work, capsys, *debug) if line["event"] == "log"]
    assert told == heard
    assert logging.getLogger("extract").level == before


def test_threads_do_not_write_into_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        def many(name: int) -> None:
            for k in range(200):
                say(f"{name} {k} " + "x" * 500)
                logging.getLogger(f"{name}").warning("%d", k)
                sys.stderr.write(f"{name} by hand {k}\n")

        threads = [threading.Thread(target=many, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(ended_by(work, capsys)) == 2 + 4 * 200 * 3


def test_progress_is_reported_every_few_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], []
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now[0])

    def record(event: str, level: str, message: str, **fields: Any) -> None:
        told.append((now[0], fields["stage"], fields["done"], fields["per_second"], fields["seconds_left"]))

    monkeypatch.setattr(progress_display, "emit", record)
    events = progress_display.Events()
    for done in range(41):
        events("a", done, 40)
        now[0] += 0.25
    events("a", 40, 40, "once more")
    events("b", 1)
    for _ in range(30):  # two stages that take turns do not tell each time
        now[0] += 0.25
        events("c", 1)
        events("b", 1)
    events("d", 5, 10)
    now[0] += 1
    events("d", 7, 10)
    events.close()
    events.close()
    assert [entry for entry in told if entry[1] == "a"] == [
        (0.0, "a", 0, None, None),
        (5.0, "a", 20, 4.0, 5.0),
        (10.0, "a", 40, 4.0, 0.0),
    ]
    assert [entry[2:] for entry in told if entry[1] == "d"] == [(5, None, None), (7, 2.0, 1.5)]
    assert len([entry for entry in told if entry[1] in "bc"]) == 4


def test_the_number_of_the_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks({}) == (0, 1)
    assert ranks({"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    assert ranks({"RANK": "1"}) == (0, 1)
    for odd in ("2", "x", "-1"):
        assert ranks({"RANK": odd, "WORLD_SIZE": "2"}) == (0, 1)
    monkeypatch.setattr("pipeline.logging.ranks", lambda: (1, 2))

    def work() -> None:
        raise StoreError("Away.")

    found = ended_by(work, capsys)
    assert all((line["rank"], line["ranks"]) == (1, 2) for line in found)
    assert next(line for line in found if line["event"] == "error")["message"] == "Away."
    with pytest.raises(SystemExit):
        run_command(commanded(work), "told", [])
    assert capsys.readouterr().err == "Error (rank 1): Away.\n"


def test_a_line_is_one_line() -> None:
    line = json_line("log", "info", "fit", "a\nb\u2028c\x00é")
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == "a\nb\u2028c\x00é"


def test_a_reader_that_is_missing_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = []
    stream = open(writing, "w")  # noqa: PTH123, SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit) as ended:
        run_command(commanded(lambda: done.append(say("to whom?"))), "told", ["--log-json"])
    assert (ended.value.code, done) == (0, [None])
    os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    stream.close()


@pytest.mark.parametrize("after", [0.2, None])
def test_interrupted(tiny_images: Callable[..., Path], tmp_path: Path, after: float | None) -> None:
    """While libraries are still loading, and in the midst of the work."""
    options = (*SLOW, "--workers", 0, "--data", tiny_images(400), "--out", tmp_path / "s.zarr", "--log-json")
    process = start(*options, code="from pipeline.entry import extract; print('begun', flush=True); extract()")
    assert process.stdout is not None
    process.stdout.readline()
    if after is None:
        wait_for(tmp_path / "s.zarr.run.json", process)
    time.sleep(after or 0)
    process.send_signal(signal.SIGTERM)
    code, err = end(process)
    assert code == 130, err
    if after is None:
        found = lines_of(err, "extract", 130)
    else:
        found = [json.loads(line) for line in err.splitlines()]
    (error,) = (line for line in found if line["event"] == "error")
    assert error["message"].startswith("Interrupted.")
    assert error["exit_code"] == 130
