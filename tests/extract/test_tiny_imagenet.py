"""Tiny ImageNet: its splits alone, and without its lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_folders import TINY_NAMES, TINY_WNIDS, put, put_tiny

from extract.datasets import open_source
from stores.errors import MissingPathError


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_only(tmp_path: Path, split: str) -> None:
    root = put_tiny(tmp_path)
    source, whole = open_source(root / split), open_source(root)
    assert whole.left_out == {".txt": 4}
    assert (source.kind, source.class_names) == ("tiny-imagenet", TINY_NAMES)
    labels = {whole.name(i): whole.label(i) for i in range(len(whole))}
    assert all(labels[f"{split}/{source.name(i)}"] == source.label(i) for i in range(len(source)))


def test_val_without_the_lists_above_it(tmp_path: Path) -> None:
    put_tiny(tmp_path / "tiny")
    (tmp_path / "tiny/val").rename(tmp_path / "val")
    source = open_source(tmp_path / "val")
    assert (source.kind, source.class_names) == ("tiny-imagenet", TINY_WNIDS)
    assert [source.label(i) for i in range(3)] == [2, 1, 0]


def test_val_sorted_into_classes(tmp_path: Path) -> None:
    root = put_tiny(tmp_path)
    put(root, *(f"val/{wnid}/val_{k}.JPEG" for k, wnid in enumerate(reversed(TINY_WNIDS))))
    for k in range(3):
        (root / "val/images" / f"val_{k}.JPEG").unlink()
    (root / "val/val_annotations.txt").unlink()
    source = open_source(root / "val")
    assert [source.label(i) for i in range(3)] == [0, 1, 2]
    (root / "wnids.txt").unlink()
    with pytest.raises(MissingPathError, match=r"lacks wnids\.txt"):
        open_source(f"tiny-imagenet:{root}")
