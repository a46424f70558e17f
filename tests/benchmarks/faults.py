"""Attacks on the commands, with tiny inputs: ``python -m tests.benchmarks.faults [kills flips hostile memory] [--trials N] [--seed S] [--folder F]``.

Prints one row of a Markdown table per kind; details of every fault go to stderr, and the exit code is 1 if there is any. Faults are

* lost: what was complete is not any more, or the same command run again does not give the bytes of one that was never killed
* silent: another result than from sound files and no message, or damage that ``eddp verify`` does not find
* hanging: no end within three minutes, or a process that outlives its command
* unexpected: a traceback, an exit code of another kind, or anything but one short message

Commit nothing meanwhile: stores name the version of the code.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

HELPERS = Path(__file__).parents[1] / "helpers"
ROOT = HELPERS.parents[1]
sys.path[:0] = [str(HELPERS)]
os.environ["PYTHONPATH"] = f"{HELPERS}{os.pathsep}{ROOT}"  # for other processes

import numpy as np  # noqa: E402
import torch  # noqa: E402
from brought import folders, picture  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tiny import contents, reseal, write_broden  # noqa: E402

import stores.plan  # noqa: E402
from evaluate.correct import Correction  # noqa: E402
from fit.checkpoint import Checkpoint  # noqa: E402
from pipeline.main import group  # noqa: E402
from pipeline.options import run_command  # noqa: E402
from stores.folders import folder_problems  # noqa: E402
from stores.io import json_bytes  # noqa: E402

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


# --- kills


def _begin(words: list[str], log: str) -> None:
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    stores.plan.TARGET_CHUNK_BYTES = 512  # else there is one chunk
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


def results(world: World) -> dict[str, bytes]:
    """Bytes of everything in ``now`` but records of runs."""
    return {name: data for name, data in contents(world.now).items() if not name.endswith("run.json")}


def differences(found: dict[str, bytes], wanted: dict[str, bytes], unstable: set[str]) -> list[str]:
    """Files that are missing, new, or of other bytes, except those whose bytes change from run to run."""
    names = found.keys() | wanted.keys()
    return sorted(n for n in names if (n in found) != (n in wanted) or (n not in unstable and found[n] != wanted[n]))


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


# --- flips


def flips(world: World, g: random.Random, trials: int) -> Iterator[Trial]:
    """Single bits flipped in every kind of file: the command that reads it refuses, or gives the same; ``eddp verify`` finds it."""
    world.restore()
    store, evaluation = world.store, world.evaluation
    report, explain, correct = (
        (*words, "--out", world.now / f"new-{words[0]}") for words in (world.report, world.explain, world.correct)
    )
    resume = (*world.fit, "--out", world.now / "e.safetensors")
    monosemanticity = ("evaluate", "--store", store, "--directions", world.directions, "--monosemanticity", "--out", world.out)  # fmt: skip
    files = [path for path in store.rglob("*") if path.is_file()]
    manifest = [path for path in files if path.name == "manifest.jsonl"]
    metadata = [path for path in files if path.name == "zarr.json"]
    chunks = [path for path in files if path not in metadata + manifest]
    correction, checkpoint = world.now / "c.safetensors", world.now / "e.checkpoint"
    kinds: dict[str, tuple[int, list[Path], Path, list[Words]]] = {  # shares, files, what verify is given, readers
        "chunk": (6, chunks, store, [world.pca, monosemanticity]),
        "zarr.json": (6, metadata, store, [world.pca, monosemanticity]),
        "records": (4, manifest, store, [world.pca]),
        "correction": (3, [correction], correction, []),
        "checkpoint": (2, [checkpoint], checkpoint, [resume]),
        "directions": (4, [world.directions], world.directions, [monosemanticity, explain]),
        "manifest": (2, [evaluation / "manifest.json"], evaluation, [explain]),
        "summary": (4, [evaluation / "summary.json"], evaluation, [explain, report, correct]),
        "tables": (4, sorted(evaluation.glob("*.parquet")), evaluation, [explain, report, correct]),
    }
    shares = sum(share for share, *_ in kinds.values())
    sound: dict[Words, list[dict[str, bytes]]] = {}
    for kind, (share, places, checked, readers) in kinds.items():
        for number in range(-(-trials * share // shares)):
            file = places[number] if number < len(places) else g.choice(places)
            reader = g.choice(readers) if readers else None
            if reader and reader not in sound:
                sound[reader] = [] if reader is resume else [_outcome(world, reader), _outcome(world, reader)]
            data = file.read_bytes()
            at, bit = g.randrange(len(data)), g.randrange(8)
            file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            what = f"{kind}: bit {bit} of byte {at} of {file.relative_to(world.now)}"
            try:
                yield _flipped(world, what, checked, reader, sound[reader] if reader else [])
            except Hanging:
                yield Trial(what, "hanging")
            file.write_bytes(data)


def _outcome(world: World, words: Words) -> dict[str, bytes]:
    """What a command writes. Raises RuntimeError where it refuses."""
    ended = run(*words, "--quiet")
    if ended.code:
        raise RuntimeError(str(ended))
    return _written(words)


def _written(words: Words) -> dict[str, bytes]:
    out = Path(str(words[words.index("--out") + 1]))
    if out.is_dir():
        return {name: data for name, data in contents(out).items() if not name.endswith("run.json")}
    return {name: x.tobytes() for name, x in load_file(out).items()}


def _flipped(world: World, what: str, checked: Path, reader: Words | None, sound: list[dict[str, bytes]]) -> Trial:
    """Run verify, then a reader, whose result from sound files is given twice."""
    verified = run("verify", checked, "--quiet")
    if verified.code == 0:
        return Trial(what, "silent", "verify does not find it")
    if verified.code != 1 or "unexpected" in verified.err:
        return Trial(what, "unexpected", f"verify: {verified}")
    if reader is None:
        return Trial(what)
    ended = run(*reader, "--quiet")
    if ended.code:
        problem = refusal_problem(ended)
        return Trial(what, "unexpected" if problem else None, f"{reader[0]}: {problem}; {ended}")
    if not sound:
        return Trial(what, "silent", f"{reader[0]} resumes from it")
    unstable = {n for n in sound[0] if sound[0][n] != sound[1].get(n)}
    wrong = differences(_written(reader), sound[0], unstable)
    return Trial(what, "silent" if wrong else None, f"{reader[0]}: other {wrong[:5]}")


# --- hostile files


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def hostile(world: World, g: random.Random, trials: int) -> Iterator[Trial]:
    """Files that somebody made in bad faith, in place of good ones."""
    world.restore()
    mark = world.now.parent / "ran"
    cases = [*_files_of_other_kinds(world, mark), *_documents(world, mark)]
    g.shuffle(cases)
    for what, place, words in cases[: trials or None]:
        world.restore()
        mark.unlink(missing_ok=True)
        (world.now / "evilmod.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
        place()
        try:
            ended = run(*words, "--quiet")
        except Hanging:
            yield Trial(what, "hanging", str(words[0]))
            continue
        problem = refusal_problem(ended, (1, 2)) + (", code was run" if mark.exists() else "")
        new = [p for p in (world.out, world.now / "new.safetensors") if p.exists()]
        if ended.code == 0:
            yield Trial(what, "silent", f"{words[0]} took it")
        else:
            yield Trial(what, "unexpected" if problem or new else None, f"{words[0]}: {problem} {new or ''} {ended}")


def _files_of_other_kinds(world: World, mark: Path) -> Iterator[tuple[str, Callable[[], None], Words]]:
    store, out = world.store, ("--out", world.out)
    fit, explain, report = (*world.pca[:-1], world.now / "new.safetensors"), (*world.explain, *out), (*world.report, *out)  # fmt: skip
    broden = ("evaluate", "--store", store, "--directions", world.directions, "--broden", world.now / "broden", "--model", "tiny_net:build", *out)  # fmt: skip
    weights = ("extract", "--model", "resnet18", "--layer", "layer1", "--data", world.images, "--weights", world.now / "w.pth", *out)  # fmt: skip
    targets: dict[str, Words] = {
        "acts.zarr/zarr.json": fit,
        "acts.zarr/manifest.jsonl": fit,
        next(p.relative_to(world.now).as_posix() for p in (store / "layers/second/activations").rglob("c.*") if p.is_file()): fit,
        "d.safetensors": explain,
        "c.safetensors": ("verify", world.now / "c.safetensors"),
        "e.checkpoint": (*world.fit, "--out", world.now / "e.safetensors"),
        "evaluation/summary.json": report,
        "evaluation/directions.parquet": report,
        "evaluation/influence.parquet": report,
        "evaluation/manifest.json": ("verify", world.evaluation),
        "broden/index.csv": broden,
        "broden/label.csv": broden,
        "w.pth": weights,
        "o.toml": (*fit, "--config", world.now / "o.toml"),
    }  # fmt: skip
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(mark)))
        archive.writestr("archive/version", "3\n")
    saved = io.BytesIO()
    torch.save({"x": Evil(mark)}, saved)
    kinds: dict[str, bytes | Callable[[Path], object]] = {
        "empty": b"",
        "deep JSON": b"[" * 100_000,
        "NaN": b'{"a": NaN}\n',
        "another type": b"[1, 2]",
        "control characters": b"\x1b[2J\x07\0" * 99,
        "a pickle": pickle.dumps(Evil(mark)),
        "a zip file": zipped.getvalue(),
        "torch.save of an object": saved.getvalue(),
        "a safetensors header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "truncated": lambda path: path.write_bytes((world.made / path.relative_to(world.now)).read_bytes()[:-9]),
    }
    for name, words in targets.items():
        for kind, data in kinds.items():
            if (name, kind) in (("w.pth", "truncated"), ("o.toml", "truncated"), ("o.toml", "empty")):
                continue  # not made before, or sound

            def place(file: Path = world.now / name, data: bytes | Callable[[Path], object] = data) -> None:
                file.unlink(missing_ok=True)
                if callable(data):
                    data(file)
                else:
                    file.write_bytes(data)

            yield f"{name}: {kind}", place, words


def _documents(world: World, mark: Path) -> Iterator[tuple[str, Callable[[], None], Words]]:
    """A store's root with other entries and a seal that agrees, a summary with other entries."""
    fit = (*world.fit, "--out", world.now / "new.safetensors")
    report = (*world.report, "--out", world.out)
    odd: dict[str, list[Any]] = {
        "n_images": [10**18, -1, True, "9", 1e300],
        "chunk_images": [0, 10**15, None],
        "n_classes": [10**12, "x"],
        "dtype": ["object", ["float32"]],
        "compress": ["gzip", {}],
        "layers": [[], {"../../x": {}}, {"a\x1b[2J": {"name": "a", "grid": [1, 1], "channels": 8}}],
        "heads": [{"second": "x"}, 3],
        "class_names": [[1, 2], "abc"],
        "provenance": [[], {"model": 3}, {"model": "evilmod:run"}, {"model": "os:abort"}, {"model": "a\x1b[2J:b"}],
        "name_bytes": [-1, 10**15, "x"],
    }

    def root(key: str, value: Any) -> None:
        path = world.store / "zarr.json"
        document = json.loads(path.read_bytes())
        plan = document["attributes"]["eddp"]
        plan[key] = value if key != "provenance" or not isinstance(value, dict) else plan[key] | value
        path.write_bytes(json_bytes(document))
        reseal(world.store)

    def summary(key: str, value: Any) -> None:
        path = world.evaluation / "summary.json"
        path.write_bytes(json_bytes(json.loads(path.read_bytes()) | {key: value}))

    # the model is needed where the head is no affine map of the pooled layer: explain always reads it
    explain = ("explain", "--row", 0, "--evaluation", world.evaluation, "--out", world.out)
    for key, values in odd.items():
        for value in values:
            words = explain if isinstance(value, dict) and ":" in str(value.get("model")) else fit
            yield f"root of a store: {key} = {value!r}", lambda k=key, v=value: root(k, v), words
    for key in ("made_from", "directions", "made_by"):
        for value in (None, 3, [], {}, "x" * 10**6, {"d": float("nan")}):
            yield f"summary: {key} = {str(value)[:20]}", lambda k=key, v=value: summary(k, v), report


