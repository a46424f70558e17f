"""A report at scale: seconds, peak memory and what it owes to the number of images, bytes on the disk, time to open in a browser."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from pipeline.evaluation_result import made_from
from stores.directions import Directions
from stores.folders import write_manifest
from stores.format import LayerSpec
from stores.io import write_json
from stores.layout import StorePlan
from stores.store import ActivationStore
from stores.tables import write_parts, write_table
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row

IMAGES, POSITIONS, CHANNELS, CLASSES, DIRECTIONS = 10_000, 49, 128, 1000, 500
CHUNK = 500
PICTURES = 200  # different ones; the others are the same under other names
ALPHAS, ROLES = (0.5, 2.0, 5.0), ("signal", "filter")
CATEGORIES = ("object", "part", "scene", "texture", "color", "material")
LIMIT_MB, LIMIT_MS = 100, 2000


def pictures(folder: Path, images: int) -> list[str]:
    """Pictures of 256 × 256 as busy as photographs are: noise of every scale, and sharp edges."""
    folder.mkdir(parents=True)
    g = np.random.default_rng(0)
    names = [f"{k:05d}.jpg" for k in range(images)]
    for k, name in enumerate(names):
        if k >= PICTURES:
            (folder / name).hardlink_to(folder / names[k % PICTURES])
            continue
        layers = [
            Image.fromarray(g.integers(0, 256, (n, n, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
            for n in (4, 12, 40, 256)
        ]
        mixed = sum(w * np.asarray(layer, np.float32) for w, layer in zip((0.5, 0.25, 0.17, 0.08), layers, strict=True))
        edges = np.asarray(layers[0].filter(ImageFilter.MedianFilter(5)), np.float32) > 140
        Image.fromarray(np.clip(mixed + 30 * edges, 0, 255).astype(np.uint8)).save(folder / name, quality=88)
    return names


def world(folder: Path, images: int) -> Path:
    """A store, directions and an evaluation of that size; returns the evaluation's folder."""
    g = np.random.default_rng(1)
    names = pictures(folder / "images", images)
    made = {"model": "tiny_net:build", "weights": "none", "weights_digest": "sha256:0",
            "dataset": {"kind": "folder", "path": str(folder / "images"), "images": images, "class_names": None}}  # fmt: skip
    plan = StorePlan(
        layers=[LayerSpec("conv", (7, 7), CHANNELS)], names=names, n_classes=CLASSES, provenance=made, dtype="float16",
        chunk_images=CHUNK, class_names=[f"class number {k}" for k in range(CLASSES)],
    )  # fmt: skip
    writer = StoreWriter.open(folder / "acts.zarr", plan)
    for k in writer.missing():
        part = slice(k * CHUNK, min(images, (k + 1) * CHUNK))
        n = part.stop - part.start
        coarse = g.standard_normal((n, 3, 3, CHANNELS), np.float32).repeat(3, 1).repeat(3, 2)[:, 1:8, 1:8]
        x = (coarse + 0.3 * g.standard_normal((n, 7, 7, CHANNELS), np.float32)).reshape(n, POSITIONS, CHANNELS)
        writer.commit(
            k, names=names[part], labels=np.full(n, -1), valid=np.ones(n, bool),
            logits=3 * g.standard_normal((n, CLASSES), np.float32), activations={"conv": x.astype(np.float16)},
        )  # fmt: skip
    writer.seal()
    writer.close()
    w = g.standard_normal((CHANNELS, DIRECTIONS)).astype(np.float32)
    w /= np.linalg.norm(w, axis=0)
    info = {"config": {"seed": 0}, "diagnosis": {"dead": [3], "duplicates": [[1, 2]], "overfull": [], "coverage": 0.9}}
    Directions(
        w, w, np.zeros(CHANNELS, np.float32), np.full(DIRECTIONS, 2.0, np.float32), "eddp", "conv", info=info
    ).save(folder / "eddp.safetensors")
    evaluation = folder / "evaluation"
    tables(evaluation, g)
    influence = {
        "alpha": 2.0,
        "images": 1000,
        "classes": CLASSES,
        "through": "pooling and an affine map",
        "nulls": 100,
        "randoms": 1000,
        "alpha_relative": 0.5,
    }
    entry = {
        "method": "eddp",
        "directions": DIRECTIONS,
        "s1": 90.0,
        "s2": 30.0,
        "per_category": {},
        "influence": influence,
    }
    about = made_from(
        evaluation,
        ActivationStore.open(folder / "acts.zarr"),
        "conv",
        {"eddp": (folder / "eddp.safetensors", Directions.load(folder / "eddp.safetensors"))},
        None,
    )
    write_json(
        evaluation / "summary.json", {"made_by": "eddp evaluate", "directions": {"eddp": entry}, "made_from": about}
    )
    write_manifest(evaluation)
    return evaluation


