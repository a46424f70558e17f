"""Stores on an S3-compatible server, by the commands: the same bytes and numbers as on a disk, killed, split, damaged, kept."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from own_process import start
from tiny import contents

pytest.importorskip("moto")
pytest.importorskip("s3fs")

from object_store import Server, forget, remote_contents, serving

from pipeline.evaluation_result import EvaluationResult
from stores import layout, objects
from stores.directions import Directions
from stores.paths import as_path
from stores.readers import LayerReader
from stores.store import ActivationStore

NET = ("--model", "tiny_net:build", "--layer", "second")
SLOW = ("--model", "tiny_net:slow", "--layer", "second", "--batch-size", 4, "--workers", 0, "--quiet")
FEW = ("--set", "restarts=1", "--refits", 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def bucket(server: Server) -> str:
    return server.bucket()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TARGET_CHUNK_BYTES", 1024)  # four images


@pytest.mark.slow
def test_the_full_job_is_that_of_a_disk(
    run: Run, server: Server, bucket: str, tiny_broden: Callable[..., object], tmp_path: Path, small_chunks: None
) -> None:
    broden, local, remote = tiny_broden(images=12).root, tmp_path / "acts.zarr", f"{bucket}/deep/acts.zarr"
    told = json.loads(ok(run("extract", *NET, "--data", broden, "--out", remote, "--dry-run --json")).out)
    assert (told["images"], told["free"], told["fits"]) == (12, None, None)
    assert remote_contents(bucket) == {}
    for out in (local, remote):
        ended = ok(run("extract", *NET, "--data", broden, "--out", out))
        assert ended.out.splitlines()[-1] == str(out)
    assert f"how much is free at '{remote}' an object store does not say" in ended.err
    assert remote_contents(remote) == contents(local)
    assert json.loads(as_path(f"{remote}.run.json").read_bytes())["options"]["out"] == remote
    again = ok(run("extract", *NET, "--data", broden, "--out", remote, "--json"))
    assert json.loads(again.out)["done_now"] == 0
    assert ok(run("eddp verify", remote)).out == f"{remote}: sound\n"

    def shown(path: object) -> dict[str, object]:
        facts = json.loads(ok(run("eddp inspect", path, "--json")).out)
        return {key: facts[key] for key in ("model", "images", "chunks", "bytes", "layers", "values")}

    assert shown(remote) == shown(local)
    numbers = {}
    for name, store, more in (
        ("local", local, ()), ("plain", remote, ()), ("kept", remote, ("--cache", tmp_path / "cache")),
    ):  # fmt: skip
        out = tmp_path / name / "d.safetensors"
        out.parent.mkdir()
        ok(run("fit --store", store, "--directions 3 --set refine_steps=2", *FEW, "--out", out, *more))
        found = Directions.load(out)
        assert found.info["store"]["path"] == str(store)
        numbers[name] = found.filters.tolist(), found.signals.tolist(), found.mean.tolist()
    assert numbers["plain"] == numbers["kept"] == numbers["local"]
    for name, store in (("local", local), ("kept", remote)):
        more = ("--cache", tmp_path / "cache", "--influence", "--null-directions", 0)[2 * (store is local) :]
        given = ("--store", store, "--directions", tmp_path / name / "d.safetensors", "--broden", broden)
        ok(run("evaluate", *given, *NET[:2], *more))
        evaluated = EvaluationResult(tmp_path / name / "evaluation")
        assert evaluated.store().path == as_path(store)  # what follows finds it there
        numbers[name] = {
            key: value for key, value in evaluated.summary["directions"]["d"].items() if key != "fitted_on"
        }
    assert numbers["kept"] == numbers["local"]
    kept = {path.relative_to(tmp_path / "cache").parts[1] for path in (tmp_path / "cache").rglob("c.*")}
    assert kept == {"layers", "images"}
    assert "EDDP_CACHE" not in os.environ


@pytest.mark.slow
def test_two_shards_begin_at_once_and_one_is_killed(
    run: Run, bucket: str, tiny_images: Callable[..., Path], tmp_path: Path, small_chunks: None
) -> None:
    options, out = (*SLOW, "--data", tiny_images(60)), as_path(f"{bucket}/s.zarr")

    def committed() -> set[int]:
        return {int(path.stem) for path in (out / "commits").glob("*.json")}

    one, other = (start(*options, "--out", out, "--shard", f"{i}/2") for i in range(2))
    deadline = time.monotonic() + 120
    while not committed() & set(range(7, 15)):
        assert other.poll() is None, other.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    other.kill()
    assert other.wait() == -signal.SIGKILL
    other.communicate()
    told, err = one.communicate(timeout=120)
    assert one.returncode == 0, err
    done = committed()
    assert set(range(7)) < done < set(range(15))
    missing = re.search(r"this shard is done; (\d+) of 15 chunks are missing yet", told)
    assert missing, told
    assert 15 - len(done) <= int(missing[1]) <= 8  # it may have counted before the other one's last
    ended = run("fit --store", out, "--directions 2 --out", tmp_path / "d.safetensors")
    fails(ended, 1, f"{len(done)} of 15 chunks are committed")
    facts = json.loads(ok(run("eddp inspect", out, "--json --quiet")).out)
    assert facts["unfinished"]["committed chunks"] == len(done)
    (out / "commits" / "00000001.json").unlink()  # as if it had been killed before this record
    assert run("eddp verify", out).code == 1
    again = json.loads(ok(run("extract", *options, "--out", out, "--json")).out)
    assert again["done_now"] == 60 - 4 * (len(done) - 1)
    ok(run("extract", *options, "--out", tmp_path / "whole.zarr"))
    assert remote_contents(out) == contents(tmp_path / "whole.zarr")
    names = {name for name in remote_contents(bucket) if name.endswith(".run.json")}
    assert names >= {"s.zarr.shard-0-of-2.run.json", "s.zarr.run.json"}


def test_what_was_damaged_is_found_and_made_good(
    run: Run, server: Server, bucket: str, tiny_images: Callable[..., Path], tmp_path: Path, small_chunks: None
) -> None:
    out = as_path(f"{bucket}/s.zarr")
    options = ("extract", *NET, "--data", tiny_images(12), "--out", out, "--quiet")
    ok(run(*options))
    whole = remote_contents(out)
    array = "layers/second/activations"
    flipped, short, gone = (f"{array}/c.{k}.0.0" for k in range(3))
    objects.put({out / flipped: bytes([whole[flipped][0] ^ 1]) + whole[flipped][1:]})
    fails(run("eddp verify", out), 1, f"chunk 0 of {array}: its bytes do not match its recorded checksum")
    ended = run("fit --store", out, "--directions 2 --cache", tmp_path / "c", "--out", tmp_path / "d.safetensors")
    fails(ended, 1, f"Chunk 0 of '{array}'", "was changed after it was written")
    objects.put({out / flipped: whole[flipped], out / short: whole[short][:-1]})
    objects.remove([out / gone])
    ended = run("evaluate --store", out, "--directions", tmp_path / "none.safetensors", "--influence")
    assert ended.code == 2  # of a file that is not there nothing else is asked
    ended = run("eddp verify", out)
    fails(
        ended,
        1,
        f"chunk 1 of {array}: {len(whole[short]) - 1} bytes instead of {len(whole[short])}",
        f"chunk 2 of {array}: no such object",
    )
    ok(run(*options))
    assert remote_contents(out) == whole


def test_overwritten_and_another_one_left_as_it_is(
    run: Run, bucket: str, tiny_images: Callable[..., Path], tmp_path: Path, small_chunks: None
) -> None:
    out, data = as_path(f"{bucket}/s.zarr"), tiny_images(20)
    ok(run("extract", *NET, "--data", data, "--out", out, "--quiet"))
    other = ("extract", *NET, "--data", data, "--limit", 8, "--quiet")
    fails(run(*other, "--out", out), 2, "already holds a store made from something else")
    fails(run(*other, "--out", out / "layers"), 2, f"is within the store '{out}'")
    ok(run(*other, "--out", out, "--overwrite"))
    ok(run(*other, "--out", tmp_path / "s.zarr"))
    assert remote_contents(out) == contents(tmp_path / "s.zarr")
    objects.put({out / "mine.txt": b"of a user"})
    fails(run(*other, "--out", out, "--overwrite"), 2, "holds other things than a store of eddp (mine.txt)")
    assert (out / "zarr.json").is_file()


def test_any_zarr_reader_opens_it(bucket: str, tiny_store: Callable[..., Path]) -> None:
    import zarr
    from tiny import write_store
    from zarr.core.sync import sync

    x = np.random.default_rng(0).standard_normal((10, 3, 2)).astype(np.float32)
    write_store(as_path(f"{bucket}/s.zarr"), {"a": x}, compress="zstd")
    group = zarr.open_group(f"{bucket}/s.zarr", mode="r", storage_options={"skip_instance_cache": True})
    assert np.array_equal(np.asarray(group["layers/a/activations"][:]), x)  # type: ignore[index]
    system = group.store.fs
    sync(system._s3.__aexit__(None, None, None))


def test_stored_chunks_are_asked_for_once(
    server: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import write_store

    x = {"a": np.random.default_rng(0).standard_normal((40, 1024, 1)).astype(np.float32)}
    out = write_store(as_path(f"{bucket}/s.zarr"), x)
    monkeypatch.setenv("EDDP_CACHE", str(tmp_path / "cache"))

    def read() -> list[tuple[str, str, int]]:
        with server.asked() as asked:
            reader = LayerReader(ActivationStore.open(out))
            assert np.array_equal(np.concatenate([block for _, block in reader.blocks()]), x["a"])
            assert reader.mapping is not None
            assert np.array_equal(reader.rows([5, 40_000]), x["a"].reshape(-1, 1)[[5, 40_000]])
            assert len(reader.store.labels) == 40
        return [one for one in asked if one[0] == "GET" and "list-type" not in one[1]]

    first, second = read(), read()
    assert sum("activations/c." in path for _, path, _ in first) == 10  # each once
    assert [path for _, path, _ in second if "/c." in path] == []
    assert len(second) == 2  # the root and the manifest
    (tmp_path / "cache").rename(tmp_path / "elsewhere")  # nothing but a copy
    assert len(read()) == len(first)


def test_wrong_use_is_one_message(
    run: Run,
    server: Server,
    bucket: str,
    tiny_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(code: int, *command: object) -> str:
        begun = time.monotonic()
        ended = run(*command)
        assert ended.code == code, ended.err
        assert ended.err.count("\n") == 1, ended.err
        assert time.monotonic() - begun < 30
        return str(ended.err)

    directions = tmp_path / "d.safetensors"
    fit = ("fit", "--directions", 2, "--out", directions, "--store")
    assert "There is no store at" in said(2, *fit, f"{bucket}/none.zarr")
    assert "There is no bucket 'nobody-has-it'" in said(2, *fit, "s3://nobody-has-it/s.zarr")
    extract = ("extract", *NET, "--data", tiny_images(4), "--quiet", "--out")
    assert "There is no bucket 'nobody-has-it'" in said(2, *extract, "s3://nobody-has-it/s.zarr")
    assert "There is no protocol 'nonsense://'" in said(2, *fit, "nonsense://a/s.zarr")
    assert "is no URL of a store" in said(2, "eddp", "verify", "s3://")
    assert "Give the plain URL, and --cache DIR" in said(2, "eddp", "verify", "simplecache::s3://a/s.zarr")
    url = f"{bucket}/d.safetensors"
    assert "where only stores can be" in said(2, "fit", "--store", "s", "--directions", 2, "--out", url)
    assert "where only stores can be" in said(2, "evaluate", "--store", "s", "--directions", "d", "--out", url)
    (tmp_path / "file").touch()
    assert "is no folder" in said(2, *fit, f"{bucket}/none.zarr", "--cache", tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
        forget()
        assert "pip install 'eddp[s3]'" in said(2, *fit, f"{bucket}/none.zarr")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
        forget()
        assert "could not connect to the endpoint" in said(1, *fit, f"{bucket}/none.zarr")
        assert "could not connect to the endpoint" in said(1, *extract, f"{bucket}/none.zarr")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(tmp_path))
        forget()
        assert "there are no credentials" in said(1, *fit, f"{bucket}/none.zarr")
    forget()
    assert not directions.exists()
    assert remote_contents(bucket) == {}


def test_refused(run: Run, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """403, as s3fs tells it."""

    def refuse(*_: object, **__: object) -> list[bytes]:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(objects.filesystem("s3"), "cat_ranges", refuse)
    ended = run("fit --store", f"{bucket}/s.zarr", "--directions 2 --out", tmp_path / "d.safetensors")
    fails(ended, 1, "access is refused (Access Denied). Check the credentials")


def test_a_full_cache_is_reported_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tiny import write_store

    x = {"a": np.arange(40 * 1024, dtype=np.float32).reshape(40, 1024, 1)}
    out = write_store(as_path(f"{bucket}/s.zarr"), x)
    (tmp_path / "full").touch()
    monkeypatch.setenv("EDDP_CACHE", str(tmp_path / "full" / "cache"))
    with caplog.at_level(logging.WARNING):
        reader = LayerReader(out)
        assert reader.mapping is None
        assert np.array_equal(reader.rows([7, 40_000]), x["a"].reshape(-1, 1)[[7, 40_000]])
        assert np.array_equal(np.concatenate([block for _, block in reader.blocks()]), x["a"])
    assert caplog.text.count("nothing more is cached") == 1