# --- memory

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


KINDS = {"kills": (kills, 42), "flips": (flips, 315), "hostile": (hostile, 0), "memory": (memory, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--trials", type=int, help="of each kind; 0: all there are of hostile and memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; inputs that are there are used again")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"there is no kind {min(unknown)}")
    torch.set_num_threads(1)
    bad = 0
    sys.stdout.write(f"| kind | trials | {' | '.join(FAULTS)} | seconds |\n|{'---|' * 7}\n")
    with tempfile.TemporaryDirectory(prefix="eddp-faults-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        stores.plan.TARGET_CHUNK_BYTES = 512  # else there is one chunk
        world = World(folder)
        for kind in given.kinds or KINDS:
            attack, usual = KINDS[kind]
            seen: Counter[str] = Counter()
            start = time.monotonic()
            try:
                for trial in attack(world, random.Random(given.seed), usual if given.trials is None else given.trials):
                    seen.update(["trials", *([trial.fault] if trial.fault else [])])
                    if trial.fault:
                        sys.stderr.write(f"{trial.fault}: {trial.what}: {trial.detail}\n")
                        sys.stderr.flush()
            finally:  # an interrupted run prints what it saw
                bad += seen.total() - seen["trials"]
                counts = " | ".join(str(seen[key]) for key in ("trials", *FAULTS))
                sys.stdout.write(f"| {kind} | {counts} | {time.monotonic() - start:.0f} |\n")
                sys.stdout.flush()
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
