"""Small drawn datasets without label maps: folders of images, and the layouts that their readers know."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from extract.image_io import ENDINGS


def put(root: Path, *names: str) -> Path:
    """Files below a folder: PNGs of 4 × 3 pixels whose red counts them, texts where the ending is no image's."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(k) if name.lower().endswith(ENDINGS) else b"x")
    return root


def png(k: int, *, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (k, 10, 20)).save(file, kind)
    return file.getvalue()


def listed(source: Any) -> list[tuple[str, int]]:
    return [(source.name(i), source.label(i)) for i in range(len(source))]


def reds(source: Any) -> list[int]:
    return [int(np.asarray(source.image(i))[0, 0, 0]) for i in range(len(source))]


# WebDataset

Members = Iterable[tuple[str, bytes | tarfile.TarInfo]]


def tar(path: Path, members: Members, *, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as out:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(data, bytes):
                info.size = len(data)
            out.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def shards(root: Path, count: int = 2, per: int = 3) -> Path:
    """``shard-000000.tar`` ...: images called by their number k, of class k % 4."""
    for s in range(count):
        numbers = range(s * per, (s + 1) * per)
        members = [m for k in numbers for m in ((f"{k:06d}.png", png(k)), (f"{k:06d}.cls", b"%d" % (k % 4)))]
        tar(root / f"shard-{s:06d}.tar", members)
    return root


# CIFAR-10

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STEMS = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
PER_BATCH = 3
Batches = dict[str, tuple[np.ndarray, list[int], list[str]]]


def batches() -> Batches:
    """Pixels, labels and names of each batch."""
    g = np.random.default_rng(1)
    return {
        stem: (
            g.integers(0, 256, (PER_BATCH, 3072), np.uint8),
            g.integers(0, 10, PER_BATCH).tolist(),
            [f"{stem[0]}_s_{k}{i:05d}.png" for i in range(PER_BATCH)],
        )
        for k, stem in enumerate(STEMS)
    }


def put_binary(folder: Path, data: Batches) -> Path:
    folder.mkdir(parents=True)
    for stem, (pixels, labels, _) in data.items():
        rows = (bytes([y]) + row.tobytes() for y, row in zip(labels, pixels, strict=True))
        (folder / f"{stem}.bin").write_bytes(b"".join(rows))
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR_NAMES) + "\n\n")
    return folder


class _Python2(pickle._Pickler):
    """Writes what cPickle of Python 2 wrote, protocol 2: texts and data alike as bytes."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write((b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2(value: object) -> bytes:
    file = io.BytesIO()
    _Python2(file, 2).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def batch_value(stem: str, pixels: np.ndarray, labels: list[int], names: list[str]) -> dict[str, Any]:
    return {"batch_label": f"{stem} of 5", "labels": labels, "data": pixels, "filenames": names}


def put_python(folder: Path, data: Batches) -> Path:
    folder.mkdir(parents=True)
    for stem, batch in data.items():
        (folder / stem).write_bytes(python2(batch_value(stem, *batch)))
    (folder / "batches.meta").write_bytes(python2({"label_names": CIFAR_NAMES, "num_vis": 3072}))
    return folder


# ImageNet and Tiny ImageNet

KIT = "ILSVRC2012_devkit_t12"
# (ILSVRC2012_ID, wnid, words, children): the IDs are in an order of their own, and some synsets are not leaves
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n02100735", "English setter", 0),
    (3, "n01440764", "tench, Tinca tinca", 0),
    (4, "n01443537", "goldfish, Carassius auratus", 0),
    (5, "n00001740", "entity", 2),
    (1001, "n09999999", "thing", 3),
]
IMAGENET_NAMES = ["n01440764 tench", "n01443537 goldfish", "n02100735 English setter", "n02119789 kit fox"]
TRUTH = [3, 1, 4, 2, 1]  # ILSVRC2012_ID of the validation images
FLAT = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 6)]
FLAT_LABELS = list(zip(FLAT, [0, 3, 1, 2, 3], strict=True))


def meta(synsets: list[tuple[int, str, str, int]] = SYNSETS) -> bytes:
    fields = ["ILSVRC2012_ID", "WNID", "words", "num_children", "children"]
    table = np.zeros((len(synsets), 1), [(name, object) for name in fields])
    for row, (number, wnid, words, children) in zip(table, synsets, strict=True):
        row[0] = (number, wnid, words, children, np.arange(children))
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def put_kit(folder: Path, truth: str = "".join(f"{k}\n" for k in TRUTH), **options: Any) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(meta(**options))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return folder


def put_archive(root: Path) -> Path:
    kit = put_kit(root.parent / "unpacked" / KIT)
    with tarfile.open(root / f"{KIT}.tar.gz", "w:gz") as out:
        out.add(kit, KIT)
    return root / f"{KIT}.tar.gz"


def put_kaggle(root: Path) -> Path:
    """What Kaggle's archive unpacks to: two lists next to ILSVRC/Data/CLS-LOC."""
    words = {number: (wnid, text) for number, wnid, text, _ in SYNSETS}
    lines = "\n".join(f"{f[:-5]},{words[i][0]} 85 1 499 272 " for f, i in zip(FLAT, TRUTH, strict=True))
    root.mkdir(parents=True, exist_ok=True)
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{lines}\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{w} {text}\n" for w, text in sorted(words.values())[1:-1]))
    return root


