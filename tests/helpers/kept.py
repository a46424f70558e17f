"""What the stores under ``tests/fixtures`` hold; run as a program with a folder, it writes them in the present format."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tiny import write_store

from stores.format import LayerSpec

NAMES = ["a/1.jpg", "a/2.jpg", "b/grün.jpg", "b/broken.jpg", "c/5.jpg"]
VALID = np.array([True, True, True, False, True])
LAYERS = {
    "block.1": np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3) / 8,
    "late": np.arange(5 * 2 * 2, dtype=np.float32).reshape(5, 2, 2) - 7.5,
}
POSITIONS = np.array([[0, 8], [1, 2], [3, 4], [5, 6], [2, 7]])
OPTIONS = {
    "specs": {"block.1": LayerSpec("block.1", (2, 2), 3), "late": LayerSpec("late", (3, 3), 2, 0, 2)},
    "heads": {"block.1": (np.arange(9, dtype=np.float32).reshape(3, 3), np.array([1, 2, 3], np.float32))},
    "chunk_images": 2,
    "dtype": "float16",
    "class_names": ["ant", "bee", "cat"],
    "names": NAMES,
}
CONTENT = {"names": NAMES, "valid": VALID, "positions": {"late": POSITIONS}}
ALL = {**OPTIONS, **CONTENT}


def write(folder: Path) -> None:
    """A store of each codec, and one of which only chunk 1 is committed."""
    for name, options, chunks in (
        ("none", {}, None), ("zstd", {"compress": "zstd"}, None), ("unfinished", {}, [1])
    ):  # fmt: skip
        write_store(folder / f"{name}.zarr", LAYERS, chunks=chunks, **ALL, **options)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
