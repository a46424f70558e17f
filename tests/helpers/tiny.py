"""Small stores and Broden folders, written for a test."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stores.format import LayerSpec, read_attributes
from stores.io import checksum, json_bytes
from stores.layout import StorePlan
from stores.manifest import ManifestHeader, fingerprint_of
from stores.store import ActivationStore
from stores.writer import StoreWriter

LABELS = {
    1: ("red", "color"),
    2: ("blue", "color"),
    3: ("dog", "object"),
    4: ("cat", "object"),
    5: ("leg", "part"),
    6: ("head", "part"),
    7: ("street", "scene"),
    300: ("kitchen", "scene"),  # above 255: the green channel carries it
    301: ("stripes", "texture"),
}


def open_writer(
    path: Path,
    layers: Mapping[str, np.ndarray],
    *,
    names: Sequence[str] | None = None,
    n_classes: int = 3,
    chunk_images: int | None = 4,
    dtype: str = "float32",
    compress: str = "none",
    specs: Mapping[str, LayerSpec] | None = None,
    heads: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    provenance: dict[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> StoreWriter:
    """A writer for layers given as name -> (N, P, C)."""
    n = len(next(iter(layers.values())))
    plan = StorePlan(
        layers=[(specs or {}).get(k, LayerSpec(k, (1, x.shape[1]), x.shape[2])) for k, x in layers.items()],
        names=names_for(n) if names is None else names,
        n_classes=n_classes,
        provenance=provenance or {"model": "by hand"},
        class_names=class_names,
        dtype=dtype,
        compress=compress,
        chunk_images=chunk_images,
        heads=heads,
    )
    return StoreWriter.open(path, plan, shard=shard, overwrite=overwrite)


def noise(n: int, p: int = 3, c: int = 2, seed: int = 0) -> np.ndarray:
    """(n, p, c) float32."""
    return np.random.default_rng(seed).normal(size=(n, p, c)).astype(np.float32)


def names_for(n: int) -> list[str]:
    return [f"c{i % 2}/image {i}.jpg" for i in range(n)]


def fill(
    writer: StoreWriter,
    layers: Mapping[str, np.ndarray],
    *,
    names: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    logits: np.ndarray | None = None,
    positions: Mapping[str, np.ndarray] | None = None,
    chunks: Sequence[int] | None = None,
) -> None:
    """Commit some chunks (those that are missing, by default) of the given arrays."""
    n = writer.n_images
    names = names_for(n) if names is None else names
    labels = np.arange(n) % 3 if labels is None else labels
    valid = np.ones(n, bool) if valid is None else valid
    logits = (
        np.arange(n * writer.attributes["n_classes"], dtype=np.float32).reshape(n, -1) if logits is None else logits
    )
    for k in writer.missing() if chunks is None else chunks:
        part = slice(k * writer.chunk_images, min(n, (k + 1) * writer.chunk_images))
        kept = {name: x[part].astype(writer.attributes["dtype"]) for name, x in layers.items()}
        for x in kept.values():
            x[~valid[part]] = np.nan
        bad = [i for i in np.flatnonzero(~valid).tolist() if i in range(n)[part]]
        rows = {"names": names[part], "labels": labels[part], "valid": valid[part], "logits": logits[part]}
        places = {name: p[part] for name, p in (positions or {}).items()}
        skipped = [{"row": i, "name": names[i], "reason": "bad"} for i in bad]
        writer.commit(k, **rows, activations=kept, positions=places, skipped=skipped)


def write_store(
    path: Path, layers: Mapping[str, np.ndarray], *, chunks: Sequence[int] | None = None, **options: Any
) -> Path:
    """A sealed store of layers given as name -> (N, P, C), new or resumed; with ``chunks``, only those, and not sealed.

    ``options`` are those of ``open_writer`` and ``fill``.
    """
    ours = {key: options.pop(key) for key in ("labels", "valid", "logits", "positions") if key in options}
    writer = open_writer(path, layers, **options)
    try:
        fill(writer, layers, names=options.get("names"), chunks=chunks, **ours)
        if chunks is None:
            writer.seal()
    finally:
        writer.close()
    return path


def edit_attributes(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the attributes of a store and reseal it."""
    document = json.loads((path / "zarr.json").read_bytes())
    change(document["attributes"]["eddp"])
    (path / "zarr.json").write_bytes(json_bytes(document))
    reseal(path)


