"""Commands killed at random moments, and commands with too little memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import stores.layout
from pipeline.main import group
from pipeline.options import run_command
from stores.folders import folder_problems
from tests.benchmarks.faults.world import (
    MOST,
    PATIENCE,
    SERVER,
    Ended,
    Hanging,
    Trial,
    Words,
    World,
    differences,
    refusal_problem,
    results,
)


def _begin(words: list[str], log: str) -> None:
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    stores.layout.TARGET_CHUNK_BYTES = 512  # else there is one chunk
    run_command(group, "eddp", words)


def begin(log: Path, *words: object) -> Any:
    process = SERVER.Process(target=_begin, args=([str(word) for word in words], str(log)))
    process.start()
    return process


def members(session: int) -> list[str]:
    """Command lines of the processes of a session that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            state, _, _, theirs = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(theirs) == session and state != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def kills(world: World, g: random.Random, trials: int) -> Iterator[Trial]:
    """SIGKILL at random moments; then the same again, which must end as if nothing had happened."""
    out = world.now / "new.zarr"
    again = (*world.evaluate, "--out", world.evaluation, "--seed", 7)
    cases: dict[str, list[Words]] = {
        "extract": [(*world.extract, "--out", out)],
        "extract two shards": [(*world.extract, "--out", out, "--shard", f"{k}/2") for k in range(2)],
        "extract --workers 1": [(*world.extract, "--out", out, "--workers", 1)],
        "fit": [(*world.fit, "--out", world.now / "new.safetensors")],
        "evaluate": [again],
        "report": [(*world.report, "--out", world.now / "report", "--title", "other")],
        "correct": [(*world.correct, "--out", world.now / "correction", "--seed", 7)],
    }
    for name, commands in cases.items():
        yield from _kill_one(world, g, -(-trials // len(cases)), name, [(*words, "--quiet") for words in commands])


def _kill_one(world: World, g: random.Random, trials: int, name: str, commands: list[Words]) -> Iterator[Trial]:
    log = world.now.parent / "log"

    def finish() -> float:
        start = time.monotonic()
        for number, words in enumerate(commands):
            process = begin(log, *words)
            process.join(2 * PATIENCE)
            if process.exitcode is None:
                process.kill()
                raise Hanging
            if process.exitcode:
                raise RuntimeError(f"{number}: exit code {process.exitcode}, {log.read_text()[-MOST:]}")
        return (time.monotonic() - start) / len(commands)

    never: list[dict[str, bytes]] = []
    for _ in range(2):
        world.restore()
        seconds = finish()
        never.append(results(world))
    unstable = {n for n in never[0].keys() & never[1].keys() if never[0][n] != never[1][n]}
    sys.stderr.write(f"{name}: {seconds:.1f} s; bytes change from run to run in {sorted(unstable) or 'no file'}\n")
    hit = 0
    while hit < trials:
        world.restore()
        before = results(world)
        running, moment = [begin(log, *words) for words in commands], g.uniform(0.05, seconds)
        time.sleep(moment)
        for process in running:
            process.kill()
            time.sleep(g.choice([0, 0.1]) if len(running) > 1 else 0)
        for process in running:
            process.join()
        if any(process.exitcode == -signal.SIGKILL for process in running):
            hit += 1
            what = f"{name}, killed after {moment:.2f} of {seconds:.1f} s"
            try:
                yield _after_the_kill(world, what, [p.pid for p in running], before, never[0], unstable, finish)
            except Hanging:
                yield Trial(what, "hanging", "run again, it does not end")
            except RuntimeError as error:
                yield Trial(what, "lost", f"run again, it fails: {error}")
        else:
            seconds *= 0.9  # the machine is faster than it was


def _after_the_kill(
    world: World, what: str, sessions: list[int], before: dict[str, bytes], wanted: dict[str, bytes], unstable: set[str],
    finish: Callable[[], float],
) -> Trial:  # fmt: skip
    late = time.monotonic() + PATIENCE
    while left := [line for session in sessions for line in members(session)]:
        if time.monotonic() > late:
            return Trial(what, "hanging", f"still running: {left}")
        time.sleep(0.05)
    for folder in ("evaluation", "report", "correction"):
        found = [p for p in (world.now / folder, *world.now.glob(f".{folder}.*.old")) if p.is_dir() and not folder_problems(p)]  # fmt: skip
        if not found:
            return Trial(what, "lost", f"{folder} is neither as before nor as after")
    for file in ("d.safetensors", "acts.zarr/zarr.json"):
        if (world.now / file).read_bytes() != before[file]:
            return Trial(what, "lost", f"{file} was changed")
    finish()
    wrong = differences(results(world), wanted, unstable)
    return Trial(what, "lost" if wrong else None, f"run again, other than never killed: {wrong[:5]}")


LIMITS = (700, 1100, 1500, 2000, 2600)  # MiB
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pipeline import entry
entry.eddp()
"""


def memory(world: World, g: random.Random, trials: int) -> Iterator[Trial]:
    """Commands under limits on their address space: done, or one message that says memory."""
    new = world.now / "new.safetensors"
    commands: dict[Words, Path | None] = {
        world.extract: world.now / "new.zarr", world.fit: new, world.evaluate: world.out, world.report: world.out,
        world.explain: world.out, world.correct: world.out, ("verify", world.store): None, ("inspect", world.store): None,
    }  # fmt: skip
    cases = [(limit, *case) for case in commands.items() for limit in LIMITS]
    for limit, words, out in g.sample(cases, min(trials or len(cases), len(cases))):
        world.restore()
        what = f"{words[0]} within {limit} MiB"
        command = [*map(str, words), "--quiet", *(("--out", str(out)) if out else ())]
        try:
            ended = subprocess.run(
                [sys.executable, "-c", LIMITED, str(limit), *command], capture_output=True, text=True, timeout=3 * PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            yield Trial(what, "hanging")
            continue
        found = Ended(ended.returncode, ended.stderr)
        problem = refusal_problem(found) or ("" if "enough memory" in found.err else "it does not say memory")
        left = [] if out is None or not found.code or out.suffix == ".zarr" else list(world.now.glob(f"*{out.name}*"))
        wrong = (found.code and problem) or left
        yield Trial(what, "unexpected" if wrong else None, f"{problem} {left or ''} {found}")
