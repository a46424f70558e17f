"""``evaluate --pairs``: the network's own activations of each pair, names from names.csv, and folders that do not hold pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from command_line import Run, fails, ok
from PIL import Image
from tiny import write_images

from pipeline.world.pairs import write_pairs
from stores.directions import Directions
from stores.readers import LayerReader


def test_a_direction_moves_with_what_it_is_named_after(run: Run, tmp_path: Path) -> None:
    g, pairs = np.random.default_rng(0), tmp_path / "pairs"
    for k, attribute in enumerate(("red_light", "blue")):
        (pairs / attribute).mkdir(parents=True)
        for i in range(8):
            pixels = g.integers(0, 100, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(pairs / attribute / f"{i}_a.png")
            pixels[..., 2 * k] += g.integers(90, 150, dtype=np.uint8)
            Image.fromarray(pixels).save(pairs / attribute / f"{i}_b.png")
    store, file = tmp_path / "s.zarr", tmp_path / "n.safetensors"
    extract = "extract --model tiny_net:build --layer first --dtype float32 --data"
    ok(run(extract, write_images(tmp_path / "images", 12), "--out", store))
    ok(run("fit --method neurons --directions 6 --store", store, "--out", file))
    # what each direction should do, from activations that were extracted by hand
    ok(run(extract, f"folder:{pairs}", "--out", tmp_path / "pairs.zarr"))
    reader = LayerReader(tmp_path / "pairs.zarr")
    pooled = dict(zip(reader.store.names, reader.images(np.arange(32)).mean(1, dtype=float), strict=True))
    filters = Directions.load(file).filters.astype(float)
    t = {}
    for attribute in ("blue", "red_light"):
        d = np.stack([pooled[f"{attribute}/{i}_b.png"] - pooled[f"{attribute}/{i}_a.png"] for i in range(8)]) @ filters
        t[attribute] = d.mean(0) / (d.std(0, ddof=1) / 8**0.5)
    reddest = int(np.argmax(t["red_light"] - t["blue"]))
    (tmp_path / "names.csv").write_text(f"direction,name\n{reddest},Red light\n")
    command = ("evaluate --store", store, "--directions", file, "--pairs")
    ended = ok(run(*command, pairs, "--json"))
    rows = pyarrow.parquet.read_table(tmp_path / "evaluation" / "pairs.parquet").to_pylist()
    for row in rows:
        assert row["t"] == pytest.approx(t[row["attribute"]][row["index"]], rel=1e-4)
    named = [row for row in rows if row["named"]]
    assert [(row["index"], row["attribute"], row["moves"]) for row in named] == [(reddest, "red_light", True)]
    entry = json.loads(ended.out)["directions"]["n"]["pairs"]
    moving = {row["index"] for row in rows if row["moves"]}
    assert (entry["named"], entry["agreeing"], entry["precision"], entry["moving"]) == (1, 1, 1, len(moving))
    assert entry["recall"] == pytest.approx(1 / len(moving), abs=1e-4)
    page = (tmp_path / "evaluation" / "report" / "n" / "index.html").read_text(encoding="utf-8")
    assert "1 of 1 directions named after one of 2 attributes move with it" in page
    # what is no folder of pairs
    fails(run(*command, tmp_path / "none"), 2, "none")
    fails(run(*command, tmp_path / "images"), 2, "cat")
    (tmp_path / "other").mkdir()
    synthetic = tmp_path / "synthetic.zarr"
    ok(run("eddp synthetic --images 50 --out", synthetic))
    ok(run("fit --method kmeans --directions 2 --store", synthetic, "--out", tmp_path / "other" / "y.safetensors"))
    fails(
        run("evaluate --store", synthetic, "--directions", tmp_path / "other" / "y.safetensors", "--pairs", pairs),
        2,
        "synthetic",
    )
    (pairs / "blue" / "3_b.png").unlink()
    fails(run(*command, pairs), 2, "blue", "3")


def test_the_worlds_pairs_differ_in_one_thing(tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    labels = write_pairs(out, pairs=2, size=48, seed=3)
    assert {"cow", "palm", "watermark"} <= set(labels)
    for label in labels:
        assert sorted(path.name for path in (out / label).iterdir()) == ["000_a.png", "000_b.png", "001_a.png", "001_b.png"]  # fmt: skip
        without, there = (np.asarray(Image.open(out / label / f"000_{side}.png"), int) for side in "ab")
        changed = (np.abs(there - without).sum(2) > 0).mean()
        assert 0 < changed < 0.6, label
    kept = (out / "cow" / "000_b.png").stat().st_mtime_ns
    write_pairs(out, pairs=2, size=48, seed=3)
    assert (out / "cow" / "000_b.png").stat().st_mtime_ns == kept
    again = tmp_path / "again"
    write_pairs(again, pairs=1, size=48, seed=3)
    assert (again / "cow" / "000_b.png").read_bytes() == (out / "cow" / "000_b.png").read_bytes()
