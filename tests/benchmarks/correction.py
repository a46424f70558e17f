"""Is the demo's planted shortcut found and taken out? ``python -m tests.benchmarks.correction [--seeds 0,1,...] [--out DIR] [--random R]``.

For each seed, of world and network: the demo with EDDP alone, without report and explanations; no direction is named. Accuracies are of
the images that were not held out to choose on; random directions are each at their own best strength. Several minutes a seed; a second
run with the same ``--out`` keeps worlds, networks and activations.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from evaluate.correct.correction_study import CorrectConfig
from pipeline.demo import run_demo

COLUMNS = ("seed", "first suspect", "poisoned", "clean", "filter", "random: mean", "95th percentile", "best", "problem")


@click.command()
@click.option("--seeds", default="0,1,2,3,4,5,6,7,8,9", show_default=True)
@click.option("--out", type=Path, default=None, help="Folder to keep everything in.  [default: a temporary one]")
@click.option("--random", "randoms", default=100, show_default=True, help="Random directions to compare with.")
def main(seeds: str, out: Path | None, randoms: int) -> None:
    """Run the demo's correction over seeds, and count in how many it does what it should."""
    with tempfile.TemporaryDirectory() as temporary:
        say = sys.stdout.write
        say(f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|\n")
        found = []
        for seed in map(int, seeds.split(",")):
            found.append(_measure((out or Path(temporary)) / f"seed{seed}", seed, randoms))
            say(_line(seed, found[-1]))
            sys.stdout.flush()
        say("\n" + _counts(found))


def _measure(folder: Path, seed: int, randoms: int) -> dict[str, Any]:
    """One seed: the correction's summary, the ``mark`` that was planted, and ``suspect``, the label of the first one."""
    config = CorrectConfig(randoms=randoms)
    result = run_demo(folder, seed=seed, methods=("eddp",), pages=False, correct=config)
    suspects = result["directions"]["eddp"]["influence"]["suspects"]
    mark = json.loads((folder / "world" / "world.json").read_bytes())["mark"]
    return {**result.get("corrected", {}), "mark": mark, "suspect": suspects[0]["label"] if suspects else ""}


def _line(seed: int, one: dict[str, Any]) -> str:
    cells = [str(seed), one["suspect"] or "none"]
    if "poisoned" in one:
        cells += [
            f"{100 * one[which]['before']:.1f} → {100 * one[which]['after']:.1f}" for which in ("poisoned", "clean")
        ]
        own = one["poisoned"]["own_strength"]
        cells += [f"{100 * own[key]:.1f}" for key in ("filter", "random_mean", "random_percentile_95", "random_best")]
        cells.append(one["problem"] or "")
    return f"| {' | '.join(cells)} |\n"


def _counts(found: list[dict[str, Any]]) -> str:
    done = [one for one in found if "poisoned" in one]
    gains, costs = (np.array([one[which]["gain"] for one in done]) for which in ("poisoned", "clean"))
    after = np.array([one["poisoned"]["after"] for one in done])
    own = [one["poisoned"]["own_strength"] for one in done]
    rows = {
        "the mark is the first suspect": sum(one["suspect"] == one["mark"] for one in found),
        "poisoned accuracy +30 points or more": (gains >= 0.3).sum(),
        "signal vector better than the filter": sum(after > [one["filter"] for one in own]),
        "signal vector better than the 95th percentile of random directions": sum(
            after > [one["random_percentile_95"] for one in own]
        ),
    }
    lines = [f"* {what}: {count} of {len(found)}" for what, count in rows.items()]
    if done:
        lines.append(f"* poisoned {100 * gains.mean():+.1f} points, clean {100 * costs.mean():+.1f}, in the mean")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
