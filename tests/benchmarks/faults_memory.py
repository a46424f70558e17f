"""Commands on tiny inputs under falling limits of address space: ``python -m tests.benchmarks.faults_memory``.

Each must end in time: done, or with exit code 1 and one message that says memory. Takes some minutes; exits with 1 for the first fault.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from small_report import small_evaluation  # noqa: E402

LIMITS = (600, 900, 1100, 1300, 1700, 2200, 2500)  # MiB
TRUST = ("--model", "tiny_net:build")
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pipeline import entry
entry.eddp()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluation = small_evaluation(folder, directions=3)
        store, images = folder / "acts.zarr", folder / "broden" / "images"
        first, found = next(path for path in images.rglob("*") if path.is_file()), folder / "kmeans.safetensors"
        fit = ("--directions", 3, "--refits", 1, "--set", "refine_steps=5", "--set", "restarts=1")
        commands = {
            "extract": (*TRUST, "--layer", "second", "--data", folder / "broden"),
            "fit": ("--store", store, *fit),
            "evaluate": ("--store", store, "--directions", found, "--broden", folder / "broden", *TRUST),
            "report": (evaluation, "--visualize", "none", *TRUST),
            "explain": (first, "--evaluation", evaluation, *TRUST),
            "correct": (evaluation, "--data", images, "--poisoned", images, "--random", 2, "--direction", 0, *TRUST),
            "verify": (store,),
            "inspect": (store,),
        }
        for command, arguments in commands.items():
            for limit in LIMITS:
                out = () if command in ("verify", "inspect") else ("--out", folder / f"{command}-{limit}")
                check(limit, command, *arguments, *out, "--quiet")


def check(limit: int, command: str, *arguments: object) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), command, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": f"{HELPERS}:{Path.cwd()}"},
    )  # fmt: skip
    said = ended.stderr.strip().splitlines()[-1:]
    sys.stdout.write(f"{command} {limit} MiB: {ended.returncode} {' '.join(said)}\n")
    sys.stdout.flush()
    if ended.returncode and (ended.returncode != 1 or "enough memory" not in " ".join(said)):
        sys.exit(ended.stderr)


if __name__ == "__main__":
    main()
