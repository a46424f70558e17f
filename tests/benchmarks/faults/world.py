"""What the attacks share: commands run in this process, a store and one of each result, and how files are compared."""

from __future__ import annotations

import io
import multiprocessing
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from brought import folders, picture
from tiny import contents, write_broden

from evaluate.correct import Correction
from fit.checkpoint import Checkpoint
from pipeline.main import group
from pipeline.options import run_command

FAULTS = ("lost", "silent", "hanging", "unexpected")
PATIENCE = 180  # seconds, on a busy machine
MOST = 700  # characters of a message
Words = tuple[object, ...]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([f"pipeline.commands.{name}" for name in ("extract", "fit", "evaluate", "report", "correct")])  # fmt: skip


@dataclass
class Trial:
    what: str
    fault: str | None = None
    detail: str = ""


@dataclass
class Ended:
    code: int
    err: str


class Hanging(BaseException):
    """A command did not end in time."""


def _late(number: int, frame: FrameType | None) -> None:
    raise Hanging


def run(*words: object) -> Ended:
    """A command, in this process. Raises Hanging."""
    err = io.StringIO()
    code: Any = 0
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(PATIENCE)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            run_command(group, "eddp", [str(word) for word in words])
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.alarm(0)
    return Ended(int(code or 0), err.getvalue())


def refusal_problem(ended: Ended, codes: tuple[int, ...] = (1,)) -> str:
    """What is wrong with how a command refused something, or an empty text."""
    errors = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
    wrong = {
        "exit code": ended.code not in codes,
        "unexpected": "unexpected" in ended.err or "Traceback" in ended.err,
        "not one message": len(errors) != 1 or ended.err.splitlines()[-1] != errors[0],
        "long": max(map(len, errors), default=0) > MOST,
        "control characters": not ended.err.replace("\n", "").isprintable(),
    }
    return ", ".join(name for name, found in wrong.items() if found)


class World:
    """A store and one of each result, all small; ``restore`` makes ``now`` as it was built."""

    def __init__(self, folder: Path) -> None:
        self.now, self.made = folder / "now", folder / "made"
        now = self.now
        self.out, self.store, self.directions = now / "new", now / "acts.zarr", now / "d.safetensors"
        self.evaluation, self.images = now / "evaluation", now / "images"
        trust = ("--model", "tiny_net:build")
        few = (
            "--set",
            "refine_steps=6",
            "--set",
            "restart_steps=2",
            "--set",
            "restarts=1",
            "--refits",
            0,
            "--checkpoint-every",
            0,
        )
        nulls = ("--influence", "--null-directions", 4, "--null-positions", 20, "--influence-images", 8)
        data = ("--data", now / "broden", "--class-names", now / "names", "--batch-size", 2)
        self.extract: Words = ("extract", *trust, "--layer", "second", *data)
        self.pca: Words = ("fit", "--store", self.store, "--method", "pca", "--directions", 3, "--out", now / "pca.safetensors")  # fmt: skip
        self.fit: Words = ("fit", "--store", self.store, "--directions", 3, *few)
        self.evaluate: Words = (
            "evaluate",
            "--store",
            self.store,
            "--directions",
            self.directions,
            "--broden",
            now / "broden",
            *nulls,
            *trust,
        )
        self.report: Words = ("report", self.evaluation, "--visualize", "none", *trust)
        self.explain: Words = ("explain", "--row", 0, "--evaluation", self.evaluation, *trust)
        self.correct: Words = ("correct", self.evaluation, "--data", self.images, "--random", 2, "--direction", 0, *trust)  # fmt: skip
        if self.made.exists():
            return
        shutil.rmtree(now, ignore_errors=True)
        folders(self.images, "01234", lambda k, j: picture(10 * k + j), 2)
        (now / "names").write_text("0\n1\n2\n3\n4\n")
        write_broden(now / "broden", images=8)
        for words, out in (
            (self.extract, self.store), (self.fit, self.directions), (self.evaluate, self.evaluation),
            (self.report, now / "report"), (self.explain, now / "explanation"), (self.correct, now / "correction"),
        ):  # fmt: skip
            ended = run(*words, "--out", out, "--quiet")
            if ended.code:
                sys.exit(f"{words}: {ended.err}")
        Checkpoint(now / "e.checkpoint").save({"x": torch.ones(40)}, {"step": 3})
        f = np.eye(8, 3, dtype=np.float32)
        Correction(f, np.ones(3, np.float32), f, 1.0, 0.0, True, "second").save(now / "c.safetensors")
        shutil.copytree(self.now, self.made)

    def restore(self) -> None:
        shutil.rmtree(self.now, ignore_errors=True)
        shutil.copytree(self.made, self.now)


def results(world: World) -> dict[str, bytes]:
    """Bytes of everything in ``now`` but records of runs."""
    return {name: data for name, data in contents(world.now).items() if not name.endswith("run.json")}


def differences(found: dict[str, bytes], wanted: dict[str, bytes], unstable: set[str]) -> list[str]:
    """Files that are missing, new, or of other bytes, except those whose bytes change from run to run."""
    names = found.keys() | wanted.keys()
    return sorted(n for n in names if (n in found) != (n in wanted) or (n not in unstable and found[n] != wanted[n]))
