"""Tiny concept datasets of every kind but Broden's, each with what its reader must give."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ENOUGH = 6  # images: of every split two at least
SIZES = ((10, 12), (5, 6), (20, 24), (15, 18), (40, 48), (30, 36))  # of label maps of images of 20 × 24


@dataclass(frozen=True)
class TinyConcepts:
    """A folder, and of each image its name, split and label maps (category -> (1, h, w))."""

    root: Path
    names: list[str]
    splits: list[str]
    masks: list[dict[str, np.ndarray]]
    labels: dict[int, tuple[str, str]]


def write_image(path: Path, k: int, size: tuple[int, int] = (20, 24)) -> None:
    """Noise of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8)).save(path)


def write_map(path: Path, values: np.ndarray, *, palette: bool = False) -> None:
    """A PNG of one channel, 8 or 16 bits as the array is, or of a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)


def write_bomb(path: Path, side: int = 60_000) -> None:
    """A PNG of a hundred bytes that says it has ``side`` × ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def write_voc(root: Path) -> TinyConcepts:
    """Two void pixels in each, background, aeroplanes, persons and television sets."""
    g = np.random.default_rng(1)
    names, masks = [], []
    for k in range(ENOUGH):
        names.append(f"2007_{k:06d}")
        values = g.choice([0, 1, 15, 20], SIZES[k]).astype(np.uint8)
        values[0, :2] = 255
        write_image(root / "JPEGImages" / f"{names[-1]}.jpg", k)
        write_map(root / "SegmentationClass" / f"{names[-1]}.png", values, palette=True)
        masks.append({"object": np.where(values == 255, 0, values)[None].astype(np.int32)})
    write_image(root / "JPEGImages" / "2007_999999.jpg", 99)  # without a segmentation
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:4]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[4:]) + "\n")
    labels = {1: ("aeroplane", "object"), 15: ("person", "object"), 20: ("tvmonitor", "object")}
    return TinyConcepts(root, [f"JPEGImages/{name}.jpg" for name in names], ["train"] * 4 + ["val"] * 2, masks, labels)


def write_ade20k(root: Path, *, scenes: bool = True) -> TinyConcepts:
    """Three objects; scenes of all images but the last."""
    g = np.random.default_rng(2)
    names, masks, lines = [], [], []
    for k in range(ENOUGH):
        split, short = (("training", "train"), ("validation", "val"))[k // 4]
        name = f"ADE_{short}_{k:08d}"
        names.append(f"images/{split}/{name}.jpg")
        values = g.choice([0, 1, 2, 150], SIZES[k]).astype(np.uint8)
        write_image(root / names[-1], k)
        write_map(root / "annotations" / split / f"{name}.png", values)
        masks.append({"object": values[None].astype(np.int32)})
        scene = ("street", "bathroom")[k % 2]
        if scenes and k < ENOUGH - 1:
            lines.append(f"{name} {scene}")
            masks[-1]["scene"] = np.full((1, *values.shape), {"bathroom": 151, "street": 152}[scene])
    objects = {1: "wall", 2: "building, edifice", 150: "flag"}
    rows = "".join(f"{k} \t0.1\t10\t5\t1\t{name} \n" for k, name in objects.items())
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    labels = {k: (name, "object") for k, name in objects.items()}
    if scenes:
        (root / "sceneCategories.txt").write_text("\n".join(lines) + "\n")
        labels |= {151: ("bathroom", "scene"), 152: ("street", "scene")}
    return TinyConcepts(root, names, ["train"] * 4 + ["val"] * 2, masks, labels)


def write_cocostuff(root: Path, *, by_value: bool = False) -> TinyConcepts:
    """Person (value 0), skis (34) and wood (181), and unlabelled pixels; ``labels.txt`` in its first or its later form."""
    g = np.random.default_rng(3)
    names, masks = [], []
    for k in range(ENOUGH):
        split = ("train2017", "val2017")[k // 4]
        names.append(f"images/{split}/{k:012d}.jpg")
        values = g.choice([0, 34, 181, 255], SIZES[k]).astype(np.uint8)
        write_image(root / names[-1], k)
        write_map(root / "annotations" / split / f"{k:012d}.png", values)
        masks.append({"object": np.where(values == 255, 0, values.astype(np.int32) + 1)[None]})
    things = {1: "person", 35: "skis", 182: "wood"}
    lines = {0: "unlabeled", **things} if not by_value else {**{k - 1: v for k, v in things.items()}, 255: "unlabeled"}
    (root / "labels.txt").write_text("".join(f"{k}: {name}\n" for k, name in lines.items()))
    return TinyConcepts(
        root, names, ["train"] * 4 + ["val"] * 2, masks, {k: (name, "object") for k, name in things.items()}
    )


def write_masks(root: Path, *, bits: int = 8) -> TinyConcepts:
    """One category, one mask an image, in a subfolder; ``bits`` 8, 16, or 24 for RGB. The split is in ``split.csv``."""
    g = np.random.default_rng(4)
    far = 200 if bits == 8 else 300
    names, masks, rows = [], [], ["image,split"]
    for k in range(ENOUGH):
        name = f"a/image {k}"
        names.append(f"images/{name}.jpg")
        labels = g.choice([0, 1, far], SIZES[k])
        write_image(root / names[-1], k)
        if bits == 24:
            rgb = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], -1).astype(np.uint8)
            write_map(root / "masks" / f"{name}.png", rgb)
        else:
            write_map(root / "masks" / f"{name}.png", labels.astype(np.uint8 if bits == 8 else np.uint16))
        masks.append({"object": labels[None]})
        rows.append(f"{name}{'.jpg' if k % 2 else ''},{'val' if k % 3 == 2 else 'train'}")
    (root / "split.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.csv").write_text(f"number,name\n0,nothing\n1,sky\n{far},sea\n")
    splits = ["val" if k % 3 == 2 else "train" for k in range(ENOUGH)]
    return TinyConcepts(root, names, splits, masks, {1: ("sky", "object"), far: ("sea", "object")})


WRITERS = {"voc": write_voc, "ade20k": write_ade20k, "cocostuff": write_cocostuff, "masks": write_masks}
