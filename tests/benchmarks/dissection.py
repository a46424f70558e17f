"""Labelling 500 detectors with 300 labels against Network Dissection's loop over units, and its memory on ten times the images.

Masks are 112 × 112 as in Broden, with some 25 labels an image in five categories; activations are a 7 × 7 grid of noise,
which is the worst case for detectors that are positive somewhere. The loop is run on all units of the same images: nothing is
extrapolated. It differs from the published programs in that it also has the logits by one product an image and upsamples with
torch, which is faster than what they use.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evaluate.detector_bank import Bank
from evaluate.dissect import Dissector
from evaluate.metrics import choose_labels
from extract.labels import Alignment, labels_on_raster
from extract.segmentation.broden import BrodenSource
from stores.format import LayerSpec
from stores.layout import StorePlan
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.writer import StoreWriter
from tests.benchmarks.measure import Row, in_turns

GRID, RASTER, C, J, CHUNK = (7, 7), (112, 112), 256, 500, 16
PER_CATEGORY = {"object": 150, "part": 70, "material": 30, "scene": 30, "texture": 20}
IMAGES = 64
WHOLE = (0.0, 0.0, 1.0, 1.0)
# standard deviations above which a share of a normal variable lies
POSITIVE = {"0.5 % positive": 2.5758, "a quarter positive": 0.6745}


def write_concepts(root: Path, images: int) -> None:
    """A Broden folder: objects, parts (two layers) and materials in PNGs, a scene and now and then a texture as numbers."""
    g = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    first, number = {}, 1
    with (root / "label.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["number", "name", "category"])
        for category, count in PER_CATEGORY.items():
            first[category] = number
            out.writerows([n, f"{category} {n}", category] for n in range(number, number + count))
            number += count
    with (root / "index.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "split", "ih", "iw", "sh", "sw", *PER_CATEGORY])
        for i in range(images):
            (root / "images" / f"{i}.jpg").touch()  # nothing looks into it
            cells = {"scene": str(first["scene"] + g.integers(30)), "texture": ""}
            if i % 4 == 0:
                cells["texture"] = str(first["texture"] + g.integers(20))
            for category, layers in (("object", 1), ("part", 2), ("material", 1)):
                cells[category] = ";".join(f"{i}_{category}_{k}.png" for k in range(layers))
                for k in range(layers):
                    some = first[category] + g.choice(PER_CATEGORY[category], 6, replace=False)
                    coarse = g.choice(np.append(some, 0), (8, 8))
                    labels = np.asarray(
                        Image.fromarray(coarse.astype(np.int32)).resize(RASTER, Image.Resampling.NEAREST)
                    )
                    rgb = np.stack([labels % 256, labels // 256, 0 * labels], -1).astype(np.uint8)
                    Image.fromarray(rgb).save(root / "images" / f"{i}_{category}_{k}.png")
            out.writerow([f"{i}.jpg", ("train", "val")[i % 2], 224, 224, *RASTER, *(cells[c] for c in PER_CATEGORY)])


def write_activations(path: Path, images: int) -> None:
    g = np.random.default_rng(1)
    names = [f"{i}.jpg" for i in range(images)]
    plan = StorePlan(
        layers=[LayerSpec("a", GRID, C)], names=names, n_classes=2, provenance={}, chunk_images=CHUNK, compress="zstd"
    )  # compressed: files mapped into memory would count as the process's own
    writer = StoreWriter.open(path, plan)
    for k in writer.missing():
        part = slice(k * CHUNK, min(images, (k + 1) * CHUNK))
        n = part.stop - part.start
        writer.commit(
            k, names=names[part], labels=np.zeros(n), valid=np.ones(n, bool), logits=np.zeros((n, 2), np.float32),
            activations={"a": g.normal(size=(n, GRID[0] * GRID[1], C)).astype(np.float16)},
        )  # fmt: skip
    writer.seal()
    writer.close()


def dissector(folder: Path, images: int, threshold: float) -> Dissector:
    """What is dissected; written before it is asked for the first time."""
    concepts, store = folder / f"concepts {images}", folder / f"{images}.zarr"
    if not concepts.exists():
        write_concepts(concepts, images)
        write_activations(store, images)
    reader = LayerReader(ActivationStore.open(store))
    filters = F.normalize(torch.randn(C, J, generator=torch.Generator().manual_seed(2)), dim=0)
    bank = Bank(filters, torch.full((J,), threshold), {"a": slice(0, J)})
    alignment = Alignment(BrodenSource(concepts), {i: i for i in range(images)}, lambda image: WHOLE)
    return Dissector(reader, bank, alignment)


def by_units(ours: Dissector, *, skip: bool) -> np.ndarray:
    """Intersections (2, J, L) as Network Dissection has them: image by image, unit by unit, label by label.

    With ``skip`` units that are nowhere above their threshold cost nothing, as in its later versions.
    """
    material = ours.material
    source, bank = material.alignment.source, material.bank
    both = np.zeros((2, bank.count, len(material.labels)), np.int64)
    column = {label.number: k for k, label in enumerate(source.labels)}
    for index, block in material.reader.blocks(images=1):
        labels = labels_on_raster(source, int(index[0]), RASTER, WHOLE)
        columns = [column[int(n)] for n in labels.numbers]
        split = ("train", "val").index(source.split(int(index[0])))
        maps = list(labels.maps.reshape(-1, *RASTER))
        z = bank.logits(block)[0].T.reshape(bank.count, *GRID)
        for unit in range(bank.count):
            if skip and not bool((z[unit] > 0).any()):
                continue
            fine = F.interpolate(z[unit][None, None], size=RASTER, mode="bilinear", align_corners=False)
            on = (fine[0, 0] > 0).numpy()
            for k, there in zip(columns, maps, strict=True):
                both[split, unit, k] += np.logical_and(on, there).sum()
    return both


def status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def extra_memory(folder: Path, images: int) -> float:
    """MB that both passes take at their peak, beyond what lay in memory before them."""
    before = status("VmRSS")
    ours = dissector(folder, images, POSITIVE["0.5 % positive"])
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    ours.second(choose_labels(ours.count()))
    return (status("VmHWM") - before) / 1024


def rows(folder: Path) -> Iterator[Row]:
    threads = torch.get_num_threads()
    for name, threshold in POSITIVE.items():
        ours = dissector(folder, IMAGES, threshold)
        counts = ours.count()
        for skip in (False, True):
            wanted = by_units(ours, skip=skip)
            assert np.abs(counts.both - wanted).sum() <= 1e-6 * wanted.sum()  # logits within rounding of the threshold
            if skip and name == "a quarter positive":
                continue  # nothing to skip
            a, c = in_turns(ours.count, lambda ours=ours, skip=skip: by_units(ours, skip=skip), repeats=2)
            loop = "the loop over units above their threshold" if skip else "Network Dissection's loop over units"
            yield Row(
                f"labelling {J} detectors × {len(ours.material.labels)} labels, {name}", loop, c / a, "higher",
                f"{1000 * a / IMAGES:.2f} ms an image",
            )  # fmt: skip
        label_of = choose_labels(counts)
        a, c = in_turns(lambda ours=ours, label_of=label_of: ours.second(label_of), ours.count, repeats=2)
        what = f"second pass ({J} histograms, unions, 200 replicates), {name}"
        yield Row(what, "the first", a / c, "lower", f"{1000 * a / IMAGES:.2f} ms an image")
    torch.set_num_threads(threads)
    peaks = {}
    for images in (200, 2000):
        dissector(folder, images, 0.0)  # written here, measured there
        command = [sys.executable, "-m", "tests.benchmarks.dissection", str(folder), str(images)]
        peaks[images] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    measured = f"{peaks[2000]:.0f} and {peaks[200]:.0f} MB"
    yield Row("peak memory of both passes, 2000 images", "200 images", peaks[2000] / peaks[200], "lower", measured)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print(extra_memory(Path(sys.argv[1]), int(sys.argv[2])))  # noqa: T201
