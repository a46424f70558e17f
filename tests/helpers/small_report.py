"""An evaluation with everything in it, small: a concept dataset, a store, two sets of directions, influence."""

from __future__ import annotations

from pathlib import Path

from tiny import write_broden

from pipeline.commands.evaluate import evaluate
from pipeline.commands.extract import extract
from pipeline.commands.fit import fit
from pipeline.commands.report import report

FEW = ("--influence", "--null-directions", 8, "--null-positions", 40, "--influence-images", 20)


def do(command: object, *arguments: object) -> None:
    """Run a command in this process, as its console script would."""
    command.main([str(a) for a in (*arguments, "--quiet")], standalone_mode=False)  # type: ignore[attr-defined]


def small_evaluation(folder: Path, *, images: int = 12, directions: int = 6, influence: bool = True) -> Path:
    """``broden/``, ``acts.zarr``, ``eddp.safetensors``, ``kmeans.safetensors`` and ``evaluation/`` in a folder; returns the last."""
    broden = write_broden(folder / "broden", images=images).root
    store, trust = folder / "acts.zarr", ("--model", "tiny_net:build")
    do(extract, *trust, "--layer", "second", "--data", broden, "--out", store)
    files: list[object] = []
    for method, settings in (("eddp", ("--set", "refine_steps=20", "--set", "restarts=1")), ("kmeans", ())):
        out = folder / f"{method}.safetensors"
        do(fit, "--store", store, "--directions", directions, "--method", method, "--out", out, *settings)
        files += ["--directions", out]
    do(evaluate, "--store", store, *files, "--broden", broden, *trust, *(FEW if influence else ()))
    return folder / "evaluation"


def small_report(folder: Path, **options: int) -> Path:
    """The report of such an evaluation, without pictures synthesised; returns its folder."""
    do(
        report,
        small_evaluation(folder, **options),
        "--visualize",
        "none",
        "--title",
        "A <b>small</b> layer",
        "--model",
        "tiny_net:build",
    )
    return folder / "report"
