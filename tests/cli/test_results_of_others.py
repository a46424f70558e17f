"""Results that somebody else made, or that were damaged: one short message, exit code 1, whatever is in the files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Run, do
from safetensors import safe_open
from safetensors.numpy import load_file, save

from fit.checkpoint import Checkpoint
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions
from stores.folders import MANIFEST, write_manifest

MOST = 500  # characters of a message, without the folder's path
DEEP = "DEEP"
NAN, INF = float("nan"), float("inf")
ODD = [None, True, -1, 10**11, 10**400, 1e308, NAN, INF, "x" * 200_000, "\x1b[2J" * 999, "a\0b", [], [None], {}, DEEP]
INFLUENCE = {"alpha": 2.0, "images": 9, "through": "x", "classes": 3, "nulls": 8, "randoms": 9, "alpha_relative": 0.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, directions ``d`` and an evaluation with every table that is read, some of it written by hand; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    store, file, out = folder / "s.zarr", folder / "d.safetensors", folder / "evaluation"
    make_synthetic(store, SyntheticConfig(images=60))
    g = np.random.default_rng(0)
    filters = g.standard_normal((16, 3)).astype(np.float32)
    diagnosis = {"dead": [1], "duplicates": [[0, 2]]}
    selection = {"why": "tried", "rows": [{"directions": 3, "kappa": 0.7}]}
    info = {"config": {"refits": 8, "seed": 1}, "diagnosis": diagnosis, "store": {"path": "s.zarr"}, "run": {}}
    info["selection"] = selection
    signals = filters / np.linalg.norm(filters, axis=0)
    mean, b = np.zeros(16, np.float32), np.zeros(3, np.float32)
    Directions(filters, signals, mean, b, "eddp", "synthetic", info=info).save(file)
    do("evaluate --store", store, "--directions", file, "--ground-truth --quiet")
    summary = json.loads((out / "summary.json").read_bytes())
    per_category = {"c": {"distinct": 1, "detectors": 2}}
    summary["directions"]["d"] |= {"influence": INFLUENCE, "per_category": per_category, "intervals": {"s1": [0, 1]}}
    (out / "summary.json").write_text(json.dumps(summary))
    labels = {"label": ["a", "b", ""], "category": ["c", "c", ""]}
    each: dict[str, Any] = {"directions": ["d"] * 3, "index": [0, 1, 2]} | labels
    shares = ("iou_train", "iou_val", "iou_low", "iou_high", "precision", "recall", "f1", "average_precision")
    scored = (
        each
        | {"interpretable": [True, False, False], "rank": [1] * 3, "as_good": [True] * 3}
        | {key: [0.5, 0.1, 0.0] for key in shares}
        | {key: [9, 4, 0] for key in ("images_val", "positions_val")}
    )
    suspect = {
        "directions": "d",
        "indices": "0 2",
        "label": "a",
        "category": "c",
        "class": 1,
        "class_name": "k",
        "images": 6,
        "kind": "small, of one class",
    }
    suspect |= dict.fromkeys(("area", "share_of_class", "share_of_images", "usual_share", "probability_change"), 0.1)
    moved = each | {"role": ["signal"] * 3, "alpha": [2.0] * 3, "class": [0, 1, 2]}
    marks = {"significant": [True, False, True]}
    tables = {
        "directions": scored,
        "labels": scored,
        "suspects": {k: [v] for k, v in suspect.items()},
        "steering": moved | {"probability": [0.1] * 3, "monotone_up_to": [1.0] * 3},
        "influence": moved | {"probability_change": [0.1] * 3} | marks,
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), out / f"{name}.parquet")
    renew_manifest(out)
    return folder


def renew_manifest(folder: Path) -> None:
    """List the files as they are now: anybody can compute checksums."""
    (folder / MANIFEST).unlink()
    write_manifest(folder)


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, with a copy of all but the store."""
    shutil.copytree(made, tmp_path / "p", ignore=shutil.ignore_patterns("s.zarr"))
    (tmp_path / "p" / "s.zarr").symlink_to(made / "s.zarr")
    return tmp_path / "p"