def reseal(path: Path) -> None:
    """Have a store's manifest agree with whatever is there, as an attacker would."""
    file = path / "manifest.jsonl"
    if file.exists():
        body = file.read_bytes().partition(b"\n")[2]
        root = checksum((path / "zarr.json").read_bytes())
        header = ManifestHeader(body.count(b"\n"), fingerprint_of(body.removesuffix(b"\n")), root)
        file.write_bytes(header.line() + b"\n" + body)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_images(folder: Path, n: int, size: int = 20) -> Path:
    """n noisy PNG images in two class folders."""
    g = np.random.default_rng(5)
    for i in range(n):
        file = folder / ("cat", "dog")[i * 2 // n] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(g.integers(0, 256, (size, size, 3), np.uint8)).save(file)
    return folder


@dataclass(frozen=True)
class TinyBroden:
    """A Broden folder, and what each image's ``masks`` must give."""

    root: Path
    masks: list[dict[str, np.ndarray]]


def write_broden(root: Path, *, images: int = 6, size: int = 24, mask: int = 12, seed: int = 0) -> TinyBroden:
    """A small correct Broden folder: PNG and image-wide labels, two layers of parts, cells left empty."""
    g = np.random.default_rng(seed)
    (root / "images" / "sub").mkdir(parents=True)
    rows, masks = [], []
    for i in range(images):
        name = f"sub/image {i}.jpg"
        Image.fromarray(g.integers(0, 256, (size, size, 3), np.uint8)).resize((size, size)).save(root / "images" / name)
        truth: dict[str, np.ndarray] = {}
        cells = dict.fromkeys(("color", "object", "part", "scene", "texture"), "")
        truth["color"] = g.choice([0, 1, 2], (1, mask, mask))
        truth["object"] = g.choice([0, 3, 4], (1, mask, mask))
        truth["part"] = np.stack([g.choice([0, 5], (mask, mask)), g.choice([0, 6], (mask, mask))])
        for category, layers in truth.items():
            files = []
            for j, layer in enumerate(layers):
                files.append(f"sub/{i}_{category}_{j}.png")
                write_mask(root / "images" / files[-1], layer)
            cells[category] = ";".join(files)
        scene = 300 if i % 2 else 7
        cells["scene"] = str(scene)
        truth["scene"] = np.full((1, mask, mask), scene)
        if i == 1:  # a second layer, over the whole image
            cells["object"] += ";4"
            truth["object"] = np.concatenate([truth["object"], np.full((1, mask, mask), 4)])
        if i == 2:  # not annotated in parts
            cells["part"] = ""
            del truth["part"]
        if i == 3:
            cells["texture"] = "301"
            truth["texture"] = np.full((1, mask, mask), 301)
        split = "val" if i % 3 == 2 else "train"
        rows.append({"image": name, "split": split, "ih": size, "iw": size, "sh": mask, "sw": mask, **cells})
        masks.append(truth)
    with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as file:
        plain = csv.writer(file)
        plain.writerow(["number", "name", "category", "frequency", "coverage"])
        plain.writerows([k, name, f"{category}(7);other(2)", 7, 0.5] for k, (name, category) in LABELS.items())
    return TinyBroden(root, masks)


def write_mask(path: Path, labels: np.ndarray) -> None:
    """Labels (h, w) as a PNG: label = R + 256·G."""
    rgb = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], -1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def trusted(path: Path) -> ActivationStore:
    """Open a store of one of the tests' own networks: it may be run."""
    return ActivationStore.open(path, model=read_attributes(path)["provenance"]["model"])
