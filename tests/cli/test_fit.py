"""The fit command: what it leaves, how it goes on after being killed, and what it says of stores that cannot be fitted."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run, fails, ok
from own_process import EDDP, start
from tiny import contents, write_store

from fit.eddp import EDDP as Method
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions

QUICK = ("--set", "refine_steps=10", "--set", "restart_steps=5", "--refits", 0)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "s.zarr"
    make_synthetic(path, SyntheticConfig(images=900))
    return path


def store_of(path: Path, x: np.ndarray) -> Path:
    """A sealed store of given activations (N, P, C), with nothing else known."""
    heads = {"layer": (np.ones((3, x.shape[2]), np.float32), np.zeros(3, np.float32))}
    made = {"model": "none", "weights": "none", "synthetic": {}}
    return write_store(path, {"layer": x.astype(np.float32)}, provenance=made, heads=heads)


def test_killed_at_any_moment_the_same_command_resumes(run: Run, synthetic: Path, tmp_path: Path) -> None:
    """The real command, ended from outside whenever it happens to be; the result has the bytes of one never killed."""
    settings = [
        word for text in ("restarts=1", "regime=sharp", "refine_steps=400", "patience=0") for word in ("--set", text)
    ]
    options = ("fit", "--store", synthetic, "--directions", 3, "--refits", 0, *settings, "--quiet")
    whole, out = tmp_path / "whole.safetensors", tmp_path / "d.safetensors"
    assert run(*options, "--out", whole).code == 0
    assert not whole.with_suffix(".checkpoint").exists()
    steps = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start(*options, "--out", out, "--checkpoint-every", 0, code=EDDP)
        checkpoint, seen = out.with_suffix(".checkpoint"), len(steps)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                seen += 1
                before = checkpoint.stat().st_mtime_ns
                if seen > 8:
                    break
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 130), err
        assert not out.exists()
        steps.append(checkpoint.stat().st_mtime_ns)
    assert run(*options, "--out", out).code == 0
    a, b = Directions.load(whole), Directions.load(out)
    for name in ("filters", "signals", "thresholds"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert whole.with_suffix(".log.csv").read_bytes() == out.with_suffix(".log.csv").read_bytes()
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_checkpoint_of_another_fit_stops_with_one_message(run: Run, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    out.with_suffix(".checkpoint").write_bytes(b"nonsense")
    ended = run("fit --store", synthetic, "--directions 2 --out", out)
    fails(ended, 1, "is damaged", "remove it")
    assert ended.err.count("\n") == 1


def test_a_store_of_zeros(run: Run, tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.zarr", np.zeros((20, 4, 8)))
    for method in ("eddp", "kmeans", "ica"):
        ended = run("fit --store", store, "--directions 2 --method", method, "--out", tmp_path / "d.safetensors")
        assert ended.code == 1, method
        assert "Traceback" not in ended.err
        assert "do not vary" in ended.err or "not zero" in ended.err, ended.err
    assert not (tmp_path / "d.safetensors").exists()


def test_constant_channels_and_dead_ones_are_no_obstacle(run: Run, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(60, 4, 8))
    x[..., 2], x[..., 5] = 0, 7.5
    store = store_of(tmp_path / "s.zarr", x)
    for method in ("eddp", "kmeans", "pca", "ica", "sae"):
        out = tmp_path / f"{method}.safetensors"
        more = QUICK if method == "eddp" else ("--set", "epochs=2") if method == "sae" else ()
        ok(run("fit --store", store, "--directions 2 --method", method, "--out", out, *more))
        assert np.isfinite(Directions.load(out).filters).all()


def test_more_directions_than_different_rows(run: Run, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    x = np.repeat(g.normal(size=(3, 1, 8)), 4, 1)[g.integers(0, 3, 40)]
    store = store_of(tmp_path / "s.zarr", x)
    ended = run("fit --store", store, "--directions 9 --out", tmp_path / "d.safetensors", *QUICK)
    fails(ended, 1, "9 directions were asked for", "fewer --directions")


def test_too_few_positions_for_so_many_directions(run: Run, synthetic: Path, tmp_path: Path) -> None:
    for directions, few in ((2, False), (8, True)):  # of 1800 positions
        out = tmp_path / f"{directions}.safetensors"
        ended = run("fit --store", synthetic, "--directions", directions, *QUICK, "--out", out)
        assert ("225 positions for each direction" in ended.err) == few


def test_not_enough_memory_for_the_rows(
    run: Run, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.empty

    def empty(*size: int, **more: object) -> torch.Tensor:
        if size[:1] == (1800,):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return real(*size, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", empty)
    ended = run("fit --store", synthetic, "--directions 3 --out", tmp_path / "d.safetensors")
    fails(ended, 1, "1800 positions of 5 numbers", "rows=store")


def test_every_setting_is_reached_by_set_and_recorded(run: Run, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    ok(run("fit --store", synthetic, "--directions 3 --out", out, "--json", *QUICK,
           "--set signals=positives --set batch_rows=500 --set regime=soft"))  # fmt: skip
    config = json.loads(out.with_suffix(".json").read_text())["config"]
    wanted = {"refine_steps": 10, "signals": "positives", "batch_rows": 500, "regime": "soft"}
    assert wanted.items() <= config.items()
    assert out.with_suffix(".log.png").stat().st_size > 5000
    ended = run("fit --store", synthetic, "--directions 3 --out", out, "--set signals=average")
    fails(ended, 2, "must be one of pooled, positives, free")


def test_learning_too_fast_is_reported_and_nothing_is_written(run: Run, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    for method, more in (("eddp", ("refine_steps=1", "restart_steps=0")), ("sae", ("epochs=1",))):
        settings = [text for pair in (*more, "learning_rate=1e37") for text in ("--set", pair)]
        ended = run("fit --store", synthetic, "--directions 3 --method", method, "--out", out, *settings)
        fails(ended, 1, "lower the learning rate")
        assert not out.exists()


def test_options_that_contradict_each_other(run: Run, synthetic: Path, tmp_path: Path) -> None:
    def fit(*more: object) -> str:
        ended = run("fit --store", synthetic, "--directions 2", *more)
        assert ended.code == 2, ended.err
        return ended.err

    assert "an option of its own, --directions" in fit("--set", "n_directions=5")
    assert "an option of its own, --seed" in fit("--set", "seed=5")
    (tmp_path / "d.safetensors").mkdir()
    assert "is a folder: name a file in it" in fit("--out", tmp_path / "d.safetensors")
    assert "got nan" in fit("--checkpoint-every", "nan", "--out", tmp_path / "e.safetensors")


def test_a_large_seed_and_what_an_earlier_fit_left(run: Run, synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    options = ("fit", "--store", synthetic, "--directions", 2, "--out", out)
    assert run(*options, "--seed", 3_000_000_000, *QUICK, "--refits", 1).code == 0
    assert out.with_suffix(".log.csv").exists()
    before = out.read_bytes()
    fails(run(*options, "--method", "pca"), 2, "holds 2 directions of synthetic by eddp", "method was eddp, is pca")
    fails(run(*options, *QUICK), 2, "seed was 3000000000, is 0", "--overwrite")
    assert out.read_bytes() == before
    ok(run(*options, "--method", "pca", "--overwrite"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.json", "d.run.json", "d.safetensors"]
    before = contents(tmp_path)
    assert "nothing to do" in ok(run(*options, "--method", "pca")).err  # the same again
    assert contents(tmp_path) == before
    ok(run(*options, "--method", "pca", "--overwrite"))
    assert contents(tmp_path) != before  # its record has another time
    for more in ((), ("--overwrite",)):
        (tmp_path / "mine.safetensors").write_text("a thesis")
        fails(run(*options[:-1], tmp_path / "mine.safetensors", *more), 2, "It is not changed")
        assert (tmp_path / "mine.safetensors").read_text() == "a thesis"


def test_what_cannot_be_written_is_refused_before_the_fit(
    run: Run, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("pipeline.fitting.fit_to_file", lambda *_, **__: pytest.fail("it was begun"))

    def refused(out: Path, reason: str) -> None:
        ended = run("fit --store", synthetic, "--directions 3 --out", out)
        assert (ended.code, ended.err.count("\n")) == (1, 1), ended.err
        assert f"could not be written: {reason}" in ended.err

    refused(tmp_path / "file" / "d.safetensors", "File exists")
    refused(Path("/proc/none/d.safetensors"), "No such file")
    refused(tmp_path / f"{'x' * 240}.safetensors", "File name too long")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_only(path: str, flags: int, *more: Any, **also: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *more, **also)

    opened = os.open
    with monkeypatch.context() as disk:
        disk.setattr("stores.io.write_bytes", full)
        refused(tmp_path / "d.safetensors", "No space left")
        disk.setattr("stores.io.os.open", read_only)
        refused(tmp_path / "d.safetensors", "Read-only file system")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_options_by_their_names_in_the_environment(
    run: Run, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDDP_FIT_SET", "refine_steps=3 restarts=1")
    monkeypatch.setenv("EDDP_FIT_CHECKPOINT_EVERY", "5")
    monkeypatch.setenv("EDDP_FIT_JSON", "1")
    out = tmp_path / "d.safetensors"
    ended = ok(run("fit --store", synthetic, "--directions 2 --refits 0 --out", out))
    assert json.loads(ended.out)["directions"] == 2
    config = json.loads(out.with_suffix(".json").read_bytes())["config"]
    assert (config["refine_steps"], config["restarts"]) == (3, 1)
    monkeypatch.setenv("EDDP_FIT_CHECKPOINT_EVERY", "often")
    assert "often" in run("fit --store", synthetic, "--directions 2 --out", out).err


def test_all_of_a_layer_negative_is_100_percent(run: Run, tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.zarr", -1 - np.random.default_rng(0).random((8, 4, 3)))
    ended = run("fit --store", store, "--method nmf --directions 2 --out", tmp_path / "d.safetensors")
    assert "(100 % of them" in ended.err


def test_halves_hold_as_many_of_each_class(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    store = tmp_path / "acts.zarr"
    net = ("--model", "tiny_net:build", "--layer", "second")
    assert run("extract", *net, "--data", tiny_images(12), "--out", store).code == 0
    for i in range(2):
        out = tmp_path / f"half{i}.safetensors"
        options = ("--store", store, "--directions", 2, "--method", "kmeans", "--part", f"{i}/2", "--part-seed", 3)
        ok(run("fit", *options, "--out", out))
        record = json.loads(out.with_suffix(".run.json").read_bytes())
        assert record["part"] == {"images": 6, "classes": {"cat": 3, "dog": 3}}
        assert json.loads(out.with_suffix(".json").read_bytes())["store"]["part"] == {"index": i, "of": 2, "seed": 3}


def test_48_images_are_too_few_for_32_directions(
    run: Run, synthetic: Path, tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    store, out = tmp_path / "few.zarr", tmp_path / "d.safetensors"
    ok(run("extract --model tiny_net:build --layer second --data", tiny_images(48), "--out", store))
    quick = ("--set", "refine_steps=60", "--set", "restart_steps=20", "--refits", 2)
    ended = ok(run("fit --store", store, "--directions 32 --out", out, *quick))
    assert "24 positions for each direction" in ended.err
    assert "more images" in ended.err
    shown = ok(run("eddp inspect", out)).out
    assert "unknown" not in shown
    for line in ended.out.splitlines()[1:-1]:  # what found the directions again, what they cover, what they are from
        assert line in shown
    ended = ok(run("fit --method kmeans --store", store, "--directions 64 --refits 2 --overwrite --out", out))
    assert "12 positions for each direction" in ended.err
    ended = ok(run("fit --store", synthetic, "--directions 3 --json --overwrite --out", out, *quick))
    found = json.loads(ended.out)
    assert len(found["verdict"]["lines"]) == 3
    assert found["verdict"]["problems"] == []
    assert found["diagnosis"]["loss_unseen"] < found["diagnosis"]["loss_seen"] + 0.5


def test_what_chance_finds_again_is_not_counted(run: Run, tmp_path: Path) -> None:
    """Three clusters on a line have parallel centroids: any one is the partner of any other one."""
    x = np.random.default_rng(0).normal(0, 0.01, (60, 4, 8))
    x[..., 0] += np.repeat([1.0, 5.0, 9.0], 20)[:, None]
    store, out = store_of(tmp_path / "line.zarr", x), tmp_path / "d.safetensors"
    ended = ok(run("fit --method kmeans --store", store, "--directions 3 --refits 2 --out", out))
    assert "0 of 3 directions" in ended.out
    assert "3 cannot be counted" in ended.out
    assert "may be chance" in ended.err


@pytest.mark.parametrize(("kappa", "warned"), [(0.48, True), (0.5, False)])
def test_halves_that_do_not_agree_are_a_problem_of_the_fit(
    run: Run, tmp_path: Path, kappa: float, warned: bool
) -> None:
    w, out = np.eye(4, 3, dtype=np.float32), tmp_path / "d.safetensors"
    info = {"selection": {"why": "", "rows": [{"directions": 2, "kappa": 0.9}, {"directions": 3, "kappa": kappa}]}}
    Directions(w, w, w[:, 0], None, "kmeans", "layer", found_again=np.ones(3, np.float32), info=info).save(out)
    assert ("κ = 0.48" in ok(run("eddp inspect", out)).out) == warned


def test_signal_vectors_that_are_almost_the_same_are_named(run: Run, tmp_path: Path) -> None:
    """Of cosines 0.96 and 0.94; filters are at right angles."""
    w, out = np.eye(4, dtype=np.float32), tmp_path / "d.safetensors"
    s = np.stack([[1, 0, 0, 0], [0, 1, 0, 0], [-0.96, 0, 0.28, 0], [0, 0.94, 0, 0.3412]], 1).astype(np.float32)
    Directions(w, s, w[:, 0], None, "kmeans", "layer").save(out)
    assert "(|cos| above 0.95): 0 and 2\n" in ok(run("eddp inspect", out)).out


def test_two_halves_in_one_folder(run: Run, synthetic: Path, tmp_path: Path) -> None:
    folder = tmp_path / "halves"
    folder.mkdir()
    halves = [folder / f"half{i}.safetensors" for i in range(2)]
    for i, out in enumerate(halves):
        ok(run("fit --store", synthetic, "--directions 3 --method kmeans --part", f"{i}/2", "--out", out))
    shown = ok(run("eddp inspect", folder)).out.splitlines()
    for name, part in (("half0", "part 0/2"), ("half1", "part 1/2")):
        assert [line for line in shown if line.startswith(f"{name}: ") and part in line and "450 images" in line]
    options = ("evaluate --ground-truth --store", synthetic, "--out", tmp_path / "e", "--directions")
    ended = ok(run(*options, halves[0], "--directions", halves[1]))
    assert "half1: fitted on part 1/2" in ended.out
    assert "not the store" not in ended.out
    make_synthetic(tmp_path / "other.zarr", SyntheticConfig(images=100))
    other = ("evaluate --ground-truth --store", tmp_path / "other.zarr", "--out", tmp_path / "o", "--directions")
    assert "not the store evaluated" in ok(run(*other, halves[0])).out
    (folder / "copy.safetensors").write_bytes(halves[0].read_bytes())
    fails(run(*options, halves[0], "--directions", folder / "copy.safetensors"), 2, "'copy'", "the same directions")
    (tmp_path / "half0.safetensors").write_bytes(halves[1].read_bytes())
    fails(run(*options, halves[0], "--directions", tmp_path / "half0.safetensors"), 2, str(halves[0]), "Rename one")


def test_the_number_of_directions_is_selected_and_a_stopped_selection_resumes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = tmp_path / "s.zarr", tmp_path / "d.safetensors"
    make_synthetic(store, SyntheticConfig(images=1300))
    options = ("fit", "--store", store, "--out", out, *QUICK, "--refits", 2)
    calls, brief = [0], Method.brief

    def stopped(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:  # four fits a number: in the midst of the second one's
            raise KeyboardInterrupt
        return brief(*arguments)

    monkeypatch.setattr(Method, "brief", stopped)
    assert run(*options, "--directions", "auto").code == 130
    fails(run(*options, "--directions", "auto", "--seed", 1), 2, "of another fit", "seed was 0, is 1")
    ended = ok(run(*options, "--directions", "auto", "--json"))
    assert calls[0] == 6 + 4 + 2
    selection = json.loads(ended.out)["selection"]
    assert [row["directions"] for row in selection["rows"]] == [8, 12]  # 2600 positions: more would be too few each
    found = Directions.load(out)
    assert found.count == selection["number"]
    assert found.info["selection"] == selection
    assert set(np.round(found.found_again * 2, 6)) <= {0, 1, 2}
    lines = out.with_suffix(".numbers.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert {"directions", "kappa", "coverage", "loss"} <= set(lines[0].replace('"', "").split(","))
    assert out.with_suffix(".numbers.png").exists()
    assert not list(tmp_path.glob("*.checkpoint"))
    again = ok(run(*options, "--directions", "auto"))
    assert (calls[0], "nothing to do" in again.err) == (12, True)
    again = ok(run(*options, "--directions", "auto", "--overwrite"))  # never stopped: the same
    assert "κ: by the correlation of their logits" in again.out
    assert Directions.load(out).info["selection"] == selection
    fails(run(*options, "--directions", 2), 2, "n_directions was auto, is 2")
    assert run(*options, "--directions", 2, "--overwrite").code == 0
    assert not list(tmp_path.glob("*.numbers.*"))
    assert run(*options, "--directions", "few").code == 2
    assert run(*options, "--directions", "auto", "--method", "probe").code == 2


def test_directions_of_another_network_are_refused(run: Run, tiny_store: Callable[..., Path], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4, 6)).astype(np.float32)
    stores = [
        tiny_store({"a": x}, name=f"{name}.zarr", provenance={"model": "m", "weights_digest": f"sha256:{name}"})
        for name in ("trained", "random")
    ]
    out = tmp_path / "d.safetensors"
    ok(run("fit --method kmeans --directions 2 --refits 0 --store", stores[0], "--out", out))
    fails(
        run("evaluate --monosemanticity --store", stores[1], "--directions", out, "--out", tmp_path / "o"),
        2,
        "another network",
        "random",
    )
    fails(
        run("eddp explain --row 0 --store", stores[1], "--directions", out, "--out", tmp_path / "x"),
        2,
        "another network",
    )
