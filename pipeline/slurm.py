"""Which shard of an extraction this process is: said by hand, or read from what SLURM and torchrun set.

SLURM's job arrays set SLURM_ARRAY_TASK_ID, _MIN, _MAX, _STEP and _COUNT; torchrun sets RANK, WORLD_SIZE and LOCAL_RANK. Where
both are there, each task of the array is as many shards as it has ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.options import share_of
from stores.errors import UsageError

ARRAY = "SLURM_ARRAY_TASK_"


def shard_of(text: str | None, environ: Mapping[str, str]) -> tuple[int, int] | None:
    """``--shard`` as (i, n): ``2/8``, or ``auto`` by the environment; None where there is one process for all.

    Raises UsageError for anything else, for an environment that says nothing, or not everything, and under torchrun without
    ``--shard``: all its processes would do the same.
    """
    rank = _rank(environ)
    if text == "auto":
        task = _task(environ)
        if task is None and rank is None:
            raise UsageError(
                f"--shard auto finds no job array ({ARRAY}ID) and no torchrun (RANK, WORLD_SIZE) in its environment. Start it "
                "with sbatch --array=0-7 or with torchrun, or say it by hand: --shard 0/8."
            )
        (i, n), (r, w) = task or (0, 1), rank or (0, 1)
        return i * w + r, n * w
    if text is None and rank is not None and rank[1] > 1:
        raise UsageError(
            f"torchrun has started {rank[1]} of these processes, and each would do all of the work: add --shard auto, by which "
            "each fills its part of the store."
        )
    return share_of("--shard", text)


def device_of(device: str, environ: Mapping[str, str], devices: int) -> str:
    """``auto`` and ``cuda`` -> ``cuda:LOCAL_RANK`` under torchrun, where there are CUDA devices; all else as it is."""
    if device not in ("auto", "cuda") or not devices or _rank(environ) is None or "LOCAL_RANK" not in environ:
        return device
    return f"cuda:{_number(environ, 'LOCAL_RANK')}"


def _rank(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """(rank, world size) of torchrun."""
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if not rank < size:
        raise UsageError(f"RANK={rank} and WORLD_SIZE={size} are no rank of torchrun's: it is below the size.")
    return rank, size


def _task(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """(index, count) of a task in its job array."""
    if f"{ARRAY}ID" not in environ:
        return None
    number = {name: _number(environ, ARRAY + name) for name in ("ID", "MIN", "MAX") if ARRAY + name in environ}
    task, low = number["ID"], number.get("MIN", 0)
    step = _number(environ, f"{ARRAY}STEP") if f"{ARRAY}STEP" in environ else 1
    step = max(step, 1)
    if f"{ARRAY}COUNT" in environ:
        count = _number(environ, f"{ARRAY}COUNT")
    elif "MAX" in number:  # SLURM before 17.11
        count = (number["MAX"] - low) // step + 1
    else:
        raise UsageError(f"{ARRAY}ID is set, but not {ARRAY}COUNT: say which shard this is by hand, --shard I/N.")
    if count == 1:  # one task that was lost, under its old number: it does whatever is missing
        return 0, 1
    index, rest = divmod(task - low, step)
    whole = number.get("MAX", low + (count - 1) * step) == low + (count - 1) * step
    if rest or not 0 <= index < count or not whole:
        raise UsageError(
            f"The ids of this job array are no range ({count} ids from {low} to {number.get('MAX', '?')}, {step} apart; this is "
            f"{task}), so no shard follows from them: submit --array=0-{count - 1}, which does whatever is missing, or give "
            "--shard I/N."
        )
    return index, count


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not text.isdecimal():
        raise UsageError(f"{name} must be an integer, got '{environ[name]}': it is set by SLURM or torchrun.")
    return int(text)
