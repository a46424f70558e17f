"""The commands on real files, one after the other, as users run them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from own_process import end, start
from tiny import contents

KILLED_MIDWAY = """
import os, signal
import pipeline.evaluation, pipeline.main
pipeline.evaluation.write_evaluation_pages = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
pipeline.main.evaluate_script()
"""
NET = ("--model", "tiny_net:build", "--layer", "second")


def test_the_full_job(run: Run, tiny_broden: Callable[..., object], tmp_path: Path) -> None:
    broden, store = tiny_broden().root, tmp_path / "acts.zarr"
    ended = ok(run("extract", *NET, "--data", broden, "--out", store))
    assert ended.out.splitlines()[-1] == str(store)
    for method in ("eddp", "kmeans", "pca"):
        out = tmp_path / f"{method}.safetensors"
        settings = ("--set refine_steps=5 --refits 0",) if method == "eddp" else ()
        ended = ok(run("fit --store", store, "--directions 3 --method", method, "--out", out, *settings))
        assert ended.out.splitlines()[-1] == str(out)
    for name in ("eddp.json", "eddp.log.csv", "eddp.log.parquet", "eddp.log.png"):
        assert (tmp_path / name).stat().st_size > 0, name
    header = json.loads((tmp_path / "eddp.json").read_bytes())
    assert header["config"]["refine_steps"] == 5
    files = [a for m in ("eddp", "kmeans", "pca") for a in ("--directions", tmp_path / f"{m}.safetensors")]
    ended = ok(run("evaluate --store", store, *files, "--broden", broden))
    report = Path(ended.out.splitlines()[-1])
    assert report == tmp_path / "evaluation" / "report.html"
    summary = json.loads((report.parent / "summary.json").read_bytes())["directions"]
    assert set(summary) == {"eddp", "kmeans", "pca"}
    for entry in summary.values():
        assert {"method", "s1", "s2", "interpretable", "per_category", "coverage", "f1", "average_precision"} <= set(
            entry
        )
    for table in ("directions", "labels", "categories"):
        assert (report.parent / f"{table}.csv").is_file()
        assert (report.parent / f"{table}.parquet").is_file()
    assert json.loads((report.parent / "run.json").read_bytes())["command"] == "evaluate"


def test_an_evaluation_is_replaced_at_once(run: Run, tiny_broden: Callable[..., object], tmp_path: Path) -> None:
    broden, store, out = tiny_broden().root, tmp_path / "acts.zarr", tmp_path / "evaluation"
    ok(run("extract", *NET, "--data", broden, "--out", store))
    for method in ("pca", "kmeans"):
        path = tmp_path / f"{method}.safetensors"
        ok(run("fit --store", store, "--directions 3 --method", method, "--out", path))
    again = ("--store", store, "--broden", broden, "--directions")
    ok(run("evaluate", *again, tmp_path / "pca.safetensors"))
    before = contents(out)
    before.pop("run.json")  # it will tell of the attempt
    killed = start(*again, tmp_path / "kmeans.safetensors", "--model", "tiny_net:build", code=KILLED_MIDWAY)
    assert end(killed)[0] == -signal.SIGKILL
    left = contents(out)
    assert json.loads(left.pop("run.json"))["outcome"] == "done"
    assert left == before
    other = ok(run("evaluate", *again, tmp_path / "kmeans.safetensors"))
    assert Path(other.out.splitlines()[-1]) == out / "report.html"
    assert {name.split("/")[1] for name in contents(out) if name.startswith("report/")} == {"kmeans", "e"}
    made_from = json.loads((out / "summary.json").read_bytes())["made_from"]
    assert (made_from["store"], made_from["directions"]) == ("../acts.zarr", {"kmeans": "../kmeans.safetensors"})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    inside = out / "kmeans.safetensors"
    inside.write_bytes((tmp_path / "kmeans.safetensors").read_bytes())
    kept = contents(tmp_path)
    for directions, folder in ((tmp_path / "kmeans.safetensors", tmp_path / "thesis"), (inside, out)):
        ended = run("evaluate", *again, directions, "--out", folder)
        assert (ended.code, "not changed" in ended.err) == (2, True), ended.err
    assert contents(tmp_path) == kept


def test_a_store_of_other_images_is_evaluated_through_its_model(
    run: Run,
    tiny_images: Callable[..., Path],
    tiny_broden: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "acts.zarr"
    ok(run("extract", *NET, "--data", tiny_images(12), "--out", store))
    ok(run("fit --store", store, "--directions 2 --method kmeans --out", tmp_path / "d.safetensors"))
    monkeypatch.setenv("EDDP_BRODEN", str(tiny_broden().root))
    ended = ok(run("evaluate --store", store, "--directions", tmp_path / "d.safetensors", "--broden --json"))
    assert json.loads(ended.out)["directions"]["d"]["method"] == "kmeans"
    assert len(list(tmp_path.glob("acts.second.broden-*.zarr"))) == 1


def test_synthetic_fit_and_truth_for_five_seeds(run: Run, tmp_path: Path) -> None:
    for seed in range(5):
        store = tmp_path / f"{seed}.zarr"
        ok(run("eddp synthetic --out", store, "--concepts 3 --seed", seed))
        ok(run("fit --store", store, "--directions 3 --refits 0 --out", tmp_path / f"{seed}.safetensors"))
        ended = ok(run("evaluate --store", store, "--directions", tmp_path / f"{seed}.safetensors",
                       "--ground-truth --out", tmp_path / f"ev{seed}", "--json"))  # fmt: skip
        truth = json.loads(ended.out)["directions"][str(seed)]["ground_truth"]
        assert min(truth["iou"]) >= 0.9
        assert min(truth["cos"]) >= 0.95
        assert truth["matched"] == 3


def test_realistic_data_from_the_command_line(run: Run, tmp_path: Path) -> None:
    store, out = tmp_path / "s.zarr", tmp_path / "d.safetensors"
    options = ("--channels", 32, "--concepts", 9, "--images", 600, "--per-position", 2, "--noise", 0.1)
    mode = ("--zipf", 1, "--hierarchy", 2, "--correlation", 0.3)
    assert json.loads(ok(run("eddp synthetic --out", store, *options, *mode, "--json")).out)["classes"] == 9
    ok(run("fit --store", store, "--directions 9 --method kmeans --out", out))
    ended = ok(run("evaluate --store", store, "--directions", out, "--ground-truth --out", tmp_path / "e"))
    assert "of 9 concepts found" in ended.out
    assert "distinct matches" in ended.out
    ended = run("eddp synthetic --out", tmp_path / "t.zarr", *options, *mode, "--imbalance 3")
    fails(ended, 2, "Leave 'imbalance' out")
    assert not (tmp_path / "t.zarr").exists()


def test_several_layers_and_float32_in_one_pass(run: Run, tiny_images: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    ok(run("extract --model tiny_net:build --layer first --layer second --data", tiny_images(6), "--out", out,
           "--dtype float32 --compress zstd"))  # fmt: skip
    ended = ok(run("eddp inspect", out, "--json"))
    facts = json.loads(ended.out)
    assert facts["images"] == 6
    assert facts["dtype"] == "float32"
    assert "6 × 64 × 6" in facts["layers"]["first"]
    assert "pooled-affine head" in facts["layers"]["second"]
    fails(run("fit --store", out, "--directions 2"), 2, "name one by --layer")
    ok(run("fit --store", out, "--layer second --directions 2 --method pca --out", tmp_path / "d.safetensors"))
    assert "features" not in ok(run("eddp inspect", tmp_path / "d.safetensors")).out


def test_layers_are_shown_by_stage(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = ok(run("extract --model tiny_net:build --layer ? --data", tiny_images(6)))
    rows = " ".join(ended.out.split())
    # after the 3·6·9·64 products of first, 6·8·9·16 + 8·5 are left; 6 images × 64 positions × 6 channels × 2 bytes
    assert "* act 8 × 8 6 4.6 kB 40% of a forward pass first" in rows
    assert "* second 4 × 4 8 1.5 kB pooling + affine map second.0, second.1" in rows
    assert "* act: one stage earlier: simpler concepts, 4 times as many positions." in ended.out
    assert "fc." in ended.out  # without positions
    ended = ok(run("extract --model tiny_net:build --layer sec? --dtype float32"))
    assert "second Sequential 4 × 4 8 512 kB yes nchw (from a second image size)" in " ".join(ended.out.split())
    assert "fc" not in ended.out
    fails(
        run("extract --model tiny_net:build --layer sek?"), 2, "No layer of tiny_net:build begins with 'sek'", "second"
    )
    monkeypatch.setattr("stores.layout.TARGET_CHUNK_BYTES", 2048)  # chunks of 2 images: 5 take the room of 6
    options = ("--data", tiny_images(6), "--limit 5")
    assert "act 8 × 8 6 4.6 kB" in " ".join(ok(run("extract --model tiny_net:build --layer ?", *options)).out.split())
    planned = ("extract --model tiny_net:build --layer act --dry-run --out", tmp_path / "s.zarr")
    assert "act: 4.6 kB" in ok(run(*planned, *options)).out
    for named, size in ("second?", "1.3 kB"), ("second? --layer act?", "1.5 kB"):  # layers of one store share chunks
        ended = ok(run(f"extract --model tiny_net:build --layer {named}", *options))
        assert f"second Sequential 4 × 4 8 {size}" in " ".join(ended.out.split())


def test_a_layer_of_which_only_a_class_token_is_read_is_reported(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    ended = ok(run("extract --model tiny_net:tokens --layer ?"))
    assert "1 + 4 × 4 8 272 kB reads no position" in " ".join(ended.out.split())
    assert "*" not in ended.out
    options = ("--data", tiny_images(6), "--out", tmp_path / "s.zarr", "--dry-run")
    ended = ok(run("extract --model tiny_net:tokens --layer block", *options))
    assert "reads no position of it: concepts found there do not reach the logits" in ended.out


def test_layers_are_shown_without_weights(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    ended = ok(run("extract --model resnet18 --layer ?"))
    rows = " ".join(ended.out.split())
    assert "* layer4 7 × 7 512 51.4 MB pooling + affine map layer4.0, layer4.1" in rows  # in chunks of 512
    assert "* layer3 14 × 14 256 103 MB 23% of a forward pass layer3.0, layer3.1" in rows
    assert "layer2.0.conv1" not in rows
    assert not list(tmp_path.rglob("*.pth"))


def test_options_from_file_and_environment(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "job.toml"
    config.write_text(
        f'[extract]\nmodel = "tiny_net:build"\nlayer = ["second"]\ndata = "{tiny_images(6)}"\nlimit = 2\ndtype = "float32"\n'
    )
    monkeypatch.setenv("EDDP_EXTRACT_LIMIT", "3")
    ended = ok(run("extract --config", config, "--out", tmp_path / "a.zarr", "--json"))
    assert json.loads(ended.out)["images"] == 3  # the environment wins over the file
    ended = ok(run("eddp extract --config", config, "--out", tmp_path / "b.zarr", "--limit 4 --json"))
    assert json.loads(ended.out)["images"] == 4  # and the command line over both
    record = json.loads((tmp_path / "b.zarr.run.json").read_bytes())
    assert record["options"]["limit"] == 4
    assert record["options"]["dtype"] == "float32"
    config.write_text('[extract]\nmodle = "x"\n')
    fails(run("extract --config", config), 2, "Did you mean model")
    config.write_text("[extract\n")
    assert "no valid TOML" in run("extract --config", config).err


@pytest.mark.parametrize("command", ["extract", "fit", "evaluate", "eddp"])
def test_help_has_an_example(run: Run, command: str) -> None:
    ended = ok(run(command, "--help"))
    assert "Example:" in ended.out
    if command == "eddp":
        for sub in ("demo", "synthetic", "inspect", "verify"):
            assert "Example:" in ok(run("eddp", sub, "--help")).out


def test_scripts_are_installed_and_quick_to_help() -> None:
    for script in ("extract", "fit", "evaluate", "eddp"):
        path = Path(sys.executable).with_name(script)
        ended = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr


def test_the_list_of_commands_names_each() -> None:
    from pipeline.main import COMMANDS, load

    for name in COMMANDS:
        assert load(name).name == name


def test_help_and_inspect_load_nothing_that_takes_seconds(tiny_store: Callable[..., Path]) -> None:
    store = tiny_store({"a": np.ones((5, 2, 3), np.float16)})
    code = (
        "import sys\nfrom pipeline import main\nfor name in main.COMMANDS:\n    main.load(name)\n"
        f"main.load('inspect')([{str(store)!r}, '--quiet', '--json'], standalone_mode=False)\n"
        "print({'torch', 'scipy', 'sklearn', 'dask', 'zarr', 'matplotlib', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
