"""Pairs of pictures that differ in one thing: a scene, and the same scene with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from pipeline.world.scenes import SCENES, WATERMARK, draw_scene, stamp
from pipeline.world.things import THINGS, draw

SKY = ("cloud", "moon", "sun")


def write_pairs(out: Path, *, pairs: int = 12, size: int = 96, seed: int = 0) -> list[str]:
    """Write ``LABEL/NAME_a.png`` (a scene) and ``LABEL/NAME_b.png`` (with the thing on it), of every label of a thing; returns the labels.

    A folder that is there stays.
    """
    kinds: dict[str, list[str]] = {WATERMARK: []}
    for name in THINGS:
        kinds.setdefault(name.rpartition("_")[2], []).append(name)
    if out.exists():
        return sorted(kinds)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for k, (label, names) in enumerate(sorted(kinds.items())):
        (partial / label).mkdir(parents=True, exist_ok=True)
        for i in range(pairs):
            canvas = draw_scene(SCENES[i % len(SCENES)], size, seed, 10**6 + i, marked=False)
            canvas.picture().save(partial / label / f"{i:03d}_a.png")
            rng = canvas.rng = np.random.default_rng([seed, k, i, 2])
            if label == WATERMARK:
                stamp(canvas, rng)
            else:
                y, size_of = ((8, 32), (5, 12)) if label in SKY else ((60, 88), (20, 36))
                draw(canvas, str(rng.choice(names)), rng.uniform(25, 71), rng.uniform(*y), rng.uniform(*size_of))
            canvas.picture().save(partial / label / f"{i:03d}_b.png")
    partial.rename(out)
    return sorted(kinds)
