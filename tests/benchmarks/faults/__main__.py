"""Attacks on the commands, with tiny inputs: ``python -m tests.benchmarks.faults [kills flips hostile memory] [--trials N] [--seed S] [--folder F]``.

Prints one row of a Markdown table per kind; details of every fault go to stderr, and the exit code is 1 if there is any. Faults are

* lost: what was complete is not any more, or the same command run again does not give the bytes of one that was never killed
* silent: another result than from sound files and no message, or damage that ``eddp verify`` does not find
* hanging: no end within three minutes, or a process that outlives its command
* unexpected: a traceback, an exit code of another kind, or anything but one short message

Commit nothing meanwhile: stores name the version of the code.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import stores.layout
from tests.benchmarks.faults.files import flips, hostile
from tests.benchmarks.faults.processes import kills, memory
from tests.benchmarks.faults.world import FAULTS, World

KINDS = {"kills": (kills, 42), "flips": (flips, 315), "hostile": (hostile, 0), "memory": (memory, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--trials", type=int, help="of each kind; 0: all there are of hostile and memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; inputs that are there are used again")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"there is no kind {min(unknown)}")
    torch.set_num_threads(1)
    bad = 0
    sys.stdout.write(f"| kind | trials | {' | '.join(FAULTS)} | seconds |\n|{'---|' * 7}\n")
    with tempfile.TemporaryDirectory(prefix="eddp-faults-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        stores.layout.TARGET_CHUNK_BYTES = 512  # else there is one chunk
        world = World(folder)
        for kind in given.kinds or KINDS:
            attack, usual = KINDS[kind]
            seen: Counter[str] = Counter()
            start = time.monotonic()
            try:
                for trial in attack(world, random.Random(given.seed), usual if given.trials is None else given.trials):
                    seen.update(["trials", *([trial.fault] if trial.fault else [])])
                    if trial.fault:
                        sys.stderr.write(f"{trial.fault}: {trial.what}: {trial.detail}\n")
                        sys.stderr.flush()
            finally:  # an interrupted run prints what it saw
                bad += seen.total() - seen["trials"]
                counts = " | ".join(str(seen[key]) for key in ("trials", *FAULTS))
                sys.stdout.write(f"| {kind} | {counts} | {time.monotonic() - start:.0f} |\n")
                sys.stdout.flush()
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