@pytest.fixture
def refused(run: Run, place: Path) -> Callable[..., str]:
    """Run a command that must end at once with one short message; which one."""

    def call(*arguments: object) -> str:
        renew_manifest(place / "evaluation")
        ended = run(*arguments)
        message = ended.err.replace(str(place), "").strip().split("\n")[-1]
        assert ended.code == 1, (arguments, ended.code, message[:MOST])
        assert message.startswith("Error: ")
        assert "unexpected" not in message
        assert len(message) <= MOST
        assert message.isprintable()
        assert not (place / "report").exists()
        return message

    return call


def commands(place: Path) -> list[tuple[object, ...]]:
    folder = place / "evaluation"
    return [
        ("eddp", "report", folder, "--visualize", "none", "--quiet"),
        ("eddp", "explain", "--row", 0, "--evaluation", folder, "--quiet"),
        ("eddp", "correct", folder, "--data", place, "--quiet"),
    ]


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of a document, at any depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from leaves(one, *path, key)


def changed(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> str:
    """A document with another value at a path."""
    found = deepcopy(document)
    at: Any = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(found).replace(f'"{DEEP}"', "[" * 900 + "]" * 900)


def without(document: dict[str, Any], key: Any, *path: Any) -> dict[str, Any]:
    if path:
        return {**document, key: without(document[key], *path)}
    return {k: v for k, v in document.items() if k != key}


def test_the_evaluation_that_the_others_are_made_from_is_sound(run: Run, place: Path) -> None:
    assert run(*commands(place)[0]).code == 0
    assert run("eddp inspect", place / "evaluation").code == 0


def test_every_entry_of_a_summary(run: Run, refused: Callable[..., str], place: Path) -> None:
    file = place / "evaluation" / "summary.json"
    document = json.loads(file.read_bytes())
    g = random.Random(0)
    used = [("made_by",), ("made_from",), ("directions",), ("directions", "d"), *(("made_from", k) for k in document["made_from"]),
            *(("directions", "d", k) for k in ("method", "directions", "influence", "ground_truth")),
            *(("directions", "d", "influence", k) for k in INFLUENCE), ("directions", "d", "ground_truth", "filter_cos")]  # fmt: skip
    for path in used:
        if path != ("made_from", "concepts"):
            file.write_text(changed(document, path, g.choice([True, float("nan"), -1, [None], DEEP])))
            refused(*g.choice(commands(place)))
        if path[-1] not in ("influence", "ground_truth"):
            file.write_text(json.dumps(without(document, *path)))
            assert "older eddp" in refused(*g.choice([*commands(place), ("eddp", "inspect", place / "evaluation")]))
    for path in g.sample(list(leaves(document)), 40):  # what is not read may be anything
        file.write_text(changed(document, path, g.choice(ODD)))
        ended = run("eddp inspect", place / "evaluation", "--quiet")
        assert "unexpected" not in ended.err
        assert len(ended.err) < MOST + len(str(place))


@pytest.mark.parametrize("name", ["summary.json", "directions.parquet", "influence.parquet"])
def test_no_file_but_something_else(refused: Callable[..., str], place: Path, name: str) -> None:
    file = place / "evaluation" / name
    data = file.read_bytes()
    for number, make in enumerate((
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(data[: len(data) // 2]),
        lambda: file.write_bytes(b"[" * 100_000),
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
    )):  # fmt: skip
        file.rmdir() if file.is_dir() else file.unlink()
        make()
        refused(*commands(place)[number % 3 if name != "influence.parquet" else 0])


def test_columns_of_tables(refused: Callable[..., str], place: Path) -> None:
    n = 3
    text = pa.Array.from_buffers(
        pa.string(), n, [None, pa.py_buffer(np.arange(n + 1, dtype=np.int32)), pa.py_buffer(b"\xff" * n)]
    )
    wrong = {
        "directions": {"index": [[0, 0, 1], [0, 1, 9], [-1, 0, 1], ["a"] * 3, None], "label": [[1, 2, 3], [None] * 3, text, None],
                       "iou_val": [[None, 0.1, 0.2], [float("inf")] * 3, None], "interpretable": [["a"] * 3]},
        "labels": {"label": [text], "iou_train": [[1e308] * 3, ["a"] * 3], "index": [[0, 1, 10**18]]},
        "steering": {"class": [[0, 1, 3]], "role": [None], "probability": [[float("-inf")] * 3]},
        "influence": {"class": [[0, 1, 3], [0, -1, 1], [0.5] * 3], "probability_change": [[float("nan")] * 3], "significant": [None]},
        "ground_truth": {"direction": [[0, 1, 3]], "iou": [[float("inf")] * 3, None]},
        "suspects": {"indices": [["0 3"], ["x"], [""], ["9" * 9999], [None], None], "class": [[3]], "area": [["a"]]},
    }  # fmt: skip
    for name, columns in wrong.items():
        file = place / "evaluation" / f"{name}.parquet"
        good = pq.read_table(file)
        for column, cases in columns.items():
            for values in cases:
                table = good.drop_columns([column])
                pq.write_table(table if values is None else table.append_column(column, [pa.array(values)]), file)
                message = refused(*commands(place)[0])
                assert f"{name}.parquet' is damaged or was made by an older eddp" in message
        pq.write_table(good, file)
    shorter = place / "evaluation" / "directions.parquet"
    pq.write_table(pq.read_table(shorter).slice(1), shorter)
    for command in commands(place):
        assert "rows for 2 of the 3 directions" in refused(*command)


def forge(tensors: dict[str, np.ndarray], file: Path, metadata: dict[str, str]) -> None:
    """Write a file whose digest agrees: anybody can compute it."""
    ((key, text),) = metadata.items()
    data = save(tensors, {key: re.sub("[0-9a-f]{64}", "0" * 64, text, count=1)})
    file.write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))


def test_headers_of_directions(run: Run, refused: Callable[..., str], place: Path) -> None:
    file = place / "d.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="np") as opened:
        header = json.loads(opened.metadata()["eddp"])
    g = random.Random(0)
    paths = [("quantile",), ("layer",), ("method",), ("config",), ("diagnosis",), ("store",), ("run",), ("config", "refits"),
             ("diagnosis", "dead"), ("diagnosis", "dead", 0), ("diagnosis", "duplicates", 0), ("diagnosis", "duplicates", 0, 1), ("selection",),
             ("selection", "rows", 0), ("selection", "rows", 0, "directions")]  # fmt: skip
    for path in paths:
        for value in (True, float("nan"), 10**400, DEEP):
            forge(tensors, file, {"eddp": changed(header, path, value)})
            message = refused("eddp", g.choice(["inspect", "verify"]), file, "--quiet")
            assert "Fit it again" in message
    for path in leaves(header):
        forge(tensors, file, {"eddp": changed(header, path, g.choice(ODD))})
        ended = run("eddp inspect", file, "--quiet")
        assert "unexpected" not in ended.err
        assert len(ended.err) < MOST + len(str(place))


def test_checkpoints(refused: Callable[..., str], place: Path) -> None:
    settings = "--directions 2 --set refine_steps=4 --set restarts=1 --refits 0 --checkpoint-every 0 --quiet"
    command = ("fit --store", place / "s.zarr", "--out", place / "e.safetensors", settings)
    file = place / "e.checkpoint"
    kept: list[bytes] = []
    save = Checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", lambda self, *state: (save(self, *state), kept.append(file.read_bytes())))
        do(*command)
    (place / "e.safetensors").unlink()  # the same fit again would have nothing to do
    file.write_bytes(kept[0])
    tensors = load_file(file)
    with safe_open(file, framework="np") as opened:
        header = json.loads(opened.metadata()["eddp-checkpoint"])
    wrong = {"step": (-1, 10**400), "log": ([3], DEEP), "plateau": ([0],), "soft": (1,), "reseeded": ("x" * 10**5,)}
    for key, value in ((key, value) for key, values in wrong.items() for value in values):
        forge(tensors, file, {"eddp-checkpoint": changed(header, ("values", key), value)})
        assert "remove it" in refused(*command)
    for key in ("step", "soft"):
        forge(tensors, file, {"eddp-checkpoint": json.dumps(header | {"values": without(header["values"], key)})})
        refused(*command)
    for name in ("directions", "adam.0.exp_avg"):
        for harmed in (without(tensors, name), tensors | {name: tensors[name][:1].copy()}):
            forge(harmed, file, {"eddp-checkpoint": json.dumps(header)})
            refused(*command)
    file.unlink()
    os.mkfifo(file)
    refused(*command)
