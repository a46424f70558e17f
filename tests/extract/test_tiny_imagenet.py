"""Tiny ImageNet as it is unpacked: its root, its splits alone, and lists that are damaged."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from extract.datasets import open_source
from stores.errors import DatasetError, MissingPathError, NoImagesError

WNIDS = ["n01443537", "n01629819", "n01641577"]
NAMES = ["n01443537 goldfish", "n01629819 European fire salamander", "n01641577"]


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes with two images each in train, three images in val, one in test."""
    root = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        for k in range(2):
            put(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\n")
    for k in range(3):
        put(root / "val/images" / f"val_{k}.JPEG")
    put(root / "test/images/test_0.JPEG")
    lines = [f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n" for k, wnid in enumerate(reversed(WNIDS))]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (root / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n"
    )
    return root


def test_the_root(root: Path) -> None:
    for given in (root, f"tiny-imagenet:{root}"):
        source = open_source(given)
        assert (source.kind, source.class_names) == ("tiny-imagenet", NAMES)
        assert [(source.name(i), source.label(i)) for i in range(len(source))] == [
            ("test/images/test_0.JPEG", -1),
            *((f"train/{wnid}/images/{wnid}_{j}.JPEG", k) for k, wnid in enumerate(WNIDS) for j in range(2)),
            *((f"val/images/val_{k}.JPEG", 2 - k) for k in range(3)),
        ]
        assert source.left_out == {".txt": 4}
        assert source.image(0).size == (4, 4)
    assert pickle.loads(pickle.dumps(source)).digest == source.digest  # noqa: S301


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_alone(root: Path, split: str) -> None:
    source, whole = open_source(root / split), open_source(root)
    assert (source.kind, source.class_names) == ("tiny-imagenet", NAMES)
    labels = {whole.name(i): whole.label(i) for i in range(len(whole))}
    assert all(labels[f"{split}/{source.name(i)}"] == source.label(i) for i in range(len(source)))


def test_val_without_the_lists_above_it(root: Path, tmp_path: Path) -> None:
    (root / "val").rename(tmp_path / "val")
    source = open_source(tmp_path / "val")
    assert (source.kind, source.class_names) == ("tiny-imagenet", WNIDS)
    assert [source.label(i) for i in range(3)] == [2, 1, 0]


def test_val_sorted_into_classes(root: Path) -> None:
    for k, wnid in enumerate(reversed(WNIDS)):
        put(root / "val" / wnid / f"val_{k}.JPEG")
        (root / "val/images" / f"val_{k}.JPEG").unlink()
    (root / "val/val_annotations.txt").unlink()
    source = open_source(root / "val")
    assert [source.label(i) for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("wnids.txt", "n01443537\ngoldfish\n", "wnids.txt', line 2 must be a wnid such as"),
        ("wnids.txt", "n01443537\nn01443537\n", "wnids.txt', line 2 must be a wnid such as"),
        ("wnids.txt", "", "wnids.txt' lists no class"),
        ("wnids.txt", "n01443537\n", "train/n01629819/.*wnids.txt' lists no class n01629819"),
        ("val/val_annotations.txt", "val_0.JPEG\n", "val_annotations.txt', line 1 must read NAME, WNID and a box"),
        ("val/val_annotations.txt", "../x.JPEG\tn01443537\n", "line 1 must read NAME"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01443537\nval_0.JPEG\tn01443537\n", "line 2 must read NAME"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01443537\n", "does not list 'val/images/val_1.JPEG'"),
        ("val/val_annotations.txt", "val_7.JPEG\tn01443537\n", r"line 1: there is no image .*val_7.JPEG' \(missing: 1 of 1"),
        ("val/val_annotations.txt", "val_0.JPEG\tn99999999\n", "line 1: .*wnids.txt' lists no class n99999999"),
    ],
)  # fmt: skip
def test_damaged_lists_are_named(root: Path, file: str, text: str, wanted: str) -> None:
    (root / file).write_text(text)
    with pytest.raises(DatasetError, match=wanted):
        open_source(root)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    (root / "wnids.txt").unlink()
    (root / "val/val_annotations.txt").unlink()
    with pytest.raises(MissingPathError, match=r"lacks wnids\.txt"):
        open_source(f"tiny-imagenet:{root}")
    (tmp_path / "x").mkdir()
    with pytest.raises(NoImagesError):
        open_source(f"tiny-imagenet:{tmp_path / 'x'}")
