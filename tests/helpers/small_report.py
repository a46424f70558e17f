"""An evaluation with everything in it, small: a concept dataset, a store, two sets of directions, influence."""

from __future__ import annotations

from pathlib import Path

from command_line import do
from tiny import write_broden

FEW = "--influence --null-directions 8 --null-positions 40 --influence-images 20"


def small_evaluation(folder: Path, *, images: int = 12, directions: int = 6) -> Path:
    """``broden/``, ``acts.zarr``, ``eddp.safetensors``, ``kmeans.safetensors`` and ``evaluation/`` in a folder; returns the last."""
    broden, store = write_broden(folder / "broden", images=images).root, folder / "acts.zarr"
    do("extract --model tiny_net:build --layer second --data", broden, "--out", store, "--quiet")
    files: list[object] = []
    for method, settings in (("eddp", ("--set refine_steps=20 --set restarts=1",)), ("kmeans", ())):
        out = folder / f"{method}.safetensors"
        do("fit --store", store, f"--directions {directions} --method {method} --out", out, *settings, "--quiet")
        files += ["--directions", out]
    do("evaluate --store", store, *files, "--broden", broden, FEW, "--quiet")
    return folder / "evaluation"


def small_report(folder: Path, **options: int) -> Path:
    """The report of such an evaluation, without pictures synthesised; returns its folder."""
    do(
        "eddp report",
        small_evaluation(folder, **options),
        "--visualize none --title",
        "A <b>small</b> layer",
        "--quiet",
    )
    return folder / "report"
