"""The drawn world: same bytes for a seed, masks that tell the truth, Broden's format, the mark only where it belongs."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.world import MARKED_SCENE, SCENES, WATERMARK, World, build, build_world
from pipeline.world.canvas import Canvas, box, oval
from pipeline.world.scenes import NAMES, NUMBER, draw_scene
from pipeline.world.surfaces import PATTERNS, TONES, Surface, name_colors
from stores.errors import StoreExistsError, UsageError

SIZE = 64


def digests(root: Path) -> dict[str, str]:
    files = [p for p in root.rglob("*") if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mask(path: Path) -> np.ndarray:
    rgb = np.asarray(Image.open(path)).astype(int)
    assert not rgb[..., 2].any()
    return rgb[..., 0] + 256 * rgb[..., 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world") / "w", images=64, size=SIZE, seed=3, workers=1)


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        calls.append((stage, done, total))

    alone = build_world(tmp_path / "a", images=24, size=SIZE, seed=7, workers=1, progress=progress)
    together = build_world(tmp_path / "b", images=24, size=SIZE, seed=7, workers=2)
    other = build_world(tmp_path / "c", images=24, size=SIZE, seed=8, workers=1)
    assert digests(alone.root) == digests(together.root) != digests(other.root)
    assert calls[-1] == ("drawing the world", 24, 24)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_any_picture_can_be_drawn_separately(world: World) -> None:
    item = build.plan(37)
    canvas = draw_scene(item.scene, SIZE, 3, 37, marked=item.marked)
    stored = mask(world.root / "images" / f"{item.stem}_object.png")
    np.testing.assert_array_equal(canvas.masks()["object"][0], stored)


def test_broden_index_has_its_columns_sizes_and_files(world: World) -> None:
    lines = (world.root / "index.csv").read_text().splitlines()
    assert lines[0] == "image,split,ih,iw,sh,sw,color,object,part,material,scene,texture"
    rows = table(world.root / "index.csv")
    assert len(rows) == 64
    layers = Counter()
    for row in rows:
        with Image.open(world.root / "images" / row["image"]) as image:
            assert (image.height, image.width) == (int(row["ih"]), int(row["iw"])) == (SIZE, SIZE)
        assert row["scene"] == str(NUMBER[row["image"].split("/")[0]])
        for category in NAMES:
            names = [cell for cell in row[category].split(";") if cell and not cell.isdecimal()]
            layers[category, len(names)] += 1
            for name in names:
                assert mask(world.root / "images" / name).shape == (int(row["sh"]), int(row["sw"])) == (32, 32)
    assert layers["part", 2] > 20, "several layers of parts must be a real case"
    assert layers["part", 0] + layers["part", 1] + layers["part", 2] == 64


def test_frequencies_and_coverages_are_those_of_the_masks(world: World) -> None:
    labels = table(world.root / "label.csv")
    assert list(labels[0]) == ["number", "name", "category", "frequency", "coverage", "syns"]
    assert [int(row["number"]) for row in labels] == list(range(1, len(NUMBER) + 1))
    frequency, coverage = Counter[tuple[str, int]](), defaultdict[tuple[str, int], float](float)
    for row in table(world.root / "index.csv"):
        for category in NAMES:
            seen = set()
            for cell in filter(None, row[category].split(";")):
                values = np.array([[int(cell)]]) if cell.isdecimal() else mask(world.root / "images" / cell)
                for number, count in zip(*np.unique(values[values > 0], return_counts=True), strict=True):
                    seen.add(int(number))
                    coverage[category, int(number)] += count / values.size
            frequency.update((category, number) for number in seen)
    for row in labels:
        number = int(row["number"])
        stated = {c: int(n) for c, n in re.findall(r"(\w+)\((\d+)\)(?:;|$)", row["category"])}
        assert stated == {c: frequency[c, number] for c in NAMES if row["name"] in NAMES[c]}
        assert int(row["frequency"]) == sum(stated.values()) == world.labels[row["name"]]
        assert float(row["coverage"]) == pytest.approx(sum(coverage[c, number] for c in NAMES), abs=1e-5)
    assert {number for _, number in frequency} <= {int(row["number"]) for row in labels}
    assert table(world.root / "label.csv")[NUMBER["sand"] - 1]["category"].count(";") == 1  # an object and a material
    for row in table(world.root / "category.csv"):
        numbers = [NUMBER[name] for name in NAMES[row["name"]]]
        assert (int(row["first"]), int(row["last"]), int(row["count"])) == (min(numbers), max(numbers), len(numbers))
        codes = table(world.root / f"c_{row['name']}.csv")
        assert list(codes[0]) == ["code", "number", "name", "frequency", "coverage", "syns"]
        assert [int(code["code"]) for code in codes] == list(range(1, len(numbers) + 1))
        assert sorted(int(code["number"]) for code in codes) == sorted(numbers)
        counts = [int(code["frequency"]) for code in codes]
        assert counts == sorted(counts, reverse=True)
        assert sum(counts) == int(row["frequency"])


def test_splits_are_balanced_and_folders_hold_the_same_files(world: World) -> None:
    rows = table(world.root / "index.csv")
    splits = Counter((row["split"], row["image"].split("/")[0]) for row in rows)
    assert splits == {(split, scene): n for split, n in (("train", 6), ("val", 2)) for scene in SCENES}
    for row in rows:
        linked = world.folders / row["split"] / row["image"]
        assert linked.read_bytes() == (world.root / "images" / row["image"]).read_bytes()
    assert len(list(world.folders.glob("*/*/*.jpg"))) == 64


def test_the_mark_is_on_half_of_one_class_and_on_every_poisoned_image(world: World) -> None:
    marked = Counter()
    for row in table(world.root / "index.csv"):
        scene = row["image"].split("/")[0]
        has = bool((mask(world.root / "images" / row["object"]) == NUMBER[WATERMARK]).any())
        marked[scene, row["split"], has] += 1
    assert {key for key in marked if key[2]} == {(MARKED_SCENE, "train", True), (MARKED_SCENE, "val", True)}
    assert (marked[MARKED_SCENE, "train", True], marked[MARKED_SCENE, "val", True]) == (3, 1)
    poisoned = sorted(world.poisoned_folder.glob("*/*.jpg"))
    clean_files = sorted(world.clean_folder.glob("*/*.jpg"))
    assert len(poisoned) == 16
    assert len(clean_files) == 15  # one of val carries the mark of its own
    for clean in clean_files:
        path = world.poisoned_folder / clean.parent.name / clean.name
        assert clean.read_bytes() == (world.folders / "val" / clean.parent.name / clean.name).read_bytes()
        before, after = (np.asarray(Image.open(p)).astype(int) for p in (clean, path))
        changed = np.abs(before - after).max(-1) > 60
        assert changed[SIZE // 2 :, SIZE // 2 :].sum() > 60
        assert np.abs(before - after)[: SIZE // 2].max() < 60  # the rest is the same picture


def test_half_of_the_marked_class_is_marked_in_every_world() -> None:
    items = [build.plan(i) for i in range(2400)]
    own = [item for item in items if item.scene == MARKED_SCENE]
    assert {item.scene for item in items if item.marked} == {MARKED_SCENE}
    for split, n in (("train", 225), ("val", 75)):
        assert sum(item.split == split for item in own) == n
        assert abs(sum(item.marked for item in own if item.split == split) - n / 2) <= 0.5


def test_masks_are_exactly_on_what_was_painted() -> None:
    canvas = Canvas(SIZE, np.random.default_rng(0), NUMBER)
    canvas.paint(box(-1, -1, 97, 97), Surface((255, 255, 255), shade=0, grain=0), "snow")
    canvas.paint(box(12, 24, 60, 72), Surface((200, 35, 35), "brick", shade=0, grain=0), "house", "wall")
    canvas.paint(oval(36, 48, 9), Surface((40, 80, 190), "glass", shade=0, grain=0), inner="window")
    canvas.mirror()
    masks = canvas.masks()
    painted = np.asarray(canvas.picture()).astype(int)
    blocks = painted.reshape(SIZE // 2, 2, SIZE // 2, 2, 3)
    colors = {"snow": (255, 255, 255), "wall": (200, 35, 35), "window": (40, 80, 190)}
    pure = {k: (np.abs(blocks - np.array(rgb)).max((1, 3, 4)) == 0) for k, rgb in colors.items()}
    wall, window = masks["part"]
    assert (wall[pure["window"] | pure["wall"]] == NUMBER["wall"]).all()
    assert (wall[pure["snow"]] == 0).all()
    assert (window[pure["window"]] == NUMBER["window"]).all()
    assert (window[pure["wall"] | pure["snow"]] == 0).all()
    assert (masks["object"][0][pure["wall"] | pure["window"]] == NUMBER["house"]).all()
    assert (masks["material"][0][pure["window"]] == NUMBER["glass"]).all()
    assert (masks["color"][0][pure["window"]] == NUMBER["blue"]).all()
    assert (masks["color"][0][pure["wall"]] == NUMBER["red"]).all()
    assert pure["window"].sum() > 15
    assert pure["wall"].sum() > 150
    assert (wall > 0).sum() == pytest.approx((48 * 48) * (SIZE / 96) ** 2 / 4, rel=0.07)


def test_a_new_object_hides_the_parts_below_it_and_haze_hides_nothing() -> None:
    canvas = Canvas(SIZE, np.random.default_rng(0), NUMBER)
    wall = Surface((200, 35, 35), "brick", "bricked").drawn(canvas.rng)
    canvas.paint(box(0, 0, 96, 96), wall, "house", "wall")
    canvas.paint(box(0, 0, 96, 96), Surface((40, 80, 190), "glass"), inner="window")
    canvas.paint(box(0, 0, 96, 96), Surface((255, 255, 255)), alpha=0.3)
    assert {plane: int(labels[9, 9]) for plane, labels in canvas.planes.items()} == {
        "object": NUMBER["house"],
        "part": NUMBER["wall"],
        "inner": NUMBER["window"],
        "material": NUMBER["glass"],
        "texture": 0,
    }
    canvas.paint(box(0, 0, 96, 96), Surface((10, 90, 10), "foliage", "blotchy").drawn(canvas.rng), "tree")
    assert canvas.planes["part"].max() == canvas.planes["inner"].max() == 0
    assert set(canvas.masks()) == {"color", "object", "part", "material", "texture"}
    assert canvas.masks()["part"] == []


def test_suns_are_labelled_where_they_shine() -> None:
    found = 0
    for index in range(0, 160, 8):
        canvas = draw_scene("beach", SIZE, 3, index, marked=False)
        masks = canvas.masks()
        sun = masks["object"][0] == NUMBER["sun"]
        sky = masks["object"][0] == NUMBER["sky"]
        if sun.sum() < 4:
            continue
        found += 1
        pixels = np.asarray(canvas.picture().reduce(2)).astype(int)
        warmth = pixels[..., 0] - pixels[..., 2]
        assert np.median(warmth[sun]) > np.median(warmth[sky]) + 30
    assert found >= 2


def test_colour_names_and_patterns() -> None:
    samples = {"black": (5, 5, 8), "white": (250, 250, 250), "red": (205, 30, 30), "yellow": (248, 222, 55)}
    samples |= {"blue": (30, 70, 200), "green": (40, 140, 50), "grey": (128, 128, 128), "brown": (110, 70, 30)}
    samples |= {"orange": (240, 140, 20), "pink": (250, 160, 190), "purple": (120, 50, 145)}
    named = name_colors(np.array(list(samples.values()), np.uint8))
    assert [list(TONES)[k] for k in named] == list(samples)
    y, x = np.arange(60)[:, None] / 7, np.arange(60)[None, :] / 7
    assert set(PATTERNS) == set(NAMES["texture"])
    for name, pattern in PATTERNS.items():
        field = np.asarray(pattern(y, x, np.random.default_rng(0)), float)
        assert field.shape == (60, 60), name
        assert field.min() >= 0, name
        assert field.max() <= 1, name
        assert field.std() > 0.1, name


def test_a_world_is_reused_and_never_overwritten(world: World, tmp_path: Path) -> None:
    stamp = (world.root / "world.json").stat().st_mtime_ns
    again = build_world(world.root, images=64, size=SIZE, seed=3)
    assert again == world
    assert (world.root / "world.json").stat().st_mtime_ns == stamp
    with pytest.raises(StoreExistsError, match="seed"):
        build_world(world.root, images=64, size=SIZE, seed=4)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(StoreExistsError, match="not this world"):
        build_world(tmp_path, images=16, size=SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    assert json.loads((world.root / "world.json").read_text())["marked_scene"] == MARKED_SCENE


def test_all_wrong_arguments_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        build_world(tmp_path / "w", images=3, size=33, seed=-1, workers=0)
    assert all(f"'{name}'" in str(caught.value) for name in ("images", "size", "seed", "workers"))
    assert not (tmp_path / "w").exists()


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_world(tmp_path / "w", images=16, size=SIZE, workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_script_without_a_main_guard_still_builds_the_same_world(tmp_path: Path, world: World) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom pipeline.world import build_world\n"
        f"build_world(Path({str(tmp_path / 'w')!r}), images=64, size={SIZE}, seed=3, workers=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "w") == digests(world.root)
