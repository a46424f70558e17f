"""Moments in Time: its splits, its lists, and the numbers of its classes."""

from pathlib import Path

import pytest
from image_folders import listed, put

from extract.datasets import open_source
from extract.video_rows import has_videos
from stores.errors import DatasetError, MissingPathError

NAMES = ["clapping", "adult+male+singing", "baking"]  # in an order of their own
TRAIN = [("clapping/yt-a_3.mp4", 0), ("baking/flickr-9-1_2.mp4", 2)]
VAL = [("baking/getty-b_4.mp4", 2), ("adult+male+singing/meta-1.mp4", 1), ("clapping/x.mp4", 0)]


def put_moments(root: Path, lists: str = "") -> Path:
    put(root, *(f"training/{name}" for name, _ in TRAIN), *(f"validation/{name}" for name, _ in VAL), "license.txt")
    (root / lists).mkdir(exist_ok=True)
    (root / lists / "moments_categories.txt").write_text("baking,2\nclapping,0\nadult+male+singing,1\n")
    for split, pairs in (("training", TRAIN), ("validation", VAL)):
        lines = [f"{name},{NAMES[label]},3,0\n" for name, label in pairs]
        (root / lists / f"{split}Set.csv").write_text("".join(lines))
    return root


@pytest.mark.parametrize("lists", ["", "annotations"])
def test_its_root_and_its_splits(tmp_path: Path, lists: str) -> None:
    root = put_moments(tmp_path / "Moments_in_Time_Mini", lists)
    both = open_source(root)
    wanted = [(f"training/{name}", label) for name, label in TRAIN]
    assert listed(both) == wanted + [(f"validation/{name}", label) for name, label in VAL]
    assert (both.kind, both.class_names, has_videos(both)) == ("mit", NAMES, True)
    assert listed(open_source(root / "validation")) == VAL
    assert listed(open_source(f"mit:{root / 'training'}")) == TRAIN


def test_without_its_lists(tmp_path: Path) -> None:
    root = put_moments(tmp_path)
    (root / "trainingSet.csv").unlink()
    assert listed(open_source(root / "training")) == sorted(TRAIN)
    put(root, "training/juggling/a.mp4")
    with pytest.raises(DatasetError, match="'juggling', that '.*moments_categories.txt' does not list"):
        open_source(root)
    (root / "moments_categories.txt").unlink()
    assert open_source(root).kind == "class folders"
    with pytest.raises(MissingPathError, match="lacks moments_categories.txt"):
        open_source(f"mit:{root}")


def test_lists_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = put_moments(tmp_path)
    put(root, "validation/baking/extra.mp4", "validation/baking/extra.txt")
    assert len(open_source(root)) == 5
    assert "does not name all videos next to those listed; left out: 1" in caplog.text
    for line, message in (
        ("baking/none.mp4,baking,1,0", r"there is no video '.*baking/none\.mp4' \(missing: 1 of 1 listed\)"),
        ("baking/extra.mp4,flying,1,0", "lists no class 'flying'"),
        ("../x.mp4,baking,1,0", "points outside"),
        ("baking/extra.mp4", "must read CLASS/FILE,LABEL"),
    ):
        (root / "validationSet.csv").write_text(line)
        with pytest.raises(DatasetError, match=rf"validationSet\.csv', line 1.*{message}"):
            open_source(root)
    (root / "moments_categories.txt").write_text("baking,1\nclapping,2\n")
    with pytest.raises(DatasetError, match=r"moments_categories\.txt', line 1: the numbers must be 0 to 1"):
        open_source(root)


def test_several_labels_a_video_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "videos/baking/a.mp4")
    (tmp_path / "moments_categories.txt").write_text("baking,0\nclapping,1\n")
    (tmp_path / "trainingSet.txt").write_text("baking/a.mp4,0,1\n")
    with pytest.raises(DatasetError, match="several classes each"):
        open_source(tmp_path)
    assert listed(open_source(f"folder:{tmp_path / 'videos'}")) == [("baking/a.mp4", 0)]
