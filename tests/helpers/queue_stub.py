"""A queue that runs every job at once, where it stands: ``sbatch``, ``srun`` and ``scontrol`` as far as a job can tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# As SLURM does: a script, or what stands on stdin, is run from a copy, with an array's variables; a job whose dependency
# has not succeeded is not run. Every submission and all output are kept.
SBATCH = """#!/bin/bash
set -eu
echo "$*" >> "$QUEUE/submitted"
ids="" script=""
for argument in "$@"; do
    case "$argument" in
        --array=*) range="${argument#--array=}"; ids=$(seq "${range%-*}" "${range#*-}") ;;
        --dependency=afterok:*) test -f "$QUEUE/done-${argument##*:}" ;;
        -*) ;;
        *) script="$argument" ;;
    esac
done
number=$(( $(ls "$QUEUE" | grep -c '^job-' || true) + 100 ))
if [ -n "$script" ]; then cp "$script" "$QUEUE/job-$number"; else cat > "$QUEUE/job-$number"; fi
export SLURM_JOB_ID=$number
if [ -n "$ids" ]; then
    export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=$(echo $ids | wc -w)
    export SLURM_ARRAY_TASK_MIN=${range%-*} SLURM_ARRAY_TASK_MAX=${range#*-}
    for id in $ids; do SLURM_ARRAY_TASK_ID=$id bash "$QUEUE/job-$number" >> "$QUEUE/log" 2>&1; done
else
    bash "$QUEUE/job-$number" >> "$QUEUE/log" 2>&1
fi
touch "$QUEUE/done-$number"
case " $* " in *" --parsable "*) echo "$number" ;; *) echo "Submitted batch job $number" ;; esac
"""
SRUN = '#!/bin/bash\nexec "$@"\n'
SCONTROL = '#!/bin/bash\ntest "$1 $2 $3" = "show hostnames node[1-2]"\nprintf "localhost\\nnode2\\n"\n'


def queue(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the queue's commands are there; its jobs and their ``log`` lie in ``folder``."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), environment["PATH"]])
    return {**environment, "PATH": path, "QUEUE": str(folder)}
