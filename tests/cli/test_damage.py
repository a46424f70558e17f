"""Flipped bits in what commands read: found by the command itself, and by ``eddp verify``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, do

from evaluate.correct import Correction
from fit.checkpoint import Checkpoint
from fit.synthetic import SyntheticConfig, make_synthetic
from stores.directions import Directions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, directions, a correction, a checkpoint and an evaluation; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    make_synthetic(folder / "s.zarr", SyntheticConfig(images=200))
    f = np.eye(16, 3, dtype=np.float32)
    Directions(f, f, np.zeros(16, np.float32), np.ones(3, np.float32), "toy", "synthetic").save(
        folder / "d.safetensors"
    )
    Correction(f, np.ones(3, np.float32), f, 1.0, 0.0, True, "synthetic").save(folder / "correction.safetensors")
    Checkpoint(folder / "d.checkpoint").save({"x": torch.ones(40)}, {"step": 3})
    do("evaluate --store", folder / "s.zarr", "--directions", folder / "d.safetensors", "--ground-truth --quiet")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "world"))


def flips(file: Path, count: int) -> Iterator[None]:
    """A file with one random bit flipped, ``count`` times; afterwards as it was."""
    g, data = np.random.default_rng(0), file.read_bytes()
    for at in g.integers(0, len(data), count):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(g.integers(8))]) + data[at + 1 :])
        yield
    file.write_bytes(data)


@pytest.mark.parametrize("command", ["fit", "evaluate"])
@pytest.mark.parametrize("array", ["layers/synthetic/activations/c.0.0.0", "images/valid/c.0"])
def test_a_flipped_bit_of_a_chunk_stops_the_command(run: Run, world: Path, command: str, array: str) -> None:
    reads = {
        "fit": ("--directions", 3, "--method", "kmeans", "--out", world / "out.safetensors"),
        "evaluate": ("--directions", world / "d.safetensors", "--ground-truth"),
    }
    for _ in flips(file := world / "s.zarr" / array, 5):
        ended = run(command, "--store", world / "s.zarr", *reads[command], "--quiet")
        assert ended.code == 1
        assert f"in '{file}' was changed after it was written" in " ".join(ended.err.split())
    assert not (world / "out.safetensors").exists()


def test_flipped_bits_of_directions_are_refused(run: Run, world: Path) -> None:
    file = world / "d.safetensors"
    for _ in flips(file, 40):
        ended = run("evaluate --store", world / "s.zarr", "--directions", file, "--ground-truth --quiet")
        assert ended.code == 1
        assert f"'{file}' is damaged" in ended.err or "Update eddp" in ended.err


def test_flipped_bits_of_a_checkpoint_are_refused(run: Run, world: Path) -> None:
    for _ in flips(world / "d.checkpoint", 5):
        ended = run(
            "fit --overwrite --store", world / "s.zarr", "--directions 3 --out", world / "d.safetensors", "--quiet"
        )
        assert ended.code == 1
        assert "remove it" in ended.err or "Update eddp" in ended.err


@pytest.mark.parametrize("name", ["summary.json", "ground_truth.parquet", "manifest.json"])
def test_flipped_bits_of_an_evaluation_stop_what_reads_it(run: Run, world: Path, name: str) -> None:
    for _ in flips(world / "evaluation" / name, 4):
        ended = run("eddp report", world / "evaluation", "--visualize none --quiet")
        assert ended.code == 1
        assert "Run evaluate again" in ended.err or "Run the command that made it again" in ended.err
    assert not (world / "report").exists()


@pytest.mark.parametrize("name", ["d.safetensors", "correction.safetensors", "d.checkpoint"])
def test_verify_finds_every_flipped_bit_of_a_file(run: Run, world: Path, name: str) -> None:
    assert run("eddp verify", world / name).out.endswith(": sound\n")
    for _ in flips(world / name, 60):
        assert run("eddp verify", world / name).code == 1


def test_verify_finds_flipped_bits_in_an_evaluation(run: Run, world: Path) -> None:
    folder = world / "evaluation"
    assert run("eddp verify", folder).out == f"{folder}: sound\n"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    assert {"summary.json", "manifest.json", "report.html", "ground_truth.parquet"} <= {path.name for path in files}
    for file in files:
        for _ in flips(file, 3):
            ended = run("eddp verify", folder)
            assert ended.code == 1
            assert file.name in ended.err
    (folder / "manifest.json").unlink()
    assert "make it again" in run("eddp verify", folder).err


def test_verify_of_a_file_without_a_header(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    ended = run("eddp verify", tmp_path / "c.safetensors")
    assert ended.code == 1
    assert "unexpected" not in ended.err