def tables(folder: Path, g: np.random.Generator) -> None:
    """The tables that a report reads, with all columns of the longest."""
    n = DIRECTIONS
    label, category = [f"label {k % 200}" for k in range(n)], [CATEGORIES[k % 6] for k in range(n)]
    same = {"directions": ["eddp"] * n, "index": np.arange(n), "label": label, "category": category}
    iou = g.random(n) * 0.6
    scores = {key: g.random(n) for key in ("precision", "recall", "f1", "average_precision")}
    support = {key: np.full(n, 9) for key in ("images_val", "positions_val")}
    write_table(
        folder,
        "directions",
        {
            **same,
            **support,
            "interpretable": iou > 0.04,
            "iou_val": iou,
            "iou_low": iou * 0.9,
            "iou_high": iou * 1.1,
            **scores,
        },
    )
    more = {key: np.repeat(np.asarray(values), 5) for key, values in same.items()}
    write_table(
        folder,
        "labels",
        {
            **more,
            "rank": np.tile(np.arange(1, 6), n),
            "as_good": np.zeros(5 * n, bool),
            "iou_train": g.random(5 * n),
            "iou_val": g.random(5 * n),
        },
    )
    suspects = {
        "images": [9] * 4,
        "kind": ["small, of one class"] * 4,
        "share_of_class": [1.0] * 4,
        "share_of_images": [0.9] * 4,
        "usual_share": [0.1] * 4,
        "area": [0.05] * 4,
        "probability_change": [0.1] * 4,
        "class": [1, 2, 3, 4],
    }
    write_table(
        folder, "suspects", {"directions": ["eddp"] * 4, "indices": list("0123"), "label": label[:4], **suspects}
    )
    sweep = [0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0]
    parts = []
    for role, count in (("signal", n), ("filter", n), ("random", 64)):
        rows = count * len(sweep)
        parts.append({
            "directions": ["eddp"] * rows, "index": np.repeat(np.arange(count), len(sweep)), "role": [role] * rows,
            "class": np.repeat(np.arange(count) % CLASSES, len(sweep)), "alpha": np.tile(sweep, count), "probability": g.random(rows),
            "monotone_up_to": np.full(rows, 5.0),
        })  # fmt: skip
    write_parts(folder, "steering", parts)
    write_parts(folder, "influence", influence_parts(g))


def influence_parts(g: np.random.Generator) -> Iterator[dict[str, Any]]:
    size = DIRECTIONS * CLASSES
    floats = (
        "score",
        "logit_change",
        "probability_change",
        "p_paper",
        "p",
        "p_holm",
        "q_bh",
        "t",
        "q_t",
        "p_max",
        "t_random",
        "p_random",
    )
    marks = (
        "significant",
        "significant_paper",
        "significant_holm",
        "significant_bh",
        "significant_t",
        "significant_max",
        "significant_random",
    )
    for role in ROLES:
        for alpha in ALPHAS:
            yield {
                "directions": np.full(size, "eddp", object), "index": np.repeat(np.arange(DIRECTIONS), CLASSES),
                "label": np.full(size, "label", object), "role": np.full(size, role, object), "alpha": np.full(size, alpha),
                "class": np.tile(np.arange(CLASSES), DIRECTIONS), "class_name": np.full(size, "a class", object),
                **{key: 0.01 * g.standard_normal(size).round(6) for key in floats}, **{key: g.random(size) < 0.05 for key in marks},
            }  # fmt: skip


def apart(folder: Path) -> dict[str, Any]:
    """Make the report in a process of its own: seconds, MiB at the peak, bytes, files."""
    command = [sys.executable, "-m", "tests.benchmarks.report", str(folder)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def milliseconds_to_open(page: Path, repeats: int = 5) -> float:
    """Median time until the overview is loaded and its script has run, in headless Chromium, each time in a new context."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        times = []
        for _ in range(repeats + 1):
            view = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            start = time.perf_counter()
            view.goto(page.as_uri(), wait_until="load")
            view.wait_for_function("document.querySelector('#count').textContent.includes('500 of 500')")
            times.append(1000 * (time.perf_counter() - start))
            view.context.close()
        browser.close()
    return statistics.median(times[1:])


def rows(folder: Path) -> Iterator[Row]:
    for images in (1000, IMAGES):
        world(folder / str(images), images)
    few, many = (apart(folder / str(images)) for images in (1000, IMAGES))
    what = f"report, {DIRECTIONS} directions × {CLASSES} classes × {IMAGES} images"
    yield Row(
        what,
        "1000 images",
        many["seconds"] / few["seconds"],
        "lower",
        f"{many['seconds']:.0f} and {few['seconds']:.0f} s",
    )
    yield Row(
        "its peak memory", "1000 images", many["peak"] / few["peak"], "lower", f"{many['peak']} and {few['peak']} MiB"
    )
    size = many["bytes"] / 1e6
    yield Row("its folder", f"{LIMIT_MB} MB", size / LIMIT_MB, "lower", f"{size:.0f} MB, {many['files']} files")
    opened = milliseconds_to_open(folder / str(IMAGES) / "report" / "index.html")
    yield Row("opening its overview", f"{LIMIT_MS} ms", opened / LIMIT_MS, "lower", f"{opened:.0f} ms")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    from pipeline.report import ReportConfig, write_site
    from pipeline.run import peak_memory_mib

    root = Path(sys.argv[1])
    begun = time.perf_counter()
    about = write_site(root / "evaluation", root / "report", ReportConfig(visualize=0))
    about.pop("notes")
    print(json.dumps({**about, "seconds": time.perf_counter() - begun, "peak": peak_memory_mib()}))  # noqa: T201