TINY_WNIDS = ["n01443537", "n01629819", "n01641577"]
TINY_NAMES = ["n01443537 goldfish", "n01629819 European fire salamander", "n01641577"]


def put_tiny(root: Path) -> Path:
    """Three classes with two images each in train, three images in val, one in test."""
    put(root, *(f"train/{wnid}/images/{wnid}_{k}.JPEG" for wnid in TINY_WNIDS for k in range(2)))
    put(root, *(f"train/{wnid}/{wnid}_boxes.txt" for wnid in TINY_WNIDS))
    put(root, *(f"val/images/val_{k}.JPEG" for k in range(3)), "test/images/test_0.JPEG")
    lines = [f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n" for k, wnid in enumerate(reversed(TINY_WNIDS))]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(TINY_WNIDS)) + "\n")
    (root / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n"
    )
    return root


# Places365

PLACES_NAMES = ["airfield", "airplane_cabin", "apartment_building/outdoor", "beach", "zen_garden"]
PLACES_TRAIN = [("a/airfield/00000002.jpg", 0), ("a/airfield/00000001.jpg", 0), ("b/beach/00000001.jpg", 3),
                ("a/apartment_building/outdoor/00000007.jpg", 2)]  # fmt: skip
PLACES_VAL = [(f"Places365_val_{k:08d}.jpg", label) for k, label in enumerate([4, 0, 3, 3], 1)]
PLACES_TEST = [(f"Places365_test_{k:08d}.jpg", -1) for k in (1, 2)]
PLACES_LISTS = {
    "categories_places365.txt": "".join(f"/{name[0]}/{name} {k}\n" for k, name in enumerate(PLACES_NAMES)),
    "places365_train_standard.txt": "".join(f"/{name} {k}\n" for name, k in PLACES_TRAIN),
    "places365_train_challenge.txt": "".join(f"/{name} {k}\n" for name, k in PLACES_TRAIN[2:]),
    "places365_val.txt": "".join(f"{name} {k}\n" for name, k in PLACES_VAL),
    "places365_test.txt": "".join(f"{name}\n" for name, _ in PLACES_TEST),
}


def put_lists(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or PLACES_LISTS:
        (folder / name).write_text(PLACES_LISTS[name])
    return folder


def put_places(root: Path, *, size: str = "256", lists: str = "") -> Path:
    for kind, pairs in (("data", PLACES_TRAIN), ("val", PLACES_VAL), ("test", PLACES_TEST)):
        put(root / f"{kind}_{size}", *(name for name, _ in pairs))
    put_lists(root / lists)
    return root
