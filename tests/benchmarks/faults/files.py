"""Flipped bits, and files that somebody made in bad faith."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from tiny import contents, reseal

from stores.io import json_bytes
from tests.benchmarks.faults.world import Hanging, Trial, Words, World, differences, refusal_problem, run


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
