"""What pages show of clips: a frame for each step of the layer, where a detector fires, and the frame where it is surest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, do, fails, ok
from PIL import Image
from video_clips import put_clips, write_clip

from evaluate.image_tiles import FRAME, GAP, MARK
from stores.directions import Directions
from stores.readers import LayerReader

FRAMES, STEPS, CLIPS = 8, 4, 8  # of the network flashes, of its layer, of the data
DIMMED = 0.45 * (0.35 + 0.65 * 0.587)  # of green outside the region
EVALUATE = "evaluate --influence --influence-images 8 --null-directions 5 --directions"


def flash(step: int, number: int) -> list[np.ndarray]:
    """Green of a brightness that numbers the frame; a red square at one step of the layer."""
    frames = np.zeros((FRAMES, 32, 32, 3), np.uint8)
    frames[..., 1] = 30 * np.arange(FRAMES)[:, None, None]
    frames[2 * step : 2 * step + 2, 8:16, 16:24] = (200 + number, 0, 0)
    return list(frames)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that flash at the step of their number, a store, directions: fitted ones and one that reads red; their evaluation."""
    root = tmp_path_factory.mktemp("pages")
    for k in range(CLIPS):
        write_clip(root / "clips" / "ab"[k % 2] / f"{k}.mp4", flash(k % STEPS, k))
    do(
        "extract --model own_nets:flashes --layer colours --dtype float32 --data",
        root / "clips",
        "--out",
        root / "s.zarr",
    )
    red, mean = np.eye(3, 1, dtype=np.float32), LayerReader(root / "s.zarr").images(range(CLIPS)).mean((0, 1))
    threshold = np.array([mean[0] + 1], np.float32)
    Directions(red, red, mean, threshold, "by hand", "colours").save(root / "red.safetensors")
    do("fit --directions 2 --refits 0 --set refine_steps=5 --store", root / "s.zarr", "--out", root / "d.safetensors")
    given = ("--directions", root / "d.safetensors", "--store", root / "s.zarr", "--out", root / "evaluation")
    do(EVALUATE, root / "red.safetensors", *given)
    return root


def frames_of(sheet: Path) -> tuple[list[np.ndarray], list[int]]:
    """The frames of a sheet with one row, and which of them are marked: framed in pink."""
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    step = FRAME + GAP
    assert pixels.shape == (FRAME + 2 * GAP, STEPS * step + GAP, 3)
    frames = [pixels[GAP:-GAP, GAP + k * step :][:, :FRAME] for k in range(STEPS)]
    pink = [np.abs(pixels[:GAP, GAP + k * step :][:, :FRAME] - MARK).mean() < 40 for k in range(STEPS)]
    return frames, np.flatnonzero(pink).tolist()


def test_a_sheet_has_a_frame_for_each_step_and_marks_that_of_the_largest_logit(made: Path) -> None:
    pages = made / "evaluation" / "report" / "red"
    assert sorted(path.name for path in (pages / "f").iterdir()) == [f"00000-{rank}.webp" for rank in range(CLIPS)]
    logits = LayerReader(made / "s.zarr").images(range(CLIPS))[..., 0].reshape(CLIPS, STEPS, -1).max(2)
    order = np.argsort(-logits.max(1), kind="stable")
    assert logits.argmax(1).tolist() == [k % STEPS for row in (0, 1) for k in range(row, CLIPS, 2)]  # class by class
    for rank, row in enumerate(order):
        frames, marked = frames_of(pages / "f" / f"00000-{rank}.webp")
        assert marked == [logits[row].argmax()]
        for step, frame in enumerate(frames):
            corner, square = frame[-20:, :20].mean((0, 1)), frame[32:52, 60:80].mean((0, 1))
            fires = step == marked[0]
            assert (square[0] > 150) == fires  # as it is in the region, which the square fills
            assert abs(corner[1] - DIMMED * 30 * (2 * step + 1)) < 8  # the second frame of each step
    page = (pages / "d" / "00000.html").read_text()
    assert page.count('src="../f/') == CLIPS
    assert f'width="{STEPS * (FRAME + GAP) + GAP}" height="{FRAME + 2 * GAP}"' in page
    assert "8 clips" in (pages / "index.html").read_text()


