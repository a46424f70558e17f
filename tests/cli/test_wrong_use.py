"""Wrong use is met by a sentence: what, where, what to do; exit code 2 (1 where work failed); never a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, fails, ok
from PIL import Image


def extraction(
    data: Path, out: Path, *more: object, model: str = "tiny_net:build", layer: str = "second", weights: object = "none"
) -> tuple[object, ...]:
    """The words of one extract command."""
    return ("extract", "--model", model, "--layer", layer, "--weights", weights, "--data", data, "--out", out, *more)


@pytest.fixture
def images(tiny_images: Callable[..., Path]) -> Path:
    return tiny_images(4)


@pytest.fixture
def store(tiny_store: Callable[..., Path]) -> Path:
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    return tiny_store({"a.b": x})


def test_missing_folder(run: Run, tmp_path: Path) -> None:
    ended = run(*extraction(tmp_path / "no", tmp_path / "s"))
    fails(ended, 2, "There is no folder", "no' (--data)")
    assert not (tmp_path / "s").exists()


def test_no_images_in_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing to see")
    ended = run(*extraction(tmp_path / "empty", tmp_path / "s"))
    fails(ended, 2, "There is no image in", ".jpg")


def test_unknown_model(run: Run, images: Path, tmp_path: Path) -> None:
    ended = run(*extraction(images, tmp_path / "s", model="resnet81", layer="layer4"))
    fails(ended, 2, "resnet81", "resnet18")


def test_unknown_layer(run: Run, images: Path, tmp_path: Path) -> None:
    ended = run(*extraction(images, tmp_path / "s", model="resnet18", layer="layer5"))
    fails(ended, 2, "layer5", "layer4", "--layer ?")
    assert not (tmp_path / "s").exists()


def test_layer_that_is_no_cut(run: Run, images: Path, tmp_path: Path) -> None:
    ended = run(*extraction(images, tmp_path / "s", model="resnet18", layer="layer3.0.conv1"))
    fails(ended, 2, "layer3.0.conv1", "layer2", "layer3.0")


def test_weights_of_another_model(run: Run, images: Path, tmp_path: Path) -> None:
    from extract.models import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeeze.pth")
    ended = run(*extraction(images, tmp_path / "s", model="resnet18", layer="layer4", weights=tmp_path / "squeeze.pth"))
    fails(ended, 2, "squeeze.pth", "missing")


def test_text_file_named_jpg(run: Run, images: Path, tmp_path: Path) -> None:
    (images / "cat" / "zz.jpg").write_text("I am no image")
    command = extraction(images, tmp_path / "s")
    fails(run(*command), 1, "zz.jpg", "no image file", "--on-bad-image skip")
    ended = ok(run(*command, "--on-bad-image", "skip"))
    assert "skipped cat/zz.jpg" in ended.err
    assert "4 images (1 skipped)" in ended.out


@pytest.mark.parametrize("value", ["0", "-3"])
def test_directions_0(run: Run, store: Path, value: str, tmp_path: Path) -> None:
    ended = run("fit --store", store, "--directions", value, "--out", tmp_path / "d.safetensors")
    fails(ended, 2, "--directions", "at least 1")
    assert not (tmp_path / "d.safetensors").exists()


def test_nothing_to_evaluate_against(run: Run, store: Path, tmp_path: Path) -> None:
    ended = run("evaluate --store", store, "--directions", tmp_path / "d.safetensors")
    fails(ended, 2, "--broden DIR", "--ground-truth")


def test_broden_without_folder_or_environment(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDDP_BRODEN", raising=False)
    fails(run("evaluate --store", store, "--directions d.safetensors --broden"), 2, "EDDP_BRODEN")


def test_missing_and_hostile_files(run: Run, store: Path, tmp_path: Path) -> None:
    fails(run("fit --store", tmp_path / "no.zarr", "--directions 2"), 2, "There is no store at")
    (tmp_path / "d.safetensors").write_text("not directions")
    ended = run("evaluate --store", store, "--directions", tmp_path / "d.safetensors", "--ground-truth")
    fails(ended, 1, "d.safetensors", "no directions file")
    ended = run("evaluate --store", store, "--directions", tmp_path / "none.safetensors", "--ground-truth")
    fails(ended, 2, "There is no directions file")


def test_settings_and_devices(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a record of what failed is left
    fails(run("fit --store", store, "--directions 2 --set lambda_x=1"), 2, "lambda_x", "lambda_s")
    fails(run("fit --store", store, "--directions 2 --set rank"), 2, "NAME=VALUE")
    fails(run("fit --store", store, "--directions 2 --device tpu"), 2, "--device must be")
    if not torch.cuda.is_available():
        fails(run("fit --store", store, "--directions 2 --device cuda"), 2, "no CUDA device")
    fails(run("fit --store", store, "--directions 2 --out d.bin"), 2, ".safetensors")
    fails(run("fit --store", store, "--directions many"), 2, "many")
    fails(run("fit --directions 2"), 2, "--store")
    ended = run("fit --store", store, "--directions 90 --method kmeans")
    fails(ended, 1, "90 directions", "24 activation vectors")


def test_store_of_something_else_is_not_replaced(run: Run, images: Path, tmp_path: Path) -> None:
    command = extraction(images, tmp_path / "s")
    assert run(*command).code == 0
    ended = run(*command[:4], "first", *command[5:])
    fails(ended, 2, "already holds a store made from something else (layers: second → first).", "--overwrite")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    ended = run(*command[:-1], tmp_path / "precious", "--overwrite")
    assert ended.code != 0
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_hostile_configuration_files(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.toml"

    def refused(path: Path, word: str) -> None:
        ended = run("fit --store", store, "--config", path, "--method pca --out", tmp_path / "d.safetensors")
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err[:2000]
        assert word in ended.err
        assert "unexpected" not in ended.err
        assert len(ended.err) < 1000

    for text, word in (
        ("a=" + "[" * 8000, "nested too deeply"),
        ("a." * 20_000 + "a=1", "in a line"),
        (".".join("a" * 4000) + "=1\n[" + ".".join("a" * 4000) + "]", "no valid TOML"),
        ("# " + "\n# " * 30_000, "more than 65536 bytes"),
        ("directions = 9" + "9" * 5000, "no valid TOML"),
        ("fit = 3", "must be a section"),
        (f"[fit]\n{'x' * 5000} = 1", "no option"),
        ("[fit]\ndirections = 0x" + "f" * 6000, "'directions' must be"),
        ("[fit]\ndirections = {a = 1}", "'directions' must be text or a number."),
        ("[fit]\ndirections = [1, 2]", "'directions' must be text or a number."),
        ("[fit]\ndirections = 2020-01-01", "'directions' must be"),
        ("[fit]\nset = [[1]]", "or a list of such"),
        ("[fit]\npart = true", "'part' must be text"),
        ("[fit]\nquiet = []", "'quiet' must be true or false"),
    ):
        config.write_text(text)
        refused(config, word)
    config.unlink()
    os.mkfifo(config)
    for path in (config, Path("/dev/zero"), tmp_path):
        refused(path, "no regular file")
        monkeypatch.setenv("EDDP_FIT_CONFIG", str(path))
        assert run("fit --store", store).code == 2
    monkeypatch.delenv("EDDP_FIT_CONFIG")
    config.unlink()
    config.write_text("[fit]\ndirections = 2\npart = 5")  # a number, as it is typed
    refused(config, "--part must be I/N")
    config.write_text('[fit]\ndirections = 2\nset = "nonsense=x"')
    refused(config, "nonsense")


def test_unexpected_errors_are_one_message_too(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stores.readers

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the moon is full\nsecond line")

    monkeypatch.setattr(stores.readers.LayerReader, "__init__", broken)
    ended = run("fit --store", store, "--directions 2")
    fails(ended, 1, "unexpected RuntimeError: the moon is full", "--debug")
    assert "second line" not in ended.err


def test_bad_images_of_every_kind_are_named(run: Run, images: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.new("RGB", (32, 32)).save(good)
    (images / "cat" / "y.jpg").write_bytes(good.read_bytes()[:200])
    (images / "cat" / "z.png").write_bytes(b"")
    ended = ok(run(*extraction(images, tmp_path / "s", "--on-bad-image", "skip")))
    assert "cat/y.jpg" in ended.err
    assert "cat/z.png" in ended.err
