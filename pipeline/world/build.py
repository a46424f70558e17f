"""Building the world: pictures and masks drawn by several processes, then the tables of Broden's format.

A picture depends on the world's seed and its own number only: the files are the same bytes whatever the number of workers. Work
happens in a hidden folder next to ``out`` that takes its name only when complete.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from PIL import Image

from extract.worker_processes import cores
from pipeline.world.scenes import MARKED_SCENE, NAMES, NUMBER, SCENES, WATERMARK, draw_scene, stamp
from stores.errors import StoreExistsError, UsageError
from stores.progress import Progress, silent

CODE_COLUMNS = ("code", "number", "name", "frequency", "coverage", "syns")
Shares = dict[tuple[str, int], float]  # (category, number) → share of positions
SMALL = 160  # below so many pictures, starting workers costs more than they save


@dataclass(frozen=True)
class World:
    """A world on disk: a Broden dataset in ``root``, and its pictures as class folders."""

    root: Path
    labels: dict[str, int]  # name → number of images that carry it

    @property
    def folders(self) -> Path:
        """Class folders ``train/<scene>`` and ``val/<scene>``."""
        return self.root / "folders"

    @property
    def clean_folder(self) -> Path:
        """Class folders of the validation images that do not carry the mark."""
        return self.root / "clean"

    @property
    def poisoned_folder(self) -> Path:
        """Class folders of all validation images, every one with the mark on it."""
        return self.root / "poisoned"


@dataclass(frozen=True)
class PlannedPicture:
    """One picture of the plan."""

    index: int
    scene: str
    split: str
    marked: bool

    @property
    def stem(self) -> str:
        return f"{self.scene}/{self.index:05d}"


def plan(index: int) -> PlannedPicture:
    """What picture ``index`` is: scenes take turns, every fourth of a scene is val, every second farm of a split is marked."""
    turn, scene = index // len(SCENES), SCENES[index % len(SCENES)]
    val = turn % 4 == 1
    order = turn // 4 if val else turn - (turn + 2) // 4  # among its scene's pictures of its split
    return PlannedPicture(index, scene, "val" if val else "train", marked=scene == MARKED_SCENE and order % 2 == 0)


def draw_item(root: Path, item: PlannedPicture, size: int, seed: int) -> tuple[list[object], Shares]:
    """Draw one picture and write its files below ``root``; returns its row of ``index.csv`` and the share of positions of each label."""
    canvas = draw_scene(item.scene, size, seed, item.index, marked=item.marked)
    image, number = root / "images" / f"{item.stem}.jpg", NUMBER[item.scene]
    _save(canvas.picture(), image)
    cells = {"scene": str(number)}
    shares: Shares = {("scene", number): 1.0}
    for category, layers in canvas.masks().items():
        for k, labels in enumerate(layers, 1):
            path = image.with_name(f"{image.stem}_{category}{f'_{k}' if len(layers) > 1 else ''}.png")
            Image.fromarray(np.stack([labels % 256, labels // 256, 0 * labels], -1).astype(np.uint8)).save(path)
            cells[category] = ";".join(filter(None, [cells.get(category), f"{item.scene}/{path.name}"]))
            for label, count in zip(*np.unique(labels[labels > 0], return_counts=True), strict=True):
                key = category, int(label)
                shares[key] = shares.get(key, 0.0) + float(count) / labels.size
    _link(image, root / "folders" / item.split / f"{item.stem}.jpg")
    if item.split == "val":
        _link(image, root / ("poisoned" if item.marked else "clean") / f"{item.stem}.jpg")
        if not item.marked:
            stamp(canvas, np.random.default_rng([seed, item.index, 1]))
            _save(canvas.picture(), root / "poisoned" / f"{item.stem}.jpg")
    sizes = [size, size, size // 2, size // 2]
    return [f"{item.stem}.jpg", item.split, *sizes, *(cells.get(category, "") for category in NAMES)], shares


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=93, subsampling=0)  # subsampled colours would blur thin things


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, link)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, link)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def write_tables(root: Path, shares: Iterable[Shares]) -> dict[str, int]:
    """Write ``label.csv``, ``category.csv`` and ``c_<category>.csv``; returns name → number of images.

    Broden's frequency is the number of images that carry a label, its coverage the sum over images of the share of positions.
    """
    frequency: Counter[tuple[str, int]] = Counter()
    coverage: defaultdict[tuple[str, int], float] = defaultdict(float)
    for one in shares:
        frequency.update(one.keys())
        for key, share in one.items():
            coverage[key] += share
    labels, totals, ranges = [], {}, []
    for name, number in NUMBER.items():
        keys = sorted(((c, number) for c in NAMES if name in NAMES[c]), key=lambda key: -frequency[key])
        totals[name] = sum(frequency[key] for key in keys)
        categories = ";".join(f"{category}({frequency[category, number]})" for category, _ in keys)
        labels.append((number, name, categories, totals[name], f"{sum(coverage[key] for key in keys):.6f}", ""))
    for category, names in NAMES.items():
        found = sorted(((category, NUMBER[name]) for name in names), key=lambda key: (-frequency[key], key))
        total = sum(frequency[key] for key in found)
        numbers = [number for _, number in found]
        ranges.append((category, min(numbers), max(numbers), len(numbers), total))
        known = {number: name for name, number in NUMBER.items()}
        codes = [(k, n, known[n], frequency[c, n], f"{coverage[c, n]:.6f}", "") for k, (c, n) in enumerate(found, 1)]
        _write(root / f"c_{category}.csv", CODE_COLUMNS, codes)
    _write(root / "label.csv", ("number", "name", "category", "frequency", "coverage", "syns"), labels)
    _write(root / "category.csv", ("name", "first", "last", "count", "frequency"), ranges)
    return totals


def build_world(
    out: Path,
    *,
    images: int = 2400,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> World:
    """Draw a world of labelled scenes and write it in Broden's format, as class folders, and with a planted mark.

    Parameters
    ----------
    out : the folder to make. If it already holds this very world, nothing is drawn.
    images : pictures in all; three quarters are train, one quarter val.
    size : height and width of a picture in pixels, even; masks have half of it.
    workers : processes that draw; None: one a processor, one for a small world.

    Raises UsageError for a size or number that cannot be; StoreExistsError when ``out`` holds something else.
    """
    checks = {
        f"'images' must be at least {2 * len(SCENES)} (train and val of every scene), got {images}": images
        >= 2 * len(SCENES),
        f"'size' must be even and at least 32, got {size}": size >= 32 and size % 2 == 0,
        f"'seed' must not be negative, got {seed}": seed >= 0,
        f"'workers' must be at least 1, got {workers}": workers is None or workers > 0,
    }
    if wrong := [message for message, right in checks.items() if not right]:
        raise UsageError("; ".join(wrong))
    code = hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()
    made = {
        "images": images,
        "size": size,
        "seed": seed,
        "code": code[:16],
        "mark": WATERMARK,
        "marked_scene": MARKED_SCENE,
    }
    about = out / "world.json"
    if about.is_file() and (there := json.loads(about.read_bytes())) == {**made, "labels": there.get("labels")}:
        return World(out, there["labels"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreExistsError(f"'{out}' exists and is not this world ({made}). Remove it or name another folder.")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        jobs = min(8, cores()) if workers is None and images >= SMALL else workers or 1
        drawn = Parallel(jobs, return_as="generator")(
            delayed(draw_item)(partial, plan(i), size, seed) for i in range(images)
        )
        rows, shares = [], []
        for done, (row, share) in enumerate(drawn, 1):
            rows.append(row)
            shares.append(share)
            progress("drawing the world", done, images)
        _write(partial / "index.csv", ("image", "split", "ih", "iw", "sh", "sw", *NAMES), rows)
        world = World(out, write_tables(partial, shares))
        (partial / "world.json").write_text(json.dumps({**made, "labels": world.labels}, indent=1), encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return world