def test_clips_are_explained_step_by_step(run: Run, made: Path, tmp_path: Path) -> None:
    given = ("--store", made / "s.zarr", "--directions", made / "red.safetensors", "--out", tmp_path / "out")
    ok(run("eddp explain", made / "clips" / "b" / "3.mp4", *given, "--row", 5))
    found = json.loads((tmp_path / "out" / "explanation.json").read_text())["images"]
    assert [one["image"].rpartition("/")[2] for one in found] == ["3.mp4"] * 2  # row 5: the second of class b
    assert found[0]["predicted"] == found[1]["predicted"]
    (first, second), pictures = sorted((tmp_path / "out").glob("*-3.json")), tmp_path / "out" / "pictures"
    of_file, of_row = (json.loads(path.read_text())["contributions"] for path in (first, second))
    assert of_file[0]["to"] == pytest.approx(of_row[0]["to"], rel=1e-4)
    assert of_file[0]["fires_at"] == [3 * 16 + 4 + 2]  # the fourth step; the second row of four, the third column
    assert frames_of(pictures / f"{first.stem}.0000.jpg")[1] == [3]
    assert frames_of(pictures / f"{first.stem}.cam.jpg")[1] == []
    seen, marked = frames_of(pictures / f"{first.stem}.seen.jpg")
    assert marked == []
    assert [round(frame[-20:, :20, 1].mean() / 30) for frame in seen] == [1, 3, 5, 7]
    ok(run("eddp explain", made / "clips", *given))  # a folder of videos
    assert len(json.loads((tmp_path / "out" / "explanation.json").read_text())["images"]) == CLIPS


def test_pictures_are_not_synthesised_for_clips(run: Run, made: Path, tmp_path: Path) -> None:
    report = ("eddp report", made / "evaluation", "--directions", "red", "--out", tmp_path / "report")
    fails(run(*report, "--visualize", 1), 2, "takes clips")
    ok(run(*report))
    assert "takes clips" in (tmp_path / "report" / "index.html").read_text()


def test_a_correction_shows_the_clips_that_it_changes(run: Run, made: Path, tmp_path: Path) -> None:
    sets = ("--data", made / "clips", "--poisoned", made / "clips", "--directions", "red", "--direction", 0)
    ok(run("eddp correct", made / "evaluation", *sets, "--strength", 50, "--random", 2, "--out", tmp_path / "out"))
    changed = sorted((tmp_path / "out" / "pictures").iterdir())
    judged = json.loads((tmp_path / "out" / "summary.json").read_text())["clean"]["images"]
    assert len(changed) == 2 * judged  # some are held out; all others change, of both sets
    for path in changed:
        with Image.open(path) as image:
            green = np.asarray(image)[-25:, :25, 1].mean()
        row = int(path.stem.rpartition("-")[2])
        step = (row // 4 + 2 * (row % 4)) % STEPS  # of the clip's number: rows are class by class
        assert abs(green - DIMMED * 30 * (2 * step + 1)) < 8
    assert f"of {judged} clean clips" in (tmp_path / "out" / "index.html").read_text()


def test_a_network_that_takes_images_is_explained_by_the_frames_of_the_store(run: Run, tmp_path: Path) -> None:
    clips, store, directions = put_clips(tmp_path / "clips", 1), tmp_path / "s.zarr", tmp_path / "d.safetensors"
    ok(run("extract --model own_nets:plain --layer features --frames 3 --data", clips, "--out", store))
    ok(run("fit --method kmeans --directions 2 --store", store, "--out", directions))
    given = (
        "--store",
        store,
        "--directions",
        directions,
        "--out",
        tmp_path / "out",
        "--row",
        0,
        "--row",
        1,
        "--row",
        2,
    )
    ok(run("eddp explain", clips / "down" / "down_0.mp4", *given))
    found = json.loads((tmp_path / "out" / "explanation.json").read_text())["images"]
    assert [one["image"].rpartition("/")[2] for one in found] == [f"down_0.mp4#{k}" for k in range(3)] * 2
    assert [one["sentence"] for one in found[:3]] == [one["sentence"] for one in found[3:]]
    ok(run(EVALUATE, directions, "--store", store, "--out", tmp_path / "evaluation"))
    pages = tmp_path / "evaluation" / "report" / "d"
    assert "12 frames" in (pages / "index.html").read_text()
    assert not (pages / "f").exists()
