"""Concept datasets of every kind through the commands: extract, fit --concepts, evaluate --broden; and bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, fails, ok
from concept_folders import WRITERS, write_bomb, write_image, write_map, write_masks, write_voc
from tiny import TinyBroden, write_broden, write_mask

from stores.directions import Directions
from stores.store import ActivationStore

LABELS = {"voc": {1, 15, 20}, "ade20k": {1, 2, 150, 151, 152}, "cocostuff": {1, 35, 182}, "masks": {1, 200}}


def extracted(run: Run, data: object, out: Path) -> Path:
    ok(run("extract --model tiny_net:build --layer second --weights none --data", data, "--out", out, "--quiet"))
    return out


def some_directions(path: Path) -> Path:
    w = np.eye(8, 3, dtype=np.float32)
    Directions(w, w, np.zeros(8, np.float32), None, "kmeans", "second").save(path)
    return path


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_from_images_to_labels(run: Run, tmp_path: Path, kind: str) -> None:
    made = WRITERS[kind](tmp_path / kind)
    store = extracted(run, made.root, tmp_path / "acts.zarr")
    assert ActivationStore.open(store).names == made.names
    out = tmp_path / "probe.safetensors"
    ended = ok(run("fit --store", store, "--method probe --concepts", made.root, "--out", out,
                   "--quiet --set min_positives=5"))  # fmt: skip
    info = Directions.load(out).info
    assert info["labelled_images"] == made.splits.count("train")
    assert set(info["label_numbers"]) <= LABELS[kind]
    ended = ok(run("evaluate --store", store, "--directions", out, "--broden", made.root, "--out", tmp_path / "ev",
                   "--quiet --json"))  # fmt: skip
    assert json.loads(ended.out)["directions"]["probe"]["s1"] > 0
    assert not list(tmp_path.glob("acts.second.*.zarr"))  # the store's own activations were scored


def test_a_store_of_other_images_is_scored_on_the_dataset(
    run: Run, tiny_images: Callable[..., Path], tmp_path: Path
) -> None:
    made = write_voc(tmp_path / "voc")
    store = extracted(run, tiny_images(4), tmp_path / "acts.zarr")
    for given in (made.root, f"voc:{made.root}"):
        ok(run("evaluate --store", store, "--directions", some_directions(tmp_path / "d.safetensors"), "--broden",
               given, "--out", tmp_path / "ev", "--quiet"))  # fmt: skip
    (beside,) = tmp_path.glob("acts.second.voc-*.zarr")
    assert ActivationStore.open(beside).names == made.names
    report = (tmp_path / "ev" / "report.html").read_text(encoding="utf-8")
    assert "4 images to label on (train), 2 to score on (val), 20 labels" in report


# bad ones: one sentence, the exit code of its error, and nothing written


def sentence(ended, code: int, *parts: str) -> None:
    fails(ended, code, *parts)
    assert "unexpected" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> TinyBroden:
    return write_broden(tmp_path_factory.mktemp("sound") / "broden")


@pytest.fixture
def broden(sound: TinyBroden, tmp_path: Path) -> Path:
    shutil.copytree(sound.root, tmp_path / "broden")
    return tmp_path / "broden"


@pytest.fixture
def evaluated(run: Run, broden: Path, tmp_path: Path) -> Callable[[], object]:
    """``evaluate`` on a store that was made before the folder was harmed."""
    store = extracted(run, broden, tmp_path / "acts.zarr")
    directions = some_directions(tmp_path / "d.safetensors")
    return lambda: run("evaluate --store", store, "--directions", directions, "--broden", broden, "--out",
                       tmp_path / "ev", "--quiet")  # fmt: skip


def replaced(table: str, old: str, new: str) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        text = (root / table).read_text(encoding="utf-8")
        assert old in text
        (root / table).write_text(text.replace(old, new, 1), encoding="utf-8")

    return harm


def mask(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change(root / "images/sub/1_color_0.png")


ROW = "sub/image 1.jpg,train,24,24,12,12,sub/1_color_0.png"
HARMS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no index": (lambda root: (root / "index.csv").unlink(), ("index.csv is missing", "must hold index.csv")),
    "unknown in a mask": (
        mask(lambda path: write_mask(path, np.full((12, 12), 257))),
        ("1_color_0.png", "index.csv', line 3", "label 257", "Add it there, or fix the mask"),
    ),
    "unknown in a cell": (
        replaced("index.csv", ROW, ROW.replace("sub/1_color_0.png", "99")),
        ("index.csv', line 3", "label 99", "Add it there, or fix the cell"),
    ),
    "image gone": (
        lambda root: (root / "images/sub/image 1.jpg").unlink(),
        ("index.csv', line 3", "there is no image", "(missing: 1 of 6 listed)", "take the lines out"),
    ),
    "empty split": (
        lambda root: (root / "index.csv").write_text((root / "index.csv").read_text().replace(",val,", ",train,")),
        ("index.csv' has no image of the split 'val'", "labels are chosen on train and scored on val"),
    ),
}


@pytest.mark.parametrize("name", list(HARMS))
def test_a_bad_broden_folder_is_one_message(
    evaluated: Callable[[], object], broden: Path, tmp_path: Path, name: str
) -> None:
    harm, parts = HARMS[name]
    harm(broden)
    sentence(evaluated(), 2, *parts)
    assert not (tmp_path / "ev" / "summary.json").exists()


def test_a_bomb_among_the_images_ends_the_run(run: Run, broden: Path, tmp_path: Path) -> None:
    write_bomb(broden / "images/sub/image 1.jpg")
    ended = run("extract --model tiny_net:build --layer second --weights none --data", broden, "--out",
                tmp_path / "s.zarr", "--quiet")  # fmt: skip
    sentence(ended, 1, "sub/image 1.jpg", "exceeds limit", "--on-bad-image skip")


def unlabelled_value(root: Path) -> None:
    write_map(root / "masks/a/image 1.png", np.full((4, 4), 9, np.uint8))


OWN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "unknown in a mask": (unlabelled_value, ("masks/a/image 1.png", "value 9", "labels.csv' does not list")),
    "image gone": (
        lambda root: (root / "images/a/image 1.jpg").unlink(),
        ("split.csv', line 3", "there is no image", "take the line out"),
    ),
    "up and out": (replaced("split.csv", "a/image 1.jpg", "../x.jpg"), ("split.csv', line 3", "points outside")),
    "empty split": (
        lambda root: (root / "split.csv").write_text((root / "split.csv").read_text().replace(",val", ",test")),
        ("split.csv' has no image of the split 'val'",),
    ),
}


@pytest.mark.parametrize("name", list(OWN))
def test_bad_masks_of_ones_own_are_one_message(run: Run, tmp_path: Path, name: str) -> None:
    root = write_masks(tmp_path / "own").root
    store = extracted(run, root, tmp_path / "acts.zarr")
    harm, parts = OWN[name]
    harm(root)
    ended = run("evaluate --store", store, "--directions", some_directions(tmp_path / "d.safetensors"), "--broden",
                root, "--out", tmp_path / "ev", "--quiet")  # fmt: skip
    sentence(ended, 2, *parts)
    assert not (tmp_path / "ev" / "summary.json").exists()


def test_what_is_no_concept_dataset(run: Run, tmp_path: Path) -> None:
    made = write_voc(tmp_path / "voc")
    store = extracted(run, made.root, tmp_path / "acts.zarr")
    write_image(tmp_path / "flat/x.png", 0)
    directions = some_directions(tmp_path / "d.safetensors")
    for name, *rest in (
        ("evaluate", "--directions", directions, "--broden"),
        ("fit --method probe --out", tmp_path / "new.safetensors", "--concepts"),
    ):
        given = (name, *rest, tmp_path / "flat", "--quiet --store", store)
        sentence(run(*given), 2, "no known kind of label maps", "JPEGImages")
        given = (name, *rest, tmp_path / "no", "--quiet --store", store)
        sentence(run(*given), 2, "There is no", f"{tmp_path / 'no'}")
